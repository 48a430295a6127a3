"""What a client that asks is told of where to have its answers sent."""

from __future__ import annotations

from typing import Any

import pytest

from broker.admission.policy_file import PolicyError
from broker.admission.response_information import ResponseInformation
from broker.mqtt.properties import Properties
from tests.support.pki import shared_device, shared_service
from tests.support.wire import MemoryBroker

ASKS: dict[str, Any] = {"request_response_information": True}
TEXT = "fleet/{group}/{device}/cmd/replies"
OF_METER = "fleet/meters/meter-1/cmd/replies"


def told(broker: MemoryBroker, **said: object) -> Properties:
    client = broker.open(shared_device("meter-1"))
    return client.connect(client_id="meter-1", **said).properties  # type: ignore[arg-type]


def broker_that_says(text: str | None) -> MemoryBroker:
    broker = MemoryBroker()
    broker.engine.response_information = None if text is None else ResponseInformation(text)
    return broker


def test_who_asks_is_told_a_topic_of_its_own() -> None:
    broker = broker_that_says(TEXT)
    assert told(broker, **ASKS).response_information == OF_METER
    assert told(broker, **ASKS).response_information == OF_METER, "and nobody is told another's"
    assert told(broker).response_information is None
    assert told(broker_that_says(None), **ASKS).response_information is None


def test_who_lacks_a_name_in_it_is_told_nothing() -> None:
    broker = broker_that_says(TEXT)
    service = broker.open(shared_service("backend"))
    assert service.connect(client_id="backend", **ASKS).properties.response_information is None


def test_it_is_left_out_before_a_client_whose_packets_are_short_is_refused() -> None:
    broker = broker_that_says(TEXT)
    assert told(broker, maximum_packet_size=40, **ASKS).response_information is None
    assert told(broker, maximum_packet_size=80, **ASKS).response_information == OF_METER


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fleet/#", "leave [+] and # out"),
        ("fleet/+/x", "leave"),
        ("a/{name}", "is no placeholder"),
        ("", "at least one character"),
    ],
)
def test_what_is_no_topic_is_refused(text: str, words: str) -> None:
    with pytest.raises(PolicyError, match=rf"^response_information: .*{words}"):
        ResponseInformation(text)
