"""Reads an answer of the service whole, within a limit of bytes and of seconds.

The server has proved to be the service, so this is about one that is broken: an answer without an end would fill the
memory of whoever asked, and one that comes drop by drop would hold up a job that runs each night, for ever: the
library's time limit is for each wait. Nothing is compressed, so no few bytes stand for many.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import httpx

from provisioning.client.bounded_head import body_follows
from provisioning.client.plain_http import AnswerRefused, body_of

MOST_BYTES: Final = 32 * 1024 * 1024
"""The largest answer is about a thousand devices that are revoked together: a few hundred bytes a certificate."""
_SECONDS: Final = 300.0
"""From the request to the end of its answer. A page of a list takes as long over a link of a kilobyte a second."""


class UnfitAnswer(httpx.RemoteProtocolError):
    """The answer is not read to its end; the text says why."""


async def ask(pool: httpx.AsyncClient, method: str, url: str, **request: Any) -> httpx.Response:
    """Send a request as `httpx.AsyncClient.request` does, and return the answer whole. Raises `httpx.HTTPError`."""
    try:
        async with asyncio.timeout(_SECONDS), pool.stream(method, url, **request) as response:
            body_follows(response)
            return await _read(response)
    except TimeoutError as error:
        raise UnfitAnswer(f"it is not here after {_SECONDS:g} s") from error


async def _read(response: httpx.Response) -> httpx.Response:
    try:
        content = await body_of(response, MOST_BYTES)
    except AnswerRefused as error:
        raise UnfitAnswer(str(error)) from error
    return httpx.Response(
        response.status_code,
        headers=response.headers,
        content=content,
        request=response.request,
        extensions=response.extensions,
    )
