"""Searches that no index answers: each page looks at a part of the store, and the pages together find everything."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import insert
from sqlalchemy.engine import Connection

from provisioning.api.inventory import _csv, _csv_text, _items, _json, _json_text, _pages
from provisioning.enrolment.tokens import TokenOrder
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.store import approvals, devices, inventory, revocations, stretches, token_inventory
from provisioning.store.approvals import ApprovalState
from provisioning.store.certificates import CertificateState
from provisioning.store.inventory import CertificateSearch
from provisioning.store.stretches import Numbered
from provisioning.store.tables import approvals as approvals_table
from provisioning.store.token_inventory import TokenFilter, TokenState
from tests.support.fleet import Fleet
from tests.support.many import fill
from tests.support.searched import Statement, noted, rows_read

DAY = timedelta(days=1)
MANY = 30_000
Page = Callable[[Connection, int, int], tuple[list[Any], int | None]]
"""Returns a page of so many behind an id."""


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a page look at six rows, two at a time."""
    monkeypatch.setattr(stretches, "AT_ONCE", 2)
    monkeypatch.setattr(stretches, "LOOKED_AT", 6)


async def walked(fleet: Fleet, page: Page, limit: int) -> tuple[list[Numbered], list[int]]:
    """Return what the pages find, and how many statements each took."""
    found: list[Numbered] = []
    statements = []
    after: int | None = 0
    while after is not None:
        asked, (rows, following) = await noted(
            fleet.database.read(lambda connection: page(connection, limit, after or 0))
        )
        assert len(rows) <= limit
        assert following is None or following > (after or 0)
        found += rows
        statements.append(len(asked))
        after = following
    return found, statements


def certificates(fleet: Fleet, search: CertificateSearch) -> Page:
    now = fleet.clock()
    return lambda connection, limit, after: inventory.page(connection, search, limit=limit, after=after, now=now)


def tokens(fleet: Fleet, wanted: TokenFilter) -> Page:
    now = fleet.clock()
    return lambda connection, limit, after: token_inventory.page(connection, wanted, limit=limit, after=after, now=now)


@pytest.mark.usefixtures("short")
async def test_the_pages_of_a_search_find_all_and_none_looks_at_more_than_its_part(fleet: Fleet) -> None:
    for number in range(20):
        await fleet.enrol(f"meter-{number:02}")
    for number in (3, 17):
        await fleet.revocation.revoke_device(f"meter-{number:02}", RevocationReason.SUPERSEDED, by="admin")
    search = CertificateSearch(state=CertificateState.REVOKED)
    found, statements = await walked(fleet, certificates(fleet, search), 5)
    assert [each.device.name for each in found] == ["meter-03", "meter-17"]  # type: ignore[attr-defined]
    assert len(statements) >= 4, "six of at least twenty-one a page"
    assert max(statements) <= 2 * 3 + 2, "two statements for two rows, and the look-up of what was found"
    for search in (
        CertificateSearch(group="nobody"),
        CertificateSearch(fingerprint="00"),
        CertificateSearch(issuer="00"),
    ):
        found, statements = await walked(fleet, certificates(fleet, search), 5)
        assert found == []
        assert len(statements) >= 4


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("seed", range(3))
async def test_pages_of_any_size_find_what_one_page_of_everything_does(fleet: Fleet, seed: int) -> None:
    choose = random.Random(seed)
    for number in range(12):
        await fleet.enrol(f"meter-{number}")
        if choose.random() < 0.3:
            await fleet.revocation.revoke_device(f"meter-{number}", RevocationReason.SUPERSEDED, by="admin")
        elif choose.random() < 0.3:
            await fleet.suspension.suspend_device(f"meter-{number}", by="admin")
        fleet.clock.advance(DAY * choose.randrange(4))
    now = fleet.clock()
    for search in (
        *(CertificateSearch(state=state) for state in CertificateState),
        CertificateSearch(group="north", expires_before=now + 20 * DAY),
        CertificateSearch(expires_from=now + 10 * DAY, state=CertificateState.ACTIVE),
        CertificateSearch(device="meter-3"),
        CertificateSearch(device="meter-3", state=CertificateState.ACTIVE),
        CertificateSearch(),
    ):
        counted = await fleet.database.read(lambda connection: inventory.count(connection, now, search))
        for limit in (1, 3, 50):
            found, _ = await walked(fleet, certificates(fleet, search), limit)
            assert len(found) == sum(counted.values()), (search, limit)
            assert [each.id for each in found] == sorted({each.id for each in found})


@pytest.mark.usefixtures("short")
async def test_open_tokens_are_found_behind_any_number_of_spent_ones(fleet: Fleet) -> None:
    for number in range(10):
        await fleet.enrol(f"meter-{number}")
    await fleet.token_service.create(TokenOrder(devices=["meter-99"]), by="admin")
    found, statements = await walked(fleet, tokens(fleet, TokenFilter(state=TokenState.OPEN)), 5)
    assert [each.device for each in found] == ["meter-99"]  # type: ignore[attr-defined]
    assert len(statements) == 2
    assert max(statements) <= 9  # Two, once a page: whose tokens do not count, as they are suspended or no admins.


@pytest.mark.usefixtures("short")
async def test_what_waits_for_approval_is_found_behind_what_was_decided(fleet: Fleet) -> None:
    rows = [
        {
            "id": number, "group_name": "line", "name": f"meter-{number}", "spki_sha256": bytes(32), "evidence": "",
            "state": "pending" if number == 11 else "used", "requested_at": fleet.clock(),
        }
        for number in range(1, 12)
    ]  # fmt: skip
    await fleet.database.write(lambda connection: connection.execute(insert(approvals_table), rows))

    def page(connection: Connection, limit: int, after: int) -> tuple[list[Any], int | None]:
        state = ApprovalState.PENDING
        return approvals.page(connection, limit=limit, after=after, group=None, state=state, lapsed=fleet.clock())

    found, statements = await walked(fleet, page, 5)
    assert [each.id for each in found] == [11]
    assert max(statements) <= 6


@pytest.mark.usefixtures("short")
async def test_an_export_goes_on_behind_pages_that_found_nothing(fleet: Fleet) -> None:
    for number in range(20):
        await fleet.enrol(f"meter-{number:02}")
    await fleet.revocation.revoke_device("meter-17", RevocationReason.SUPERSEDED, by="admin")
    page, now = certificates(fleet, CertificateSearch(state=CertificateState.REVOKED)), fleet.clock()

    def look(after: int | None) -> Callable[[Connection], tuple[list[Any], int | None]]:
        def listed(connection: Connection) -> tuple[list[Any], int | None]:
            found, following = page(connection, 1000, after or 0)
            return _items(connection, found, now), following

        return listed

    services: Any = fleet
    for written, rows in ((_json, _json_text), (_csv, _csv_text)):
        first = await fleet.database.read(look(None))
        assert first[0] == []
        pages = _pages(services, first, look, lambda code: pytest.fail(code.value), rows)
        text = "".join([part async for part in written(pages)])
        if written is _json:
            assert [each["device"] for each in json.loads(text)] == ["meter-17"]
        else:
            assert [line.split(",")[1] for line in text.splitlines()] == ["device", "meter-17"]


def plans(connection: Connection, asked: list[Statement]) -> str:
    return "\n".join(
        str(row[-1])
        for statement, parameters in asked
        if statement.startswith("SELECT")
        for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
    )


async def test_no_page_of_a_search_scans_the_store(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while PostgreSQL has no statistics: if the table is much larger than what a page looks at."""
    monkeypatch.setattr(stretches, "AT_ONCE", 50)
    monkeypatch.setattr(stretches, "LOOKED_AT", 500)
    await fleet.database.write(lambda connection: fill(connection, fleet.issuer.key_id, MANY, fleet.clock()))
    await fleet.enrol("meter-1")
    now = fleet.clock()
    for search in (
        CertificateSearch(fingerprint="00"),
        CertificateSearch(group="south"),
        CertificateSearch(state=CertificateState.ACTIVE, expires_before=now + DAY),
        CertificateSearch(issuer="00", expires_from=now),
        CertificateSearch(device="meter-1", state=CertificateState.REVOKED),
        CertificateSearch(serial="00", state=CertificateState.REVOKED),
    ):
        page = certificates(fleet, search)

        def read(connection: Connection) -> int:
            before = rows_read(connection)
            found, _ = page(connection, 100, 0)
            assert found == []
            return rows_read(connection) - before

        asked, read_rows = await noted(fleet.database.read(read))
        assert read_rows == 0, search
        assert len(asked) - 2 <= 2 * 10  # Two ask what was read.
        if fleet.database.url.get_backend_name() == "sqlite":
            plan = await fleet.database.read(lambda connection: plans(connection, asked))
            assert "ix_certificates_not_after" not in plan, plan
            assert "ix_devices_group_name" not in plan, plan


async def test_the_counts_of_everything_are_those_of_a_search_for_anything_and_read_no_certificate(
    fleet: Fleet,
) -> None:
    await fleet.database.write(lambda connection: fill(connection, fleet.issuer.key_id, 100, fleet.clock()))
    await fleet.enrol("meter-0")
    fleet.clock.advance(31 * DAY)
    for name in ("meter-1", "meter-2", "meter-3", "meter-4"):
        await fleet.enrol(name)
    await fleet.revocation.revoke_device("meter-1", RevocationReason.SUPERSEDED, by="admin")
    await fleet.suspension.suspend_device("meter-2", by="admin")
    now = fleet.clock()
    asked, counted = await noted(fleet.database.read(lambda connection: inventory.count(connection, now)))
    assert counted == await fleet.database.read(
        lambda c: inventory.count(c, now, CertificateSearch(expires_before=now + 999 * DAY))
    )
    assert counted[CertificateState.EXPIRED] == 1
    assert counted[CertificateState.REVOKED] == 101
    more, certified = await noted(fleet.database.read(lambda connection: devices.count_certified(connection, now)))
    assert certified >= 2
    if fleet.database.url.get_backend_name() == "sqlite":
        plan = await fleet.database.read(lambda connection: plans(connection, asked + more))
        of_certificates = [line for line in plan.splitlines() if "certificates" in line and "revocations" not in line]
        assert len(of_certificates) == 3
        assert all("COVERING INDEX" in line for line in of_certificates), plan


async def test_no_count_keeps_a_row_of_each_certificate_or_device_in_memory(fleet: Fleet) -> None:
    await fleet.enrol("meter-1")
    now = fleet.clock()
    for count in (
        devices.count,
        lambda connection: inventory.count(connection, now),
        lambda connection: inventory.count(connection, now, CertificateSearch(group="north")),
        lambda connection: inventory.count(connection, now, CertificateSearch(expires_before=now)),
    ):
        asked, _ = await noted(fleet.database.read(count))
        if fleet.database.url.get_backend_name() == "sqlite":
            plan = await fleet.database.read(lambda connection: plans(connection, asked))
            assert "TEMP B-TREE" not in plan


async def test_a_crl_reads_what_is_revoked_and_not_what_has_not_expired(fleet: Fleet) -> None:
    for name in ("meter-1", "meter-2"):
        await fleet.enrol(name)
    await fleet.revocation.revoke_device("meter-1", RevocationReason.SUPERSEDED, by="admin")
    asked, found = await noted(
        fleet.database.read(lambda c: revocations.listed(c, fleet.issuer.key_id, None, fleet.clock()))
    )
    assert len(found) == 1
    if fleet.database.url.get_backend_name() == "sqlite":
        plan = await fleet.database.read(lambda connection: plans(connection, asked))
        assert "SCAN revocations" in plan
        assert "SEARCH certificates USING INTEGER PRIMARY KEY" in plan


async def test_surveys_and_pages_leave_readers_for_those_who_wait_for_an_answer(fleet: Fleet) -> None:
    """Four that count all certificates, for seconds each, took every reader from OCSP and the feed.

    Pages of a thousand rows took the processor: with 16 of an auditor at a time, an enrolment took 16 times as long.
    """
    begun, go_on = threading.Semaphore(0), threading.Event()
    at_work = 0

    def counting(_connection: Connection) -> None:
        nonlocal at_work
        at_work += 1
        begun.release()
        assert go_on.wait(60)

    asked = [asyncio.create_task(ask(counting)) for ask in (fleet.database.survey, fleet.database.page) * 4]
    try:
        for _ in range(2):
            assert await asyncio.to_thread(begun.acquire, timeout=60)
        async with asyncio.timeout(60):
            assert await fleet.database.read(revocations.newest) == 0
        assert at_work == 2
    finally:
        go_on.set()
        await asyncio.gather(*asked)
    assert at_work == 8
