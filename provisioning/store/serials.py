"""Serial numbers: on disk before anything is signed under them.

Theory
------
A serial number must never be used twice, not even when the process dies between signing and recording. So numbers are
reserved in blocks, in a transaction of their own, ahead of need; an issuance takes one, and the transaction that
records the certificate removes its reservation. One fsync serves a block instead of every certificate.

Rules
-----
1. What `take` returns is durable, unique in the store, and held by one caller.
2. Only a number under which nothing was signed may be given back.
3. A reservation left behind by a dead process is never used: a certificate may have been signed under it.
"""

from __future__ import annotations

import asyncio
import secrets
from datetime import datetime
from typing import Final

from sqlalchemy import delete, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from provisioning.store.database import Database
from provisioning.store.tables import serial_reservations

BLOCK: Final = 64
_RANDOM_BITS: Final = 126  # CA/Browser Forum BR §7.1 asks for 64 of a CSPRNG.


def new_serial() -> int:
    """Return a random positive serial number of 127 bits: always 16 octets in DER, 32 digits in hexadecimal."""
    return (1 << _RANDOM_BITS) | secrets.randbits(_RANDOM_BITS)


def serial_text(serial: int) -> str:
    """Return *serial* as the store and the API write it: lower-case hexadecimal, no leading zeros."""
    return f"{serial:x}"


class SerialNumbers:
    """The block of reserved serial numbers of this process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reserved: Final[list[int]] = []
        self._refill: Final = asyncio.Lock()

    async def take(self, now: datetime) -> int:
        """Return a number to sign under. Call it outside a transaction: it may need one of its own."""
        while not self._reserved:
            async with self._refill:
                if not self._reserved:
                    self._reserved.extend(await self._reserve(now))
        return self._reserved.pop()

    def give_back(self, serial: int) -> None:
        """Return a number under which nothing was signed."""
        self._reserved.append(serial)

    async def release(self) -> None:
        """Remove this process's unused reservations at the end of an orderly life."""
        texts = [serial_text(serial) for serial in self._reserved]
        self._reserved.clear()
        if texts:
            async with self._database.write() as connection:
                await connection.execute(delete(serial_reservations).where(serial_reservations.c.serial.in_(texts)))

    async def _reserve(self, now: datetime) -> list[int]:
        block = [new_serial() for _ in range(BLOCK)]
        rows = [{"serial": serial_text(serial), "reserved_at": now} for serial in block]
        async with self._database.write() as connection:
            await connection.execute(insert(serial_reservations), rows)
        return block


async def use(connection: AsyncConnection, serial: int) -> None:
    """Turn a reservation into use, in the transaction that records the certificate."""
    statement = delete(serial_reservations).where(serial_reservations.c.serial == serial_text(serial))
    if (await connection.execute(statement)).rowcount != 1:
        raise RuntimeError(f"serial number {serial_text(serial)} was not reserved")
