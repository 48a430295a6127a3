"""Whose a topic of the scenario's own is, and what the receivers subscribe to: no message twice, none unheard."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from device_sim.credentials.fleet_index import Entry
from device_sim.fleet.backend import Own
from device_sim.run.own_topics import OwnTopics, own_topics
from device_sim.run.target import Impossible
from device_sim.scenario.model import build
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role

Telemetry = Mapping[str, object]


def entry(name: str, group: str | None) -> Entry:
    return Entry(Identity("fleet.internal", Role.DEVICE, name, group), 1, datetime.now(UTC))


def of(*telemetries: Telemetry, also: str = "m-0", group: str | None = "meters") -> OwnTopics:
    """Return the topics of sixty devices, in groups with these *telemetries*; the one *also* is in the first."""
    groups = [{"name": f"g{number}", "telemetry": dict(each)} for number, each in enumerate(telemetries)]
    document = {"name": "x", "stages": [{"ramp": {"rate": 1}}], "groups": groups}
    seeded = (build({**document, "seed": seed}, "test") for seed in range(100))
    scenario = next(each for each in seeded if each.group_of(also).name == "g0")
    names = [*(f"m-{number}" for number in range(1, 60)), also]
    return own_topics(scenario, {name: entry(name, group) for name in names}, names)


def test_where_nothing_is_own_nothing_is_kept() -> None:
    assert of({}, {"qos": 2}) == OwnTopics()


def test_each_topic_is_its_device_s_and_has_a_stamp_if_its_payload_is_own() -> None:
    found = of({"topic": "plant/{group}/{name}/data", "payload": "x"})
    assert len(found.topics) == 60
    assert found.topics["plant/meters/m-3/data"] == Own("m-3", stamped=True)
    assert found.filters == ("plant/meters/+/data",)
    found = of({"topic": "{name}"})
    assert found.topics["m-3"] == Own("m-3", stamped=False)
    assert found.filters == ("+",)


def test_a_payload_alone_needs_no_other_subscription() -> None:
    found = of({"payload": "x"})
    assert found.topics["fleet/meters/m-3/telemetry"] == Own("m-3", stamped=True)
    assert found.filters == ()


def test_devices_of_other_groups_publish_as_ever() -> None:
    found = of({"topic": "fleet/{group}/{name}/data"}, {})
    assert 0 < len(found.topics) < 60
    assert found.filters == ()


def test_a_filter_that_another_includes_is_left_out() -> None:
    found = of({"topic": "a/{name}/x/{name}"}, {"topic": "a/{name}/x/y"}, {"topic": "b/{name}"})
    assert found.filters == ("a/+/x/+", "b/+")


def test_a_group_that_is_called_as_the_run_s_own_topics_is_heard_once() -> None:
    found = of({"topic": "{group}/{name}/data"}, group="fleet")
    assert found.topics["fleet/m-3/data"].device == "m-3"
    assert found.filters == ()


def test_a_group_called_as_the_run_s_own_topics_takes_none_of_them() -> None:
    with pytest.raises(Impossible, match=r"fleet/fleet/\+/state may be what the run itself sends"):
        of({"topic": "{group}/{group}/{name}/state"}, group="fleet")


@pytest.mark.parametrize(
    ("telemetries", "also", "words"),
    [
        (({"topic": "{name}/data"},), "fleet", "fleet/data of fleet would reach a receiver more than once"),
        (({"topic": "{name}/a"}, {"topic": "b/{name}"}), "b", r"b/a of b would .* subscriptions \+/a and b/\+; let"),
        (({"topic": "{name}/x/{group}/state"},), "m-0", r"\+/x/meters/state may be what the run itself sends"),
        (({"topic": "{name}/x/y/telemetry"},), "m-0", "may be what the run itself sends"),
    ],
)
def test_what_a_receiver_could_not_tell_apart_is_no_run(
    telemetries: tuple[Telemetry, ...], also: str, words: str
) -> None:
    with pytest.raises(Impossible, match=words):
        of(*telemetries, also=also)
