"""Serial numbers: on disk before anything is signed under them.

Theory
------
A serial number must never be used twice, not even when the process dies between signing and recording. So numbers are
reserved in blocks, in a transaction of their own, ahead of need; an issuance holds one, and the transaction that
records the certificate removes its reservation. One fsync serves a block instead of every certificate.

The numbers of a block begin with the time and are used in order, so a store of any size puts them next to each other in
its indexes, while fully random numbers would change a separate page for each
certificate (docs/decisions/0171-certificates-issued-together-share-pages.md).

Rules
-----
1. A number that `reservation` gives is durable, unique in the store, and held by one caller.
2. It may be given to another caller only if nothing was signed under it.
3. A reservation left behind by a dead process is never used: a certificate may have been signed under it. It is never
   removed either: those left are all that bounds what that process may have signed, they are `BLOCK` rows at most for
   each process that is killed, and no age tells whose is dead, since a block lasts as long as nobody enrols.
4. If the store has no reservation of a number, it has lost it with its last commits (a standby took over): nothing is
   recorded under it, and the block is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import bindparam, delete, insert
from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused
from provisioning.store.database import Database
from provisioning.store.prepared import Prepared
from provisioning.store.tables import serial_reservations

BLOCK: Final = 64
_BITS: Final = 126
_RANDOM_BITS: Final = 80  # CA/Browser Forum BR §7.1 asks for 64 of a CSPRNG.
_MILLISECOND: Final = timedelta(milliseconds=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_USE: Final = Prepared(
    delete(serial_reservations).where(serial_reservations.c.serial == bindparam("used")), at_once=True
)


def new_serial() -> int:
    """Return a random positive serial number of 127 bits: always 16 octets in DER, 32 digits in hexadecimal."""
    return (1 << _BITS) | secrets.randbits(_BITS)


def rising_serials(number: int, now: datetime) -> list[int]:
    """Return *number* serial numbers in ascending order: as long as others, and above those of earlier milliseconds.

    80 of their bits are random, so that they are unique even if the clock is set back.
    """
    prefix = (1 << _BITS) | ((now - _EPOCH) // _MILLISECOND << _RANDOM_BITS)
    return sorted(prefix | secrets.randbits(_RANDOM_BITS) for _ in range(number))


def serial_text(serial: int) -> str:
    """Return *serial* as the store and the API write it: lower-case hexadecimal, no leading zeros."""
    return f"{serial:x}"


class NotReserved(Refused):
    """The store does not know a number as reserved."""


@dataclass
class Reservation:
    """A number that one issuance may use; *burnt* once anything may have been signed under it."""

    serial: int
    burnt: bool = False


class SerialNumbers:
    """The block of reserved serial numbers of this process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reserved: Final[list[int]] = []
        """Taken from the end."""
        self._refill: Final = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def reservation(self, now: datetime) -> AsyncIterator[Reservation]:
        """Reserve a number while the block runs; afterwards it is used, burnt, or free for another caller."""
        while not self._reserved:
            async with self._refill:
                if not self._reserved:
                    self._reserved.extend(await self._reserve(now))
        reservation = Reservation(self._reserved.pop())
        try:
            yield reservation
        except NotReserved:
            reservation.burnt = True
            self._reserved.clear()
            raise
        finally:
            if not reservation.burnt:
                self._reserved.append(reservation.serial)

    async def release(self) -> None:
        """Remove this process's unused reservations at an orderly stop."""
        texts = [serial_text(serial) for serial in self._reserved]
        self._reserved.clear()
        if texts:
            statement = delete(serial_reservations).where(serial_reservations.c.serial.in_(texts))
            await self._database.write(lambda connection: connection.execute(statement))

    async def _reserve(self, now: datetime) -> list[int]:
        block = rising_serials(BLOCK, now)
        rows = [{"serial": serial_text(serial), "reserved_at": now} for serial in block]
        await self._database.write(lambda connection: connection.execute(insert(serial_reservations), rows))
        return block[::-1]


def use(connection: Connection, serial: int) -> None:
    """Remove the reservation of a number that is used, in the transaction that records the certificate.

    Raises `NotReserved`.
    """
    if _USE.run(connection, {"used": serial_text(serial)}) != 1:
        raise NotReserved(Code.UNAVAILABLE, f"serial number {serial_text(serial)} is not reserved any more; try again")
