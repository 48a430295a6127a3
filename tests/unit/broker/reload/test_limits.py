"""Limits that are replaced count at once, and settings that only a restart changes are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from broker.config import BrokerConfig
from broker.limits import Limits
from broker.mqtt.codes import ReasonCode
from broker.reload.parts import ReloadedLimits, Unchanged
from broker.reload.report import Outcome, Part, PartReport, ReloadReport
from tests.support.wire import MemoryBroker

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


def test_settings_that_wait_for_a_restart_are_named() -> None:
    part = ReloadedLimits(MemoryBroker().engine, settings())
    assert part.load(settings(port=1, name="x"), None) == Unchanged("restart needed for: name, port")


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
