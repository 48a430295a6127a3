"""What a plugin is told, by the real host and in order: the names and arguments of amqtt's events."""

from __future__ import annotations

import asyncio
from typing import Any

from amqtt.contexts import BaseContext
from amqtt.plugins.base import BasePlugin

from broker.mqtt.codes import QoS
from broker.mqtt.packets import Disconnect, Suback, Subscribe, SubscriptionRequest
from broker.plugins.host import PluginHost
from broker.plugins.loading import Wanted
from broker.plugins.logs import Outcomes
from broker.plugins.plugin_set import PluginSet
from broker.plugins.questions import Questions
from broker.plugins.watch import Watch
from tests.support.wire import MemoryBroker

OWN = "fleet/meters/meter-1"


class Listens(BasePlugin[BaseContext]):
    """Writes down what it hears."""

    def __init__(self, context: BaseContext) -> None:
        super().__init__(context)
        self.heard: list[tuple[Any, ...]] = []

    async def on_broker_client_connected(self, *, client_id: str, client_session: Any) -> None:
        self.heard.append(("connected", client_id, client_session.transitions.state, client_session.username))

    async def on_broker_client_disconnected(self, *, client_id: str, client_session: Any) -> None:
        self.heard.append(("disconnected", client_id, client_session.transitions.state))

    async def on_broker_client_subscribed(self, *, client_id: str, topic: str, qos: int) -> None:
        self.heard.append(("subscribed", client_id, topic, qos))

    async def on_broker_client_unsubscribed(self, *, client_id: str, topic: str) -> None:
        self.heard.append(("unsubscribed", client_id, topic))

    async def on_broker_message_received(self, *, client_id: str, message: Any) -> None:
        self.heard.append(("received", client_id, message.topic, bytes(message.data), message.qos))

    async def on_broker_message_broadcast(self, *, client_id: str, message: Any) -> None:
        self.heard.append(("broadcast", client_id, message.topic, bytes(message.data), message.qos))

    async def on_broker_retained_message(self, *, client_id: None, retained_message: Any) -> None:
        self.heard.append(("retained", client_id, retained_message.topic, bytes(retained_message.data)))


async def test_a_plugin_hears_in_order_of_what_is_permitted_and_of_nothing_else(broker: MemoryBroker) -> None:
    clock = asyncio.get_running_loop().time
    outcomes = Outcomes(broker.metrics, clock)
    watch = Watch(broker.metrics, outcomes)
    wanted = [Wanted("fleet_plugins.Listens", Listens, None)]
    plugin_set = PluginSet(wanted, BaseContext(), outcomes, watch, lambda: 100, 30.0)
    questions = Questions(plugin_set.plugins, lambda: 100, outcomes, watch, patience=30.0, verdict_seconds=10.0)
    PluginHost(broker.engine, claimed_names=False).attach(plugin_set, questions)
    await plugin_set.pre_start()
    meter = broker.device("meter-1")
    await plugin_set.members[0].events.drained()
    meter.send(Subscribe(1, (SubscriptionRequest(f"{OWN}/cmd/#", QoS.AT_LEAST_ONCE), SubscriptionRequest("fleet/#"))))
    assert [code.is_failure for code in meter.next_packet(Suback).reason_codes] == [False, True]
    meter.publish(f"{OWN}/t", b"1", qos=1)
    meter.publish("fleet/meters/meter-2/t", b"2", qos=1)
    meter.publish(f"{OWN}/kept", b"3", qos=1, retain=True)
    meter.unsubscribe(f"{OWN}/cmd/#", f"{OWN}/never")
    meter.send(Disconnect())
    await plugin_set.close()
    assert plugin_set.describe()[0]["hooks"] == sorted(plugin_set.members[0].events.handlers)
    plugin = plugin_set.plugins[0]
    assert isinstance(plugin, Listens)
    assert plugin.heard == [
        ("connected", "meter-1", "connected", "meter-1"),
        ("subscribed", "meter-1", f"{OWN}/cmd/#", 1),
        *((event, "meter-1", f"{OWN}/t", b"1", 1) for event in ("received", "broadcast")),
        *((event, "meter-1", f"{OWN}/kept", b"3", 1) for event in ("received", "broadcast")),
        ("retained", None, f"{OWN}/kept", b"3"),
        ("unsubscribed", "meter-1", f"{OWN}/cmd/#"),
        ("disconnected", "meter-1", "disconnected"),
    ]
