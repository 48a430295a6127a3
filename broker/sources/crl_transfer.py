"""How long the transfer of a CRL may take: as long as it comes on, on a slow link too, and never for ever.

Theory
------
A list of 100 KB takes a minute at 20 kbit/s. With a total limit below that it would never arrive, and be transferred
again and again as far as the limit allows. A limit for each wait alone would let a server keep a transfer open with a
byte now and then.

Rules
-----
1. A transfer has ten seconds, and two more for each KiB that has come; a quarter of an hour at most, and half a minute
   without a byte.
2. At a time four are under way, or come and not read yet: of a hundred servers each could send 64 MB, faster than that
   is read. At most two of them may take longer than the ten seconds: slow servers leave room for the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from provisioning.client.list_download import NotFetched

FIRST_SECONDS: Final = 10.0
LONGEST_WAIT: Final = 30.0
"""Seconds without a byte: where each tenth packet is lost, and others wait in a queue, ten of them are no rarity."""
_LONGEST_SECONDS: Final = 900.0
_LEAST_RATE: Final = 512
"""Bytes per second."""
_AT_ONCE: Final = 4
_LONG_AT_ONCE: Final = 2


class CrlTransfers:
    """The transfers of one bundle."""

    def __init__(self) -> None:
        self.places = asyncio.Semaphore(_AT_ONCE)
        """For who transfers a list, until it is read."""
        self.long = 0
        """How many may take longer than the first seconds."""

    @asynccontextmanager
    async def one(self) -> AsyncIterator[CrlTransfer]:
        """Yield a transfer for a caller that has a place. Raises `NotFetched` when its time is over."""
        transfer = CrlTransfer(self)
        try:
            async with transfer.limit:
                yield transfer
        except TimeoutError as error:
            raise NotFetched(transfer.failure) from error
        finally:
            self.long -= transfer.is_long


class CrlTransfer:
    """One of them."""

    def __init__(self, transfers: CrlTransfers) -> None:
        self._transfers = transfers
        self._clock = asyncio.get_running_loop().time
        self._begun = self._clock()
        self._bytes = 0
        self.limit = asyncio.timeout(FIRST_SECONDS)
        self.is_long = False

    def arrived(self, size: int) -> None:
        """Take note that *size* bytes have come by now."""
        self._bytes = size
        if not self.is_long and self._transfers.long < _LONG_AT_ONCE:
            self.is_long = True
            self._transfers.long += 1
        if self.is_long:
            allowed = min(FIRST_SECONDS + size / _LEAST_RATE, _LONGEST_SECONDS)
            self.limit.reschedule(self._begun + allowed)

    @property
    def failure(self) -> str:
        """What is wrong when the time is over."""
        seconds = self._clock() - self._begun
        if not self._bytes:
            return f"no answer within {seconds:.3g} s"
        return f"too slow: {self._bytes} bytes within {seconds:.3g} s, and not the end"
