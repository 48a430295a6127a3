from __future__ import annotations

from pathlib import Path

import pytest

from device_sim.run.stages import trouble_in_words
from device_sim.scenario.catalogue import built_in, find
from device_sim.scenario.groups import Clock, Commands, Sleep
from device_sim.scenario.metrics import SECURITY, Count, Duration
from device_sim.scenario.model import InvalidScenario, Scenario, build, load, parse
from device_sim.scenario.stages import Command
from device_sim.scenario.threshold import InvalidThreshold, Threshold, must_be_nought
from device_sim.trouble.trouble import Direction, Trouble

MINIMAL = {"name": "x", "stages": [{"ramp": {"rate": 10}}]}


def with_groups(seed: int = 1, devices: int = 100) -> Scenario:
    groups = [{"name": "meters", "weight": 90}, {"name": "flaky", "weight": 10}]
    return build({**MINIMAL, "seed": seed, "devices": devices, "groups": groups}, "test")


def test_the_built_in_scenarios_are_valid_and_complete() -> None:
    names = {
        "smoke", "steady", "ramp", "reconnect-storm", "revoke-storm", "soak", "fan-out", "latency", "mass-renewal",
        "broker-restart", "ten-thousand", "chaos",
    }  # fmt: skip
    assert set(built_in()) == names
    assert all(scenario.summary and scenario.limits() for scenario in built_in().values())


@pytest.mark.parametrize("scenario", built_in().values(), ids=lambda scenario: scenario.name)
def test_a_built_in_scenario_passes_nobody_who_loses_doubles_or_invents_a_message_or_is_dead_at_the_end(
    scenario: Scenario,
) -> None:
    """A device whose network is down at the end is not unreached, and one that is on the way may arrive."""
    judged = {str(threshold.metric) for threshold in scenario.limits() if threshold.text == "== 0"}
    assert judged >= {"lost", "duplicated", "unexpected", "unreached"}


def test_a_file_says_durations_and_shares_as_people_do(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        """
        name = "mine"
        [[groups]]
        name = "meters"
        telemetry = { every = "500ms", jitter = "20%" }
        [[stages]]
        ramp = { to = "50%", rate = 10 }
        [[stages]]
        hold = "2m"
        """
    )
    scenario = load(path)
    assert scenario.groups[0].telemetry is not None
    assert (scenario.groups[0].telemetry.every, scenario.groups[0].telemetry.jitter) == (0.5, 0.2)
    assert [stage.kind for stage in scenario.stages] == ["ramp", "hold"]
    assert find(str(path)) == scenario


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stages": []}, "stages: "),
        ({"stages": [{"hold": "1s"}]}, "the first must be a ramp"),
        ({"stages": [{"ramp": {"rate": 0}}]}, r"stages\.1\.ramp\.rate"),
        ({"stages": [{"ramp": {}}]}, r"stages\.1\.ramp\.rate: is required"),
        ({"stages": [{"ramp": {"rate": 1}}, {"hold": "1 day"}]}, "no duration: write '500ms'"),
        ({"stages": [{"ramp": {"rate": 1, "to": 50}}]}, "write a share of the fleet, as '5%'"),
        ({"stages": [{"explode": {}}]}, r"stages\.1: write one of ramp, hold"),
        ({"stages": [{"ramp": 3}]}, "write its fields in braces"),
        ({"stages": [{"ramp": {"rate": 1}}, {"trouble": {"seconds": "1s"}}]}, "a trouble that is none"),
        (
            {"stages": [{"ramp": {"rate": 1}}, {"trouble": {"seconds": "1s", "reset": True, "groups": ["x"]}}]},
            r"stages: 2 \(trouble\): there is no group x; these exist: meters",
        ),
        (
            {"stages": [{"ramp": {"rate": 1}}, {"trouble": {"seconds": "1s", "slice_pause": "1s"}}]},
            "slice_pause without slice_bytes",
        ),
        ({"sedd": 3}, "sedd: there is no such field; did you mean 'seed'"),
        ({"groups": [{"name": "a", "flpa": {}}]}, r"groups\.1\.flpa: there is no such field; did you mean 'flap'"),
        (
            {"groups": [{"name": "a", "wings": {}}]},
            "these exist: backoff, clock, clone, commands, flap, name, presence",
        ),
        ({"groups": [{"name": "a", "telemetry": {"evry": "1s"}}]}, "did you mean 'every'. these exist: every, format"),
        ({"groups": [{"name": "a", "telemetry": {"model": "toaster"}}]}, "'smart-meter', 'tracker' or 'machine'"),
        ({"groups": [{"name": "a", "telemetry": {"qos": 3}}]}, r"telemetry\.qos: 3 should be"),
        (
            {"groups": [{"name": "a", "flap": {"up": 1, "down": 1}, "sleep": {"awake": 1, "asleep": 1}}]},
            "flap and sleep: a device has one of them",
        ),
        ({"stages": [{"ramp": {"rate": 1, "tto": "5%"}}]}, r"ramp\.tto: there is no such field; did you mean 'to'"),
        ({"groups": [{"name": "a", "commands": {"refuse": "120%"}}]}, "120% is no share: 0% to 100%"),
        ({"groups": [{"name": "a", "clock": {"offset": "-soon"}}]}, "no duration: write .500ms"),
        ({"devices": 0}, "devices: 0 should be greater than or equal to 1"),
        ({"devices": "many"}, "devices: 'many' should be a valid integer"),
        ({"devices": "9" * 100}, "devices: '99999"),
        ({"stages": [{"ramp": {"rate": 1}, "hold": "1s"}]}, "ramp, hold are several: each in a .*stages.* of its own"),
        ({"devices": True}, "devices: true is no value for it"),
        ({"path": "/mqtt"}, "path: it is what a WebSocket is asked for; add `websocket = true`"),
        ({"path": "mqtt", "websocket": True}, "path: 'mqtt' is no path: write one as /mqtt"),
        ({"path": "/m q", "websocket": True}, "in ASCII and without spaces"),
        ({"path": "/mqtt?key=secret", "websocket": True}, "leave out what begins with . or #"),
        ({"name": "Mine"}, "name: 'Mine' is no name here: use letters, digits and hyphens"),
        ({"name": "mine\n"}, "is no name here"),
        ({"groups": [{"name": "a b"}]}, "groups.1.name: 'a b' is no name here"),
        ({"groups": [{"name": "a", "weight": float("inf")}]}, "groups.1.weight: inf should be a finite number"),
        # What a float cannot hold, or divides into infinity, would be an error in the middle of the run.
        ({"groups": [{"name": "a", "weight": 1e308}]}, "groups.1.weight: 1e.308 should be less than or equal"),
        ({"groups": [{"name": "a", "telemetry": {"every": 5e-324}}]}, r"telemetry\.every: 5e-324 should be greater"),
        ({"stages": [{"ramp": {"rate": 1e-320}}]}, r"ramp\.rate: .* should be greater than or equal to"),
        ({"stages": [{"ramp": {"rate": 1}}, {"trouble": {"seconds": 1, "bandwidth": 10**400}}]}, "trouble.bandwidth"),
        ({"groups": [{"name": "a", "flap": "5s"}]}, "groups.1.flap: write its fields in braces"),
        ({"groups": [{"name": "a", "flap": {"up": True, "down": 1}}]}, "groups.1.flap: up: true is no value"),
        ({"thresholds": {"lost": "== 0"}}, "thresholds.lost: write a list, in brackets"),
        ({"thresholds": {"lost": []}}, "thresholds.lost: the list is empty"),
        ({"groups": [{"name": "a"}, {"name": "a"}]}, "two have the same name"),
        ({"groups": [{"name": "a", "backoff": {"base": 3, "cap": 1}}]}, "backoff base 3"),
        ({"thresholds": {"latency": ["p99 < 1"]}}, "thresholds.latency: there is no such metric; these exist: adm"),
        ({"thresholds": {"lost": ["p99 < 1"]}}, "it is a count"),
        ({"thresholds": {"admitted": ["< 1"]}}, "say of what"),
        ({"thresholds": {"admitted": ["p101 < 1"]}}, "between 0 and 100"),
        ({"thresholds": {"admitted": ["fast"]}}, "thresholds.admitted: 'fast' is no threshold; write"),
    ],
)
def test_a_fault_names_its_field_and_the_remedy(change: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidScenario, match=words) as failure:
        build({**MINIMAL, **change}, "mine.toml")
    assert all(line.startswith("mine.toml: ") for line in str(failure.value).splitlines())


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(InvalidScenario) as failure:
        build({"name": "x", "devices": 0, "stages": [{"ramp": {"rate": -1}}]}, "mine.toml")
    assert len(str(failure.value).splitlines()) == 2


def test_what_is_no_toml_or_no_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes('name = "x"\n# ä'.encode("latin-1"))
    with pytest.raises(
        InvalidScenario, match=r"latin\.toml is not TOML: line 2 is not UTF-8; save it in that encoding"
    ):
        load(tmp_path / "latin.toml")
    with pytest.raises(InvalidScenario, match="Is a directory; name a file"):
        load(tmp_path)
    with pytest.raises(InvalidScenario, match=r"mine\.toml"):
        parse("name = ", "mine.toml")
    with pytest.raises(InvalidScenario, match="cannot be read"):
        load(Path("/nonexistent.toml"))
    with pytest.raises(InvalidScenario, match="there is no such scenario; use one of"):
        find("smok")
    for path in ("nowhere.toml", "nowhere/at-all", "./smoke"):
        with pytest.raises(InvalidScenario, match="cannot be read"):
            find(path)


def test_a_larger_fleet_does_not_change_a_devices_group() -> None:
    names = [f"meter-{number:05d}" for number in range(1000)]
    small, large = with_groups(devices=10), with_groups(devices=1000)
    assert [small.group_of(name) for name in names] == [large.group_of(name) for name in names]
    flaky = sum(small.group_of(name).name == "flaky" for name in names)
    assert 60 < flaky < 140
    assert [with_groups(seed=2).group_of(name).name for name in names] != [small.group_of(name).name for name in names]


def test_equal_scenarios_have_equal_fingerprints() -> None:
    assert with_groups().fingerprint == with_groups().fingerprint != with_groups(seed=2).fingerprint


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [
        ("p99 < 250", 249.0, True),
        ("p(99)<250", 250.0, False),
        ("max <= 3000 ms", 3000.0, True),
        ("mean > 1", 1.0, False),
        ("count >= 10", 10.0, True),
    ],
)
def test_a_threshold_holds_or_not(text: str, value: float, holds: bool) -> None:
    assert Threshold.parse("admitted", text).holds(value) is holds


def test_a_threshold_says_what_it_is_on() -> None:
    assert Threshold.parse("lost", "== 0").metric is Count.LOST
    assert not Threshold.parse("lost", "== 0").security
    assert Threshold.parse("admitted", "p100 < 5").percentile == 100.0
    with pytest.raises(InvalidThreshold, match="between 0 and 100"):
        Threshold.parse("admitted", "p100.1 < 5")
    threshold = Threshold.parse("admitted", "p99.9 < 5")
    assert (threshold.metric, threshold.statistic, threshold.percentile) == (Duration.ADMITTED, "p", 99.9)
    with pytest.raises(InvalidThreshold, match="no such metric"):
        Threshold.parse("nope", "== 0")


def test_who_is_in_trouble_is_said_or_is_everybody_but_probes() -> None:
    groups = [{"name": "a"}, {"name": "b"}, {"name": "p", "probe": True}]

    def troubled(**fields: object) -> set[str]:
        stages = [{"ramp": {"rate": 1}}, {"trouble": {"seconds": "1s", "blackhole": True, **fields}}]
        return set(build({**MINIMAL, "groups": groups, "stages": stages}, "x").troubled())

    assert troubled() == {"a", "b"}
    assert troubled(groups=["p"]) == {"p"}
    assert build(MINIMAL, "x").troubled() == frozenset()


def test_a_trouble_is_told_in_words() -> None:
    state = Trouble(latency=0.2, jitter=0.05, bandwidth=2000, slice_bytes=3, half_open=True)
    assert trouble_in_words(state) == "200 ms late ±50 ms 2000 B/s in pieces of 3 B half-open"
    assert trouble_in_words(Trouble(blackhole=True, direction=Direction.TO_DEVICE)) == "blackhole to-device"


def test_a_limit_that_nothing_measured_could_cross_is_no_limit() -> None:
    assert Threshold.parse("outage", "max < 3600000").bound == 3_600_000
    assert Threshold.parse("admitted", "count >= 4000000").bound == 4_000_000
    with pytest.raises(InvalidThreshold, match="up to an hour, 3600000 ms"):
        Threshold.parse("outage", "max < 3600001")


def test_what_must_be_nought_in_every_run_is_a_matter_of_security() -> None:
    for metric in SECURITY:
        threshold = must_be_nought(metric)
        assert (threshold.metric, threshold.statistic, threshold.security) == (metric, "count", True)
        assert [threshold.holds(value) for value in (0.0, 1.0)] == [True, False]


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("5s", 5.0), ("+2m", 120.0), ("-1h", -3600.0), ("-90d", -90 * 86_400.0), ("500ms", 0.5), (-7.5, -7.5)],
)
def test_a_clock_is_ahead_or_behind_as_its_sign_says(written: str | float, seconds: float) -> None:
    scenario = build({**MINIMAL, "groups": [{"name": "a", "clock": {"offset": written}}]}, "test")
    assert scenario.groups[0].clock == Clock(offset=seconds)


def test_the_receivers_subscribe_at_the_highest_qos_that_a_group_publishes_at() -> None:
    """At a lower one they would get less than they were sent, and judge the broker by it."""

    def qos(*published: int | None) -> int:
        groups = [{"name": f"g{number}"} | {"telemetry": None if each is None else {"qos": each}}
                  for number, each in enumerate(published)]  # fmt: skip
        return build({**MINIMAL, "groups": groups}, "test").qos

    assert [qos(None), qos(0), qos(1, 0), qos(0, 2, 1), qos(2, None)] == [1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    "sleep", [None, Sleep(awake=1, asleep=1, keep_session=False), Sleep(awake=1, asleep=1)], ids=str
)
def test_a_command_to_those_asleep_needs_somebody_who_sleeps_and_has_a_session(sleep: Sleep | None) -> None:
    group = {"name": "a"} | ({} if sleep is None else {"sleep": sleep.model_dump() | {"jitter": "10%"}})
    stages = [{"ramp": {"rate": 1}}, {"command": {"asleep": True}}]
    if sleep is not None and sleep.keep_session:
        assert build({**MINIMAL, "groups": [group], "stages": stages}, "test").stages[1] == Command(asleep=True)
        return
    with pytest.raises(InvalidScenario, match=r"stages: 2 \(command\): asleep: no group sleeps and has its session"):
        build({**MINIMAL, "groups": [group], "stages": stages}, "test")


def test_a_share_of_answers_may_be_none_or_all_of_them() -> None:
    commands = {"refuse": "0%", "ignore": "100%"}
    scenario = build({**MINIMAL, "groups": [{"name": "a", "commands": commands}]}, "test")
    assert scenario.groups[0].commands == Commands(refuse=0.0, ignore=1.0)
