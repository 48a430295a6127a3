"""The topics of a run's telemetry that the scenario has chosen: whose each is, and what a receiver subscribes to.

Rules
-----
1. A receiver subscribes to ``fleet/#`` in any case, and to as few other filters as cover the rest.
2. No message may match two of its filters: a broker may deliver it once for each [MQTT-3.3.4-2], which would count as
   duplicated. And no two devices may share a topic, nor use one of the run's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from broker.mqtt.topics import covers, matches, overlaps
from device_sim.credentials.fleet_index import Entry
from device_sim.fleet.backend import EVERYTHING, Own
from device_sim.run.target import Impossible
from device_sim.scenario.groups import TELEMETRY
from device_sim.scenario.model import Scenario
from device_sim.telemetry.own_topic import RUNS_OWN, pattern_of

_REMEDY = "let them begin with a level of their own, as in plant/{name}/data"


@dataclass(frozen=True, slots=True)
class OwnTopics:
    """*topics* that devices publish to as the scenario says; *filters* for those of them that are not ``fleet/…``."""

    topics: Mapping[str, Own] = field(default_factory=dict)
    filters: tuple[str, ...] = ()


def own_topics(scenario: Scenario, entries: Mapping[str, Entry], names: Iterable[str]) -> OwnTopics:
    """Return the own topics of the devices *names*, which are in the fleet's *entries*. Raises `Impossible`."""
    if not any(group.telemetry is not None and group.telemetry.is_own for group in scenario.groups):
        return OwnTopics()
    topics: dict[str, Own] = {}
    patterns: set[str] = set()
    for name in names:
        telemetry = scenario.group_of(name).telemetry
        if telemetry is None or not telemetry.is_own:
            continue
        group = entries[name].identity.group or ""
        topic_name = telemetry.topic_of(name, group)
        if topic_name in topics:
            raise Impossible(f"telemetry.topic: {topics[topic_name].device} and {name} share {topic_name}; {_REMEDY}")
        topics[topic_name] = Own(name, telemetry.has_own_payload)
        patterns.add(telemetry.pattern_of(group))
    filters = [one for one in patterns if not any(one != other and covers(other, one) for other in patterns)]
    filters = sorted(one for one in filters if not covers(EVERYTHING, one))
    for one in sorted(patterns):
        if any(overlaps(one, taken) for taken in RUNS_OWN) or (one in filters and overlaps(one, pattern_of(TELEMETRY))):
            raise Impossible(f"telemetry.topic: {one} may be what the run itself sends below fleet/; {_REMEDY}")
    for topic_name, own in topics.items():
        hit = [one for one in (EVERYTHING, *filters) if matches(one, topic_name)]
        if len(hit) > 1:
            raise Impossible(
                f"telemetry.topic: {topic_name} of {own.device} would reach a receiver more than once, by its "
                f"subscriptions {' and '.join(hit)}; {_REMEDY}"
            )
    return OwnTopics(topics, tuple(filters))
