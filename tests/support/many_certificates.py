"""A device with very many certificates, of which two are more than a few: and processes that die between portions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from cryptography import x509
from sqlalchemy.engine import Connection

from provisioning.revocation import issued_to, portions
from provisioning.revocation.portions import Portions
from provisioning.store import revocations, unfinished_ends
from provisioning.store.revocations import RevocationRecord
from provisioning.store.serials import serial_text
from tests.support.fleet import Fleet, successor_csr


def make_portions_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let two certificates be a portion, and more than two too many for one transaction."""
    monkeypatch.setattr(issued_to, "FEW", 2)
    monkeypatch.setattr(portions, "PORTION", 2)


async def many_of(fleet: Fleet, name: str = "meter-1", more: int = 4) -> list[x509.Certificate]:
    """Return the certificates of a device, oldest first."""
    first = await fleet.enrol(name)
    return [first, *[await fleet.reenrol(first, successor_csr(first)) for _ in range(more)]]


def serials_of(every: list[x509.Certificate]) -> list[str]:
    """Return the numbers of *every*, as the store has them."""
    return [serial_text(each.serial_number) for each in every]


async def events(fleet: Fleet) -> list[RevocationRecord]:
    """Return the feed."""
    return await fleet.database.read(lambda connection: revocations.after(connection, 0, 99))


async def unfinished(fleet: Fleet) -> list[str]:
    """Return the names of devices with something left to do."""
    return await fleet.database.read(unfinished_ends.names)


class Died(Exception):
    """The process has, between two portions."""


@contextlib.contextmanager
def dying_after(number: int) -> Iterator[None]:
    """Have processes die when they have done so many portions, in the block."""
    portion, done = Portions._portion, 0

    def mortal(self: Portions, connection: Connection, name: str) -> object:
        nonlocal done
        if done >= number:
            raise Died
        done += 1
        return portion(self, connection, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Portions, "_portion", mortal)
        yield
