"""The certificates of a qualification: one good server, eight bad ones, and the device's own credential.

Rules
-----
1. The device trusts one root, ``ca.crt``. Exactly one thing is wrong with each bad server.
2. ``crl.pem`` says which CA, and which server, is revoked. It contains the root's list and the revoked CA's: OpenSSL
   needs both.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from device_sim.attack.issuer import CLIENT_AUTH, SERVER_AUTH, Issuer
from device_sim.credentials.certification import common_name
from provisioning.pki.identity import PROVISIONING, Identity, Role
from provisioning.pki.keys import generate_key, key_to_pem, write_private
from provisioning.pki.stapling import own_certificate, staple
from provisioning.pki.tls import CredentialPem

_DOMAIN = "fleet.internal"
_GROUP = "qualified"
_DAY = timedelta(days=1)
_MINUTE = timedelta(minutes=1)
_REVOKED_SERIAL = x509.random_serial_number()


class ServerPaper(StrEnum):
    """Which certificate a server presents."""

    GOOD = "good"
    EXPIRED = "expired"
    WRONG_NAME = "wrong name"
    OTHER_CA = "other CA"
    REVOKED_CA = "revoked CA"
    REVOKED = "revoked"
    NOT_YET_VALID = "not yet valid"
    SELF_SIGNED = "self-signed"
    CLIENT_ONLY = "for clients only"


class Papers:
    """One root, and what it has signed."""

    def __init__(self, name: str, server_names: list[str]) -> None:
        self.identity = Identity(_DOMAIN, Role.DEVICE, name, _GROUP)
        self._root = Issuer.founded(common_name("Qualification root CA"), path_length=1)
        self._other = Issuer.founded(common_name("Some other CA"))
        below = self._root.issue(
            None, subject=common_name("Revoked CA"), ca=True, path_length=0, usages=None, ends=_DAY
        )
        self._revoked = Issuer(below.certificate, below.key)
        names = _alternatives(server_names)
        self.servers = {
            ServerPaper.GOOD: _server(self._root, names),
            ServerPaper.EXPIRED: _server(self._root, names, begins=-2 * _DAY, ends=-_DAY),
            ServerPaper.WRONG_NAME: _server(self._root, _alternatives(["broker.example.net"])),
            ServerPaper.OTHER_CA: _server(self._other, names),
            ServerPaper.REVOKED_CA: _server(self._revoked, names, chain=self._revoked.pem),
            ServerPaper.REVOKED: _server(self._root, names, serial=_REVOKED_SERIAL),
            ServerPaper.NOT_YET_VALID: _server(self._root, names, begins=_DAY, ends=2 * _DAY),
            ServerPaper.SELF_SIGNED: _self_signed(names),
            ServerPaper.CLIENT_ONLY: _server(self._root, names, usages=CLIENT_AUTH),
        }
        names = _alternatives(server_names, Identity(_DOMAIN, Role.SERVICE, PROVISIONING))
        self.enrolment = {
            ServerPaper.GOOD: _server(self._root, names, PROVISIONING),
            ServerPaper.OTHER_CA: _server(self._other, names, PROVISIONING),
        }
        """For the enrolment service, which a device may also recognise by its identity (docs/decisions/0150)."""

    def vouch_for(self, context: ssl.SSLContext) -> None:
        """Have *context* staple proof that its certificate from the root is not revoked (docs/decisions/0192)."""
        own = x509.load_der_x509_certificate(own_certificate(context))
        staple(context, self._root.vouches_for(own, _DAY), (datetime.now(UTC) + _DAY).timestamp())

    @property
    def anchors(self) -> str:
        """What the device trusts, and what its own certificate is verified against."""
        return self._root.pem.decode()

    def write(self, directory: Path, *, life: timedelta | None = None) -> None:
        """Write what the device is given; *life*, if given, is what is left of its nearly expired certificate."""
        begins, ends = (-_MINUTE, _DAY) if life is None else (-10 * life, life)
        device = self._root.issue(self.identity, begins=begins, ends=ends)
        (directory / "ca.crt").write_bytes(self._root.pem)
        (directory / "crl.pem").write_bytes(
            self._root.crl([self._revoked.certificate.serial_number, _REVOKED_SERIAL]) + self._revoked.crl([])
        )
        (directory / "device.crt").write_bytes(device.certificate.public_bytes(Encoding.PEM))
        write_private(directory / "device.key", key_to_pem(device.key))

    def answer(self, request: x509.CertificateSigningRequest, *, other_key: bool = False) -> x509.Certificate:
        """Return the device's next certificate, for the key in *request*, or for an *other_key*."""
        public_key = (generate_key() if other_key else request).public_key()
        return self._root.issue(self.identity, public_key=public_key, ends=_DAY).certificate


def _server(
    issuer: Issuer,
    names: x509.SubjectAlternativeName,
    name: str = "broker",
    *,
    begins: timedelta = -_MINUTE,
    ends: timedelta = _DAY,
    chain: bytes = b"",
    usages: Sequence[x509.ObjectIdentifier] = SERVER_AUTH,
    serial: int | None = None,
) -> CredentialPem:
    paper = issuer.issue(
        None,
        subject=common_name(name),
        usages=usages,
        begins=begins,
        ends=ends,
        serial=serial,
        extra=((names, False),),
    )
    return CredentialPem(paper.certificate.public_bytes(Encoding.PEM) + chain + key_to_pem(paper.key))


def _self_signed(names: x509.SubjectAlternativeName) -> CredentialPem:
    key, name = generate_key(), common_name("broker")
    signer = Issuer(Issuer.founded(name).certificate, key)
    paper = signer.issue(None, key=key, subject=name, usages=SERVER_AUTH, authority_key=False, extra=((names, False),))
    return paper.pem


def _alternatives(names: list[str], identity: Identity | None = None) -> x509.SubjectAlternativeName:
    found: list[x509.GeneralName] = [] if identity is None else [x509.UniformResourceIdentifier(identity.uri)]
    for name in names:
        try:
            found.append(x509.IPAddress(ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return x509.SubjectAlternativeName(found)
