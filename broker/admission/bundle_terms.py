"""The terms of a trust bundle: conditions on paths and certificates, and the client identifiers clients may use.

Each `refuse_…` method returns the refusal, or None.

Rules
-----
1. What applies to every client of an issuer is judged once, with the issuer; a few look-ups per client remain here.
2. No I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from broker.admission.identification import IdentityPipeline
from broker.admission.refusal import RefusalCode, Refused, unauthorised
from broker.mqtt.codes import ReasonCode
from broker.mqtt.connect import Connect
from broker.settings.trust_settings import TrustSettings
from provisioning.pki.extension import extension
from provisioning.pki.identity import Identity, identity_of
from provisioning.pki.role import Role

LEAST_RSA_BITS = 2048
LEAST_CURVE_BITS = 256
_WEAK_HASHES = frozenset({"sha1", "md5"})
_PURPOSES = {"clientAuth": ExtendedKeyUsageOID.CLIENT_AUTH, "serverAuth": ExtendedKeyUsageOID.SERVER_AUTH}
_WORDS = {purpose: word for word, purpose in _PURPOSES.items()}


@dataclass(frozen=True, slots=True)
class BundleTerms:
    """The configured terms of one bundle. The default is that of `cafile` alone: OpenSSL's own checks."""

    settings: TrustSettings | None = None
    pipeline: IdentityPipeline | None = None
    purposes: frozenset[x509.ObjectIdentifier] = frozenset()

    @classmethod
    def of(cls, settings: TrustSettings) -> BundleTerms:
        """Compile *settings*. Raises ValueError naming the unusable setting."""
        purposes = frozenset(_PURPOSES.get(each) or x509.ObjectIdentifier(each) for each in settings.required_eku)
        pipeline = None
        if settings.identity and settings.trust_domain is not None:
            pipeline = IdentityPipeline(settings.trust_domain, settings.identity)
        return cls(settings, pipeline, purposes)

    @property
    def trust_domain(self) -> str | None:
        """The only trust domain allowed to its clients; None: the broker's own."""
        return self.settings.trust_domain if self.settings is not None else None

    @property
    def max_sessions(self) -> int:
        """How many sessions all parties of its trust domain may have together; 0: no limit."""
        return self.settings.max_sessions if self.settings is not None else 0

    def accepts_issuer(self, certificate: x509.Certificate | None) -> bool:
        """Whether *certificate* belongs to a CA that may issue client certificates; None: it is not known."""
        allowed = self.settings.issuers if self.settings is not None else ()
        if not allowed:
            return True
        if certificate is None:
            return False
        fingerprint = certificate.fingerprint(hashes.SHA256()).hex()
        subject = certificate.subject.rfc4514_string()
        return any(each == subject or each.replace(":", "").lower() == fingerprint for each in allowed)

    def identify(self, certificate: x509.Certificate) -> Identity:
        """Return the identity in *certificate*; raise `InvalidIdentity`."""
        return identity_of(certificate) if self.pipeline is None else self.pipeline.identify(certificate)

    def refuse_path(self, below_anchor: Iterable[x509.Certificate], anchor: x509.Certificate) -> Refused | None:
        """Judge the CAs of a path."""
        if self.settings is None:
            return None
        between = list(below_anchor)
        if len(between) > self.settings.max_depth:
            return unauthorised(
                RefusalCode.PATH_TOO_LONG,
                f"{len(between)} CAs stand between the certificate and the anchor; {self.settings.max_depth} may",
            )
        weak = next(filter(None, [*map(_weakness, between), _weak_key(anchor)]), None)
        return None if weak is None else unauthorised(RefusalCode.WEAK_CERTIFICATE, f"a CA's {weak}")

    def accepts_path(self, between: int, issuing: x509.Certificate | None) -> bool:
        """Whether a path with so many CAs *between* client and anchor is accepted, as far as is known of it later.

        *issuing* is the CA that has issued to the client, None if that is not known.
        """
        if self.settings is None:
            return True
        return between <= self.settings.max_depth and (issuing is None or self.accepts_issuer(issuing))

    def refuse_client(self, certificate: x509.Certificate, identity: Identity, *, apart: bool) -> Refused | None:
        """Judge a client's certificate, which names *identity*.

        *apart*: it is of another trust domain than the broker's own, so groups must be granted explicitly.
        """
        if self.settings is None:
            return None
        if (refusal := self.refuse_identity(identity, apart=apart)) is not None:
            return refusal
        missing = self.purposes - _purposes_of(certificate)
        if missing:
            names = ", ".join(sorted(_WORDS.get(each, each.dotted_string) for each in missing))
            return unauthorised(RefusalCode.WRONG_PURPOSE, f"the extended key usage does not name {names}")
        weak = _weakness(certificate)
        return None if weak is None else unauthorised(RefusalCode.WEAK_CERTIFICATE, f"the certificate's {weak}")

    def refuse_identity(self, identity: Identity, *, apart: bool) -> Refused | None:
        """Judge *identity*, as far as it can be without a certificate; *apart* as above."""
        settings = self.settings
        if settings is None:
            return None
        if identity.role not in settings.roles:
            return unauthorised(
                RefusalCode.WRONG_ROLE, f"the trust bundle {settings.name} vouches for no {identity.role}"
            )
        if not self._vouches_for(identity.group, apart=apart):
            whom = "parties without a group" if identity.group is None else f"group {identity.group}"
            of = "" if settings.groups else f": of another trust domain, {identity.trust_domain}, groups are named"
            return unauthorised(
                RefusalCode.WRONG_GROUP, f"the trust bundle {settings.name} does not vouch for {whom}{of}"
            )
        return None

    def _vouches_for(self, group: str | None, *, apart: bool) -> bool:
        settings = self.settings
        if settings is None or settings.any_group:
            return True
        if settings.groups:
            return group in settings.groups
        return not apart or group is None or group in settings.named_groups

    def may_use(self, identity: Identity, client_id: str) -> bool:
        """Whether *identity* may use the client identifier *client_id*."""
        rule = self.settings.client_id if self.settings is not None else "equal"
        if not client_id:
            return True
        if self.settings is not None and identity.name in self.settings.any_client_id:
            return True
        if rule == "assigned":
            return False
        if client_id == identity.name:
            return True
        return (rule == "prefix" or identity.role is Role.SERVICE) and client_id.startswith(f"{identity.name}-")

    def client_ids_of(self, identity: Identity) -> str:
        """Describe which client identifiers *identity* may use."""
        rule = self.settings.client_id if self.settings is not None else "equal"
        if rule == "assigned":
            return "none: one is assigned"
        several = rule == "prefix" or identity.role is Role.SERVICE
        return f"{identity.name!r}" + (f", or one that begins with '{identity.name}-'" if several else "")

    def names_anew(self, identity: Identity) -> bool:
        """Whether an empty client identifier is replaced by a new one [MQTT-3.2.2-16]; else by the identity's name.

        Where a device may have one session only, it is the one that its certificate names.
        """
        return identity.role is not Role.DEVICE or (self.settings is not None and self.settings.client_id == "prefix")

    def refuse_username(self, identity: Identity, connect: Connect) -> Refused | None:
        """Judge the MQTT user name, if the terms use it."""
        rule = self.settings.username if self.settings is not None else "ignore"
        if rule == "ignore":
            return None
        wanted = "{device}" if rule == "equal" else rule
        wanted = wanted.replace("{device}", identity.name).replace("{group}", identity.group or "")
        if connect.username == wanted:
            return None
        return Refused(
            RefusalCode.USERNAME_MISMATCH,
            ReasonCode.BAD_USER_NAME_OR_PASSWORD,
            f"the user name is not that of the certificate, {wanted!r}",
        )


DEFAULT_TERMS: Final = BundleTerms()


def _purposes_of(certificate: x509.Certificate) -> frozenset[x509.ObjectIdentifier]:
    return frozenset(extension(certificate, x509.ExtendedKeyUsage) or ())


def _weakness(certificate: x509.Certificate) -> str | None:
    try:
        algorithm = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return "signature algorithm is unknown"
    if algorithm is not None and algorithm.name in _WEAK_HASHES:
        return f"signature uses {algorithm.name}"
    return _weak_key(certificate)


def _weak_key(certificate: x509.Certificate) -> str | None:
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return "key cannot be read"
    match key:
        case rsa.RSAPublicKey() if key.key_size >= LEAST_RSA_BITS:
            return None
        case ec.EllipticCurvePublicKey() if key.key_size >= LEAST_CURVE_BITS:
            return None
        case rsa.RSAPublicKey() | ec.EllipticCurvePublicKey():
            return f"key has {key.key_size} bits"
        case ed25519.Ed25519PublicKey() | ed448.Ed448PublicKey():
            return None
        case _:
            return "key is neither RSA, EC nor Ed25519"
