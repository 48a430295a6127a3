"""What a supervisor is told of a broker: alive, and whether it can do its work."""

from __future__ import annotations

import json
from typing import Any

import pytest

from broker.admin.health import Health
from broker.admin.http_server import Request
from broker.admission.refusal import RefusalCode, unavailable
from broker.store.journal import Journal
from tests.support.wire import MemoryBroker


def asked(broker: MemoryBroker, path: str, method: str = "GET") -> tuple[int, Any] | None:
    answer = Health(broker.engine, lambda: broker.now).answer(Request(method, path, {}, b"", "me"))
    if answer is None:
        return None
    assert isinstance(answer.body, bytes)
    return answer.status, json.loads(answer.body)


def test_a_broker_that_works_is_ready() -> None:
    broker = MemoryBroker()
    assert asked(broker, "/healthz") == (200, {"status": "ok"})
    assert asked(broker, "/readyz") == (200, {"ready": True, "checks": {"newcomers": "ok", "store": "off"}})
    assert asked(broker, "/metrics") is None
    for path in ("/healthz", "/readyz"):
        status, problem = asked(broker, path, "POST") or (0, {})
        assert (status, problem["code"]) == (405, "METHOD_NOT_ALLOWED")


def test_while_nobody_new_gets_in_it_is_alive_and_not_ready() -> None:
    broker = MemoryBroker()
    broker.engine.admission.shut = unavailable(RefusalCode.AUDIT_UNAVAILABLE, "the disk is full")
    assert asked(broker, "/readyz") == (503, {"ready": False, "checks": {"newcomers": "refused", "store": "off"}})
    assert asked(broker, "/healthz") == (200, {"status": "ok"})


@pytest.mark.parametrize(("failed", "status", "state"), [(True, 503, "failed"), (False, 200, "ok")])
def test_a_store_that_takes_no_writes_is_named(*, failed: bool, status: int, state: str) -> None:
    broker = MemoryBroker()
    broker.engine.journal = Journal(0.0)
    broker.engine.journal.failed = failed
    ready = status == 200
    assert asked(broker, "/readyz") == (status, {"ready": ready, "checks": {"newcomers": "ok", "store": state}})
