"""Requests verified, several at a time beside the event loop.

Theory
------
The signature of a request is a tenth of a certificate, and the library verifies it without the interpreter's lock. So
those that come in the same turn of the event loop go to a thread together, and while it verifies them the loop stores
those that came before (docs/decisions/0172-requests-verified-beside-the-loop.md)::

    event loop   read ─ read ─ read ─┐ works of others ─ … ┌── believed or refused ─ works ─ …
    thread                           └── verify ─ verify ──┘

Rules
-----
1. Nothing that a request says is believed before its signature was found good; what is wrong with one is said on the
   event loop, by `provisioning.ca.csr`, wherever it was verified.
2. One that comes while nothing is stored, or alone in its turn, is verified where it is: to hand it over would cost and
   gain nothing.
3. Where `MOST` wait for the thread, those that come are verified on the loop, which takes no more requests meanwhile.
4. Where no thread is to be had they are verified on the loop, too.
5. Who is cancelled waits for nothing. From one event loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from provisioning.ca.csr import UnverifiedRequest, VerifiedRequest, read_csr, verify_csr
from provisioning.ca.key_policy import KeyPolicy

MOST: Final = 64
"""How many may wait for the thread, 10 ms of its time, before no more are handed over."""

_Batch = Sequence[tuple[UnverifiedRequest, "asyncio.Future[bool]"]]


class RequestVerification:
    """Verifies requests, by a thread that there is from the first time that two come together."""

    def __init__(self) -> None:
        self._thread = _thread()
        self._came: list[tuple[UnverifiedRequest, asyncio.Future[bool]]] = []
        """In this turn."""
        self._handed_over = 0

    async def verify(self, der: bytes, key_policy: KeyPolicy, *, alone: bool = False) -> VerifiedRequest:
        """Return what the request in *der* asks for; raise `RequestRefused`: as `verify_csr` does.

        *alone* says that the event loop has nothing else to do meanwhile.
        """
        if alone:
            return verify_csr(der, key_policy)
        request = read_csr(der, key_policy)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        if not self._came:
            loop.call_soon(self._end_turn, loop)
        self._came.append((request, future))
        return request.verified(signed_as_usual=await future)

    def _end_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        batch, self._came = self._came, []
        if len(batch) == 1 or self._handed_over >= MOST:
            _settle(batch, _verified(batch))
        else:
            self._hand_over(loop, batch)

    def _hand_over(self, loop: asyncio.AbstractEventLoop, batch: _Batch) -> None:
        self._handed_over += len(batch)
        try:
            self._thread.submit(self._work, loop, batch)
        except RuntimeError:  # Nor will there be one for what it has queued: the next batch asks for another.
            self._thread = _thread()
            self._take_back(batch, _verified(batch))

    def _work(self, loop: asyncio.AbstractEventLoop, batch: _Batch) -> None:
        loop.call_soon_threadsafe(self._take_back, batch, _verified(batch))

    def _take_back(self, batch: _Batch, found: Sequence[bool | Exception]) -> None:
        self._handed_over -= len(batch)
        _settle(batch, found)


def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="verifier")


def _verified(batch: _Batch) -> list[bool | Exception]:
    found: list[bool | Exception] = []
    for request, _ in batch:
        try:
            found.append(request.is_signed_as_usual())
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told to whoever has brought the request
            found.append(error)
    return found


def _settle(batch: _Batch, found: Sequence[bool | Exception]) -> None:
    for (_, future), each in zip(batch, found, strict=True):
        if future.done():  # Cancelled.
            continue
        if isinstance(each, Exception):
            future.set_exception(each)
        else:
            future.set_result(each)
