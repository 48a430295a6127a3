"""Which CAs can be registered as a manufacturer's: whoever can sign as one can be any of its devices."""

from __future__ import annotations

import functools
import json
import ssl
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from provisioning.enrolment.manufacturers import ManufacturerService
from provisioning.errors import Refused
from provisioning.store import audit
from provisioning.store.audit import Action
from provisioning.store.manufacturers import StoredManufacturer
from tests.support.fleet import Fleet
from tests.support.manufacturer import VERSION_3, Manufacturer
from tests.support.pki import pem_of
from tests.support.requests import NOON
from tests.support.ways import HOUR

ACME = Manufacturer(begin=NOON)
COMMON_NAME = b"\x06\x03\x55\x04\x03\x0c\x0c"


class Registry:
    """The service, and how often it said that the trust has changed."""

    def __init__(self, fleet: Fleet) -> None:
        self.told = 0
        self.service = ManufacturerService(fleet.database, fleet.clock, self._tell)

    async def _tell(self) -> None:
        self.told += 1

    async def add(self, pem: str = ACME.pem, **fields: str) -> StoredManufacturer:
        return await self.service.add(
            **({"name": "acme", "group": "line", "name_prefix": ""} | fields), pem=pem, by="admin"
        )


@pytest.fixture
def registry(fleet: Fleet) -> Registry:
    return Registry(fleet)


def usage(*, signs: bool) -> x509.KeyUsage:
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign")
    return x509.KeyUsage(
        **dict.fromkeys((*others, "encipher_only", "decipher_only"), False), digital_signature=True, key_cert_sign=signs
    )


def certified(public_key: Any, **extensions: Any) -> str:
    return pem_of(ACME.ca(public_key, **extensions)).decode()


def changed(old: bytes, new: bytes, places: int = -1) -> str:
    return ssl.DER_cert_to_PEM_cert(ACME.changed(ACME.certificate, old, new, places))


@functools.cache
def modulus(bits: int) -> int:
    return rsa.generate_private_key(65537, bits).public_key().public_numbers().n


def rsa_key(bits: int, exponent: int = 65537) -> rsa.RSAPublicKey:
    return rsa.RSAPublicNumbers(exponent, modulus(bits)).public_key()


NO_CA: dict[str, tuple[Callable[[], str], str]] = {
    "nonsense": (lambda: "nonsense", "is not one PEM"),
    "no text": (lambda: "\ud800", "is not one PEM"),
    "two": (lambda: ACME.pem * 2, "holds 2 certificates"),
    "an IDevID": (ACME.idevid("SN17")[1].decode, "has no Basic Constraints"),
    "not a CA": (lambda: certified(ACME.key.public_key(), ca=False), "is no CA's: register"),
    "no signer of certificates": (
        lambda: certified(ACME.key.public_key(), usage=usage(signs=False)),
        "is no CA's: register",
    ),
    "a version that is none": (lambda: changed(VERSION_3, b"\xa0\x03\x02\x01\x07"), "is not one PEM"),
    # What `cryptography` reads late, and what OpenSSL does not read at all.
    "a subject of bits": (lambda: changed(COMMON_NAME, COMMON_NAME[:-2] + b"\x03\x0c"), "is not one PEM"),
    "a subject of no text": (lambda: changed(COMMON_NAME + b"A", COMMON_NAME + b"\xff"), "is not one PEM"),
    "an issuer of no text": (lambda: changed(COMMON_NAME + b"A", COMMON_NAME + b"\xff", 1), "is not one PEM"),
}
WEAK = {
    "RSA-1024": lambda: rsa_key(1024),
    "an exponent of 3": lambda: rsa_key(2048, 3),
    "P-224": lambda: ec.generate_private_key(ec.SECP224R1()).public_key(),
    "small order": lambda: ed25519.Ed25519PublicKey.from_public_bytes(b"\x01" + bytes(31)),
}
STRONG = {
    "RSA-2048": lambda: rsa_key(2048),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()).public_key(),
    "Ed25519": lambda: ed25519.Ed25519PrivateKey.generate().public_key(),
}


async def test_only_a_ca_that_everything_here_can_read_is_registered(fleet: Fleet, registry: Registry) -> None:
    wrong = [(make(), words) for make, words in NO_CA.values()]
    own = (fleet.authority.root_ca, fleet.authority.issuing_ca)
    wrong += [(pem_of(each.certificate).decode(), "a CA of this fleet") for each in own]
    for pem, words in wrong:
        with pytest.raises(Refused, match=f"INVALID_REQUEST: certificate .*({words})"):
            await registry.add(pem)
    assert (await registry.service.page(limit=9, after=None), registry.told) == ([], 0)


async def test_a_ca_with_a_key_that_others_can_compute_is_not_registered(registry: Registry) -> None:
    for weak in WEAK.values():
        with pytest.raises(Refused, match="INVALID_REQUEST: certificate has a weak key"):
            await registry.add(certified(weak()))
    for kind, strong in STRONG.items():
        await registry.add(certified(strong(), usage=usage(signs=True)), name=kind)
    assert [each.name for each in await registry.service.page(limit=2, after="Ed25519")] == ["P-521", "RSA-2048"]


@pytest.mark.parametrize(
    ("field", "wrong"), [("name", "a b"), ("group", ""), ("name_prefix", "-a"), ("name_prefix", "a" * 33)]
)
async def test_names_are_such_as_devices_can_have(registry: Registry, field: str, wrong: str) -> None:
    with pytest.raises(Refused, match=f"INVALID_REQUEST: {field} "):
        await registry.add(**{field: wrong})
    await registry.add(name_prefix="a" * 32)


async def test_what_is_registered_and_ended_is_told_and_audited_once(fleet: Fleet, registry: Registry) -> None:
    added = await registry.add()
    with pytest.raises(Refused, match="NAME_EXISTS"):
        await registry.add(name="again")
    ended = await registry.service.end("acme", by="boss")
    assert (added.ended_at, ended.ended_at) == (None, NOON)
    fleet.clock.advance(HOUR)
    assert await registry.service.end("acme", by="boss") == ended, "a second time it is as it was"
    assert registry.told == 3
    with pytest.raises(Refused, match="MANUFACTURER_UNKNOWN"):
        await registry.service.end("other", by="boss")
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 9))
    facts = {"group": "line", "name_prefix": "", "fingerprint_sha256": added.fingerprint_sha256}
    assert [(each.actor, each.action, each.subject, json.loads(each.details)) for each in entries[-2:]] == [
        ("admin", Action.MANUFACTURER_ADDED, "acme", facts),
        ("boss", Action.MANUFACTURER_ENDED, "acme", {}),
    ]
    assert added.fingerprint_sha256 == ACME.certificate.fingerprint(hashes.SHA256()).hex()
