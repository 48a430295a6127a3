"""What the log says of clients that are refused again and again: what is new at once, and the rest as a number."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.engine import refused_again
from broker.engine.refused_again import _MOST_OF_STRANGERS, _PERIOD
from broker.mqtt.codes import ReasonCode
from tests.support.pki import shared_device
from tests.support.wire import MemoryBroker

REVOKED = "REVOKED"


def revoke(broker: MemoryBroker, name: str) -> None:
    broker.engine.admission.status.index.add(shared_device(name).revocation)


def come(broker: MemoryBroker, name: str, *, times: int = 1, host: str = "192.0.2.1", client_id: str = "") -> None:
    """Connect as a revoked device."""
    for _ in range(times):
        client = broker.open(shared_device(name))
        client.transport.address = f"{host}:50000"
        client.connect(client_id=client_id or name, expect=ReasonCode.NOT_AUTHORIZED)


def refused(logged: list[Any]) -> list[tuple[str, str, int | None]]:
    lines = [each for each in logged if each["event"] == "refused"]
    return [(each["client"], each["address"].partition(":")[0], each.get("more")) for each in lines]


def test_a_revoked_device_that_never_stops_has_a_line_and_then_its_number() -> None:
    broker = MemoryBroker(max_connects_per_identity=0)
    revoke(broker, "meter-1")
    with capture_logs() as logged:
        come(broker, "meter-1")
        assert refused(logged) == [("meter-1", "192.0.2.1", None)], "at once"
        come(broker, "meter-1", times=40)
        come(broker, "meter-1", client_id="another-one")
        broker.advance(_PERIOD - 1.0)
        assert len(refused(logged)) == 1
        broker.advance(1)
        assert refused(logged)[1:] == [("another-one", "192.0.2.1", 41)]
        assert (logged[-1]["code"], logged[-1]["over"], logged[-1]["ago"]) == (REVOKED, _PERIOD, _PERIOD)
        come(broker, "meter-1", times=2)
        broker.advance(_PERIOD)
        assert refused(logged)[2:] == [("meter-1", "192.0.2.1", 2)]
        broker.advance(_PERIOD)
        assert len(broker.engine.refused_again) == 0, "it has stayed away"
        come(broker, "meter-1")
        assert refused(logged)[3:] == [("meter-1", "192.0.2.1", None)]
    assert broker.metrics.refused[REVOKED] == 45
    assert sum(more or 1 for _, _, more in refused(logged)) == 45, "nothing is lost"


def test_whoever_else_comes_and_whatever_else_is_wrong_is_written_at_once() -> None:
    broker = MemoryBroker(max_connects_per_identity=0)
    for name in ("meter-1", "meter-2"):
        revoke(broker, name)
    with capture_logs() as logged:
        for _ in range(3):
            come(broker, "meter-1")
            come(broker, "meter-1", host="192.0.2.9")
            come(broker, "meter-2")
        assert [line[:2] for line in refused(logged)] == [
            ("meter-1", "192.0.2.1"),
            ("meter-1", "192.0.2.9"),
            ("meter-2", "192.0.2.1"),
        ]
        other = broker.open(shared_device("meter-3"))
        other.connect(client_id="meter-1", expect=ReasonCode.CLIENT_IDENTIFIER_NOT_VALID)
        revoke(broker, "meter-3")
        come(broker, "meter-3")
        codes = [(each["client"], each["code"]) for each in logged if each["event"] == "refused"][3:]
        assert codes == [("meter-1", "CLIENT_ID_MISMATCH"), ("meter-3", REVOKED)]


def test_strangers_at_one_address_may_be_many_so_the_first_have_a_line_each() -> None:
    broker = MemoryBroker()
    with capture_logs() as logged:
        for number in range(_MOST_OF_STRANGERS + 5):
            client = broker.open(None)
            client.transport.address = f"192.0.2.1:{50000 + number}"
            client.connect(client_id="who", expect=ReasonCode.NOT_AUTHORIZED)
        assert len(refused(logged)) == _MOST_OF_STRANGERS
        broker.engine.refused_again.finish(broker.now)
    assert [more for _, _, more in refused(logged)] == [None] * _MOST_OF_STRANGERS + [5], "a stop writes the number"


def test_what_is_remembered_is_bounded_and_what_makes_room_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refused_again, "MOST", 2)
    broker = MemoryBroker(max_connects_per_identity=0)
    revoke(broker, "meter-1")
    with capture_logs() as logged:
        for number in range(4):
            come(broker, "meter-1", times=3, host=f"192.0.2.{number}")
            assert len(broker.engine.refused_again) <= 2
        assert refused(logged) == [
            ("meter-1", "192.0.2.0", None),
            ("meter-1", "192.0.2.1", None),
            ("meter-1", "192.0.2.0", 2),
            ("meter-1", "192.0.2.2", None),
            ("meter-1", "192.0.2.1", 2),
            ("meter-1", "192.0.2.3", None),
        ]
