"""What the audit log has of a request that a defect ends, and whom a kick meant that has ended nobody."""

from __future__ import annotations

from typing import Any, cast

import pytest

from broker.admin.api import AdminApi, Served
from broker.admin.http_messages import Request
from tests.support.wire import MemoryBroker


class Witness:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.entries: list[dict[str, object]] = []

    def saw(self, _event: object) -> None:
        """Nothing is asked about events."""

    def told(self, event: str, **facts: object) -> None:
        self.entries.append({"event": event, **facts})


async def test_what_was_asked_for_is_recorded_also_if_a_defect_ends_it() -> None:
    def defect(_caller: str) -> bool:
        raise RuntimeError("a defect")

    broker, witness, nothing = MemoryBroker(), Witness(), cast("Any", None)
    broker.engine.history.witness = witness
    served = Served("broker-1", broker.engine, [], nothing, nothing, nothing, nothing, nothing)
    request = Request("POST", "/v1/sessions/kick", {}, b'{"client": "meter-1"}', "uid 0")
    with pytest.raises(RuntimeError, match="a defect"):
        await AdminApi(served, defect).handle(request)
    what = {"request": "POST /v1/sessions/kick", "status": 500, "body": {"client": "meter-1"}}
    assert witness.entries == [{"event": "asked", "by": "uid 0", **what}]


@pytest.mark.parametrize(("away", "told"), [(1, "the client is away, and"), (2, "2 sessions of clients away are kept")])
async def test_of_those_who_are_away_it_is_said_how_many_they_are(away: int, told: str) -> None:
    broker, nothing = MemoryBroker(), cast("Any", None)
    for number in range(away):
        broker.service("backend", client_id=f"backend-{number}", session_expiry_interval=60).leave()
    served = Served("broker-1", broker.engine, [], nothing, nothing, nothing, nothing, nothing)
    request = Request("POST", "/v1/sessions/kick", {}, b'{"device": "backend"}', "uid 0")
    answer = await AdminApi(served, lambda _caller: True).handle(request)
    assert (answer.status, told in str(answer.body)) == (404, True)
