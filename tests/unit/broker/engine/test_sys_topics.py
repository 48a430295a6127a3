"""``$SYS``: mosquitto's names, true figures, only what has changed, and only for those who may read it."""

from __future__ import annotations

import resource
from types import SimpleNamespace

import pytest

from broker.admission.policy import Rules
from broker.engine import sys_topics
from broker.engine.sys_topics import INTERVAL, SysTopics
from broker.mqtt.codes import ReasonCode
from broker.mqtt.packets import Publish
from provisioning.pki.role import Role
from tests.support.policies import of_roles
from tests.support.wire import MemoryBroker, WireClient


@pytest.fixture
def topics(broker: MemoryBroker) -> SysTopics:
    return SysTopics(broker.engine, lambda: 3, broker.now)


def figures(client: WireClient) -> dict[str, str]:
    """Return what has arrived, by the name behind ``$SYS/broker/``."""
    return {
        each.topic.removeprefix("$SYS/broker/"): each.payload.decode()
        for each in client.received()
        if isinstance(each, Publish)
    }


def test_the_figures_are_true_and_only_changes_are_said(broker: MemoryBroker, topics: SysTopics) -> None:
    backend = broker.service()
    backend.subscribe("$SYS/#", "$share/g/fleet/#")
    meter = broker.device("meter-1", session_expiry_interval=5)
    meter.publish("fleet/meters/meter-1/state", b"on", retain=True)
    meter.vanish()
    broker.advance(INTERVAL)
    backend.received()
    list(topics.publish(broker.now))
    broker.settle()
    seen = figures(backend)
    expected = {
        "clients/connected": "1",
        "clients/total": "1",
        "clients/expired": "1",
        "messages/received": "4",
        "publish/messages/received": "1",
        "publish/messages/dropped": "0",
        "subscriptions/count": "1",
        "shared_subscriptions/count": "1",
        "uptime": "10 seconds",
        "fleet/admitted": "2",
    }
    assert {name: seen[name] for name in expected} == expected
    assert int(seen["heap/current"]) > 1_000_000
    broker.advance(INTERVAL)
    list(topics.publish(broker.now))
    broker.settle()
    again = figures(backend)
    assert again["uptime"] == "20 seconds"
    assert "clients/expired" not in again


def test_loads_are_moving_averages_of_a_minute_and_more(broker: MemoryBroker, topics: SysTopics) -> None:
    backend = broker.service()
    meter = broker.device("meter-1")
    for _ in range(30):  # Ten messages in ten seconds, for five minutes.
        for _ in range(10):
            meter.publish("fleet/meters/meter-1/state", b"on")
        broker.now += INTERVAL
        list(topics.publish(broker.now))
    backend.subscribe("$SYS/broker/load/#")
    seen = figures(backend)
    one, five, fifteen = (float(seen[f"load/publish/received/{minutes}min"]) for minutes in (1, 5, 15))
    assert 59 < one < 60.01
    assert five == pytest.approx(60 * (1 - 1 / 2.71828), rel=0.01)
    assert fifteen < five


def test_a_drop_is_said(broker: MemoryBroker, topics: SysTopics) -> None:
    backend = broker.service()
    backend.subscribe("$SYS/broker/publish/messages/dropped")
    broker.metrics.dropped_queue_full += 3
    broker.metrics.dropped_expired += 1
    list(topics.publish(broker.now))
    broker.settle()
    assert figures(backend)["publish/messages/dropped"] == "4"


def test_a_device_reads_none_of_it(broker: MemoryBroker) -> None:
    meter = broker.device("meter-1")
    for topic_filter in ("$SYS/#", "$SYS/broker/clients/connected", "$share/g/$SYS/#"):
        assert meter.subscribe(topic_filter).reason_codes == (ReasonCode.NOT_AUTHORIZED,)


def test_the_figures_and_what_clients_retain_take_no_room_from_each_other() -> None:
    broker = MemoryBroker(max_retained=2, max_retained_bytes=300)
    topics = SysTopics(broker.engine, lambda: 3, broker.now)
    list(topics.publish(broker.now))
    figures_retained = len(broker.engine.retained)
    assert figures_retained > 2
    meter = broker.device("meter-1")
    for name in ("a", "b", "c"):
        meter.publish(f"fleet/meters/meter-1/{name}", b"1", retain=True)
    assert (broker.engine.retained.count, len(broker.engine.retained)) == (2, figures_retained + 2)
    broker.advance(INTERVAL)
    list(topics.publish(broker.now))
    broker.settle()
    backend = broker.service()
    backend.subscribe("$SYS/#", "fleet/#")
    received = [each.topic for each in backend.received() if isinstance(each, Publish)]
    assert {"fleet/meters/meter-1/a", "fleet/meters/meter-1/b", "$SYS/broker/uptime"} <= set(received)
    assert len(received) == len(broker.engine.retained) > figures_retained
    meter.publish("fleet/meters/meter-1/a", b"", retain=True)
    meter.publish("fleet/meters/meter-1/c", b"1", retain=True)
    assert broker.engine.retained.count == 2


def test_what_a_client_retains_below_sys_takes_room_as_anything_else_does() -> None:
    policy = of_roles({Role.SERVICE: Rules(publish_allow=("$SYS/bridge/#",), subscribe_allow=("$SYS/#",))})
    broker = MemoryBroker(policy=policy, max_retained=2)
    bridge = broker.service("bridge")
    for name in ("a", "b", "c"):
        bridge.publish(f"$SYS/bridge/{name}", b"1", retain=True)
    assert broker.engine.retained.count == len(broker.engine.retained) == 2
    bridge.subscribe("$SYS/bridge/#")
    assert sorted(each.topic for each in bridge.messages()) == ["$SYS/bridge/a", "$SYS/bridge/b"]


def test_the_most_memory_is_never_less_than_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrusage", lambda _who: SimpleNamespace(ru_maxrss=1))
    held, most = sys_topics._memory()
    assert held == most > 1_000_000
