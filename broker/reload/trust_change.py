"""Other trust anchors, bundles or terms for a running broker: a new generation of trust, applied to all connections.

Theory
------
The new generation is built completely from the present files and settings; an error in it is the reason why the old one
stays. When it is activated, the listeners get a TLS context with its anchors, so that no earlier TLS session is
resumed, and every connection is examined again, with the certificate that its socket still has, and the path that a
handshake would verify now (`broker.admission.path_again`). A client that no anchor vouches for any more, or whose
identity would be another by now, is disconnected. The others notice nothing.

Rules
-----
1. A few connections at a time, with the event loop in between: an examination costs as much as at admission.
2. An unknown revocation status is no reason to disconnect a client; a known revocation is. Nobody stays for as long as
   lists are read: those of the new settings are read afterwards, and enforced like any other.
3. A kept session is judged when its client returns. Its subscriptions, like all others, are judged at once where the
   bundles determine whom a name in the policy means.
4. A client that is not admitted yet, with TLS complete or not, began in another generation and is told to reconnect
   (`TRUST_CHANGED` in `broker.connection.connect_handler`): what TLS trusted then may not be trusted now.
5. `preview` does the same and changes nothing.
6. What an operator proposes is bounded: each anchor may have been issued by any other one, and that is tried.
"""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from broker.admission.admission import Admission
from broker.admission.foreign_groups import unnamed_groups, warn_of_groups
from broker.admission.issuers import Issuer
from broker.admission.path_again import PathAgain, PathsAgain
from broker.admission.path_ends import VerifiedPath
from broker.admission.peer import DEFAULT_BUNDLE, Peer
from broker.admission.refusal import RefusalCode, Refused, unauthorised, unavailable
from broker.admission.trust import Trust
from broker.door.listener import Listener
from broker.engine.client import Client
from broker.engine.engine import Engine
from broker.reload.parts import Candidate, ProposedAnchors, Unchanged, describe_anchors, digest
from broker.reload.policy_change import change, preview, warn_of_reach
from broker.reload.report import SHOWN, Affected, Effects, Part
from broker.revocation.enforcement import distrust, renew, sends_will
from broker.session.session import Session
from broker.settings.config import BrokerConfig
from broker.sources.anchor_urls import AnchorUrls, fetch_missing
from broker.sources.leniency import warn_of_advisory
from broker.sources.revocation_lists import RevocationLists
from broker.sources.staple import Staple
from broker.sources.trust_files import anchor_files, load_trust, trust_of_cafile
from provisioning.pki.issued_by import is_issued_by
from provisioning.pki.panic import without_panic
from provisioning.pki.tls import TlsConfigurationError
from provisioning.program.once_a_minute import OnceAMinute

log = structlog.get_logger("broker")

_CONNECTIONS_A_STEP = 50
_MOST_PROPOSED = 200
"""Certificates: more than a system trusts. A thousand that form a chain take half a minute."""


@dataclass(frozen=True, slots=True)
class NewTrust:
    """What `load` has read."""

    mark: tuple[object, ...]
    anchors: str
    """In PEM."""
    context: ssl.SSLContext
    config: BrokerConfig
    trust: Trust | None
    """The trust for admission."""
    judge: Trust
    """The trust to judge connected clients by: the same, or `cafile` as a bundle."""


@dataclass(frozen=True, slots=True)
class OwnAnchors:
    """The anchors of `cafile`, some of which may be the certificates of clients; and who judges those."""

    trust: Trust
    admission: Admission


class ReloadedTrust:
    """Anchors and bundles."""

    part = Part.TRUST

    def __init__(
        self,
        engine: Engine,
        config: BrokerConfig,
        anchors: str,
        before: bytes,
        build: Callable[[str], ssl.SSLContext],
        listeners: Sequence[Listener],
        lists: RevocationLists,
        urls: AnchorUrls,
        staple: Staple,
        clock: Callable[[], float],
    ) -> None:
        """Begin with *config* and *anchors* (PEM); *build* creates a context that trusts given anchors, or raises.

        *before* is the `digest` of their files from before they were read: what was changed since then is new.
        """
        self._engine = engine
        self._build = build
        self._listeners = listeners
        self._lists = lists
        self._urls = urls
        self._staple = staple
        self._clock = clock
        self._failures = OnceAMinute()
        self._mark = _mark_of(config, before)
        self.anchors = anchors
        """The anchors of the present contexts, in PEM, whatever the files contain by now."""

    def files(self, config: BrokerConfig) -> Sequence[Path]:
        """Return the files with anchors, and the directories of such files."""
        return anchor_files(config)

    def load(self, config: BrokerConfig, candidate: Candidate | None) -> NewTrust | Unchanged:
        """Return the complete next generation. Raises `TlsConfigurationError`."""
        if not isinstance(candidate, ProposedAnchors):
            return self._load(config)
        if (many := candidate.pem.count("-----BEGIN")) > _MOST_PROPOSED:
            raise TlsConfigurationError(f"what is proposed holds {many} certificates; {_MOST_PROPOSED} at most")
        with tempfile.TemporaryDirectory(prefix="fleet-broker-") as folder:
            proposed = Path(folder, "proposed.pem")
            proposed.write_text(candidate.pem)
            try:
                return self._load(_with_anchors(config, candidate.bundle, proposed))
            except TlsConfigurationError as error:  # The caller does not know our temporary folder.
                raise TlsConfigurationError(str(error).replace(str(proposed), "what is proposed")) from error

    def _load(self, config: BrokerConfig) -> NewTrust | Unchanged:
        fetch_missing(config, self._urls.hurry())
        mark = _mark_of(config, digest(anchor_files(config)))
        if mark == self._mark:
            return Unchanged()
        trust = load_trust(config, self._engine.admission.trust_generation + 1)
        # A handshake learns nothing where `cafile` alone judges, and refuses nobody for want of room.
        judge = trust or trust_of_cafile(config, has_room=True)
        anchors = judge.anchors_pem(self._engine.admission.trust_domain)
        return NewTrust(mark, anchors, self._build(anchors), config, trust, judge)

    async def preview(self, loaded: NewTrust) -> tuple[str, Effects | None]:
        """Judge every connection by the new generation."""
        going: dict[Session, bool] = {}
        effects = await self._sweep(loaded, going, change=False)
        policy, judging = self._engine.admission.policy, self._engine.admission.judging_by(loaded.trust)
        if self._others_may_be_ours:
            effects += await preview(self._engine, policy, judging, going)
        return self._detail(loaded, describe_anchors(loaded.context), judging.idle_names(policy)), effects

    async def apply(self, loaded: NewTrust) -> tuple[str, Effects | None]:
        """Activate the new generation."""
        admission = self._engine.admission
        self._mark, self.anchors = loaded.mark, loaded.anchors
        admission.believe(loaded.trust)
        self._staple.adopt(loaded.context)
        for listener in self._listeners:
            listener.context = loaded.context
        record_trust(self._engine, loaded.judge)
        warn_of_advisory(loaded.config)
        warn_of_groups(admission.trust_domain, loaded.config.trust)
        loaded.judge.warn_of_claims(admission.trust_domain)
        idle = warn_of_reach(admission)
        self._urls.use(loaded.config)
        self._lists.use(loaded.config)
        effects = await self._sweep(loaded, {}, change=True)
        if self._others_may_be_ours:
            effects += await change(self._engine, admission.policy, self._clock)
        what = f"{describe_anchors(loaded.context)}, generation {admission.trust_generation}"
        if not await self._lists.look():
            what += "; the CRL files are still being read"
        return self._detail(loaded, what, idle), effects

    def _detail(self, loaded: NewTrust, what: str, idle: str) -> str:
        """Return *what* is new, and its consequences: names that are *idle* now, groups that are not named."""
        said = unnamed_groups(self._engine.admission.trust_domain, loaded.config.trust)
        return "; ".join(filter(None, (what, *said, idle)))

    @property
    def _others_may_be_ours(self) -> bool:
        """Whether the bundles determine whom a bare name in the policy means: the broker has no trust domain."""
        return self._engine.admission.trust_domain is None

    async def _sweep(self, loaded: NewTrust, going: dict[Session, bool], *, change: bool) -> Effects:
        """Judge every connection by the new generation.

        *going* gets the sessions of those that have to disconnect, and whether their wills are left.
        """
        engine = self._engine
        admission = engine.admission.judging_by(loaded.judge)
        own: OwnAnchors | None = None
        if loaded.trust is None:
            own = OwnAnchors(loaded.judge, engine.admission.judging_by(None))
            own.admission.believed = loaded.judge
        again = PathsAgain(loaded.judge, admission.trust_domain)
        connections = engine.connections()
        connected, disconnected, wills = len(connections), 0, 0
        affected: list[Affected] = []
        for start in range(0, connected, _CONNECTIONS_A_STEP):
            now, wall = self._clock(), datetime.now(UTC)
            for connection in connections[start : start + _CONNECTIONS_A_STEP]:
                session = connection.session
                outcome = self._judged(admission, connection, wall, again, own)
                if isinstance(outcome, Refused) and session is not None:
                    disconnected += 1
                    going[session] = sends_will(engine, outcome)
                    wills += session.will is not None and not going[session]
                    if len(affected) < SHOWN:
                        affected.append(
                            Affected(session.client_id, session.owner.uri, f"{outcome.code}: {outcome.recorded}")
                        )
                    if change:
                        distrust(engine, connection, outcome, now)
                elif isinstance(outcome, Peer) and change and connection.peer is not None:
                    if loaded.trust is None:
                        outcome = _under_cafile(connection.peer, outcome)
                    renew(engine, connection, outcome, now)
            if change:
                engine.turn.request()
            await asyncio.sleep(0)
        more = disconnected - len(affected)
        return Effects(connected, disconnected, wills_dropped=wills, affected=tuple(affected), more=more)

    def _judged(
        self, admission: Admission, connection: Client, wall: datetime, again: PathsAgain, own: OwnAnchors | None
    ) -> Peer | Refused | None:
        """Do as `judge`; whoever cannot be judged is refused, and nobody behind it stays for that."""
        try:
            return without_panic(judge, admission, connection, wall, again, own)
        except MemoryError:  # Not the fault of this client: `provisioning.program.out_of_memory`.
            raise
        except Exception:  # A bug that one client meets, or each of them.
            if times := self._failures.happened(self._clock()):
                facts = {"address": connection.address, "times": times}
                log.exception("a client cannot be judged", code="INTERNAL_ERROR", **facts)
            return unavailable(RefusalCode.TRUST_CHANGED, "the certificate cannot be judged; connect again")


def _mark_of(config: BrokerConfig, files: bytes) -> tuple[object, ...]:
    """Return a value that changes with what trust depends on; *files* is the digest of those with anchors."""
    lists = (config.crlfile, config.crl_urls, config.crl_from_certificates, config.crl_policy)
    ocsp = (config.ocsp_responder, config.ocsp_from_certificates, config.ocsp_policy)
    return files, config.trust, lists, ocsp


def record_trust(engine: Engine, trust: Trust) -> None:
    """Judge stored state of clients that are away by *trust* from now on, and record it in the audit log."""
    engine.admission.believed = trust
    engine.history.told("trust", generation=engine.admission.trust_generation, anchors=trust.fingerprints)


def judge(
    admission: Admission, connection: Client, wall: datetime, again: PathsAgain, own: OwnAnchors | None = None
) -> Peer | Refused | None:
    """Return *admission*'s present verdict on a connection's certificate; None without one: a plain listener.

    It is that of a handshake now (*again*). *own*: clients may be anchors themselves. A bundle does not allow that.
    """
    certificate, verified = connection.presented()
    peer, session = connection.peer, connection.session
    found: PathAgain | None = None
    if certificate is None or peer is None or session is None:
        return None
    if own is not None and certificate in own.trust.topmost:
        outcome = own.admission.examine(certificate, wall, lambda: [certificate], status=False)
    else:
        # A resumed session brings no path; the issuer is known from the full handshake before.
        above = verified[1:] or _known_above(certificate, peer)
        found = again.followed(certificate, above, wall) if above else None
        path = verified if found is None else [certificate, *found.above]
        outcome = admission.examine(certificate, wall, lambda: path, status=False)
    if isinstance(outcome, Peer) or outcome.code is RefusalCode.EXPIRED:  # Whose will would be sent as another's.
        named = outcome.identity.uri if isinstance(outcome, Peer) else outcome.identity
        if named != session.owner.uri:
            return unauthorised(RefusalCode.IDENTITY_CHANGED, f"the certificate names {named} now")
    if isinstance(outcome, Peer) and found is not None and found.refusal is not None:
        return found.refusal  # By a certificate in the path that the bundle does not go by.
    return outcome


def _under_cafile(before: Peer, outcome: Peer) -> Peer:
    """Return the *outcome* for *before* in the form used where `cafile` alone judges: without an issuer.

    If `cafile` judged before too, only the expiry may be new; CAs may have been renewed. But who was an anchor then may
    have a CA now, or the other way round.
    """
    if before.issuer is None and (before.verified is None) == (outcome.issuer is None):
        return replace(before, seconds_left=outcome.seconds_left, ends_at=outcome.ends_at)
    above = _above(outcome.issuer)
    return replace(outcome, issuer=None, verified=VerifiedPath(above) if above else None)


def _above(issuer: Issuer | None) -> tuple[bytes, ...]:
    """Return *issuer* and the CAs above it, in DER."""
    return () if issuer is None else tuple(each.public_bytes(Encoding.DER) for each in issuer.verified())


def _known_above(certificate: bytes, peer: Peer) -> Sequence[bytes]:
    """Return the CAs above *certificate*, in DER, as far as they were learned from an earlier handshake."""
    if peer.issuer is not None:
        return _above(peer.issuer)
    if peer.verified is None:
        return ()
    # Found by the issuer that the certificate states; here that is a reason to stay, so the signature must confirm it.
    verified = peer.verified
    return verified.above if is_issued_by(x509.load_der_x509_certificate(certificate), verified.authority) else ()


def _with_anchors(config: BrokerConfig, bundle: str | None, anchors: Path) -> BrokerConfig:
    """Return *config* with other *anchors* for *bundle*, or for ``cafile``. Raises `TlsConfigurationError`."""
    if not config.trust:
        if bundle not in {None, DEFAULT_BUNDLE}:
            raise TlsConfigurationError(f"bundle: {bundle} is unknown; there is {DEFAULT_BUNDLE}")
        return config.model_copy(update={"cafile": anchors})
    if bundle not in {each.name for each in config.trust}:
        names = ", ".join(each.name for each in config.trust)
        raise TlsConfigurationError(f"bundle: {bundle or 'none given'}; there are {names}")
    changed = [
        each.model_copy(update={"anchors": (anchors,), "anchors_url": None}) if each.name == bundle else each
        for each in config.trust
    ]
    return config.model_copy(update={"trust": tuple(changed)})
