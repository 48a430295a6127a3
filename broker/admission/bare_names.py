"""Bare names in a policy that match no client: they mean our own trust domain, for which no bundle vouches.

A bare name allows something only to the broker's own trust domain (`broker.admission.policy`). If there are bundles of
other domains only, rules that name their parties by bare names allow nothing to anybody.
"""

from __future__ import annotations

from collections.abc import Collection

from broker.admission.policy import TopicPolicy

_SHOWN = 3


def idle_names(policy: TopicPolicy, own: str | None, vouched: Collection[str | None] | None) -> str:
    """Return the warning about bare names in *policy*; empty if they can match a client, or if there are none.

    *own* is the broker's own trust domain, if it has one; *vouched* are the domains of its bundles, where None stands
    for its own. None instead of a collection: there are no bundles.
    """
    if vouched is None or None in vouched or own in vouched:
        return ""
    named = [f"[{section}]" for section in policy.for_ours_only]
    if not named:
        return ""
    shown = ", ".join(named[:_SHOWN]) + (f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else "")
    whose = f"the broker's own trust domain, {own}" if own is not None else "the broker's own trust domain: it has none"
    return (
        f"a bare name matches no client here: {shown}; no trust bundle is of {whose}. "
        'Name each party by its URI, as in [identity."spiffe://…"], or set trust_domain'
    )
