"""Bare names in a policy that mean nobody: of parties of our own trust domain, where no bundle vouches for any.

What a bare name allows, it allows those of the broker's own trust domain (`broker.admission.policy`). Whoever has trust
bundles of other domains only, and names their parties so, has written rules that allow nobody anything.
"""

from __future__ import annotations

from collections.abc import Collection

from broker.admission.policy import TopicPolicy

_SHOWN = 3


def idle_names(policy: TopicPolicy, own: str | None, vouched: Collection[str | None] | None) -> str:
    """Return what to say of the bare names of *policy*; nothing if they can mean somebody, or if there are none.

    *own* is the broker's own trust domain, if it has one; *vouched* are those of its bundles, None standing for its
    own; None instead of them: there are no bundles.
    """
    if vouched is None or None in vouched or own in vouched:
        return ""
    named = [f"[{section}]" for section in policy.for_ours_only]
    if not named:
        return ""
    shown = ", ".join(named[:_SHOWN]) + (f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else "")
    whose = f"the broker's own trust domain, {own}" if own is not None else "the broker's own trust domain: it has none"
    return (
        f"a bare name allows nobody anything here: {shown}; no trust bundle is of {whose}. "
        'Name each party by its URI, as in [identity."spiffe://…"], or set trust_domain'
    )
