"""What the topic policy allows to a role, whoever gave it: a warning where a CA of another trust domain may give it.

A role counts the same in every trust domain. A rule for devices with ``{group}`` reaches a bundle's own groups only;
one without it, as the default policy has for services and operators, reaches our topics (docs/decisions/0269).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import structlog

from broker.admission.foreign_groups import apart
from broker.admission.policy import Kind, TopicPolicy
from broker.settings.trust_settings import TrustSettings
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role

log = structlog.get_logger("broker")

_GROUP = "{group}"
_ANY = "any"
"""Stands for a name that such a CA chooses."""


def shared_rules(own: str | None, bundles: Sequence[TrustSettings], policy: TopicPolicy) -> list[str]:
    """Return the warnings about roles in *bundles* of other domains than *own* that have rules without a group."""
    said = []
    for bundle in apart(own, bundles):
        for role in bundle.roles:
            allowed = list(_without_group(policy, str(bundle.trust_domain), role))
            if allowed:
                said.append(
                    f"trust bundle {bundle.name}: roles: those with role {role} have what the topic policy allows "
                    f"to [role.{role}], of our own topics too: {', '.join(allowed)}. If that is too much, leave that "
                    f"section out, and name each {role}: ours as [identity.NAME], theirs by its URI"
                )
    return said


def _without_group(policy: TopicPolicy, domain: str, role: Role) -> Iterator[str]:
    somebody = Identity(domain, role, _ANY, _ANY if role is Role.DEVICE else None)
    for section in policy.sections_about(somebody):
        if section.kind is Kind.ROLE:
            rules = section.rules
            yield from (f"publish {each!r}" for each in rules.publish_allow if _GROUP not in each)
            yield from (f"subscribe {each!r}" for each in rules.subscribe_allow if _GROUP not in each)


def warn_of_roles(own: str | None, bundles: Sequence[TrustSettings], policy: TopicPolicy) -> None:
    """Log which roles of other trust domains have rights to our topics."""
    for detail in shared_rules(own, bundles, policy):
        log.warning("a CA of another trust domain gives rights to our topics", code="ROLE_SHARED", detail=detail)
