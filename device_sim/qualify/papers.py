"""The certificates of a qualification: one good server, eight bad ones, their staples, and the device's own credential.

Rules
-----
1. The device trusts one root, ``ca.crt``. Exactly one thing is wrong with each bad server.
2. ``crl.pem`` says which CA, and which server, is revoked. It contains the root's list and the revoked CA's: OpenSSL
   needs both.
3. Whatever can be vouched for is, with a good staple: some devices admit no server without one. Where the staple is
   what is wrong, the certificate is good, and says that a staple is due (RFC 7633).
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

from device_sim.attack.issuer import CLIENT_AUTH, SERVER_AUTH, Issuer, Paper
from device_sim.credentials.certification import common_name
from provisioning.pki.identity import PROVISIONING, Identity
from provisioning.pki.keys import generate_key, key_to_pem, write_private
from provisioning.pki.role import Role
from provisioning.pki.stapling import staple

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
    MUST_STAPLE = "says that a staple is due"


class ServerStaple(StrEnum):
    """What a server staples about its certificate."""

    GOOD = "good"
    NONE = "none"
    REVOKED = "revoked"
    EXPIRED = "expired"
    OTHER_CERTIFICATE = "of another certificate"
    OTHER_KEY = "signed with another key in the CA's name"
    OWN_KEY = "signed by the server itself"


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
            ServerPaper.REVOKED_CA: _server(self._revoked, names).presented_with(self._revoked.certificate),
            ServerPaper.REVOKED: _server(self._root, names, serial=_REVOKED_SERIAL),
            ServerPaper.NOT_YET_VALID: _server(self._root, names, begins=_DAY, ends=2 * _DAY),
            ServerPaper.SELF_SIGNED: _self_signed(names),
            ServerPaper.CLIENT_ONLY: _server(self._root, names, usages=CLIENT_AUTH),
            ServerPaper.MUST_STAPLE: _server(self._root, names, staple_due=True),
        }
        names = _alternatives(server_names, Identity(_DOMAIN, Role.SERVICE, PROVISIONING))
        self.enrolment = {
            ServerPaper.GOOD: _server(self._root, names, PROVISIONING),
            ServerPaper.OTHER_CA: _server(self._other, names, PROVISIONING),
            ServerPaper.MUST_STAPLE: _server(self._root, names, PROVISIONING, staple_due=True),
        }
        """For the enrolment service, which a device may also recognise by its identity (docs/decisions/0150)."""

    def vouch_for(self, context: ssl.SSLContext, own: Paper, stapled: ServerStaple) -> None:
        """Have *context*, which presents *own*, staple that, if there is a CA that could say so.

        Devices may demand it, and our EST client does (docs/decisions/0192).
        """
        signer = next(
            (each for each in (self._root, self._other) if own.certificate.issuer == each.certificate.subject), None
        )
        if stapled is ServerStaple.NONE or signer is None or own.certificate.serial_number == _REVOKED_SERIAL:
            return
        staple(context, self._response(signer, own, stapled), (datetime.now(UTC) + _DAY).timestamp())

    def _response(self, signer: Issuer, own: Paper, stapled: ServerStaple) -> bytes:
        match stapled:
            case ServerStaple.REVOKED:
                return signer.vouches_for(own.certificate, revoked=True)
            case ServerStaple.EXPIRED:
                return signer.vouches_for(own.certificate, begins=-2 * _DAY, ends=-_DAY)
            case ServerStaple.OTHER_CERTIFICATE:
                return signer.vouches_for(self.servers[ServerPaper.GOOD].certificate)
            case ServerStaple.OTHER_KEY:
                namesake = Issuer.founded(signer.certificate.subject)
                return signer.vouches_for(own.certificate, responder=Paper(namesake.certificate, namesake.key))
            case ServerStaple.OWN_KEY:
                return signer.vouches_for(own.certificate, responder=own)
            case _:
                return signer.vouches_for(own.certificate)

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
    usages: Sequence[x509.ObjectIdentifier] = SERVER_AUTH,
    serial: int | None = None,
    staple_due: bool = False,
) -> Paper:
    due = ((x509.TLSFeature([x509.TLSFeatureType.status_request]), False),) if staple_due else ()
    return issuer.issue(
        None,
        subject=common_name(name),
        usages=usages,
        begins=begins,
        ends=ends,
        serial=serial,
        extra=((names, False), *due),
    )


def _self_signed(names: x509.SubjectAlternativeName) -> Paper:
    key, name = generate_key(), common_name("broker")
    signer = Issuer(Issuer.founded(name).certificate, key)
    return signer.issue(None, key=key, subject=name, usages=SERVER_AUTH, authority_key=False, extra=((names, False),))


def _alternatives(names: list[str], identity: Identity | None = None) -> x509.SubjectAlternativeName:
    found: list[x509.GeneralName] = [] if identity is None else [x509.UniformResourceIdentifier(identity.uri)]
    for name in names:
        try:
            found.append(x509.IPAddress(ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return x509.SubjectAlternativeName(found)
