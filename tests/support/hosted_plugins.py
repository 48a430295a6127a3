"""Plugins in a broker in memory, whose answers a test waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from amqtt.contexts import BaseContext
from amqtt.plugins.base import BasePlugin

from broker.mqtt.packets import Suback, Subscribe
from broker.plugins.host import PluginHost
from broker.plugins.logs import Outcomes
from broker.plugins.plugin_set import PluginSet
from broker.plugins.questions import Questions
from broker.plugins.watch import Watch
from tests.support.wire import MemoryBroker, WireClient, request


class HostedPlugins:
    """The plugins of a broker, which are asked everything and told nothing."""

    def __init__(self, broker: MemoryBroker, plugins: Sequence[BasePlugin[Any]]) -> None:
        loop = asyncio.get_running_loop()
        broker.now = loop.time()  # As it comes with each answer.
        broker.keep_fresh()
        outcomes = Outcomes(broker.metrics, loop.time)
        watch = Watch(broker.metrics, outcomes)
        plugin_set = PluginSet([], BaseContext(), outcomes, watch, lambda: 100, 30.0)
        self._questions = Questions(plugins, lambda: 100, outcomes, watch, patience=30.0, verdict_seconds=10.0)
        self._broker = broker
        self.host = PluginHost(broker.engine, claimed_names=False)
        self.host.attach(plugin_set, self._questions)

    async def answered(self) -> None:
        """Let the plugins answer what they were asked, and what they are asked then."""
        self._broker.settle()
        while self._questions._tasks:
            await asyncio.gather(*self._questions._tasks)
            await asyncio.sleep(0)
            self._broker.settle()

    async def subscribe(self, client: WireClient, topic_filter: str, qos: int = 0) -> None:
        """Let *client* subscribe, once the plugins permit it."""
        client.send(Subscribe(1, (request(topic_filter, qos),)))
        await self.answered()
        client.next_packet(Suback)
