"""A benchmark's subscriber sees what a real broker behind a proxy with one fault loses, doubles or overtakes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from broker.mqtt.codes import QoS, ReasonCode
from broker.mqtt.packets import Disconnect, Packet, Puback, Pubcomp, Publish, Pubrec, Pubrel, Suback
from device_sim.bench.bench import Bench, Figures
from device_sim.bench.keyring import FleetKeyring
from device_sim.bench.plan import Kind, Plan
from device_sim.bench.show import summary
from device_sim.interruption import Interruption
from device_sim.link.driver import Driver
from device_sim.link.link import Terms
from tests.support.one_fault import OneFault, Passage
from tests.support.open_mosquitto import open_mosquitto

WHICH = 7
SENT = 30


class WithOne(OneFault):
    """It does something wrong with the seventh message to the subscriber."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def wrong(self, passage: Passage, packet: Publish) -> list[Packet]:
        del passage
        return [packet]

    async def from_broker(self, passage: Passage, packet: Packet) -> list[Packet]:
        if passage.is_device or not isinstance(packet, Publish):
            return [packet]
        self.count += 1
        if self.count == WHICH:
            return self.wrong(passage, packet)
        return [packet]


class Loses(WithOne):
    """It loses it."""

    def wrong(self, passage: Passage, packet: Publish) -> list[Packet]:
        if packet.qos is QoS.AT_LEAST_ONCE:
            passage.tell_broker(Puback(packet.packet_id or 0))
        if packet.qos is QoS.EXACTLY_ONCE:
            passage.memory["lost"] = packet.packet_id
            passage.tell_broker(Pubrec(packet.packet_id or 0))
        return []

    async def from_broker(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Pubrel) and passage.memory.get("lost") == packet.packet_id:
            passage.tell_broker(Pubcomp(packet.packet_id))
            return []
        return await super().from_broker(passage, packet)


class Doubles(WithOne):
    """It sends it twice, as two messages."""

    def wrong(self, passage: Passage, packet: Publish) -> list[Packet]:
        del passage
        return [packet, replace(packet, packet_id=packet.packet_id + 5000 if packet.packet_id else None)]


class Overtakes(WithOne):
    """It sends it behind the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Packet] = []

    def wrong(self, passage: Passage, packet: Publish) -> list[Packet]:
        del passage
        self.held.append(packet)
        return []

    async def from_broker(self, passage: Passage, packet: Packet) -> list[Packet]:
        sent = await super().from_broker(passage, packet)
        if self.held and isinstance(packet, Publish) and sent:
            sent, self.held = [*sent, *self.held], []
        return sent


class Alters(WithOne):
    """It alters the last bit of it."""

    def wrong(self, passage: Passage, packet: Publish) -> list[Packet]:
        del passage
        return [replace(packet, payload=packet.payload[:-1] + bytes((packet.payload[-1] ^ 1,)))]


async def benched(directory: Path, fault: OneFault, qos: int, driver: Driver) -> Figures:
    limit = SENT - isinstance(fault, Loses) + isinstance(fault, Doubles)
    async with open_mosquitto(directory, fault) as behind:
        fleet = behind.fleet(directory / "fleet", 1)
        plan = Plan(Kind.SUB, 1, 100.0, "fleet/#", qos, limit=limit)
        subscriber = Bench(plan, FleetKeyring(fleet, service=True), behind.endpoint, Terms(), driver)
        subscribing = asyncio.create_task(subscriber.run(Interruption()))
        async with asyncio.timeout(60):
            while not subscriber.figures.subscribed:
                await asyncio.sleep(0.01)
            sending = Plan(Kind.PUB, 1, 100.0, "fleet/%g/%c/telemetry", qos, interval=0.01, limit=SENT)
            sent = await Bench(sending, FleetKeyring(fleet), behind.endpoint, Terms(), driver).run(Interruption())
            assert not sent.troubled
            return await subscribing


@pytest.mark.parametrize(
    ("fault", "qos", "found", "troubled"),
    [
        (WithOne, 0, (0, 0, 0), False),
        (WithOne, 1, (0, 0, 0), False),
        (WithOne, 2, (0, 0, 0), False),
        (Loses, 0, (1, 0, 0), False),
        (Loses, 1, (1, 0, 0), True),
        (Loses, 2, (1, 0, 0), True),
        (Doubles, 0, (0, 1, 0), True),
        (Doubles, 1, (0, 1, 0), False),
        (Doubles, 2, (0, 1, 0), True),
        (Overtakes, 1, (0, 0, 1), True),
    ],
)
async def test_a_subscriber_tells_what_it_did_not_get_as_it_should(
    tmp_path: Path, fault: Callable[[], OneFault], qos: int, found: tuple[int, int, int], troubled: bool
) -> None:
    figures = await benched(tmp_path, fault(), qos, Driver.LIGHT)
    assert (figures.missing, figures.duplicated, figures.out_of_order) == found
    assert figures.altered == 0
    assert figures.troubled is troubled


async def test_the_other_driver_tells_the_same(tmp_path: Path) -> None:
    assert (await benched(tmp_path, Loses(), 1, Driver.PAHO)).missing == 1


class SaysGoodbye(OneFault):
    """It ends the connection of whoever publishes, without any complaint [MQTT 5 §3.14.2.1, 0x00]."""

    async def from_device(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Publish):
            passage.tell_device(Disconnect(ReasonCode.SUCCESS))
            passage.device.close()
            return []
        return [packet]


@pytest.mark.parametrize("driver", list(Driver))
async def test_a_subscriber_sees_that_a_message_is_altered(tmp_path: Path, driver: Driver) -> None:
    figures = await benched(tmp_path, Alters(), 0, driver)
    assert (figures.received, figures.altered, figures.missing, figures.duplicated) == (SENT, 1, 1, 0)
    assert figures.troubled


@pytest.mark.parametrize("driver", list(Driver))
async def test_a_connection_that_the_broker_ends_is_lost_however_politely(tmp_path: Path, driver: Driver) -> None:
    async with open_mosquitto(tmp_path, SaysGoodbye()) as behind:
        fleet = behind.fleet(tmp_path / "fleet", 1)
        plan = Plan(Kind.PUB, 1, 100.0, "fleet/%g/%c/telemetry", 0, interval=0.01)
        figures = await Bench(plan, FleetKeyring(fleet), behind.endpoint, Terms(), driver).run(Interruption())
    assert figures.lost.total() == 1
    assert figures.troubled


class NeverGrants(OneFault):
    """It does not answer SUBSCRIBE."""

    async def from_broker(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        return [] if isinstance(packet, Suback) else [packet]


@pytest.mark.parametrize("driver", list(Driver))
async def test_who_is_never_subscribed_is_not_served_however_short_the_benchmark(
    tmp_path: Path, driver: Driver
) -> None:
    """It ends before a driver gives up waiting for SUBACK."""
    async with open_mosquitto(tmp_path, NeverGrants()) as behind:
        fleet = behind.fleet(tmp_path / "fleet", 1)
        plan = Plan(Kind.SUB, 1, 100.0, "fleet/#", 1, seconds=3.0)
        figures = await Bench(plan, FleetKeyring(fleet, service=True), behind.endpoint, Terms(), driver).run(
            Interruption()
        )
    assert (figures.admitted.count, figures.subscribed) == (1, 0)
    assert figures.troubled
    told = Console(width=80, file=StringIO())
    told.print(summary(plan, figures))
    assert "0 of 1 subscribed" in told.file.getvalue()  # type: ignore[attr-defined]
