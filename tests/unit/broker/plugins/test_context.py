"""What a plugin may do by its context: as much as the policy and the limits permit, and nothing of the broker's own."""

from __future__ import annotations

from typing import Any

import pytest

from broker.engine.sys_topics import FIGURES
from broker.mqtt.codes import QoS
from broker.mqtt.message import Message
from broker.plugins import context as plugin_context
from broker.plugins.context import HostedContext
from broker.plugins.errors import Denied, NotOffered
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from tests.support.hosted_plugins import HostedPlugins
from tests.support.pki import DOMAIN
from tests.support.wire import MemoryBroker

OWN = "fleet/meters/meter-1"


def context_of(broker: MemoryBroker) -> HostedContext:
    host = HostedPlugins(broker, []).host
    return HostedContext(broker.engine, host.hosted, host.figures, lambda: broker.now)


@pytest.fixture
async def context(broker: MemoryBroker) -> HostedContext:
    return context_of(broker)


@pytest.mark.parametrize(("given", "received"), [(None, [1, 2]), (0, [0, 0]), (1, [1, 1]), (2, [1, 2])])
async def test_a_message_is_published_at_its_own_qos_which_a_subscription_lowers(
    broker: MemoryBroker, context: HostedContext, given: int | None, received: list[int]
) -> None:
    readers = [broker.service(f"reader-{qos}") for qos in (1, 2)]
    for qos, reader in enumerate(readers, 1):
        reader.subscribe("fleet/#", qos=qos)
    await context.broadcast_message("fleet/news", b"1", given)
    broker.settle()
    found = [message for reader in readers for message in reader.messages()]
    assert [(message.topic, message.payload, message.qos) for message in found] == [
        ("fleet/news", b"1", qos) for qos in received
    ]


async def test_a_plugin_s_figure_takes_the_place_of_the_broker_s_and_the_version_is_nobody_s(
    broker: MemoryBroker, context: HostedContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin_context, "_MOST_FIGURES", 2)
    retained, figures = broker.engine.retained, context._figures
    for name in ("version", "load", "version"):
        await context.retain_message(f"{FIGURES}{name}", b"1")
    assert [message.topic.decode() for message in retained.all()] == [f"{FIGURES}load"]
    assert figures == {f"{FIGURES}load"}
    await context.retain_message(f"{FIGURES}load", b"2")
    assert [message.payload for message in retained.all()] == [b"2"]
    retained.retain(f"{FIGURES}uptime", Message(f"{FIGURES}uptime".encode(), b"the broker's", retain=True))
    reader = broker.service("reader")
    reader.subscribe("$SYS/#")
    reader.messages()
    for name in ("version", "load", "uptime", "one too many"):
        await context.broadcast_message(f"{FIGURES}{name}", b"3")
    broker.settle()
    assert {message.topic for message in reader.messages()} == {
        *(f"{FIGURES}{name}" for name in ("load", "uptime", "one too many")),
    }
    assert figures == {f"{FIGURES}load", f"{FIGURES}uptime"}, "they are bounded"
    assert [message.payload for message in retained.all()] == [b"2"], "the broker's own is no longer there"


async def test_what_is_retained_is_there_for_later_subscribers_until_it_is_deleted(
    broker: MemoryBroker, context: HostedContext
) -> None:
    await context.retain_message("fleet/news", bytearray(b"1"), 1)
    (kept,) = broker.engine.retained.all()
    assert (kept.payload, kept.qos, kept.retain) == (b"1", QoS.AT_LEAST_ONCE, True)
    await context.retain_message("fleet/news", b"")
    assert list(broker.engine.retained.all()) == []


async def test_what_there_is_no_room_for_is_said() -> None:
    full = context_of(MemoryBroker(max_retained=1))
    await full.retain_message("fleet/1", b"1")
    with pytest.raises(ValueError, match=r"no room for another retained message: see limits\.max_retained"):
        await full.retain_message("fleet/2", b"1")
    await full.retain_message("$SYS/of a plugin", b"1")


@pytest.mark.parametrize("publish", ["broadcast_message", "retain_message"])
async def test_a_message_that_no_client_could_have_sent_is_refused(publish: str) -> None:
    context = context_of(MemoryBroker(max_topic_levels=2, max_packet_size=256))
    call: Any = getattr(context, publish)
    await call("a/b", b"x" * 253)
    for topic, data, words in (
        ("a/b/c", b"", "topic: more than 2 levels"),
        ("a/b", b"x" * 254, r"data: more than limits\.max_packet_size, 256 bytes"),
        ("a/#", b"", "wildcard"),
        ("", b"", "at least one character"),
    ):
        with pytest.raises(ValueError, match=words):
            await call(topic, data)
    with pytest.raises(ValueError, match="3"):
        await call("a", b"", 3)


async def test_a_session_is_found_by_the_name_that_plugins_are_told(
    broker: MemoryBroker, context: HostedContext
) -> None:
    create = broker.engine.registry.create
    create("same", Identity(DOMAIN, Role.OPERATOR, "same"))
    create("same", Identity(DOMAIN, Role.SERVICE, "same"))
    create("same", Identity("plant.example", Role.DEVICE, "same", "plant"))
    create("theirs", Identity("plant.example", Role.SERVICE, "theirs"))
    found = [context.get_session(name) for name in ("same", "plant.example/same", "plant.example/theirs")]
    roles = [None if each is None else each.attributes["fleetgate.role"] for each in found]
    assert roles == ["service", "device", "service"]
    assert [context.get_session(name) for name in ("theirs", "other.example/same", "nobody", "")] == [None] * 4
    assert len(list(context.sessions)) == 4


async def test_a_subscription_is_given_to_whom_the_policy_would_grant_it(
    broker: MemoryBroker, context: HostedContext
) -> None:
    session = broker.device("meter-1").session
    await context.add_subscription("meter-1", f"{OWN}/cmd/#", 1)
    assert {name: int(each.qos) for name, each in session.subscriptions.items()} == {f"{OWN}/cmd/#": 1}
    for topic, qos in ((None, 1), (f"{OWN}/other", None)):
        await context.add_subscription("meter-1", topic, qos)
    with pytest.raises(Denied, match="add_subscription: "):
        await context.add_subscription("meter-1", "fleet/#", 0)
    with pytest.raises(ValueError, match="#"):
        await context.add_subscription("meter-1", f"{OWN}/#/a", 0)
    with pytest.raises(NotOffered, match="there is no session 'meter-2', and none is made without a certificate"):
        await context.add_subscription("meter-2", None, None)
    assert list(session.subscriptions) == [f"{OWN}/cmd/#"]
