"""The will of a client goes past the host of plugins as its other messages do, though the client has gone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from amqtt.contexts import Action, BaseContext
from amqtt.plugins.base import BaseTopicPlugin

from tests.support.hosted_plugins import HostedPlugins
from tests.support.wire import MemoryBroker, WireClient, will

OWN = "fleet/meters/meter-1"


class Thinks(BaseTopicPlugin):
    """Permits everything but one topic, and takes its time over what is published."""

    def __init__(self) -> None:
        super().__init__(BaseContext())
        self.asked = asyncio.Event()
        self.knows = asyncio.Event()

    async def topic_filtering(self, *, topic: str, action: Action, **_: Any) -> bool:
        if action is Action.PUBLISH:
            self.asked.set()
            await self.knows.wait()
        return not topic.endswith("/no")


class Scene:
    """A broker with that plugin, and a service that reads everything."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker, self.plugin = broker, Thinks()
        self.plugins = HostedPlugins(broker, [self.plugin])
        self.watcher = broker.service()

    async def subscribe(self) -> None:
        await self.plugins.subscribe(self.watcher, "fleet/#")

    async def answered(self) -> None:
        await self.plugins.answered()

    def meter(self, topic: str = "gone", **connect: Any) -> WireClient:
        return self.broker.device("meter-1", will=will(f"{OWN}/{topic}"), **connect)


@pytest.mark.parametrize("expiry", [0, 600])
@pytest.mark.parametrize(("topic", "sent"), [("gone", [b"gone"]), ("no", [])])
async def test_a_will_is_sent_once_the_plugin_permits_it_whether_or_not_the_session_is_kept(
    broker: MemoryBroker, expiry: int, topic: str, sent: list[bytes]
) -> None:
    scene = Scene(broker)
    await scene.subscribe()
    scene.meter(topic, session_expiry_interval=expiry).vanish()
    await scene.plugin.asked.wait()
    assert scene.watcher.payloads() == []
    scene.plugin.knows.set()
    await scene.answered()
    assert scene.watcher.payloads() == sent


async def test_a_will_is_sent_though_its_client_is_back_before_the_plugin_has_answered(broker: MemoryBroker) -> None:
    scene = Scene(broker)
    await scene.subscribe()
    scene.meter(session_expiry_interval=600).vanish()
    await scene.plugin.asked.wait()
    back = scene.meter(clean_start=False, session_expiry_interval=600)
    scene.plugin.knows.set()
    await scene.answered()
    assert scene.watcher.payloads() == [b"gone"]
    assert not back.closed


async def test_a_will_of_which_the_answer_is_known_is_sent_or_not_at_once(broker: MemoryBroker) -> None:
    scene = Scene(broker)
    await scene.subscribe()
    scene.plugin.knows.set()
    for topic, sent in (("gone", [b"gone"]), ("no", [])):
        meter = scene.meter(topic)
        meter.publish(f"{OWN}/{topic}", b"before")
        await scene.answered()
        assert scene.watcher.payloads() == ([b"before"] if sent else [])
        meter.vanish()
        broker.settle()
        assert scene.watcher.payloads() == sent
