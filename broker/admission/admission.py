"""Admission: a verified certificate and a CONNECT packet become `Admitted` or `Refused`, never anything else.

Theory
------
When a *full* handshake completes, OpenSSL has checked the chain, the purpose and the dates; for a resumed TLS session
it has only checked that the session is one of ours. So everything that must hold is checked again here, after every
handshake, in two steps: `examine` the certificate when TLS is up, and `admit` when CONNECT has named the client
identifier. Until `Admitted` exists, no existing session is touched.

Rules
-----
1. Order of `examine`: issuer, identity, an end entity, trust domain, whether the policy knows the identity, validity,
   revocation, the terms of the issuer's bundle, whether revocation status is known well enough. Of `admit`: revocation
   again (time has passed), whether anybody is admitted now (`shut`), the outcome of an inquiry, freshness of the
   revocation data, the user name, the policy again (it may have changed), client identifier, will. The first failed
   check is the answer.
2. A client identifier is the device's name, or empty. A service may run several instances: ``<name>-<anything>``.
3. No I/O; the time is passed in. What must be fetched is requested from an `Asker`, and the client waits for its
   answer.
4. Without a `Trust` all anchors are equal and revocations come from the feed alone. Of the CAs above a certificate only
   their expiry counts then, and whether the feed has revoked them; both are remembered (`broker.admission.path_ends`).
5. What has expired by the time that others have proven has expired (`broker.admission.proven_time`): the clock may have
   been set back. OpenSSL has gone by the clock, also in a full handshake.

Does not handle: the owner of an existing session (`broker.session.registry`), rate limits.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, Protocol

from cryptography import x509

from broker.admission.bare_names import idle_names
from broker.admission.bundle import TrustBundle
from broker.admission.bundle_terms import DEFAULT_TERMS, BundleTerms
from broker.admission.inquiry import Inquiry
from broker.admission.issuers import Issuer, UnreadableAuthority
from broker.admission.path_ends import Forgotten, PathEnds, VerifiedPath
from broker.admission.peer import Peer
from broker.admission.policy import Permissions, TopicPolicy
from broker.admission.refusal import RefusalCode, Refused, unauthorised, unavailable
from broker.admission.status import RevocationStatus
from broker.admission.trust import Trust
from broker.mqtt.codes import ReasonCode
from broker.mqtt.connect import Connect
from provisioning.pki.certificate_reader import CertificateFacts, CertificateReader, facts_of
from provisioning.pki.extension import UNREADABLE
from provisioning.pki.identity import Identity, InvalidIdentity
from provisioning.pki.keys import key_identifier
from provisioning.pki.panic import NoPanic
from provisioning.pki.revocation import CasAbove, CertificateKey
from provisioning.pki.serial_number import serial_text
from provisioning.program.moments import shown_time

_MOST_ISSUERS: Final = 1024
_LONGEST_DETAIL: Final = 300
_FORGOTTEN: Final = unavailable(
    RefusalCode.TRUST_CHANGED,
    "the broker does not remember the CAs above the certificate; connect again, with a full TLS handshake",
)
_NO_PATH: Callable[[], Sequence[bytes]] = tuple
"""The path for a resumed session, and for a caller without one."""


class Asker(Protocol):
    """Finds out what is not known here."""

    def ask(self, certificate: x509.Certificate, issuer: Issuer, refusal: Refused | None) -> Inquiry | None:
        """Ask about *certificate*; *refusal* is the verdict if nothing is found out. None: there is nobody to ask."""

    def failing(self, bundle: str) -> Collection[str]:
        """Return the responders that currently give *bundle* no credible answer."""


@dataclass(slots=True, init=False)
class Admitted:
    """The only thing that opens a session. Immutable."""

    peer: Peer
    client_id: str
    assigned: bool

    def __init__(self, peer: Peer, client_id: str, assigned: bool) -> None:  # Written out for mypyc to compile.
        self.peer = peer
        self.client_id = client_id
        self.assigned = assigned


class Admission:
    """Decides, based on the trust anchors, what is known of revocation, and the policy."""

    def __init__(
        self,
        status: RevocationStatus,
        policy: TopicPolicy,
        trust_domain: str | None,
        any_client_id: Iterable[str] = (),
        trust: Trust | None = None,
    ) -> None:
        """Let in only identities of *trust_domain*; None accepts every domain that the trust anchors vouch for.

        Identities of our own domain (`is_ours`) with a name in *any_client_id* may use any client identifier that is
        not another identity's session; identities of other domains with such a name may not.
        """
        self.status = status
        self.trust = trust
        self.believed: Trust | None = None
        """The anchors that apply even where `cafile` alone judges; None: not set."""
        self.trust_generation = 1
        """Incremented whenever anchors, bundles or terms change."""
        self.asker: Asker | None = None
        self.shut: Refused | None = None
        """The refusal for every newcomer while nobody may be let in, whatever the certificate; None: open."""
        self._closed: Refused | None = None
        """The same, for good."""
        self.fingerprints = False
        """Whether peers carry the fingerprint of their certificate."""
        self._any_client_id = frozenset(any_client_id)
        self.policy = policy
        """The topic policy; may be replaced, see `broker.reload.policy_change`."""
        self.trust_domain = trust_domain
        self._issuers: dict[bytes, bytes] = {}
        self._ends = PathEnds()
        self._reader = CertificateReader()

    def close(self) -> None:
        """Let nobody in any more: the broker stops, and from now on may not hear of revocations."""
        self._closed = unavailable(RefusalCode.SHUTTING_DOWN, "the broker is stopping")

    def judging_by(self, trust: Trust | None) -> Admission:
        """Return an admission with the same knowledge that judges by *trust* and has no `Asker`."""
        other = Admission(self.status, self.policy, self.trust_domain, self._any_client_id, trust)
        other.fingerprints = self.fingerprints
        return other

    def of_generation(self, generation: int) -> Admission:
        """Return the admission for a client whose TLS began in *generation* of trust.

        What the anchors of another one vouched for is judged, and not remembered: it says nothing about later clients.
        """
        if generation == self.trust_generation:
            return self
        other = self.judging_by(self.trust)
        other.asker = self.asker  # Otherwise the refusal would be that nobody could be asked.
        return other

    def examine(
        self,
        certificate: bytes | None,
        now: datetime,
        path: Callable[[], Sequence[bytes]] = _NO_PATH,
        *,
        status: bool = True,
    ) -> Peer | Refused:
        """Judge the DER *certificate* of a completed handshake at *now* (UTC), by the broker's clock.

        *path* returns the path that OpenSSL has verified, if any: DER, the client's own certificate first. Without
        *status*, an unknown revocation status is neither refused nor asked about: the client is connected already.
        """
        if not certificate:
            return unauthorised(RefusalCode.NO_CERTIFICATE, "no client certificate was presented")
        issuer: Issuer | None = None
        parsed: x509.Certificate | None = None
        try:
            with NoPanic():
                if self.trust is None:
                    facts = self._reader.recall(certificate)
                else:
                    parsed = x509.load_der_x509_certificate(certificate)
                    issuer = self.trust.issuer_of(parsed, path(), self.status.time_for(None, now), self.trust_domain)
                    if issuer is None:
                        return _untrusted(parsed)
                    facts = facts_of(parsed, issuer.bundle.terms.identify)
        except (InvalidIdentity, UnreadableAuthority, *UNREADABLE) as error:
            return _unknown_for(error)
        clock, now = now, self.status.time_for(issuer, now)
        try:
            peer = self._peer_of(certificate, facts, issuer, now, path)
        except (Forgotten, UnreadableAuthority) as error:
            return replace(_unknown_for(error), identity=facts.identity.uri, serial=serial_text(facts.key[1]))
        identity = facts.identity
        if facts.may_certify:
            refusal: Refused | None = unauthorised(
                RefusalCode.CA_CERTIFICATE, "this is the certificate of a CA, not of a device"
            )
        else:
            refusal = self._judge(peer, facts, now, clock)
            # What the terms have against one that has expired counts first: its will would be sent (decision 0143). Not
            # that its CAs are too many, or stand in another order: that is looked at when the will is.
            if issuer is not None and parsed is not None and (refusal is None or refusal.code is RefusalCode.EXPIRED):
                terms, apart = issuer.bundle.terms, self._stands_apart(identity)
                fault = issuer.fault if refusal is None else None
                refusal = fault or terms.refuse_client(parsed, identity, apart=apart) or refusal
                if refusal is None and status:
                    refusal, inquiry = self._refuse_or_ask(parsed, issuer, clock)
                    peer = peer if inquiry is None else replace(peer, inquiry=inquiry)
        return peer if refusal is None else replace(refusal, identity=identity.uri, serial=peer.serial)

    def _peer_of(
        self,
        certificate: bytes,
        facts: CertificateFacts,
        issuer: Issuer | None,
        now: datetime,
        path: Callable[[], Sequence[bytes]],
    ) -> Peer:
        """Return the client with *certificate*, and what is known of the CAs above it.

        Raises `Forgotten` and `UnreadableAuthority`.
        """
        issuer_key_id, serial = facts.key
        not_after = facts.not_after
        verified: VerifiedPath | None = None
        authorities: tuple[bytes, ...] = ()
        if issuer is None:
            issuer_key_id = self._shared(issuer_key_id)
            verified = self._verified_path(issuer_key_id, certificate, path())
            if verified is not None:
                not_after, authorities = min(not_after, verified.ends), verified.authorities
            elif self._is_anchor(certificate):
                authorities = (key_identifier(x509.load_der_x509_certificate(certificate).public_key()),)
        else:  # The issuer's own key, not what the certificate claims about its issuer.
            issuer_key_id, authorities = issuer.key_id, issuer.authorities
            not_after = min(not_after, issuer.not_after)
        fingerprint = hashlib.sha256(certificate).digest() if self.fingerprints else b""
        left = (not_after - now).total_seconds()
        ends_at = not_after.timestamp()
        key = (issuer_key_id, serial)
        return Peer(facts.identity, key, left, issuer, None, fingerprint, ends_at, verified, authorities)

    def _refuse_or_ask(
        self, certificate: x509.Certificate, issuer: Issuer, now: datetime
    ) -> tuple[Refused | None, Inquiry | None]:
        """Return the refusal for lack of revocation data, or the inquiry that is to get the data."""
        refusal = self.status.refuse_by_lists(certificate, issuer, now)
        if self.asker is None:
            return refusal or self.status.refuse_by_ocsp(issuer, None, now), None
        inquiry = self.asker.ask(certificate, issuer, refusal)
        return (refusal, None) if inquiry is None else (None, inquiry)

    def _judge(self, peer: Peer, facts: CertificateFacts, now: datetime, clock: datetime) -> Refused | None:
        """Return why *peer* is refused: what has expired by *now*, or has not begun by the *clock*."""
        identity = peer.identity
        if not self._is_of(identity, peer.issuer.bundle.terms.trust_domain if peer.issuer else None):
            return unauthorised(RefusalCode.WRONG_TRUST_DOMAIN, f"{identity.trust_domain} is not our trust domain")
        if not self.knows(identity):
            return self._unknown(identity)
        if peer.seconds_left < 0:
            not_after = datetime.fromtimestamp(peer.ends_at, UTC)  # Not by what is left: in the year 1 that overflows.
            above = "a CA's certificate above it" if peer.issuer is None else peer.issuer.ends_with
            whose = "the certificate" if facts.not_after < now else above
            detail = f"{whose} expired on {shown_time(not_after)}"
            if clock <= not_after:
                detail += f"; the broker's clock is behind: it says {clock:%Y-%m-%d %H:%M:%S}"
            return unauthorised(RefusalCode.EXPIRED, detail)
        if clock < facts.not_before:
            return unauthorised(
                RefusalCode.NOT_YET_VALID,
                f"the certificate is valid from {shown_time(facts.not_before)}; the broker's clock says "
                f"{clock:%Y-%m-%d %H:%M:%S}",
            )
        return self.status.refuse_revoked(peer)

    def is_revoked(
        self, certificate: CertificateKey, authorities: tuple[bytes, ...] = (), above: CasAbove | None = None
    ) -> bool:
        """Whether *certificate*, of which only this key is known, or a CA above it, is revoked by now.

        *above*: the CAs above it, which may be forgotten here by now. *authorities*: their keys, if no more is known of
        them (`broker.admission.issuers.authorities_of`).
        """
        index = self.status.index
        if index.find(certificate) is not None:
            return True
        # Noted while `cafile` judged, it has what the certificate said about its issuer, and not the issuer's own key.
        if authorities and index.find((authorities[0], certificate[1])) is not None:
            return True
        if above is not None:
            return above.find_revoked(index) is not None
        if self.trust is None:  # It is an anchor itself, or an older broker has stored it: the anchors are known.
            anchors = [each for bundle in self.believed.bundles for each in bundle.anchors] if self.believed else []
            if any(each.find_revoked(index) is not None for each in anchors if each.key_id in authorities):
                return True
            is_all_known = bool(authorities) and any(each.key_id == authorities[0] for each in anchors)
            return not is_all_known and self._ends.is_doubtful(certificate[0], authorities, index)
        issuers = self.trust.issuers_with(authorities[0] if authorities else certificate[0], self.trust_domain)
        return any(issuer.find_revoked(index) is not None for issuer in issuers)

    def stands_above(self, certificate: CertificateKey) -> bool:
        """Whether *certificate*, of which only this key is known, belongs to a CA in the path of a client seen here."""
        return certificate in (self._ends.revoked_as if self.trust is None else self.trust.revoked_as)

    def stays(self, peer: Peer) -> None:
        """Take note that *peer*, admitted in an earlier generation of trust, is still connected, below the same CAs."""
        if self.trust is None and peer.verified is not None:
            self._ends.revoked_as.update(peer.verified.path_revoked_as)

    def vouches(self, authorities: tuple[bytes, ...], identity: Identity, above: CasAbove | None = None) -> bool:
        """Whether one of *authorities* is still an anchor for *identity*; also true if that is not known.

        *above* are these CAs, where more is known of them than their keys.
        """
        believed = self.believed
        if believed is None or not (authorities or (above is not None and above.issuing is not None)):
            return True
        return any(self._accepts(each, identity) for each in believed.vouching(authorities, above, self.trust_domain))

    def _accepts(self, bundle: TrustBundle, identity: Identity) -> bool:
        """Whether *identity* is one that *bundle* may vouch for."""
        terms = bundle.terms
        return (
            self._is_of(identity, terms.trust_domain)
            and terms.refuse_identity(identity, apart=self._stands_apart(identity)) is None
        )

    def _is_of(self, identity: Identity, domain: str | None) -> bool:
        """Whether *identity* is in the domain of a bundle for *domain*; None: our own domain."""
        return self.is_ours(identity) if domain is None else identity.trust_domain == domain

    def refuse_before(self, generation: int) -> Refused | None:
        """Return the refusal if TLS began in another *generation* of trust: its anchors may no longer be trusted."""
        if generation == self.trust_generation:
            return None
        return unavailable(
            RefusalCode.TRUST_CHANGED, "the trust settings have changed since the TLS handshake began; connect again"
        )

    def refuse_now(self, peer: Peer, now: float) -> Refused | None:
        """Return the refusal if *peer*, which passed `examine`, is no longer valid at *now*, or not known to be."""
        refusal = self.status.refuse_revoked(peer) or self._closed or self.shut
        if refusal is not None:
            return refusal
        if peer.inquiry is not None:
            if not peer.inquiry.done:  # No caller asks this early; if one did, this would be the answer.
                return unavailable(RefusalCode.REVOCATION_STATUS_UNKNOWN, "the certificate is still being looked up")
            if peer.inquiry.refusal is not None:
                return peer.inquiry.refusal
        return self.status.refuse_by_feed(peer.issuer, now)

    def admit(self, peer: Peer, connect: Connect, now: float) -> Admitted | Refused:
        """Judge *connect*, sent by *peer*, at monotonic time *now*."""
        refusal = self.refuse_now(peer, now)
        if refusal is not None:
            return refusal
        identity = peer.identity
        terms = DEFAULT_TERMS if peer.issuer is None else peer.issuer.bundle.terms
        refusal = terms.refuse_username(identity, connect)
        if refusal is not None:
            return refusal
        if not self.knows(identity):
            return self._unknown(identity)
        if not (terms.may_use(identity, connect.client_id) or self._may_use_any(identity)):
            return Refused(
                RefusalCode.CLIENT_ID_MISMATCH,
                ReasonCode.CLIENT_IDENTIFIER_NOT_VALID,
                f"client identifier {connect.client_id[:80]!r} is not that of the certificate: "
                f"use {terms.client_ids_of(identity)}",
            )
        admitted = _as_whom(peer, connect, terms)
        will = connect.will
        if will is not None and not self.permissions(identity, admitted.client_id).may_publish(will.topic):
            return unauthorised(RefusalCode.WILL_NOT_PERMITTED, f"the will topic {will.topic[:80]!r} is not permitted")
        return admitted

    def is_ours(self, identity: Identity) -> bool:
        """Whether *identity* is of the broker's own trust domain, so that a bare name in the configuration means it.

        A broker without a trust domain counts every domain as its own that no trust bundle names as its domain.
        """
        if self.trust_domain is not None:
            return identity.trust_domain == self.trust_domain
        return self.trust is None or identity.trust_domain not in self.trust.domains

    def _stands_apart(self, identity: Identity) -> bool:
        """Whether *identity* is of another trust domain, whose groups must be kept apart from ours."""
        if self.trust is None or self.is_ours(identity):
            return False
        return self.trust_domain is not None or len(self.trust.domains) > 1

    def idle_names(self, policy: TopicPolicy) -> str:
        """Return the warning about bare names in *policy* that can match no client here."""
        return idle_names(policy, self.trust_domain, None if self.trust is None else self.trust.domains)

    def name_of(self, identity: Identity) -> str:
        """Return how to name *identity* to others: by its name if it is one of ours, else by its URI."""
        return identity.name if self.is_ours(identity) else identity.uri

    def client_of(self, identity: Identity, client_id: str) -> str:
        """Return how to name a client to others that know client identifiers, which are unique per trust domain (0141).

        It is *client_id* for one of ours; otherwise the trust domain is prefixed.
        """
        return client_id if self.is_ours(identity) else f"{identity.trust_domain}/{client_id}"

    def knows(self, identity: Identity) -> bool:
        """Whether the policy admits *identity*."""
        return self.policy.knows(identity, ours=self.is_ours(identity))

    def permissions(self, identity: Identity, client_id: str) -> Permissions:
        """Return what *identity* may do under *client_id*."""
        return self.policy.permissions(identity, client_id, ours=self.is_ours(identity))

    def _may_use_any(self, identity: Identity) -> bool:
        return identity.name in self._any_client_id and self.is_ours(identity)

    def _unknown(self, identity: Identity) -> Refused:
        refusal = unauthorised(RefusalCode.WRONG_ROLE, f"a certificate of role {identity.role} may not connect")
        if self.is_ours(identity) or not self.policy.knows(identity, ours=True):
            return refusal
        aside = f"the topic policy allows by {identity.name} only clients of our own trust domain, not {identity.uri}"
        return replace(refusal, aside=aside)

    def _verified_path(self, issuer_key_id: bytes, certificate: bytes, path: Sequence[bytes]) -> VerifiedPath | None:
        """Return the CAs above *certificate*, from this handshake or an earlier one, if they are known."""
        if path:
            return self._ends.verified(issuer_key_id, path)
        try:
            return self._ends.known(issuer_key_id, certificate)
        except Forgotten:
            if self._is_anchor(certificate):
                return None  # There never were any.
            raise

    def _is_anchor(self, certificate: bytes) -> bool:
        """Whether *certificate* is itself an anchor, and no other anchor has issued it."""
        return self.believed is not None and certificate in self.believed.topmost

    def believe(self, trust: Trust | None) -> None:
        """Begin another generation: apply *trust*, or other anchors in `cafile`, from now on."""
        self.trust = trust
        self.trust_generation += 1
        self._ends = PathEnds()

    def _shared(self, issuer_key_id: bytes) -> bytes:
        """Return the shared copy of *issuer_key_id* that all connections use."""
        if len(self._issuers) >= _MOST_ISSUERS:
            self._issuers.clear()
        return self._issuers.setdefault(issuer_key_id, issuer_key_id)


def _untrusted(certificate: x509.Certificate) -> Refused:
    return replace(
        unauthorised(
            RefusalCode.UNTRUSTED_ISSUER,
            f"no trust bundle vouches for the issuer {certificate.issuer.rfc4514_string()[:200]!r}",
        ),
        serial=serial_text(certificate.serial_number),
    )


def _unknown_for(error: Exception) -> Refused:
    """Return the refusal of a client of whom *error* says why it, or the CAs above it, are not known."""
    if isinstance(error, Forgotten):
        return _FORGOTTEN
    if isinstance(error, UnreadableAuthority):  # OpenSSL has accepted it.
        detail = f"the certificate of a CA above the client's own cannot be read: {error}"
        return unauthorised(RefusalCode.UNTRUSTED_ISSUER, detail[:_LONGEST_DETAIL])
    return unauthorised(RefusalCode.INVALID_IDENTITY, str(error))


def _as_whom(peer: Peer, connect: Connect, terms: BundleTerms) -> Admitted:
    identity = peer.identity
    if connect.client_id == identity.name:
        return Admitted(peer, identity.name, assigned=False)  # Reuses the string, to save memory.
    if connect.client_id:
        return Admitted(peer, connect.client_id, assigned=False)
    assigned = f"{identity.name}-{secrets.token_hex(8)}" if terms.names_anew(identity) else identity.name
    return Admitted(peer, assigned, assigned=True)
