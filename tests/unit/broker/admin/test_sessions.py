"""What an operator sees of sessions, and that a long list does not make the devices wait."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from broker.admin import sessions
from broker.admin.sessions import InvalidSelection, Selection, SessionView, Stored
from broker.mqtt.codes import ReasonCode
from broker.mqtt.packets import Disconnect
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from tests.support.pki import DOMAIN, shared_device
from tests.support.stored import StoredBroker
from tests.support.wire import MemoryBroker


async def listed(broker: MemoryBroker, limit: int | None = None, **query: str) -> dict[str, Any]:
    pieces = [
        piece async for piece in SessionView(broker.engine, lambda: broker.now).document(Selection.of(query), limit)
    ]
    document = json.loads(b"".join(pieces))
    assert isinstance(document, dict)
    return document


async def names(broker: MemoryBroker, **query: Any) -> list[str]:
    return sorted(session["client_id"] for session in (await listed(broker, **query))["sessions"])


async def test_every_filter_finds_whom_it_names() -> None:
    broker = MemoryBroker()
    broker.device("meter-1", session_expiry_interval=60)
    broker.device("meter-2", session_expiry_interval=60).leave()
    broker.service("backend", client_id="backend-7")
    serial = f"{shared_device('meter-1').certificate.serial_number:x}"
    everybody = ["backend-7", "meter-1", "meter-2"]
    assert await names(broker) == everybody
    assert await names(broker, group="meters") == ["meter-1", "meter-2"]
    assert await names(broker, role="service") == ["backend-7"]
    assert await names(broker, device="backend") == ["backend-7"]
    assert await names(broker, connected="false") == ["meter-2"]
    assert await names(broker, connected="true", group="meters") == ["meter-1"]
    assert await names(broker, address="192.0.2.1") == ["backend-7", "meter-1"]
    for anything in ("meter-1", serial, serial.upper(), f"00{serial}", f"spiffe://{DOMAIN}/device/meters/meter-1"):
        assert await names(broker, anything=anything) == ["meter-1"], anything
    assert await names(broker, serial=":".join([f"0{serial}"[i : i + 2] for i in range(0, 40, 2)])[:2]) == []
    assert await names(broker, anything="192.0.2.1:1883") == ["backend-7", "meter-1"]
    assert await names(broker, client="backend") == []
    assert await names(broker, anything="backend") == ["backend-7"], "as the certificate calls it"
    assert await names(broker, beginning="meter-") == ["meter-1", "meter-2"]
    assert await names(broker, beginning="spiffe:") == []
    assert await names(broker, domain=DOMAIN) == everybody
    assert await names(broker, domain="other.example") == []
    broker.advance(30)
    (here,) = (await listed(broker, client="meter-1"))["sessions"]
    (away,) = (await listed(broker, connected="false"))["sessions"]
    assert (here["address"], here["serial"], here["keep_alive"]) == ("192.0.2.1:1883", serial, 3600)
    since = datetime.fromisoformat(here["connected_since"])
    assert timedelta(seconds=20) < datetime.now(UTC) - since < timedelta(seconds=600)
    assert here["certificate_expires_in"] > 3600
    assert (here["session_expires_in"], away["session_expires_in"]) == (None, 30)
    assert (away["address"], away["serial"], away["connected_since"]) == (None, None, None)


@pytest.mark.parametrize("text", ["backend-\x1b[2J", "backend-\\x1b[2J", f"{DOMAIN}/backend-\\x1b[2J"])
async def test_an_identifier_with_an_escape_sequence_is_found_by_what_is_shown(text: str) -> None:
    broker = MemoryBroker()
    broker.service("backend", client_id="backend-\x1b[2J")
    broker.service("other")
    assert await names(broker, anything=text) == ["backend-\x1b[2J"]
    assert await names(broker, client=text) == ["backend-\x1b[2J"]


async def test_a_session_is_shown_with_its_certificate_and_what_waits_for_it() -> None:
    broker = MemoryBroker()
    meter = broker.device("meter-1", session_expiry_interval=60, keep_alive=100)
    meter.subscribe("fleet/meters/meter-1/cmd/#", qos=1)
    (shown,) = (await listed(broker))["sessions"]
    assert (shown["version"], shown["keep_alive"], shown["subscriptions"]) == ("5.0", 100, 1)
    assert 0 <= shown["certificate_expires_in"] <= 86_400
    meter.leave()
    broker.service().publish("fleet/meters/meter-1/cmd/go", b"go", qos=1)
    (away,) = (await listed(broker, device="meter-1"))["sessions"]
    assert (away["connected"], away["address"], away["serial"]) == (False, None, None)
    assert away["queued"] == 1


@pytest.mark.parametrize(
    "query",
    [
        {"colour": "red"},
        {"connected": "yes"},
        {"role": "devices"},
        *({"serial": odd} for odd in ("0x", ":", "-", "zz")),
    ],
)
def test_a_filter_that_is_none_is_named(query: dict[str, str]) -> None:
    with pytest.raises(InvalidSelection, match=next(iter(query))):
        Selection.of(query)


def test_serial_numbers_are_compared_as_numbers() -> None:
    for spelling in ("abc", "0A:Bc", "0xabc", "00ABC"):
        assert Selection.of({"serial": spelling}).serial == "abc"
    assert Selection.of({"serial": "00"}).serial == "0"


async def test_ten_thousand_sessions_are_shown_with_a_turn_of_the_loop_between_a_few_hundred() -> None:
    broker = MemoryBroker()
    for number in range(10_000):
        broker.engine.registry.create(f"d{number}", Identity(DOMAIN, Role.DEVICE, f"d{number}", "meters"))
    turns = 0

    async def devices() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(devices())
    document = await listed(broker, limit=9_000)
    task.cancel()
    assert (len(document["sessions"]), document["matched"], document["shown"]) == (9_000, 10_000, 9_000)
    assert turns >= 10_000 / 200


async def test_a_session_that_ends_while_the_list_is_shown_is_left_out() -> None:
    broker = MemoryBroker()
    for number in range(500):
        broker.engine.registry.create(f"d{number}", Identity(DOMAIN, Role.DEVICE, f"d{number}", "meters"))
    pieces = SessionView(broker.engine, lambda: broker.now).document(Selection(), None)
    text = [await anext(pieces), await anext(pieces)]
    last = broker.engine.registry.find(DOMAIN, Role.DEVICE, "d499")
    assert last is not None
    broker.engine.registry.discard(last)
    text += [piece async for piece in pieces]
    assert json.loads(b"".join(text))["matched"] == 499


async def test_kicking_tells_the_client_why_and_keeps_or_forgets_the_session() -> None:
    broker = MemoryBroker()
    view = SessionView(broker.engine, lambda: broker.now)
    meter = broker.device("meter-1", session_expiry_interval=60)
    kicked = await view.kick(Selection(anything="meter-1"), "maintenance", "uid 0", forget=False)
    assert [(each["client_id"], each["was_connected"], each["session_kept"]) for each in kicked] == [
        ("meter-1", True, True)
    ]
    (farewell,) = meter.received()
    assert isinstance(farewell, Disconnect)
    assert farewell.reason_code is ReasonCode.ADMINISTRATIVE_ACTION
    assert farewell.properties.reason_string == "KICKED: maintenance"
    assert broker.metrics.closed["KICKED"] == 1
    assert await view.kick(Selection(anything="meter-1"), "x", "uid 0", forget=False) == []
    (forgotten,) = await view.kick(Selection(anything="meter-1"), "x", "uid 0", forget=True)
    assert (forgotten["was_connected"], forgotten["session_kept"]) == (False, False)
    assert await names(broker) == []


async def test_an_operator_is_told_of_an_end_when_it_is_stored(tmp_path: Path) -> None:
    broker = StoredBroker(tmp_path)
    view = SessionView(broker.engine, lambda: broker.now)
    broker.device("meter-1", session_expiry_interval=60).vanish()
    assert await view.stored() is Stored.WRITTEN
    broker.held = True
    await view.kick(Selection(anything="meter-1"), "x", "uid 0", forget=True)
    told = asyncio.create_task(view.stored())
    await asyncio.sleep(0)
    assert not told.done()
    broker.write()
    assert await told is Stored.WRITTEN
    broker.journal.retain("a", None)
    told = asyncio.create_task(view.stored())
    await asyncio.sleep(0)
    broker.fail()
    assert await told is Stored.FAILED
    assert await view.stored() is Stored.FAILED, "it fails still"
    broker.write()
    assert await view.stored() is Stored.WRITTEN
    assert await SessionView(MemoryBroker().engine).stored() is Stored.WRITTEN, "there is no store"
    broker.close()


async def test_an_operator_does_not_wait_for_a_disk_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_STORE_PATIENCE", 0.01)
    broker = StoredBroker(tmp_path)
    broker.held = True
    broker.journal.retain("a", None)
    assert await SessionView(broker.engine).stored() is Stored.SLOW, "slow is not failed"
    broker.write()
    broker.close()
