"""A device, key or CA with very many certificates, where three count as many; processes that die between portions."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import threading
from collections.abc import Callable, Iterator

import pytest
from cryptography import x509
from sqlalchemy.engine import Connection

from provisioning.enrolment.attempt import TokenCredential
from provisioning.pki.keys import PrivateKey
from provisioning.pki.revocation import certificate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.pki.serial_number import serial_text
from provisioning.revocation import issued_to, portions
from provisioning.revocation.portions import Portions
from provisioning.store import (
    certificates,
    certificates_of_device,
    devices,
    revocations,
    unfinished_authority_ends,
    unfinished_ends,
    unfinished_key_ends,
)
from provisioning.store.certificates import StoredCertificate
from provisioning.store.revocations import RevocationRecord
from tests.support.fleet import Fleet, successor_csr
from tests.support.requests import csr_der

_PORTIONS = ("_device_portion", "_listed_portion")


def make_portions_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a portion two certificates, and more than two too many for one transaction."""
    monkeypatch.setattr(issued_to, "FEW", 2)
    monkeypatch.setattr(portions, "PORTION", 2)


async def many_of(fleet: Fleet, name: str = "meter-1", more: int = 4) -> list[x509.Certificate]:
    """Return the certificates of a device, oldest first."""
    first = await fleet.enrol(name)
    return [first, *[await fleet.reenrol(first, successor_csr(first)) for _ in range(more)]]


async def many_for_key(
    fleet: Fleet, key: PrivateKey, name: str = "meter-1", more: int = 4, role: Role = Role.DEVICE
) -> list[x509.Certificate]:
    """Return the certificates for *key* of a device, or of a party with another *role*, oldest first: its only ones.

    Each is the successor of the one before: a request that is repeated gets the same certificate again.
    """
    token = TokenCredential(name, await fleet.token(name, "north" if role is Role.DEVICE else None, role))
    every = [await fleet.enrolment.enrol(csr_der(key, names=[name]), token)]
    for _ in range(more):
        every.append(await fleet.reenrol(every[-1], successor_csr(every[-1], key)))
    return every


def serials_of(every: list[x509.Certificate]) -> list[str]:
    """Return the serial numbers of *every*, in the store's form."""
    return [serial_text(each.serial_number) for each in every]


async def stored(fleet: Fleet, name: str = "meter-1") -> list[StoredCertificate]:
    """Return all that a device has, in the store's form."""

    def look(connection: Connection) -> list[StoredCertificate]:
        device = devices.find(connection, name)
        assert device is not None
        return certificates_of_device.every(connection, device.id)

    return await fleet.database.read(look)


async def said_by_ocsp(fleet: Fleet, certificate: x509.Certificate) -> RevocationReason | None:
    """Return why *certificate* is revoked, from what the responder reads."""
    issuer, serial = certificate_key(certificate)
    known, said = await fleet.database.read(
        lambda connection: certificates.revocation_of(connection, issuer.hex(), serial_text(serial))
    )
    assert known
    return None if said is None else said[1]


def identifier_of(certificate: x509.Certificate) -> str:
    """Return the identifier for requesting its renewal information."""
    issuer, serial = certificate_key(certificate)
    parts = issuer, serial.to_bytes(20).lstrip(bytes(1))
    return ".".join(base64.urlsafe_b64encode(each).rstrip(b"=").decode() for each in parts)


async def events(fleet: Fleet) -> list[RevocationRecord]:
    """Return the feed."""
    return await fleet.database.read(lambda connection: revocations.after(connection, 0, 99))


async def unfinished(fleet: Fleet) -> list[str]:
    """Return the names of devices with something left to do."""
    return await fleet.database.read(unfinished_ends.names)


async def unfinished_keys(fleet: Fleet) -> int:
    """Return how many keys have something left to do."""
    return len(await fleet.database.read(unfinished_key_ends.every))


async def unfinished_authorities(fleet: Fleet) -> int:
    """Return how many CAs have something left to do."""
    return len(await fleet.database.read(unfinished_authority_ends.every))


class Between:
    """Records other writers after each portion, and the threads in which portions were done."""

    def __init__(self, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
        self.others: list[asyncio.Task[None]] = []
        self.threads: set[str] = set()
        loop = asyncio.get_running_loop()

        def noted(portion: Callable[..., object]) -> Callable[..., object]:
            def done(*which: object, **how: object) -> object:
                self.threads.add(threading.current_thread().name[:12])
                found = portion(*which, **how)
                loop.call_soon_threadsafe(lambda: self.others.append(asyncio.ensure_future(fleet.database.probe())))
                return found

            return done

        for name in _PORTIONS:
            monkeypatch.setattr(Portions, name, noted(getattr(Portions, name)))


class Died(Exception):
    """The process has died between two portions."""


@contextlib.contextmanager
def dying_after(number: int) -> Iterator[None]:
    """Make processes die after *number* portions, within the block."""
    done = 0

    def mortal(portion: Callable[..., object]) -> Callable[..., object]:
        def counted(self: Portions, connection: Connection, *which: object, **how: object) -> object:
            nonlocal done
            if done >= number:
                raise Died
            done += 1
            return portion(self, connection, *which, **how)

        return counted

    with pytest.MonkeyPatch.context() as patch:
        for name in _PORTIONS:
            patch.setattr(Portions, name, mortal(getattr(Portions, name)))
        yield
