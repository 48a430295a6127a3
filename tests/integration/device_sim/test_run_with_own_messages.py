"""A run with topics and payloads of the scenario's own: they arrive as written, and every fault is found as ever."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from broker.mqtt.codes import QoS, RetainHandling
from broker.mqtt.packets import Packet, Publish, Subscribe
from device_sim.interruption import Interruption
from device_sim.link.driver import Driver
from device_sim.report import ExitCode
from device_sim.results.document import document_of, remarks
from device_sim.run import part, runner
from device_sim.run.manner import Manner
from device_sim.run.result import RunResult
from device_sim.run.runner import Run
from device_sim.run.target import Target
from device_sim.scenario.model import load, parse
from device_sim.telemetry.stamp import NAME
from tests.support.fleet_sim import left_in, ran
from tests.support.needed import needed
from tests.support.one_fault import OneFault, Passage
from tests.support.open_mosquitto import open_mosquitto
from tests.support.scenarios import ON_ANY_MACHINE

SCENARIO = (
    ON_ANY_MACHINE
    + """
name = "own"
devices = 4
[[groups]]
name = "meters"
presence = {}
[groups.telemetry]
every = "40ms"
qos = 2
topic = "plant/{group}/{name}/data"
payload = '{"id":"{name}","n":{number},"at":"{time}","w":{power_w}}'
[[stages]]
ramp = { rate = 100 }
[[stages]]
command = { rate = 100, deadline = "60s" }
[[stages]]
hold = "300ms"
[thresholds]
lost = ["== 0"]
altered = ["== 0"]
duplicated = ["== 0"]
out_of_order = ["== 0"]
unexpected = ["== 0"]
unanswered_commands = ["== 0"]
unreached = ["== 0"]
stale_presence = ["== 0"]
refused_messages = ["== 0"]
end_to_end = ["count > 8"]
"""
)


class Watches(OneFault):
    """No fault: it notes what passes, and has a device's subscription only when all that is sent to it might be there.

    As on a busy machine, where the broker reads other connections first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.published: list[Publish] = []
        self.filters: dict[str, RetainHandling] = {}

    async def from_device(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Publish) and passage.is_device:
            self.published.append(packet)
        if isinstance(packet, Subscribe) and passage.is_device:
            await asyncio.sleep(0.3)
        elif isinstance(packet, Subscribe):
            self.filters |= {request.filter: request.retain_handling for request in packet.requests}
        return [packet]


class _Once(OneFault):
    """It does something wrong with the fifth reading that it delivers."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def wrong(self, packet: Publish) -> list[Packet]:
        raise NotImplementedError

    async def from_broker(self, passage: Passage, packet: Packet) -> list[Packet]:
        if not isinstance(packet, Publish) or passage.is_device or not packet.topic.endswith("/data"):
            return [packet]
        self.count += 1
        return self.wrong(packet) if self.count == 5 else [packet]


def restamped(packet: Publish, change: Callable[[str], str]) -> Publish:
    ((name, value),) = packet.properties.user_properties
    return replace(packet, properties=replace(packet.properties, user_properties=((name, change(value)),)))


class AltersOneBit(_Once):
    """It delivers a payload with another bit."""

    def wrong(self, packet: Publish) -> list[Packet]:
        return [replace(packet, payload=packet.payload[:-2] + bytes((packet.payload[-2] ^ 1,)) + packet.payload[-1:])]


class Renumbers(_Once):
    """It delivers a message with the number of another."""

    def wrong(self, packet: Publish) -> list[Packet]:
        return [restamped(packet, lambda stamp: re.sub(r"^\d+", lambda number: str(int(number[0]) + 1), stamp))]


class Scribbles(_Once):
    """It delivers a message with a property that nobody can read."""

    def wrong(self, packet: Publish) -> list[Packet]:
        return [restamped(packet, lambda _: "?")]


class RepeatsAProperty(_Once):
    """It delivers a message with its user property twice."""

    def wrong(self, packet: Publish) -> list[Packet]:
        twice = 2 * packet.properties.user_properties
        return [replace(packet, properties=replace(packet.properties, user_properties=twice))]


class AddsAProperty(_Once):
    """No fault: it adds a user property of its own."""

    def wrong(self, packet: Publish) -> list[Packet]:
        more = (("broker", "b-1"), *packet.properties.user_properties)
        return [replace(packet, properties=replace(packet.properties, user_properties=more))]


class DeliversAnothers(_Once):
    """It delivers a message under the topic of another device."""

    def wrong(self, packet: Publish) -> list[Packet]:
        name = packet.topic.split("/")[2]
        return [replace(packet, topic=f"plant/meters/meter-{2 if name == 'meter-1' else 1}/data")]


class DeliversElsewhere(_Once):
    """It delivers a message under a topic of nobody."""

    def wrong(self, packet: Publish) -> list[Packet]:
        return [replace(packet, topic="plant/meters/stranger/data")]


class DeliversTwice(_Once):
    """It delivers a message of QoS 2 twice."""

    def wrong(self, packet: Publish) -> list[Packet]:
        assert packet.qos is QoS.EXACTLY_ONCE
        assert packet.packet_id is not None
        return [packet, replace(packet, packet_id=packet.packet_id + 5000)]


class StripsProperties(OneFault):
    """It forwards no user properties, as a bridge by MQTT 3.1.1."""

    async def from_broker(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        if isinstance(packet, Publish):
            return [replace(packet, properties=replace(packet.properties, user_properties=()))]
        return [packet]


def drains_for(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (part, runner):
        monkeypatch.setattr(module, "_DRAIN_DEADLINE", seconds)


@pytest.fixture(autouse=True)
def impatient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the drain not wait long for what will never come, and as long as this machine takes for what comes."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    drains_for(2.0 if "lost" in parameters.get("found", ()) else 60.0, monkeypatch)


async def judged(directory: Path, fault: OneFault, driver: Driver, text: str = SCENARIO) -> RunResult:
    scenario = parse(text, "own.toml")
    async with open_mosquitto(directory, fault) as behind:
        fleet = behind.fleet(directory / "fleet", scenario.devices)
        return await Run(scenario, Target(behind.endpoint, fleet), Manner(driver=driver)).play(Interruption())


def crossed(result: RunResult) -> set[str]:
    return {str(one.threshold.metric) for one in result.thresholds if not one.passed}


@pytest.mark.parametrize("driver", Driver)
@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (AddsAProperty, set()),
        (AltersOneBit, {"altered", "lost"}),
        (Renumbers, {"altered", "lost"}),
        (DeliversAnothers, {"altered", "lost"}),
        (DeliversElsewhere, {"unexpected", "lost"}),
        (Scribbles, {"unexpected", "lost"}),
        (RepeatsAProperty, {"unexpected", "lost"}),
        (DeliversTwice, {"duplicated"}),
        # Of what nobody has received, nothing is known to be duplicated or out of order: that is no pass either.
        (StripsProperties, {"unexpected", "lost", "end_to_end", "duplicated", "out_of_order"}),
    ],
)
async def test_a_fault_with_an_own_message_crosses_the_threshold_that_is_about_it(
    tmp_path: Path, fault: Callable[[], OneFault], found: set[str], driver: Driver
) -> None:
    result = await judged(tmp_path, fault(), driver)
    assert crossed(result) == found
    assert result.exit_code == (ExitCode.THRESHOLD if found else ExitCode.OK)
    if fault is StripsProperties:
        told = "\n".join(remarks(document_of(result)))
        assert "unexpected message" in told
        assert "must speak MQTT 5 and forward them unaltered" in told


@pytest.mark.parametrize("driver", Driver)
async def test_what_the_scenario_says_is_what_the_broker_gets(tmp_path: Path, driver: Driver) -> None:
    watching = Watches()
    result = await judged(tmp_path, watching, driver)
    assert crossed(result) == set()
    # What the user's own devices have left there is not of this run.
    handled = {"fleet/#": RetainHandling.SEND, "plant/meters/+/data": RetainHandling.DO_NOT_SEND}
    assert watching.filters.items() >= handled.items()
    numbers: dict[str, list[int]] = {}
    for packet in watching.published:
        if packet.topic.endswith("/data"):
            plant, group, name, _ = packet.topic.split("/")
            reading = json.loads(packet.payload)
            assert (plant, group, name) == ("plant", "meters", reading.pop("id"))
            assert reading.keys() == {"n", "at", "w"}
            assert [name for name, _ in packet.properties.user_properties] == [NAME]
            numbers.setdefault(name, []).append(reading["n"])
    assert numbers.keys() == {f"meter-{number}" for number in range(1, 5)}
    assert all(each == list(range(1, len(each) + 1)) for each in numbers.values())
    assert not [packet for packet in watching.published if packet.topic.endswith("/telemetry")]


@pytest.mark.parametrize("driver", Driver)
async def test_an_own_topic_with_a_payload_of_ours_needs_no_user_properties(
    tmp_path: Path, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = re.sub("payload = .*", 'format = "cbor"', SCENARIO)
    assert crossed(await judged(tmp_path, StripsProperties(), driver, text)) == set()
    (tmp_path / "altered").mkdir()
    drains_for(2.0, monkeypatch)
    altered = await judged(tmp_path / "altered", AltersOneBit(), driver, text)
    assert crossed(altered) == {"altered", "lost"}


MIXED = (
    SCENARIO.replace("devices = 4", "devices = 10")
    .replace("payload = ", "# ")
    .replace("[groups.telemetry]", '[groups.telemetry]\npayload_file = "reading.json"')
    .replace(
        "[[stages]]",
        """
[[groups]]
name = "trackers"
telemetry = { every = "100ms", model = "tracker", topic = "{name}/gps" }
[[groups]]
name = "as-ever"
telemetry = { every = "100ms" }
[[stages]]""",
        1,
    )
    .replace('[[stages]]\nhold = "300ms"', '[[stages]]\nstorm = { drop = "100%" }\n[[stages]]\nhold = "1s"')
)


@pytest.mark.parametrize(
    "how", [("--self-hosted",), ("--self-hosted", "--against", "mosquitto", "--driver", "light", "--workers", "2")]
)
async def test_a_broker_of_the_run_s_own_allows_the_scenario_s_topics(tmp_path: Path, how: tuple[str, ...]) -> None:
    if "mosquitto" in how:
        needed("mosquitto")
    scenario = tmp_path / "own.toml"
    scenario.write_text(MIXED)
    (tmp_path / "reading.json").write_text('{"id":"{name}","in":{"kW":{power_w}}}\n')
    assert {each.name for each in load(scenario).groups} == {"meters", "trackers", "as-ever"}
    output = tmp_path / "out"
    code, out, err = await ran(tmp_path, "run", str(scenario), *how, "--json", "--output", str(output))
    assert code == 0, out + err
    document = json.loads(out)
    counts = document["counts"]
    assert counts["published"] == counts["received"] + counts["in_flight"] > 20
    assert (counts["unexpected"], counts["altered"], counts["refused_messages"]) == (0, 0, 0)
    code, out, err = await ran(tmp_path, "report", str(output), str(output))
    assert code == 0, out + err
    assert not left_in(tmp_path)
