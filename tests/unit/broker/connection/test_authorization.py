"""What becomes of a PUBLISH without permission, and a will, under a policy that is not the default one."""

from __future__ import annotations

import pytest

from broker.admission.policy import DeniedPublish, Kind, Rules, Section, TopicPolicy
from broker.mqtt.acks import Puback, Pubrec
from broker.mqtt.codes import ProtocolVersion, ReasonCode
from provisioning.pki.role import Role
from tests.support.pki import shared_device
from tests.support.policies import of_roles
from tests.support.wire import V5, MemoryBroker, publication, request, will

V311 = ProtocolVersion.V311
OWN, OTHER = "own/meter-1", "other"


def policy(denied_publish: DeniedPublish) -> TopicPolicy:
    device = Section(Kind.ROLE, Role.DEVICE, Rules(("own/{device}",), (), ("own/{client_id}/#",)))
    return TopicPolicy([device], denied_publish)


@pytest.mark.parametrize("version", [V5, V311])
@pytest.mark.parametrize("qos", [0, 1])
def test_a_denied_publish_is_dropped_and_counted(version: ProtocolVersion, qos: int) -> None:
    broker = MemoryBroker(policy=policy(DeniedPublish.DROP))
    meter = broker.device("meter-1", version=version)
    answer = meter.publish(OTHER, qos=qos)
    if answer is not None:  # MQTT 3.1.1 cannot say no.
        assert answer.reason_code is (ReasonCode.NOT_AUTHORIZED if version is V5 else ReasonCode.SUCCESS)
    assert not meter.closed
    assert broker.metrics.publishes_denied == 1


@pytest.mark.parametrize(("version", "qos"), [(V5, 0), (V311, 0), (V311, 1), (V311, 2)])
def test_where_no_answer_can_say_it_the_client_may_be_disconnected(version: ProtocolVersion, qos: int) -> None:
    broker = MemoryBroker(policy=policy(DeniedPublish.DISCONNECT))
    meter = broker.device("meter-1", version=version)
    meter.publish(OWN, b"1", qos=1)
    meter.send(publication(OTHER, qos=qos, packet_id=9 if qos else None))
    assert meter.closed
    if version is V5:
        farewell = meter.farewell()
        assert farewell.reason_code is ReasonCode.NOT_AUTHORIZED
        assert farewell.properties.reason_string == "PUBLISH_NOT_PERMITTED: meter-1 may not publish to 'other'"
    else:
        assert meter.received() == []
    assert broker.metrics.closed["PUBLISH_NOT_PERMITTED"] == 1


@pytest.mark.parametrize(("qos", "kind"), [(1, Puback), (2, Pubrec)])
def test_where_an_answer_can_say_it_the_client_stays(qos: int, kind: type[Puback | Pubrec]) -> None:
    broker = MemoryBroker(policy=policy(DeniedPublish.DISCONNECT))
    meter = broker.device("meter-1")
    meter.send(publication(OTHER, qos=qos, packet_id=9 if qos else None))
    answer = meter.next_packet(kind)
    assert answer.reason_code is ReasonCode.NOT_AUTHORIZED
    assert not meter.closed


def test_a_topic_of_too_many_levels_is_not_a_question_of_policy() -> None:
    broker = MemoryBroker(policy=policy(DeniedPublish.DROP), max_topic_levels=3)
    meter = broker.device("meter-1")
    answer = meter.publish("own/meter-1/a/b", qos=1)
    assert answer is not None
    assert answer.reason_code is ReasonCode.TOPIC_NAME_INVALID


def test_permissions_follow_the_assigned_client_identifier() -> None:
    rules = Rules((), (), ("own/{client_id}/#",))
    broker = MemoryBroker(policy=of_roles({Role.SERVICE: rules}))
    service = broker.service(client_id="")
    name = service.session.client_id
    assert name.startswith("backend-")
    assert service.subscribe(request(f"own/{name}/a")).reason_codes == (ReasonCode.GRANTED_QOS_0,)
    assert service.subscribe(request("own/backend/a")).reason_codes == (ReasonCode.NOT_AUTHORIZED,)
    assert service.subscribe(request(f"$share/g/own/{name}/#")).reason_codes == (ReasonCode.GRANTED_QOS_0,)
    assert service.subscribe(request("$share/g/own/#")).reason_codes == (ReasonCode.NOT_AUTHORIZED,)


def test_a_will_needs_permission() -> None:
    broker = MemoryBroker(policy=policy(DeniedPublish.DROP))
    broker.device("meter-1", will=will(OWN))
    refused = broker.open(shared_device("meter-1"))
    refused.connect(client_id="meter-1", will=will(OTHER), expect=ReasonCode.NOT_AUTHORIZED)
    assert broker.metrics.refused["WILL_NOT_PERMITTED"] == 1


def test_a_share_of_a_filter_may_have_as_many_levels_as_the_filter_alone() -> None:
    backend = MemoryBroker(max_topic_levels=4).service()
    granted = backend.subscribe("fleet/meters/+/telemetry", "$share/workers/fleet/meters/+/telemetry")
    refused = backend.subscribe("fleet/meters/+/telemetry/a", "$share/workers/fleet/meters/+/telemetry/a")
    assert granted.reason_codes == (ReasonCode.GRANTED_QOS_0, ReasonCode.GRANTED_QOS_0)
    assert refused.reason_codes == (ReasonCode.TOPIC_FILTER_INVALID, ReasonCode.TOPIC_FILTER_INVALID)
