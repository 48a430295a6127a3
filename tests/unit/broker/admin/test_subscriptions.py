"""What an operator sees of subscriptions: a client's own, and whose would get a topic."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from broker.admin.sessions import InvalidSelection, Selection
from broker.admin.subscriptions import checked_topic, subscriptions_document
from broker.mqtt.subscription import Subscription
from tests.support.pki import DOMAIN
from tests.support.wire import MemoryBroker


async def listed(broker: MemoryBroker, topic: str | None = None, limit: int | None = None, **of: str) -> dict[str, Any]:
    pieces = [each async for each in subscriptions_document(broker.engine, Selection.of(of), topic, limit)]
    document = json.loads(b"".join(pieces))
    assert isinstance(document, dict)
    return document


async def test_a_client_s_filters_are_shown_and_who_would_get_a_topic_also_while_away() -> None:
    broker = MemoryBroker()
    meter = broker.device("meter-1", session_expiry_interval=60)
    meter.subscribe("fleet/meters/meter-1/cmd/+", qos=1)
    meter.leave()
    for name in ("a", "b"):
        broker.service("backend", client_id=f"backend-{name}").subscribe("$share/workers/fleet/+/meter-1/#", qos=2)
    broker.service("other").subscribe("fleet/meters/meter-2/#")

    assert (await listed(broker, anything="meter-1"))["subscriptions"] == [
        {
            "client_id": "meter-1", "identity": f"spiffe://{DOMAIN}/device/meters/meter-1", "connected": False,
            "qos": 1, "filter": "fleet/meters/meter-1/cmd/+", "no_local": False, "retain_as_published": False,
        }
    ]  # fmt: skip

    async def receivers(topic: str) -> list[str]:
        return sorted(each["client_id"] for each in (await listed(broker, topic))["subscriptions"])

    assert await receivers("fleet/meters/meter-1/cmd/reboot") == ["backend-a", "backend-b", "meter-1"]
    assert await receivers("fleet/meters/meter-1/cmd/reboot/now") == ["backend-a", "backend-b"]
    assert await receivers("$share/workers/fleet/x/meter-1") == []
    few = await listed(broker, limit=2)
    assert (len(few["subscriptions"]), few["matched"], few["shown"]) == (2, 4, 2)


async def test_many_subscriptions_leave_turns_to_others() -> None:
    broker = MemoryBroker()
    many = {f"a/{number}": Subscription(f"a/{number}", 0) for number in range(90)}
    for number in range(50):
        broker.device(f"meter-{number}").session.subscriptions.update(many)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    try:
        assert (await listed(broker, "a/7"))["matched"] == 50
    finally:
        beside.cancel()
    assert turns >= 15  # 4,500 were looked at.


@pytest.mark.parametrize("topic", ["", "a/+", "a/#", "a\0b"])
def test_what_nobody_can_publish_to_is_no_topic(topic: str) -> None:
    with pytest.raises(InvalidSelection, match=r"^topic: "):
        checked_topic(topic)
    assert checked_topic("a/b") == "a/b"
    assert checked_topic(None) is None
