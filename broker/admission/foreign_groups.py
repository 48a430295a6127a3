"""Groups that a bundle of another trust domain may claim: topics go by them, so by default none that it does not name.

A CA writes the group into its certificates. One of the broker's own trust domain may choose; one of another gets the
groups that its ``[[trust]]`` table names, in ``groups`` or in ``identity``: else it could put a device into any of
our groups, whose topics it would have (docs/decisions/0141). What an operator must know of that is said here.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from broker.settings.trust_settings import ANY, TrustSettings
from provisioning.pki.identity import Role

log = structlog.get_logger("broker")


def _apart(own: str | None, bundles: Sequence[TrustSettings]) -> list[TrustSettings]:
    """Return the bundles whose groups are kept apart; *own* is the broker's trust domain, None if it has none.

    Where it has none, and there is one domain only, there is nobody to keep apart.
    """
    domains = {bundle.trust_domain for bundle in bundles}
    alone = own is None and len(domains) == 1
    return [bundle for bundle in bundles if not alone and bundle.trust_domain not in {None, own}]


def unnamed_groups(own: str | None, bundles: Sequence[TrustSettings]) -> list[str]:
    """Return what to say of each of *bundles* whose devices are refused because it does not name their groups."""
    return [_said(bundle) for bundle in _open(own, bundles) if Role.DEVICE in bundle.roles]


def _open(own: str | None, bundles: Sequence[TrustSettings]) -> list[TrustSettings]:
    return [bundle for bundle in _apart(own, bundles) if bundle.leaves_groups_open]


def _said(bundle: TrustSettings) -> str:
    named = ", ".join(sorted(bundle.named_groups)) or "none"
    whom = "its devices" if Role.DEVICE in bundle.roles else "those of its parties that have a group"
    return (
        f"trust bundle {bundle.name}: groups: its CA is of another trust domain, {bundle.trust_domain}, so {whom} may "
        f"belong to groups that are named here only, {named}; the others are refused. Name them, but none of ours: "
        f"topics go by them; or give {ANY!r}, by which its CA may claim any"
    )


def warn_of_groups(own: str | None, bundles: Sequence[TrustSettings]) -> None:
    """Say in the log who is refused for want of a group, and who may claim any group of ours.

    Services rarely have groups: of a bundle without devices it is said, and is no warning.
    """
    for bundle in _open(own, bundles):
        say = log.warning if Role.DEVICE in bundle.roles else log.info
        say("groups are not named", code="GROUPS_UNNAMED", detail=_said(bundle))
    unbound = [bundle.name for bundle in _apart(own, bundles) if bundle.any_group]
    if unbound:
        log.warning(
            "a CA of another trust domain may put its devices into any group",
            code="ANY_GROUP",
            bundles=unbound,
            detail="its devices have the topics of the group that its certificates say, also one of ours",
        )
