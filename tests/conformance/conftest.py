from __future__ import annotations

import pytest

from broker.mqtt.codes import ProtocolVersion
from tests.conformance.scene import OPEN_POLICY, DurableBroker, durable
from tests.support.wire import V5, V31, V311, MemoryBroker, WireClient
from tests.support.wire import request as subscription


@pytest.fixture(params=[V31, V311, V5], ids=["mqtt31", "mqtt311", "mqtt5"])
def version(request: pytest.FixtureRequest) -> ProtocolVersion:
    """Each version in turn, for what both standards say."""
    version: ProtocolVersion = request.param
    return version


@pytest.fixture(params=[MemoryBroker, DurableBroker], ids=["memory", "durable"])
def broker(request: pytest.FixtureRequest) -> MemoryBroker:
    """A broker that permits every topic; one that keeps nothing, and one that waits for its store."""
    broker_type: type[MemoryBroker] = request.param
    return broker_type(policy=OPEN_POLICY)


@pytest.fixture
def publisher(broker: MemoryBroker, version: ProtocolVersion) -> WireClient:
    return broker.service("publisher", version=version, **durable(broker, version))


@pytest.fixture
def subscriber(broker: MemoryBroker, version: ProtocolVersion) -> WireClient:
    return broker.service("subscriber", version=version, **durable(broker, version))


@pytest.fixture
def publisher5(broker: MemoryBroker) -> WireClient:
    return broker.service("publisher", **durable(broker, V5))


@pytest.fixture
def subscriber5(broker: MemoryBroker) -> WireClient:
    return broker.service("subscriber", **durable(broker, V5))


@pytest.fixture
def watcher(broker: MemoryBroker) -> WireClient:
    """An MQTT 5 client that sees every message, and whether it was published with RETAIN."""
    client = broker.service("watcher", **durable(broker, V5))
    client.subscribe(subscription("#", 2, retain_as_published=True))
    return client
