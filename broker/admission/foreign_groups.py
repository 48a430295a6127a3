"""Groups that a bundle of another trust domain may claim: topics depend on them, so by default only those it names.

A CA writes the group into its certificates. A CA of the broker's own trust domain may choose it freely; one of another
domain is limited to the groups named in its ``[[trust]]`` table, in ``groups`` or in ``identity``. Otherwise it could
put a device into any of our groups and use its topics (docs/decisions/0141). The warnings for operators are made here.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from broker.settings.trust_settings import ANY, TrustSettings
from provisioning.pki.role import Role

log = structlog.get_logger("broker")


def apart(own: str | None, bundles: Sequence[TrustSettings]) -> list[TrustSettings]:
    """Return the bundles whose groups are kept apart; *own* is the broker's trust domain, None if it has none.

    If it has none, and there is only one domain, there are no others to keep apart.
    """
    domains = {bundle.trust_domain for bundle in bundles}
    alone = own is None and len(domains) == 1
    return [bundle for bundle in bundles if not alone and bundle.trust_domain not in {None, own}]


def unnamed_groups(own: str | None, bundles: Sequence[TrustSettings]) -> list[str]:
    """Return the warnings about *bundles* whose devices are refused because their groups are not named."""
    return [_said(bundle) for bundle in _open(own, bundles) if Role.DEVICE in bundle.roles]


def _open(own: str | None, bundles: Sequence[TrustSettings]) -> list[TrustSettings]:
    return [bundle for bundle in apart(own, bundles) if bundle.leaves_groups_open]


def _said(bundle: TrustSettings) -> str:
    named = ", ".join(sorted(bundle.named_groups)) or "none"
    whom = "its devices" if Role.DEVICE in bundle.roles else "those of its parties that have a group"
    return (
        f"trust bundle {bundle.name}: groups: its CA is of another trust domain, {bundle.trust_domain}, so {whom} may "
        f"belong to groups that are named here only, {named}; the others are refused. Name them, but none of ours: "
        f"topics go by them; or give {ANY!r}, by which its CA may claim any"
    )


def warn_of_groups(own: str | None, bundles: Sequence[TrustSettings]) -> None:
    """Log which clients are refused for lack of a group, and which may claim any of our groups.

    Services rarely have groups: for a bundle without devices it is logged, but not as a warning.
    """
    for bundle in _open(own, bundles):
        say = log.warning if Role.DEVICE in bundle.roles else log.info
        say("groups are not named", code="GROUPS_UNNAMED", detail=_said(bundle))
    unbound = [bundle.name for bundle in apart(own, bundles) if bundle.any_group]
    if unbound:
        log.warning(
            "a CA of another trust domain may put its devices into any group",
            code="ANY_GROUP",
            bundles=unbound,
            detail="its devices have the topics of the group that its certificates say, also one of ours",
        )
