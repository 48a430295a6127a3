"""What a member of a share leaves behind goes to another, though no plugin was asked about that one yet."""

from __future__ import annotations

from typing import Any

import pytest
from amqtt.contexts import Action, BaseContext
from amqtt.plugins.base import BaseTopicPlugin

from tests.support.hosted_plugins import HostedPlugins
from tests.support.wire import MemoryBroker, WireClient, publication

TOPIC = "fleet/meters/meter-1/telemetry"
SHARED = "$share/workers/fleet/#"


class Keeps(BaseTopicPlugin):
    """Keeps everything from some clients."""

    def __init__(self, *kept_from: str) -> None:
        super().__init__(BaseContext())
        self._kept_from = kept_from

    async def topic_filtering(self, *, session: Any, action: Action, **_: Any) -> bool:
        return action is not Action.RECEIVE or session.client_id not in self._kept_from


class Scene:
    """A share of two members, one of whose sessions ends with its connection."""

    def __init__(self, broker: MemoryBroker, *kept_from: str) -> None:
        self.broker, self.plugins = broker, HostedPlugins(broker, [Keeps(*kept_from)])
        self.leaving = broker.service("w", client_id="w-leaves")
        self.staying = self.stays()
        self.meter = broker.device("meter-1")

    def stays(self) -> WireClient:
        return self.broker.service("w", client_id="w-stays", clean_start=False, session_expiry_interval=600)

    async def begin(self, *numbers: int, **fields: Any) -> None:
        """Send *numbers*, of which the member that leaves acknowledges none."""
        await self.plugins.subscribe(self.leaving, SHARED, 1)
        await self.plugins.subscribe(self.staying, SHARED, 1)
        for number in numbers:
            self.meter.send(publication(TOPIC, b"%d" % number, 1, packet_id=number + 1, **fields))
            await self.plugins.answered()
        assert self.leaving.payloads() == [b"%d" % number for number in numbers[::2]]
        assert self.staying.payloads() == [b"%d" % number for number in numbers[1::2]]


@pytest.mark.parametrize("is_back", [True, False])
async def test_it_goes_to_who_has_connected_since(broker: MemoryBroker, is_back: bool) -> None:
    scene = Scene(broker)
    await scene.begin(0)
    scene.staying.vanish()
    if is_back:
        scene.staying = scene.stays()
    scene.leaving.vanish()
    await scene.plugins.answered()
    if not is_back:
        scene.staying = scene.stays()
    assert scene.staying.payloads() == [b"0"]


async def test_it_keeps_its_order(broker: MemoryBroker) -> None:
    scene = Scene(broker)
    await scene.begin(0, 1, 2, 3, 4)
    scene.staying.vanish()
    scene.staying = scene.stays()
    assert scene.staying.payloads() == [b"1", b"3"]
    scene.leaving.vanish()
    await scene.plugins.answered()
    assert scene.staying.payloads() == [b"0", b"2", b"4"]


async def test_it_goes_to_nobody_from_whom_a_plugin_keeps_it(broker: MemoryBroker) -> None:
    scene = Scene(broker, "w-stays")
    await scene.plugins.subscribe(scene.leaving, SHARED, 1)
    await scene.plugins.subscribe(scene.staying, SHARED, 1)
    scene.meter.send(publication(TOPIC, b"0", 1, packet_id=1))
    await scene.plugins.answered()
    scene.leaving.vanish()
    await scene.plugins.answered()
    assert scene.staying.payloads() == []


async def test_what_has_expired_when_a_plugin_has_answered_goes_to_nobody(broker: MemoryBroker) -> None:
    # [MQTT-3.3.2-5]
    scene = Scene(broker)
    broker.now -= 20  # With an answer comes the loop's time: it takes 20 seconds.
    await scene.begin(0, 1)
    scene.meter.send(publication(TOPIC, b"2", 1, packet_id=3, message_expiry_interval=10))
    assert scene.leaving.payloads() == [b"2"], "plugins have answered already"
    scene.staying.vanish()
    scene.staying = scene.stays()
    assert scene.staying.payloads() == [b"1"]
    scene.leaving.vanish()
    await scene.plugins.answered()
    assert scene.staying.payloads() == [b"0"]
    assert broker.metrics.dropped_expired == 1
