"""A run against a real broker behind a proxy with one fault crosses the threshold that is about it, and no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from broker.mqtt.codes import ProtocolVersion, QoS, ReasonCode
from broker.mqtt.packets import Connack, Connect, Packet, Puback, Pubcomp, Publish
from device_sim.interruption import Interruption
from device_sim.link.driver import Driver
from device_sim.link.keep_alive import KeepAlive
from device_sim.link.link import Terms
from device_sim.report import ExitCode
from device_sim.run import part, runner
from device_sim.run.manner import Manner
from device_sim.run.result import RunResult
from device_sim.run.runner import Run
from device_sim.run.target import Target
from device_sim.scenario.model import InvalidScenario, parse
from provisioning.client.operator import OperatorClient
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.tls import client_context
from tests.support.one_fault import ForgetsRevocations, OneFault, Passage
from tests.support.open_mosquitto import open_mosquitto
from tests.support.scenarios import ON_ANY_MACHINE

SCENARIO = (
    ON_ANY_MACHINE
    + """
name = "judged"
devices = 6
[[groups]]
name = "meters"
telemetry = { every = "40ms", qos = 2 }
presence = {}
[[groups]]
name = "sleepy"
telemetry = { every = "100ms" }
presence = {}
sleep = { awake = "300ms", asleep = "400ms" }
[[stages]]
ramp = { rate = 100 }
[[stages]]
command = { rate = 100, deadline = "4s", asleep = true }
[[stages]]
revoke = { select = "30%", rate = 100, deadline = "500ms" }
[thresholds]
lost = ["== 0"]
altered = ["== 0"]
duplicated = ["== 0"]
out_of_order = ["== 0"]
unexpected = ["== 0"]
unanswered_commands = ["== 0"]
unreached = ["== 0"]
stale_presence = ["== 0"]
unacknowledged = ["== 0"]
refused_messages = ["== 0"]
"""
)


class Operator:
    """Revokes at the proxy."""

    def __init__(self, fault: OneFault) -> None:
        self.fault = fault

    async def revoke(self, *, device: str, reason: RevocationReason) -> None:
        del reason
        for serial in {each.serial for each in self.fault.passages if each.identity.name == device}:
            await self.fault.revoke(serial)


class ForgetsSessions(OneFault):
    """It says that a session is present, and has forgotten it."""

    async def from_device(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Connect):
            passage.memory["kept"] = not packet.clean_start
            return [replace(packet, clean_start=True)]
        return [packet]

    async def from_broker(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Connack) and passage.memory["kept"]:
            return [replace(packet, session_present=True)]
        return [packet]


class LosesWhatIsQueued(OneFault):
    """It keeps a session, and not what has come for it."""

    async def from_broker(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Connack):
            passage.memory["returned"] = packet.session_present
        if isinstance(packet, Publish) and passage.memory.get("returned"):
            if packet.packet_id is not None:
                passage.tell_broker(Puback(packet.packet_id))
            return []
        return [packet]


class _Once(OneFault):
    """It does something wrong with the fifth packet of a kind, or another."""

    which = 5

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def is_it(self, passage: Passage, packet: Packet) -> bool:
        raise NotImplementedError

    def wrong(self, packet: Packet) -> list[Packet]:
        raise NotImplementedError

    async def from_broker(self, passage: Passage, packet: Packet) -> list[Packet]:
        self.count += self.is_it(passage, packet)
        return self.wrong(packet) if self.count == self.which and self.is_it(passage, packet) else [packet]


class DeliversTwice(_Once):
    """It delivers a message of QoS 2 twice."""

    def is_it(self, passage: Passage, packet: Packet) -> bool:
        return isinstance(packet, Publish) and not passage.is_device and packet.qos is QoS.EXACTLY_ONCE

    def wrong(self, packet: Packet) -> list[Packet]:
        assert isinstance(packet, Publish)
        assert packet.packet_id is not None
        return [packet, replace(packet, packet_id=packet.packet_id + 5000)]


class AltersOneBit(_Once):
    """It delivers a reading with one bit altered in its last value."""

    def is_it(self, passage: Passage, packet: Packet) -> bool:
        return isinstance(packet, Publish) and not passage.is_device and packet.topic.endswith("/telemetry")

    def wrong(self, packet: Packet) -> list[Packet]:
        assert isinstance(packet, Publish)
        head, seal, tail = packet.payload.partition(b',"crc"')
        return [replace(packet, payload=head[:-1] + bytes((head[-1] ^ 1,)) + seal + tail)]


class DeliversAnothers(_Once):
    """It delivers a reading under the topic of another device."""

    def is_it(self, passage: Passage, packet: Packet) -> bool:
        return isinstance(packet, Publish) and not passage.is_device and packet.topic.endswith("/telemetry")

    def wrong(self, packet: Packet) -> list[Packet]:
        assert isinstance(packet, Publish)
        group, name = packet.topic.split("/")[1:3]
        return [replace(packet, topic=f"fleet/{group}/meter-{2 if name == 'meter-1' else 1}/telemetry")]


class AltersACommand(_Once):
    """It delivers a command with another argument."""

    which = 1

    def is_it(self, passage: Passage, packet: Packet) -> bool:
        return isinstance(packet, Publish) and passage.is_device

    def wrong(self, packet: Packet) -> list[Packet]:
        assert isinstance(packet, Publish)
        return [replace(packet, payload=packet.payload.replace(b'"arguments":{}', b'"arguments":{"now":1}'))]


class QueuesTwice(OneFault):
    """It delivers what was queued for a device twice."""

    async def from_broker(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Publish) and passage.is_device and packet.packet_id is not None:
            return [packet, replace(packet, packet_id=packet.packet_id + 5000)]
        return [packet]


class NeverCompletes(OneFault):
    """It does not complete the first exchange of QoS 2 on a connection."""

    async def from_broker(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Pubcomp) and passage.memory.setdefault("first", packet.packet_id) == packet.packet_id:
            return []
        return [packet]


class CompletesWrongly(_Once):
    """It does not know what it has to complete."""

    def is_it(self, passage: Passage, packet: Packet) -> bool:
        return isinstance(packet, Pubcomp) and passage.is_device

    def wrong(self, packet: Packet) -> list[Packet]:
        assert isinstance(packet, Pubcomp)
        return [Pubcomp(packet.packet_id, ReasonCode.PACKET_IDENTIFIER_NOT_FOUND)]


class GivesAliases(OneFault):
    """It uses a topic alias, where none is accepted."""

    async def from_broker(self, passage: Passage, packet: Packet) -> list[Packet]:
        if not isinstance(packet, Publish) or passage.version is not ProtocolVersion.V5:
            return [packet]
        told = passage.memory.setdefault("told", packet.topic) == packet.topic and "again" in passage.memory
        passage.memory["again"] = True
        properties = replace(packet.properties, topic_alias=1)
        return [replace(packet, topic="" if told else packet.topic, properties=properties)]


SOON = 3
"""A keep alive in seconds, half of which a busy machine may be late; mosquitto looks once a second who is silent."""


class SetsKeepAlive(OneFault):
    """No fault: it sets the keep alive itself [MQTT-3.1.2-21], and keeps to that."""

    async def from_device(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        return [replace(packet, keep_alive=SOON)] if isinstance(packet, Connect) else [packet]

    async def from_broker(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        if isinstance(packet, Connack):
            return [replace(packet, properties=replace(packet.properties, server_keep_alive=SOON))]
        return [packet]


UNANSWERED = (ForgetsSessions, LosesWhatIsQueued, AltersACommand)
NOTHING_IS_MISSING = {OneFault, QueuesTwice, DeliversTwice, CompletesWrongly, ForgetsRevocations}


@pytest.fixture(autouse=True)
def impatient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the drain not wait long for what will never come."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    for module in (part, runner):
        monkeypatch.setattr(module, "_DRAIN_DEADLINE", 60.0 if parameters.get("fault") in NOTHING_IS_MISSING else 2.0)


async def judged(directory: Path, fault: OneFault, driver: Driver) -> RunResult:
    # Who waits for what comes waits as long as this machine takes.
    text = SCENARIO if isinstance(fault, UNANSWERED) else SCENARIO.replace('deadline = "4s"', 'deadline = "60s"')
    text = text if isinstance(fault, ForgetsRevocations) else text.replace('deadline = "500ms"', 'deadline = "60s"')
    # Who waits for an answer in vain does so for seconds, in which readings are not the point.
    text = text.replace('"40ms"', '"400ms"').replace('"100ms"', '"400ms"') if isinstance(fault, UNANSWERED) else text
    scenario = parse(text, "judged.toml")
    async with open_mosquitto(directory, fault) as behind:
        fleet = behind.fleet(directory / "fleet", scenario.devices)
        target = Target(behind.endpoint, fleet, operator=cast("OperatorClient", Operator(fault)))
        return await Run(scenario, target, Manner(driver=driver)).play(Interruption())


@pytest.mark.parametrize("driver", Driver)
@pytest.mark.parametrize(
    ("fault", "crossed"),
    [
        (OneFault, set()),
        (ForgetsSessions, {"unanswered_commands"}),
        (LosesWhatIsQueued, {"unanswered_commands"}),
        (QueuesTwice, {"unexpected"}),
        (AltersOneBit, {"altered", "lost"}),
        (DeliversAnothers, {"altered", "lost"}),
        (AltersACommand, {"altered", "unanswered_commands"}),
        (DeliversTwice, {"duplicated"}),
        (NeverCompletes, {"unacknowledged"}),
        (CompletesWrongly, {"refused_messages"}),
        (ForgetsRevocations, {"false_admissions"}),
    ],
)
async def test_a_fault_crosses_the_threshold_that_is_about_it(
    tmp_path: Path, fault: Callable[[], OneFault], crossed: set[str], driver: Driver
) -> None:
    result = await judged(tmp_path, fault(), driver)
    assert {str(one.threshold.metric) for one in result.thresholds if not one.passed} == crossed
    security = crossed == {"false_admissions"}
    assert result.exit_code == (ExitCode.SECURITY if security else ExitCode.THRESHOLD if crossed else ExitCode.OK)


@pytest.mark.parametrize("driver", Driver)
async def test_who_is_told_to_ping_more_often_does(tmp_path: Path, driver: Driver) -> None:
    driver.load()
    async with open_mosquitto(tmp_path, SetsKeepAlive()) as behind, KeepAlive() as keep_alive:
        context = client_context(behind.papers.ca, behind.credential("meter-1").pem)
        link = await driver.open(behind.endpoint, context, "meter-1", keep_alive=keep_alive, terms=Terms())
        await asyncio.wait([link.closed], timeout=2 * SOON + 1)  # A silent one would be out.
        assert not link.closed.done(), link.closed.result()
        await link.close()


@pytest.mark.parametrize("driver", Driver)
async def test_a_topic_alias_that_was_not_granted_breaks_the_protocol(tmp_path: Path, driver: Driver) -> None:
    """A message whose topic nobody knows is not delivered."""
    driver.load()
    heard: list[str] = []
    async with open_mosquitto(tmp_path, GivesAliases()) as behind, KeepAlive() as keep_alive:
        context = client_context(behind.papers.ca, behind.credential("meter-1").pem)
        link = await driver.open(
            behind.endpoint, context, "meter-1", keep_alive=keep_alive, received=lambda topic, _: heard.append(topic)
        )
        await link.subscribe("t", 1)
        link.publish("t", b"first", 1)
        link.publish("t", b"second", 1)
        closure = await asyncio.wait_for(link.closed, 30)
    assert closure.code == "broken protocol"
    assert "topic alias" in closure.reason
    assert "" not in heard


def test_a_command_for_those_who_sleep_needs_some() -> None:
    with pytest.raises(InvalidScenario, match="no group sleeps and has its session kept"):
        parse(SCENARIO.replace('asleep = "400ms" }', 'asleep = "400ms", keep_session = false }'), "judged.toml")
