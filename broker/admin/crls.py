"""The revocation sources for operators: each CRL with its age and expiry, the feed, OCSP."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

from broker.admin.newcomers import newcomers_facts
from broker.admission.held_list import HeldList
from broker.engine.engine import Engine
from broker.reload.crl_trial import Trial
from provisioning.program.moments import rfc3339


def crl_document(engine: Engine, wall: datetime, now: float) -> dict[str, Any]:
    """Return every list in use, how fresh the feed is, and the alarms of lists and OCSP so far; *now* is monotonic."""
    admission = engine.admission
    age = admission.status.freshness.age(now)
    bundles = [] if admission.trust is None else admission.trust.bundles
    return {
        "lists": [list_facts(each, wall) for each in admission.status.lists.held],
        "policies": {each.name: str(each.lists.policy) for each in bundles if each.lists is not None},
        "ocsp_policies": {each.name: str(each.ocsp.policy) for each in bundles if each.ocsp is not None},
        "feed_policy": admission.status.freshness.policy or None,
        "feed_lost": admission.status.freshness.is_lost,
        "feed_age_seconds": None if age is None else round(age, 1),
        **newcomers_facts(admission, wall, now),
        "entries": admission.status.index.sizes(),
        "alarms": dict(engine.metrics.revocation_alarms.most_common()),
    }


def list_facts(held: HeldList, wall: datetime) -> dict[str, Any]:
    """Return what is known about one list."""
    state = "late" if held.late_from <= wall else "current"
    return {
        "issuer": held.issuer,
        "number": held.number,
        "entries": len(held.entries),
        "delta": held.delta is not None,
        "scope": sorted(held.complete.scope.names),
        "source": held.source,
        "this_update": rfc3339(held.this_update),
        "next_update": rfc3339(held.fresh_until),
        "late_from": rfc3339(held.late_from),
        "seconds_left": round((held.fresh_until - wall).total_seconds()),
        "state": "expired" if held.fresh_until < wall else state,
    }


def trial_facts(trial: Trial) -> dict[str, Any]:
    """Return what a list would do, as data and in words."""
    facts = asdict(trial) | {"text": str(trial)}
    if trial.next_update is not None:
        facts["next_update"] = rfc3339(trial.next_update)
    return facts
