"""What a supervisor is told of a broker: alive, and whether it can do its work."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from broker.admin.health import Health
from broker.admin.http_messages import Request
from broker.admission.refusal import RefusalCode, unavailable
from broker.revocation.issuing_authorities import IssuingAuthorities
from broker.store.journal import Journal
from provisioning.pki.revocation_reason import RevocationReason
from tests.support.pki import Held, shared_pki
from tests.support.wire import MemoryBroker, own_certificate

CHECKS = {"newcomers": "ok", "certificate": "unreadable", "store": "off", "issuing_cas": "off", "clock": "ok"}


def asked(broker: MemoryBroker, path: str, method: str = "GET", own: Held | None = None) -> tuple[int, Any] | None:
    authorities = IssuingAuthorities(broker.engine)
    health = Health(broker.engine, own_certificate(own), authorities, lambda: broker.now)
    answer = health.answer(Request(method, path, {}, b"", "me"))
    if answer is None:
        return None
    assert isinstance(answer.body, bytes)
    return answer.status, json.loads(answer.body)


def test_a_broker_that_works_is_ready() -> None:
    broker = MemoryBroker()
    assert asked(broker, "/healthz") == (200, {"status": "ok"})
    assert asked(broker, "/readyz") == (200, {"ready": True, "checks": CHECKS})
    assert asked(broker, "/metrics") is None
    for path in ("/healthz", "/readyz"):
        status, problem = asked(broker, path, "POST") or (0, {})
        assert (status, problem["code"]) == (405, "METHOD_NOT_ALLOWED")


def test_while_nobody_new_gets_in_it_is_alive_and_not_ready() -> None:
    broker = MemoryBroker()
    broker.engine.admission.shut = unavailable(RefusalCode.AUDIT_UNAVAILABLE, "the disk is full")
    assert asked(broker, "/readyz") == (503, {"ready": False, "checks": CHECKS | {"newcomers": "refused"}})
    assert asked(broker, "/healthz") == (200, {"status": "ok"})


@pytest.mark.parametrize(("failed", "status", "state"), [(True, 503, "failed"), (False, 200, "ok")])
def test_a_store_that_takes_no_writes_is_named(*, failed: bool, status: int, state: str) -> None:
    broker = MemoryBroker()
    broker.engine.journal = Journal(0.0)
    broker.engine.journal.failed = failed
    ready = status == 200
    assert asked(broker, "/readyz") == (status, {"ready": ready, "checks": CHECKS | {"store": state}})


@pytest.mark.parametrize(
    ("begun", "left", "status", "state"),
    [(-1, 1, 200, "ok"), (-2, -1, 503, "expired"), (1, 2, 503, "not yet valid")],
    ids=["good", "ended", "not begun"],
)
def test_a_certificate_that_no_client_believes_is_named(*, begun: int, left: int, status: int, state: str) -> None:
    pki = shared_pki()
    own = pki.broker(not_before=pki.now + timedelta(days=begun), not_after=pki.now + timedelta(days=left))
    expected = {"ready": status == 200, "checks": CHECKS | {"certificate": state}}
    assert asked(MemoryBroker(), "/readyz", own=own) == (status, expected)


def test_a_clock_that_is_behind_is_named_and_keeps_nobody_away() -> None:
    broker = MemoryBroker()
    ahead = datetime.now(UTC) + timedelta(minutes=4)
    broker.engine.admission.status.proven.hear_service(ahead, broker.now, datetime.now(UTC))
    assert asked(broker, "/readyz") == (200, {"ready": True, "checks": CHECKS | {"clock": "behind"}})


@pytest.mark.parametrize(
    ("reason", "status", "state"),
    [
        (None, 200, "ok"),
        (RevocationReason.KEY_COMPROMISE, 503, "revoked"),
        (RevocationReason.CERTIFICATE_HOLD, 503, "on hold"),
    ],
)
def test_a_certificate_that_is_revoked_or_on_hold_is_named(
    reason: RevocationReason | None, status: int, state: str
) -> None:
    broker, own = MemoryBroker(), own_certificate(shared_pki().broker())
    own.find_revocation = lambda: reason
    health = Health(broker.engine, own, IssuingAuthorities(broker.engine), lambda: broker.now)
    answer = health.answer(Request("GET", "/readyz", {}, b"", "me"))
    assert answer is not None
    assert isinstance(answer.body, bytes)
    expected = {"ready": status == 200, "checks": CHECKS | {"certificate": state}}
    assert (answer.status, json.loads(answer.body)) == (status, expected)
