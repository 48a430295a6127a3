from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from device_sim.fleet.tally import Sent
from device_sim.latency import Latency
from device_sim.link.closure import Closure, Layer
from device_sim.link.driver import Driver
from device_sim.link.tls_dial import Endpoint
from device_sim.run import dialogue
from device_sim.run.health import HealthSample
from device_sim.run.manner import Manner, Share, commander_of, loopback_addresses, sources_for
from device_sim.run.part import PartOutcome, PartState, Strays
from device_sim.run.recorder import Marker
from device_sim.scenario.catalogue import built_in
from device_sim.scenario.metrics import Count, Duration
from device_sim.scenario.model import Scenario


@pytest.mark.parametrize("scenario", built_in().values(), ids=lambda scenario: scenario.name)
def test_a_worker_gets_the_scenario_that_the_conductor_has(scenario: Scenario) -> None:
    job = dialogue.Job(
        scenario=scenario,
        fleet=Path("/fleet"),
        broker=Endpoint("127.0.0.1", 8883, "localhost"),
        manner=Manner(Driver.LIGHT, 2, ("127.0.0.2", "127.0.0.3")),
        share=Share(1, 2),
    )
    text = dialogue.line(job)
    assert text.count(b"\n") == 1
    heard = dialogue.order(text)
    assert heard == job
    assert isinstance(heard, dialogue.Job)
    assert heard.scenario.fingerprint == scenario.fingerprint


def test_an_outcome_arrives_whole() -> None:
    latency = Latency()
    latency.record(0.010)
    said = dialogue.Outcome(
        outcome=PartOutcome(
            sent={"meter-1": Sent(7, frozenset({6, 7}))},
            counts={Count.PUBLISHED: 7},
            service={Duration.PUBACK: latency.encoded()},
            response={Duration.PUBACK: latency.encoded()},
            lag=latency.encoded(),
            standstill=latency.encoded(),
            skipped=0,
            refused={"tls unknown_ca": 1},
            false_refusals={"meter-2": Closure(Layer.MQTT, "0x87 Not authorized", "no", 1.5, 0x87)},
            memory_before_mb=61.5,
            markers=[Marker(1.0, "storm", "3 connections break")],
        )
    )
    assert dialogue.report(dialogue.line(said)) == said


def test_what_has_strayed_arrives_whole() -> None:
    said = dialogue.Strayed(strays=Strays(altered=2, unexpected=3))
    assert dialogue.report(dialogue.line(said)) == said


def test_a_state_arrives_whole() -> None:
    health = HealthSample(1.0, 2.0, 0.3, 50, 20_000, 40, 28_232, 80.0)
    state = PartState(3, 4, 10, 1, 1, 0.5, {"tls unknown_ca": 1}, {Duration.PUBACK: [1.5, 2.5]}, health)
    said = dialogue.State(state=state)
    assert dialogue.report(dialogue.line(said)) == said


@pytest.mark.parametrize("text", [b"", b"{}", b'{"said":"begin"}', b'{"said":"explode"}', b"no JSON"])
def test_what_nobody_says_is_an_error(text: bytes) -> None:
    with pytest.raises(ValidationError):
        dialogue.order(text)


def split(names: Sequence[str], of: int) -> list[list[str]]:
    return [Share(number, of).names(names) for number in range(of)]


def test_every_device_has_one_worker() -> None:
    names = [f"meter-{number}" for number in range(11)]
    assert sorted(name for part in split(names, 3) for name in part) == sorted(names)
    assert [len(part) for part in split(names, 3)] == [4, 4, 3]


def test_workers_command_under_names_of_their_own() -> None:
    assert commander_of("backend", Share()) == "backend"
    assert [commander_of("backend", Share(number, 2)) for number in range(2)] == ["backend-w1", "backend-w2"]


def test_ports_do_not_run_out() -> None:
    assert loopback_addresses(sources_for(10_000)) == ()
    assert loopback_addresses(sources_for(30_000)) == ("127.0.0.2", "127.0.0.3", "127.0.0.4")


@pytest.mark.parametrize("of", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("devices", [1, 3, 12, 100, 1001])
def test_workers_together_choose_as_many_as_one_would(of: int, share: float, devices: int) -> None:
    there = [len(part) for part in split([str(number) for number in range(devices)], of)]
    chosen = [Share(number, of).quota(share, count) for number, count in enumerate(there)]
    assert all(count <= most for count, most in zip(chosen, there, strict=True))
    assert sum(chosen) >= 1
    assert abs(sum(chosen) - share * devices) <= 1.5  # Each worker has whole devices only.
    if of == 1:
        assert chosen == [max(1, math.floor(share * devices + 0.5))]


def test_who_has_no_devices_chooses_none() -> None:
    assert Share(0, 2).quota(1.0, 0) == 0
