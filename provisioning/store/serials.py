"""Serial numbers: on disk before anything is signed under them.

Theory
------
A serial number must never be used twice, not even when the process dies between signing and recording. So numbers are
reserved in blocks, ahead of need; an issuance holds one, and the transaction that records the certificate removes its
reservation. When half of a block is left, one such transaction also reserves the next block, which is used from its
commit on. So while certificates are issued, reserving costs no commit, and nobody waits for it. Only the first block,
and one after many that came at once, has a transaction of its own::

    64 reserved ─ COMMIT ─ certificate ─ … ─ certificate, 64 reserved ─ COMMIT ─ certificate ─ …

The numbers of a block begin with the time and are used in order, so a store of any size puts them next to each other in
its indexes, while fully random numbers would change a separate page for each
certificate (docs/decisions/0171-certificates-issued-together-share-pages.md).

Rules
-----
1. A number that `reservation` gives is durable, unique in the store, and held by one caller.
2. It may be given to another caller only if nothing was signed under it.
3. A reservation left behind by a dead process is never used: a certificate may have been signed under it. It is never
   removed either: those left are all that bounds what that process may have signed, they are a block and a half for
   each process that is killed, and no age tells whose is dead, since a block lasts as long as nobody enrols.
4. If the store has no reservation of a number, it has lost it with its last commits (a standby took over): nothing is
   recorded under it, and the block is left.
"""

from __future__ import annotations

import asyncio
import functools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Final

from sqlalchemy import bindparam, delete, insert
from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused
from provisioning.pki.serial_number import serial_text
from provisioning.store.database import Database
from provisioning.store.prepared import Prepared, Same
from provisioning.store.shared_turn import SharedTurn
from provisioning.store.tables import serial_reservations

BLOCK: Final = 64
_BITS: Final = 126
_RANDOM_BITS: Final = 80  # CA/Browser Forum BR §7.1 asks for 64 of a CSPRNG.
_MILLISECOND: Final = timedelta(milliseconds=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FEW: Final = BLOCK // 2
"""When so many are left, more are reserved."""
_RESERVE: Final = Prepared(insert(serial_reservations), told_by="serial")
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


class NotReserved(Refused):
    """The store does not know a number as reserved."""


@dataclass
class Reservation:
    """A number that one issuance may use; *burnt* once anything may have been signed under it."""

    serial: int
    burnt: bool = False
    following: Sequence[int] = ()
    """Numbers to reserve in the transaction that uses this one, in ascending order."""
    has_reserved: bool = False
    """Whether they are reserved, once that transaction is committed."""

    def use(self, connection: Connection, now: datetime) -> None:
        """Remove the reservation, in the transaction that records the certificate; raise `NotReserved`."""
        use(connection, self.serial)
        if self.following:
            _reserve(connection, self.following, now)
            self.has_reserved = True


class SerialNumbers:
    """The block of reserved serial numbers of this process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reserved: Final[list[int]] = []
        """Taken from the end."""
        self._refill: Final = SharedTurn()
        self._doubtful: Final[list[int]] = []
        """Perhaps reserved: the caller was cancelled, and does not know how the transaction ended that was to do it."""
        self._following = False
        """Whether somebody is reserving the next block."""

    def reservation(self, now: datetime) -> _Held:
        """Reserve a number while the block runs; afterwards it is used, burnt, or free for another caller."""
        return _Held(self, now)

    async def take(self, now: datetime) -> Reservation:
        """Begin that block."""
        while not self._reserved:
            async with self._refill.taken():
                if not self._reserved:
                    await self._reserve(now)
        reservation = Reservation(self._reserved.pop())
        if len(self._reserved) < _FEW and not self._following:
            self._following = True
            reservation.following = rising_serials(BLOCK, now)
        return reservation

    def end(self, reservation: Reservation, error: BaseException | None) -> None:
        """End it, with the *error* that it has raised."""
        if reservation.following:
            self._following = False
        if reservation.has_reserved:
            if error is None:
                self._put_last(reservation.following)
            elif isinstance(error, asyncio.CancelledError):
                self._doubtful.extend(reservation.following)
        if isinstance(error, NotReserved):
            reservation.burnt = True
            self._reserved.clear()
        elif not reservation.burnt:
            self._reserved.append(reservation.serial)

    async def _reserve(self, now: datetime) -> None:
        block = rising_serials(BLOCK, now)
        await self._database.write(functools.partial(_reserve, block=block, now=now), short=True)
        self._put_last(block)

    def _put_last(self, block: Sequence[int]) -> None:
        self._reserved[:0] = block[::-1]

    async def release(self) -> None:
        """Remove this process's unused reservations at an orderly stop."""
        texts = [serial_text(serial) for serial in (*self._reserved, *self._doubtful)]
        self._reserved.clear()
        self._doubtful.clear()
        if texts:
            statement = delete(serial_reservations).where(serial_reservations.c.serial.in_(texts))
            await self._database.write(lambda connection: connection.execute(statement))


class _Held:
    """A block in which a number is reserved: a quarter of what a generator as context manager costs."""

    __slots__ = ("_now", "_numbers", "_reservation")

    def __init__(self, numbers: SerialNumbers, now: datetime) -> None:
        self._numbers = numbers
        self._now = now

    async def __aenter__(self) -> Reservation:
        self._reservation = await self._numbers.take(self._now)
        return self._reservation

    async def __aexit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._numbers.end(self._reservation, error)


def _reserve(connection: Connection, block: Sequence[int], now: datetime) -> None:
    _RESERVE.run_columns(connection, {"serial": [serial_text(each) for each in block], "reserved_at": Same(now)})


def settle(connection: Connection, serial: int) -> None:
    """Remove the reservation of a number that was used in what the store has lost, if it has one."""
    _USE.run(connection, {"used": serial_text(serial)})


def use(connection: Connection, serial: int) -> None:
    """Remove the reservation of a number that is used, in the transaction that records the certificate.

    Raises `NotReserved`.
    """
    if _USE.run(connection, {"used": serial_text(serial)}) != 1:
        raise NotReserved(Code.UNAVAILABLE, f"serial number {serial_text(serial)} is not reserved any more; try again")
