"""One list from an http URL, as broker and provisioning fetch what is signed: bounded, and once while it is the same.

The caller bounds the time. Nothing is decompressed: a compressed megabyte could be a gigabyte.
"""

from __future__ import annotations

from dataclasses import dataclass

from provisioning.client.plain_http import NOT_MODIFIED, OK, HttpFailed, PlainHttp
from provisioning.client.validators import conditions, validator_of

_IDENTITY = "identity"


class NotFetched(Exception):
    """The list could not be fetched; the text says why."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came, and how to ask whether it is still the same."""

    content: bytes
    etag: str
    modified: str


async def download(http: PlainHttp, url: str, *, etag: str, modified: str, most_bytes: int) -> Fetched | None:
    """Return what is at *url*; None if it is what came with *etag* or *modified* before. Raises `NotFetched`."""
    headers = {
        "Accept": "application/pkix-crl, */*;q=0.5",
        "Accept-Encoding": _IDENTITY,
        **conditions(etag, modified),
    }
    try:
        async with http.asked("GET", url, headers) as response:
            if response.status_code == NOT_MODIFIED and (etag or modified):
                return None
            if response.status_code != OK:
                raise NotFetched(f"HTTP status {response.status_code}")
            received = response.headers
            if received.get("Content-Encoding", _IDENTITY).lower() != _IDENTITY:
                raise NotFetched("the answer is compressed, though it was asked for as it is")
            content = bytearray()
            async for chunk in response.aiter_raw():
                content += chunk
                if len(content) > most_bytes:
                    raise NotFetched(f"more than {most_bytes} bytes")
            return Fetched(bytes(content), validator_of(received, "ETag"), validator_of(received, "Last-Modified"))
    except HttpFailed as error:
        raise NotFetched(f"cannot be fetched: {error}") from error
