"""What the settings tolerate when revocations are unknown: freshness of the feed, and warnings about every source."""

from __future__ import annotations

import structlog

from broker.admission.freshness import FeedTerms, Freshness
from broker.settings.config import BrokerConfig
from broker.settings.trust_settings import StatusPolicy, StatusSources, TrustSettings

log = structlog.get_logger("broker")


def feed_freshness(config: BrokerConfig) -> Freshness:
    """Return how old the feed's data may be.

    Under `require`: as old as it becomes within three heartbeats, and no older once the feed is known to be lost.
    """
    policy = config.feed_terms
    if config.provisioning is None:
        return Freshness(0.0, always_acceptable=True)
    if config.feed_policy is None:  # `revocation_grace` applies to the second, even 0.
        return Freshness(policy.grace or 0.0, policy=str(policy))
    terms = feed_terms(policy)
    return Freshness(terms.grace, always_acceptable=terms.always, strict=terms.strict, policy=terms.policy)


def feed_terms(policy: StatusPolicy) -> FeedTerms:
    """Return how closely *policy* requires the feed to be followed."""
    if policy.grace == 0:
        from provisioning.client.feed import HEARTBEAT, SILENT_HEARTBEATS  # Late: only needed with a feed.

        return FeedTerms(HEARTBEAT * SILENT_HEARTBEATS, strict=True, policy="require")
    return FeedTerms(policy.grace or 0.0, always=policy.grace is None, policy=str(policy))


def advisory_sources(config: BrokerConfig) -> list[str]:
    """Return the sources without which newcomers are still admitted, as the settings call them."""
    found = ["feed"] if config.provisioning is not None and _is_advisory(config.feed_terms) else []
    bundles: list[tuple[str, StatusSources]] = [("", config)]
    bundles += [(f"trust bundle {each.name}: ", each) for each in config.trust]
    for where, settings in bundles:
        if isinstance(settings, TrustSettings) and settings.feed_policy is not None:
            found += [f"{where}feed"] if _is_advisory(settings.feed_policy) else []
        if settings.has_crls and _is_advisory(settings.crl_policy):
            found.append(f"{where}CRLs")
        if settings.has_ocsp and _is_advisory(settings.ocsp_policy):
            found.append(f"{where}OCSP")
    return found


def warn_of_advisory(config: BrokerConfig) -> None:
    """Log which sources may fail without anybody being refused for it."""
    if sources := advisory_sources(config):
        log.warning(
            "revoked clients are admitted while a source does not report them",
            code="ADVISORY",
            sources=sources,
            detail="the policy is advisory: cutting the source off hides its revocations",
        )


def _is_advisory(policy: StatusPolicy) -> bool:
    return policy.grace is None
