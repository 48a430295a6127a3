"""What a device or a user hands over: a request for a certificate, signed with its key, and files to be imported."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    pkcs12,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from device_sim.credentials.credential_file import UnusableCredential
from device_sim.credentials.importing import Examination
from provisioning.ca.csr import apply_profile, verify_csr
from provisioning.ca.issuer import IssuanceRequest, Issuer, IssuerUrls
from provisioning.ca.name_policy import SubjectNames
from provisioning.ca.profile import ProfileConfig, ProfileName, profile_of
from provisioning.errors import Refused
from provisioning.pki.extension import extension
from provisioning.pki.identity import Identity, check_name, identity_of
from provisioning.pki.keys import generate_key, key_to_pem, spki_of
from provisioning.pki.role import Role
from tests.fuzz.der import encode, first_inside, parse, signed_by
from tests.fuzz.target import Target, agree
from tests.support import hostile_requests
from tests.support.pki import DOMAIN, Held, pem_of, shared_device, shared_pki, shared_service
from tests.support.requests import csr_der

_PKI: Final = shared_pki()
_KEY: Final = generate_key()
_ISSUER: Final = Issuer(
    _PKI.issuing.certificate,
    _PKI.issuing.key,
    IssuerUrls("http://ca.example.org/crl/a.crl", "http://ca.example.org/ca/a.crt"),
)
_LIFE: Final = timedelta(hours=1)
_DEVICE: Final = profile_of(ProfileConfig(ProfileName.DEVICE, _LIFE))
_BROKER: Final = profile_of(ProfileConfig(ProfileName.BROKER, _LIFE))
_GRANTED: Final = SubjectNames(("broker.example",))
_SERIAL: Final = 1 << 126 | 5
_NO_MAC: Final = 2
"""Elements of a PKCS #12 file without one: what is changed would otherwise not be read."""


def _issued(data: bytes) -> None:
    """Whatever a request says, and its own key has signed: the certificate is for whom the token is, and no more."""
    asked = first_inside(data)
    if asked is None or not isinstance(asked.content, list) or len(asked.content) < 3:
        return
    asked.content[2:3] = parse(spki_of(_KEY.public_key())) or []
    der = signed_by(encode([asked]), _KEY)
    for profile, role, group, held in (
        (_DEVICE, Role.DEVICE, "north", SubjectNames()),
        (_BROKER, Role.BROKER, None, _GRANTED),
    ):
        try:
            request = verify_csr(der)
            identity = Identity(DOMAIN, role, request.common_name, group)
            names = apply_profile(request, profile, identity, held)
        except Refused as error:
            str(error).encode()
            continue
        prepared = _ISSUER.prepare(
            profile,
            IssuanceRequest(
                identity,
                request.public_key,
                _SERIAL,
                _PKI.now,
                names.dns_names,
                names.ip_addresses,
                attributes=names.attributes,
                spki=request.spki,
            ),
        )
        _is_for(_ISSUER.issue(prepared), identity, held)


def _is_for(made: x509.Certificate, identity: Identity, held: SubjectNames) -> None:
    agree("whom it names", identity_of(made), identity)
    agree("the key", spki_of(made.public_key()), spki_of(_KEY.public_key()))
    agree(
        "a CA's", [each.value.ca for each in made.extensions if isinstance(each.value, x509.BasicConstraints)], [False]
    )
    purposes = extension(made, x509.ExtendedKeyUsage) or ()
    allowed = {ExtendedKeyUsageOID.CLIENT_AUTH} | ({ExtendedKeyUsageOID.SERVER_AUTH} if held.dns_names else set())
    agree("what it is for", {*purposes} - allowed, set())
    names = extension(made, x509.SubjectAlternativeName) or ()
    others = [each.value for each in names if each.value not in {identity.uri, *held.dns_names}]
    agree("other names", others, [])
    agree("the subject", [each.oid for each in made.subject], [NameOID.COMMON_NAME])


def _requests() -> list[bytes]:
    hostile = [make("meter-1") for _, make in (*hostile_requests.refused(), *hostile_requests.harmless())]
    return [csr_der(), *(each for each in hostile if len(each) < 2000)]


class _Place:
    """Where files are imported from while the target is tried."""

    def __init__(self, directory: Path, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._from = directory / "certs"
        self._fleet = directory / "fleet"
        self._from.mkdir()
        backend = shared_service("backend")
        self._backend = directory / "backend.pem"
        self._backend.write_bytes(pem_of(backend.certificate, *backend.chain) + key_to_pem(backend.key))
        (self._from / "meter-2.key").write_bytes(key_to_pem(shared_device("meter-2").key))
        self._anchors = pem_of(_PKI.root.certificate).decode()

    def take(self, name: str, data: bytes) -> None:
        path = self._from / name
        path.write_bytes(data)
        found = Examination(self._anchors, b"x" if len(data) % 2 else None, None)
        found.add_backend(self._backend, None, None)
        try:
            self._runner.run(found.search(self._from, self._fleet))
        except* UnusableCredential as errors:
            str(errors.exceptions).encode()
        for party in found.parties[1:]:
            self._check(party.held, party.client_id)
        path.unlink()

    def _check(self, held: Any, client_id: str) -> None:
        check_name("name", held.identity.name)
        client_id.encode()
        (first, *_) = x509.load_pem_x509_certificates(held.certificate_pem)
        agree("the serial number", first.serial_number, held.serial)


_HELD: Final[list[_Place]] = []


@contextmanager
def _importing() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as directory, asyncio.Runner() as runner:
        _HELD.append(_Place(Path(directory), runner))
        try:
            yield
        finally:
            _HELD.pop()


def _imported(data: bytes) -> None:
    """Files are taken, or what is wrong with them is told: whatever is in them."""
    _HELD[-1].take("given.p12" if data[:4].find(b"\2\1\3") >= 0 else "given.der", data)


def _files() -> list[bytes]:
    meter, other = shared_device("meter-1"), shared_device("meter-2")
    return [
        _bundle(meter, meter.key),
        _bundle(meter, None),
        pkcs12.serialize_key_and_certificates(b"m", meter.key, meter.certificate, None, BestAvailableEncryption(b"x")),
        other.der,
        pem_of(other.certificate),
        pem_of(meter.certificate, *meter.chain) + key_to_pem(meter.key),
        meter.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
    ]


def _bundle(held: Held, key: Any) -> bytes:
    chain = [each.certificate if isinstance(each, Held) else each for each in held.chain]
    made = pkcs12.serialize_key_and_certificates(b"m", key, held.certificate, chain, NoEncryption())
    tree: Any = parse(made)
    tree[0].content = tree[0].content[:_NO_MAC]
    return encode(tree)


TARGETS: Final = (
    Target("issued", _issued, _requests(), is_der=True, longest=4096),
    Target("imported", _imported, _files(), is_der=True, longest=6000, seconds=10, around=_importing),
)
