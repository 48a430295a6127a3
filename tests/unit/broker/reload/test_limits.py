"""Limits that are replaced count at once, but for what a CONNACK has said; what needs a restart is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from broker.door.listener import Listener
from broker.mqtt.codes import ReasonCode
from broker.mqtt.connect import Connack
from broker.mqtt.packets import Pingresp, Publish, Pubrec
from broker.reload.parts import ReloadedLimits, Unchanged
from broker.reload.report import Outcome, Part, PartReport, ReloadReport
from broker.settings.config import BrokerConfig
from broker.settings.limits import Limits
from broker.settings.origins import NO_PAGES, Origins
from tests.support.pki import shared_device
from tests.support.wire import V5, MemoryBroker, publication

FILES: dict[str, Any] = {"cafile": Path("a"), "certfile": Path("b"), "keyfile": Path("c")}


def settings(**different: Any) -> BrokerConfig:
    return BrokerConfig(**FILES, unsafe_no_revocation=True, **different)


async def test_new_limits_count_for_what_is_asked_from_now_on() -> None:
    broker = MemoryBroker(max_retained=2, max_queued_messages=3, max_topic_levels=9)
    part = ReloadedLimits(broker.engine, settings())
    meter = broker.device("meter-1", session_expiry_interval=60)
    meter.subscribe("fleet/meters/meter-1/cmd/#", qos=1)
    meter.leave()
    new = Limits(max_retained=1, max_queued_messages=1, max_topic_levels=5, max_packet_size=300)
    loaded = part.load(settings(limits=new), None)
    assert not isinstance(loaded, Unchanged)
    detail, _ = await part.apply(loaded)
    assert "max_retained 2 → 1" in detail
    service = broker.service()
    for _ in range(2):
        service.publish("fleet/meters/meter-1/cmd/x", b"x", qos=1)
    assert broker.metrics.dropped_queue_full == 1, "the bound of a session that was there before, too"
    other = broker.device("meter-2")
    refused = other.publish("fleet/meters/meter-2/a/b/c", b"", qos=1)
    assert refused is not None
    assert refused.reason_code is ReasonCode.TOPIC_NAME_INVALID
    other.publish("fleet/meters/meter-2/a", b"x" * 300)
    assert other.closed
    assert part.load(settings(limits=new), None) == Unchanged()


@pytest.mark.parametrize(
    "tight",
    [
        {"max_retained": 1},
        {"max_retained_bytes": 100},
        {"max_retained_of_device": 1},
        {"max_retained_bytes_of_device": 100},
    ],
    ids=str,
)
@pytest.mark.parametrize("lowered", [True, False], ids=["lowered", "raised"])
def test_how_much_is_retained_is_what_the_new_limits_say(tight: dict[str, Any], lowered: bool) -> None:
    broker = MemoryBroker(**({} if lowered else tight))
    broker.engine.limit(Limits(**(tight if lowered else {})))
    meter = broker.device("meter-1")
    for name in ("a", "b"):
        meter.publish(f"fleet/meters/meter-1/{name}", bytes(40), retain=True, qos=1)
    backend = broker.service()
    backend.subscribe("fleet/#")
    topics = sorted(each.topic for each in backend.messages())
    assert topics == [f"fleet/meters/meter-1/{name}" for name in ("a", "b")][: 1 if lowered else 2]


@pytest.mark.parametrize(
    ("lowered", "kept"), [({"max_queued_messages": 3}, 3), ({"max_queued_bytes": 3000}, 2)], ids=["messages", "bytes"]
)
def test_how_much_waits_for_who_is_away_is_what_the_new_limits_say(lowered: dict[str, Any], kept: int) -> None:
    broker = MemoryBroker()
    meter = broker.device("meter-1", clean_start=False, session_expiry_interval=60)
    meter.subscribe("fleet/meters/meter-1/cmd/#", qos=1)
    meter.leave()
    broker.engine.limit(Limits(**lowered))
    service = broker.service()
    for number in range(5):
        service.publish("fleet/meters/meter-1/cmd/x", b"%d" % number * 1000, qos=1)
    back = broker.device("meter-1", clean_start=False, session_expiry_interval=60)
    assert [each.payload[:1] for each in back.messages()] == [b"%d" % number for number in range(kept)]


def test_how_many_bytes_may_be_unacknowledged_is_what_the_new_limits_say() -> None:
    broker = MemoryBroker()
    backend = broker.service()
    backend.subscribe("fleet/#", qos=1)
    broker.engine.limit(Limits(max_inflight_bytes=30_000))
    meter = broker.device("meter-1")
    for _ in range(5):
        meter.publish(TOPIC.format(1), bytes(10_000), qos=1)
    assert len(backend.messages()) == 3


def test_how_many_routes_are_remembered_is_what_the_new_limits_say() -> None:
    broker = MemoryBroker()
    broker.engine.limit(Limits(max_cached_routes=20))
    meter = broker.device("meter-1")
    for number in range(100):
        meter.publish(f"fleet/meters/meter-1/{number}")
        assert len(broker.engine.routes) <= 20


TOPIC = "fleet/meters/meter-{}/a"
TOLD: dict[str, Any] = {"max_packet_size": 600, "max_inflight": 3, "max_topic_alias": 2}
LOWERED: dict[str, Any] = {"max_packet_size": 300, "max_inflight": 1, "max_topic_alias": 1}


def terms_said(connack: Connack) -> dict[str, int | None]:
    said = connack.properties
    names = ("max_packet_size", "max_inflight", "max_topic_alias")
    return dict(zip(names, (said.maximum_packet_size, said.receive_maximum, said.topic_alias_maximum), strict=True))


def test_what_connack_has_said_holds_as_long_as_the_connection() -> None:
    broker = MemoryBroker(**TOLD)
    backend = broker.service()
    backend.subscribe("fleet/#")
    meter = broker.open(shared_device("meter-1"))
    assert terms_said(meter.connect(client_id="meter-1")) == TOLD
    large = broker.device("meter-2")
    broker.engine.limit(Limits(**LOWERED))
    for packet_id in (1, 2, 3):  # MQTT 5 §3.2.2.3.3
        meter.send(publication(TOPIC.format(1), b"", 2, packet_id=packet_id))
        assert meter.received() == [Pubrec(packet_id)]
    meter.publish(TOPIC.format(1), b"aliased", topic_alias=2)  # §3.2.2.3.8
    meter.send_bytes(bytes([0xC0, 0]) + publication(TOPIC.format(1), b"l" * 500).encode(V5))  # §3.2.2.3.6
    assert meter.received() == [Pingresp()]
    large.publish(TOPIC.format(2), b"m" * 500)
    assert backend.payloads()[3:] == [b"aliased", b"l" * 500, b"m" * 500]


@pytest.mark.parametrize(
    ("too_much", "reason"),
    [
        (publication(TOPIC.format(1), b"l" * 700), ReasonCode.PACKET_TOO_LARGE),
        (publication(TOPIC.format(1), b"", topic_alias=3), ReasonCode.TOPIC_ALIAS_INVALID),
        (publication(TOPIC.format(1), b"", 2, packet_id=4), ReasonCode.RECEIVE_MAXIMUM_EXCEEDED),
    ],
)
def test_what_connack_has_said_is_no_more_after_the_limits_were_raised(too_much: Publish, reason: ReasonCode) -> None:
    broker = MemoryBroker(**TOLD)
    meter = broker.device("meter-1")
    broker.engine.limit(Limits())
    for packet_id in (1, 2, 3):
        meter.send(publication(TOPIC.format(1), b"", 2, packet_id=packet_id))
    meter.send(too_much)
    assert meter.farewell().reason_code is reason


@pytest.mark.parametrize(
    ("too_much", "reason"),
    [
        (publication(TOPIC.format(1), b"l" * 500), ReasonCode.PACKET_TOO_LARGE),
        (publication(TOPIC.format(1), b"", topic_alias=2), ReasonCode.TOPIC_ALIAS_INVALID),
        (publication(TOPIC.format(1), b"", 2, packet_id=2), ReasonCode.RECEIVE_MAXIMUM_EXCEEDED),
    ],
)
def test_who_connects_after_limits_were_lowered_is_told_these(too_much: Publish, reason: ReasonCode) -> None:
    broker = MemoryBroker(**TOLD)
    broker.engine.limit(Limits(**LOWERED))
    meter = broker.open(shared_device("meter-1"))
    assert terms_said(meter.connect(client_id="meter-1")) == LOWERED
    meter.send(publication(TOPIC.format(1), b"", 2, packet_id=1))
    meter.send(too_much)
    assert meter.farewell().reason_code is reason


def test_who_was_on_the_way_during_a_reload_is_judged_by_what_it_is_told() -> None:
    broker = MemoryBroker(**TOLD)
    meter = broker.open(shared_device("meter-1"))
    broker.engine.limit(Limits(**LOWERED))
    told = terms_said(meter.connect(client_id="meter-1"))["max_packet_size"]
    assert told is not None
    frame = publication(TOPIC.format(1), b"").encode(V5)
    meter.publish(TOPIC.format(1), b"x" * (told - len(frame) - 1))
    assert not meter.closed


def test_how_long_a_session_may_be_kept_is_what_its_client_was_told() -> None:
    broker = MemoryBroker(max_session_expiry=600)
    meter = broker.device("meter-1", session_expiry_interval=600)
    session = meter.session
    broker.engine.limit(Limits(max_session_expiry=60))
    meter.leave(session_expiry_interval=500)
    assert session.expiry_interval == 500


def test_connections_share_their_terms() -> None:
    broker = MemoryBroker()
    first, second = broker.device("meter-1"), broker.device("meter-2")
    assert first.connection.terms is second.connection.terms
    broker.engine.limit(Limits(max_inflight=1))
    third = broker.device("meter-3")
    broker.engine.admission.trust_generation += 1
    fourth = broker.device("meter-4")
    terms = [each.connection.terms for each in (first, third, fourth)]
    assert len({id(each) for each in terms}) == 3
    assert [each.generation for each in terms] == [1, 1, 2]
    assert [each.limits.max_inflight for each in terms] == [1024, 1, 1]


def test_settings_that_wait_for_a_restart_are_named() -> None:
    part = ReloadedLimits(MemoryBroker().engine, settings())
    assert part.load(settings(port=1, name="x"), None) == Unchanged("restart needed for: name, port")
    listeners = ({"port": 1}, {"port": 2, "host": "::1", "protocol": "wss"})
    assert part.load(settings(listener=listeners), None) == Unchanged("restart needed for: listener")


class Door:
    """A listener, as far as it is known whom it believes."""

    def __init__(self) -> None:
        self.origins = NO_PAGES
        self.proxies: tuple[str, ...] = ()


async def test_whose_web_pages_may_connect_counts_at_once_for_each_listener() -> None:
    doors = [Door(), Door(), Door()]
    tables = ({"port": 1}, {"port": 2, "protocol": "wss"}, {"port": 3, "protocol": "wss", "websocket_origins": []})
    part = ReloadedLimits(MemoryBroker().engine, settings(listener=tables), cast("Sequence[Listener]", doors))

    async def apply(**different: Any) -> str:
        loaded = part.load(settings(**different), None)
        assert not isinstance(loaded, Unchanged)
        return (await part.apply(loaded))[0]

    dash, other = Origins(frozenset({"https://dash.example"})), Origins(frozenset({"https://other.example"}))
    assert await apply(listener=tables, websocket_origins=["https://dash.example"]) == "websocket_origins"
    assert [door.origins for door in doors[1:]] == [dash, NO_PAGES]
    tables[2]["websocket_origins"] = ["https://other.example"]
    assert await apply(listener=tables) == "websocket_origins"
    assert [door.origins for door in doors[1:]] == [NO_PAGES, other]
    assert part.load(settings(listener=tables), None) == Unchanged()
    tables[2]["websocket_origins"] = []
    another, last = {"port": 4, "protocol": "wss"}, {"port": 5, "protocol": "wss"}
    assert await apply(listener=(another, *tables)) == "websocket_origins; restart needed for: listener"
    assert [door.origins for door in doors[1:]] == [NO_PAGES, NO_PAGES], "at once, too"
    moved = settings(listener=(another, last), websocket_origins=["https://dash.example"])
    assert part.load(moved, None) == Unchanged("restart needed for: listener"), "what runs is not in it"


async def test_who_sends_proxy_headers_counts_at_once_for_each_listener() -> None:
    doors = [Door(), Door(), Door()]
    tables = ({"port": 1}, {"port": 2, "proxy_protocol_from": []}, {"port": 3, "proxy_protocol_from": ["10.0.0.7"]})
    part = ReloadedLimits(MemoryBroker().engine, settings(listener=tables), cast("Sequence[Listener]", doors))
    loaded = part.load(settings(listener=tables, proxy_protocol_from=["10.0.0.0/8"]), None)
    assert not isinstance(loaded, Unchanged)
    assert (await part.apply(loaded))[0] == "proxy_protocol_from"
    assert [door.proxies for door in doors] == [("10.0.0.0/8",), (), ("10.0.0.7/32",)]
    tables[1]["proxy_protocol_from"] = ["::1"]
    loaded = part.load(settings(listener=tables), None)
    assert not isinstance(loaded, Unchanged)
    assert (await part.apply(loaded))[0] == "proxy_protocol_from"
    assert [door.proxies for door in doors] == [(), ("::1/128",), ("10.0.0.7/32",)]


@pytest.mark.parametrize(("provisioning", "waits"), [(None, ""), ("https://localhost:1", "restart needed for: cafile")])
def test_another_cafile_counts_at_once_but_for_the_clients_of_provisioning(
    provisioning: str | None, waits: str
) -> None:
    before = settings(provisioning=provisioning)
    part = ReloadedLimits(MemoryBroker().engine, before)
    assert part.load(before.model_copy(update={"cafile": Path("other")}), None) == Unchanged(waits)


def test_a_report_can_be_read() -> None:
    report = ReloadReport(
        (
            PartReport(Part.TRUST, Outcome.UNCHANGED),
            PartReport(Part.LIMITS, Outcome.RELOADED, "max_inflight 1 → 2"),
            PartReport(Part.POLICY, Outcome.REFUSED, "why"),
        ),
        dry_run=True,
    )
    assert str(report).splitlines() == [
        "trust: unchanged",
        "limits: would be reloaded: max_inflight 1 → 2",
        "policy: would be refused: why",
    ]
    assert report.refused
    assert report.as_dict()["parts"][2]["text"] == "policy: would be refused: why"
