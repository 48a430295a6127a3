"""The condition of the running service: health checks and metrics, of this process and of its fellow workers.

Rules
-----
1. What one worker is asked is answered for all of them, as far as the others answer in time
   (`provisioning.service.fellow_workers`).
2. A certificate whose expiry would be a fault is in the metrics: the service's own, active CAs and roots.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography import x509

from provisioning.api.health import Readiness
from provisioning.api.metrics import Metrics, PartsCollector
from provisioning.authorities.https_credential import HttpsCredential
from provisioning.authorities.live_authorities import LiveAuthorities
from provisioning.authorities.signing_trials import SigningTrials
from provisioning.directory.files import SERVER
from provisioning.enrolment.enrolment_trust import EnrolmentTrust
from provisioning.revocation.feed import RevocationFeed
from provisioning.service import lost_ends_of_fellows
from provisioning.service.fellow_workers import Answer, FellowWorkers, everywhere
from provisioning.service.metrics_of_health import HealthCollector, issuers_and_roots
from provisioning.service.metrics_of_workers import QUESTION, Page, StartsCollector, page_of, snapshot
from provisioning.service.opened import Opened, utc_now
from provisioning.store.lost_ends import LostEnds

_FOLLOWERS: Final = "followers"
_TRUST: Final = "trust"


@dataclass(frozen=True, slots=True)
class Condition:
    """What is asked about the service, and the *fellows* that are asked too; None: it is the only process."""

    feed: RevocationFeed
    trust: EnrolmentTrust
    metrics: Metrics
    health: HealthCollector
    readiness: Readiness
    trials: SigningTrials
    fellows: FellowWorkers | None

    @property
    def page(self) -> Page:
        """The page of all metrics."""
        return page_of(self.metrics.registry, self.fellows, self.health.refresh)

    @property
    def trust_changed(self) -> Callable[[], Coroutine[Any, Any, bool]]:
        """What has every process let through whom enrolment trusts now."""
        return everywhere(self.trust.keep_up, self.fellows, _TRUST)

    async def followers(self) -> int:
        """Return how many follow the revocation feed."""
        answers = {} if self.fellows is None else await self.fellows.ask(_FOLLOWERS)
        return self.feed.subscribers + sum(int(answer) for answer in answers.values() if answer is not None)


def condition_of(
    opened: Opened,
    metrics: Metrics,
    credential: HttpsCredential,
    live: LiveAuthorities,
    feed: RevocationFeed,
    trust: EnrolmentTrust,
    ocsp_answers: Mapping[str, int],
) -> Condition:
    """Return the condition of a service of these parts; its *metrics* tell of them from now on.

    *ocsp_answers*: how many of each kind there have been.
    """
    trials = SigningTrials(lambda: (each.issuer for each in live.active().values() if each is not None))
    readiness = Readiness(
        opened.database, live.active, live.ocsp_signers, live.publishers, utc_now, lambda: trials.signs
    )
    health = HealthCollector(readiness.checks(), lambda: {SERVER: credential.certificate, **_own_cas(live)})
    metrics.registry.register(health)
    metrics.registry.register(PartsCollector(feed, live.publishers, ocsp_answers))
    fellows: FellowWorkers | None = None
    if opened.place is not None:
        metrics.registry.register(StartsCollector(opened.place.starts))
        fellows = FellowWorkers(opened.place, _answers(metrics, health, trust, feed, opened.database.lost_ends))
    return Condition(feed, trust, metrics, health, readiness, trials, fellows)


def _own_cas(live: LiveAuthorities) -> dict[str, x509.Certificate]:
    active = [each.issuer.certificate for each in live.active().values() if each is not None]
    return issuers_and_roots(live.told.certificates, active)


def _answers(
    metrics: Metrics, health: HealthCollector, trust: EnrolmentTrust, feed: RevocationFeed, lost_ends: LostEnds
) -> Mapping[str, Answer]:
    """Return what other workers may ask this one."""

    async def figures() -> bytes:
        await health.refresh()
        return snapshot(metrics.registry)

    async def followers() -> bytes:
        return b"%d" % feed.subscribers

    async def trust_anew() -> bytes:
        await trust.keep_up()
        return b""

    lost = lost_ends_of_fellows.answers(feed, lost_ends)
    return {QUESTION: figures, _FOLLOWERS: followers, _TRUST: trust_anew, **lost}
