"""Downloads one CRL from an http URL, for broker and provisioning: bounded in size, and only if it has changed.

The caller bounds the time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from provisioning.client.plain_http import NOT_MODIFIED, OK, AnswerRefused, HttpFailed, PlainHttp, body_of
from provisioning.client.validators import conditions, validator_of


class NotFetched(Exception):
    """The list could not be fetched; the text says why."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """The list, and the validators for asking whether it has changed."""

    content: bytes
    etag: str
    modified: str


async def download(
    http: PlainHttp,
    url: str,
    *,
    etag: str,
    modified: str,
    most_bytes: int,
    arrived: Callable[[int], None] = lambda _bytes: None,
) -> Fetched | None:
    """Return the list at *url*; None if it is unchanged since *etag* or *modified*. Raises `NotFetched`.

    *arrived* is called with how many bytes have come, again and again.
    """
    headers = {"Accept": "application/pkix-crl, */*;q=0.5", **conditions(etag, modified)}
    try:
        async with http.asked("GET", url, headers) as response:
            if response.status_code == NOT_MODIFIED and (etag or modified):
                return None
            if response.status_code != OK:
                raise NotFetched(f"HTTP status {response.status_code}")
            content, received = await body_of(response, most_bytes, arrived), response.headers
            return Fetched(content, validator_of(received, "ETag"), validator_of(received, "Last-Modified"))
    except HttpFailed as error:
        raise NotFetched(f"cannot be fetched: {error}") from error
    except AnswerRefused as error:
        raise NotFetched(str(error)) from error
