"""Who is let in: a verified certificate and a CONNECT packet become `Admitted` or `Refused`, never anything else.

Theory
------
OpenSSL has checked the chain, the purpose and the dates when a *full* handshake completes; on a resumed TLS session it
has checked nothing but that the session is one of ours. So everything that must hold is checked again here, after every
handshake, in two steps: `examine` the certificate when TLS is up, `admit` when the CONNECT packet has said who the
client wants to be. Until `Admitted` exists nothing of an existing session is touched.

Rules
-----
1. Order of `examine`: identity, an end entity, trust domain, role, validity, revocation. Of `admit`: revocation once
   more (time has passed), revocation data fresh enough, client identifier, will. The first that fails is the answer.
2. A client identifier is the device's name, or empty. A service may run several instances: ``<name>-<anything>``.
3. No I/O; the time is passed in.

Does not handle: who owns an existing session (`session.registry`), rate limits.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cryptography import x509

from broker.admission.freshness import Freshness
from broker.admission.policy import Permissions, TopicPolicy
from broker.admission.refusal import RefusalCode, Refused
from broker.mqtt.codes import ReasonCode
from broker.mqtt.connect import Connect
from provisioning.pki.identity import Identity, InvalidIdentity, Role, identity_of
from provisioning.pki.revocation import CertificateKey, Revocation, RevocationIndex, certificate_key

_MOST_ISSUERS = 1024


@dataclass(frozen=True, slots=True)
class Peer:
    """Whom a certificate names, and what must be remembered of it while its connection lives."""

    identity: Identity
    certificate: CertificateKey
    seconds_left: float
    """How long the certificate was still valid when it was examined."""

    @property
    def serial(self) -> str:
        """The serial number, in hex, as provisioning writes it."""
        return f"{self.certificate[1]:x}"


@dataclass(frozen=True, slots=True)
class Admitted:
    """The only thing that opens a session."""

    peer: Peer
    client_id: str
    assigned: bool


class Admission:
    """Decides, from the revocation index, the policy and how fresh the revocation data is."""

    def __init__(
        self,
        index: RevocationIndex,
        freshness: Freshness,
        policy: TopicPolicy,
        trust_domain: str | None,
        any_client_id: Iterable[str] = (),
    ) -> None:
        """Let in only identities of *trust_domain*; None accepts whatever domain the trust anchors vouch for.

        Identities with a name in *any_client_id* may use any client identifier that is not another's session.
        """
        self._any_client_id = frozenset(any_client_id)
        self.index = index
        self.freshness = freshness
        self.policy = policy
        """Which topics; may be replaced by another one, see `broker.policy_change`."""
        self.trust_domain = trust_domain
        self._issuers: dict[bytes, bytes] = {}

    def examine(self, certificate: bytes | None, now: datetime) -> Peer | Refused:
        """Judge the DER *certificate* of a completed handshake at *now* (UTC)."""
        if not certificate:
            return _refused(RefusalCode.NO_CERTIFICATE, "no client certificate was presented")
        try:
            parsed = x509.load_der_x509_certificate(certificate)
            identity = identity_of(parsed)
            issuer_key_id, serial = certificate_key(parsed)
            may_certify = _may_certify(parsed)
        except (InvalidIdentity, ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
            return _refused(RefusalCode.INVALID_IDENTITY, str(error))
        left = (parsed.not_valid_after_utc - now).total_seconds()
        peer = Peer(identity, (self._shared(issuer_key_id), serial), left)
        if may_certify:
            refusal: Refused | None = _refused(RefusalCode.CA_CERTIFICATE, "a CA's certificate is not a device's")
        else:
            refusal = self._judge(peer, parsed.not_valid_before_utc, now)
        return peer if refusal is None else replace(refusal, identity=identity.uri, serial=peer.serial)

    def _judge(self, peer: Peer, not_before: datetime, now: datetime) -> Refused | None:
        identity = peer.identity
        if self.trust_domain is not None and identity.trust_domain != self.trust_domain:
            return _refused(RefusalCode.WRONG_TRUST_DOMAIN, f"{identity.trust_domain} is not our trust domain")
        if not self.policy.knows(identity):
            return _refused(RefusalCode.WRONG_ROLE, f"a certificate of role {identity.role} may not connect")
        if peer.seconds_left < 0:
            not_after = now + timedelta(seconds=peer.seconds_left)
            return _refused(RefusalCode.EXPIRED, f"the certificate expired on {not_after:%Y-%m-%d %H:%M:%S} UTC")
        if now < not_before:
            return _refused(
                RefusalCode.NOT_YET_VALID,
                f"the certificate is valid from {not_before:%Y-%m-%d %H:%M:%S} UTC; the broker's clock says "
                f"{now:%Y-%m-%d %H:%M:%S}",
            )
        revocation = self.index.find(peer.certificate)
        return None if revocation is None else revoked(revocation)

    def admit(self, peer: Peer, connect: Connect, now: float) -> Admitted | Refused:
        """Judge *connect*, sent by *peer*, at monotonic time *now*."""
        revocation = self.index.find(peer.certificate)
        if revocation is not None:
            return revoked(revocation)
        if not self.freshness.acceptable(now):
            return Refused(
                RefusalCode.REVOCATION_STATUS_UNKNOWN,
                ReasonCode.SERVER_UNAVAILABLE,
                "the broker's revocation data is too old to admit anybody; try again later",
            )
        identity = peer.identity
        if not (_may_use(identity, connect.client_id) or identity.name in self._any_client_id):
            return Refused(
                RefusalCode.CLIENT_ID_MISMATCH,
                ReasonCode.CLIENT_IDENTIFIER_NOT_VALID,
                f"client identifier {connect.client_id[:80]!r} is not that of the certificate, {identity.name!r}",
            )
        admitted = _as_whom(peer, connect)
        permissions = self.permissions(identity, admitted.client_id)  # Compiled now: it is asked again in a moment.
        if connect.will is not None and not permissions.may_publish(connect.will.topic):
            return _refused(
                RefusalCode.WILL_NOT_PERMITTED, f"the will topic {connect.will.topic[:80]!r} is not permitted"
            )
        return admitted

    def permissions(self, identity: Identity, client_id: str) -> Permissions:
        """Return what *identity* may do under *client_id*."""
        return self.policy.permissions(identity, client_id)

    def _shared(self, issuer_key_id: bytes) -> bytes:
        """Return the one copy of *issuer_key_id* that all connections share."""
        if len(self._issuers) >= _MOST_ISSUERS:
            self._issuers.clear()
        return self._issuers.setdefault(issuer_key_id, issuer_key_id)


def revoked(revocation: Revocation) -> Refused:
    """Return the refusal of a revoked certificate."""
    return _refused(RefusalCode.REVOKED, f"certificate revoked ({revocation.reason})")


def _as_whom(peer: Peer, connect: Connect) -> Admitted:
    identity = peer.identity
    if connect.client_id == identity.name:
        return Admitted(peer, identity.name, assigned=False)  # One string less to keep.
    if connect.client_id:
        return Admitted(peer, connect.client_id, assigned=False)
    assigned = identity.name if identity.role is Role.DEVICE else f"{identity.name}-{secrets.token_hex(8)}"
    return Admitted(peer, assigned, assigned=True)


def _may_use(identity: Identity, client_id: str) -> bool:
    if client_id in ("", identity.name):
        return True
    return identity.role is Role.SERVICE and client_id.startswith(f"{identity.name}-")


def _may_certify(certificate: x509.Certificate) -> bool:
    """Whether *certificate* is a CA's: it may sign others, whatever else it says it is for."""
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            return True
        if isinstance(value, x509.KeyUsage) and value.key_cert_sign:
            return True
    return False


def _refused(code: RefusalCode, detail: str) -> Refused:
    return Refused(code, ReasonCode.NOT_AUTHORIZED, detail)
