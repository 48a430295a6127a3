"""What is asked about a device costs the same however many trials it had before: by what the databases do for it."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import Connection

from provisioning.store import certificates, certificates_of_device, certificates_of_key, devices, tables
from provisioning.store.prepared import Prepared
from tests.support.fleet import Fleet
from tests.support.many import fill

MANY = 3_000
READ = re.compile(r"(?:rows=|Rows Removed by Filter: )(\d+)")


async def with_old_trials(fleet: Fleet) -> int:
    """Enrol a device, give it many trials of before, and renew it; return its row's id."""
    await fleet.enrol("meter-1")
    await fleet.database.write(lambda connection: fill(connection, fleet.issuer.key_id, MANY, fleet.clock()))

    def give(connection: Connection) -> int:
        device = devices.find(connection, "meter-1")
        assert device is not None
        connection.execute(text("UPDATE certificates SET device_id = :id"), {"id": device.id})
        connection.execute(text("UPDATE revocations SET reason = 'certificateHold'"))
        connection.execute(
            text(
                "INSERT INTO claims (id, name, group_name, fingerprint_sha256, der, maximum_devices, trial_seconds, "
                "created_at, created_by, expires_at) SELECT 1, 'batch', 'north', 'x', der, 10, 3600, issued_at, 'x', "
                "not_after FROM certificates LIMIT 1"
            )
        )
        connection.execute(
            text(
                "INSERT INTO activations (certificate_id, claim_id, device_id, expires_at) "
                "SELECT certificate_id, 1, :id, revoked_at FROM revocations"
            ),
            {"id": device.id},
        )
        if connection.dialect.name == "postgresql":  # What comes is newer than those.
            connection.execute(text("SELECT setval('certificates_id_seq', 2000000)"))
        return device.id

    identifier = await fleet.database.write(give)
    await fleet.enrol("meter-1")
    return identifier


def touched(connection: Connection, prepared: Prepared, values: dict[str, Any]) -> int:
    """Return how much a statement reads: rows on PostgreSQL, hundreds of steps on SQLite."""
    compiled = prepared._for(connection.dialect, values)
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name == "postgresql":
        plan = driver.execute(f"EXPLAIN (ANALYZE, TIMING OFF) {compiled.text}", compiled.bound(values)).fetchall()
        return max(int(rows) for line in plan for rows in READ.findall(line[0].partition("(actual")[2] or line[0]))
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    driver.set_progress_handler(step, 100)
    try:
        driver.execute(compiled.text, compiled.bound(values)).fetchall()
    finally:
        driver.set_progress_handler(None, 0)
    return steps


@pytest.mark.parametrize(
    ("prepared", "values"),
    [
        (certificates_of_device._NEWEST, {}),
        (certificates_of_device._DECIDED, {"before": certificates_of_device._FIRST, "most": 1}),
        (certificates_of_device._IDS_BEFORE, {"before": certificates_of_device._FIRST, "most": 1}),
    ],
    ids=["newest", "decided", "before"],
)
async def test_of_what_a_device_had_before_nothing_is_read(
    fleet: Fleet, prepared: Prepared, values: dict[str, Any]
) -> None:
    identifier = await with_old_trials(fleet)
    read = await fleet.database.write(
        lambda connection: touched(connection, prepared, {"wanted": identifier, **values})
    )
    assert read <= 2


@pytest.mark.parametrize(
    ("prepared", "named"),
    [
        (certificates_of_key._DOUBT, {"of": "device_id", "wanted": "spki_sha256"}),
        (certificates_of_key._NEWEST, {"key": "spki_sha256", "wanted": "name"}),
        (certificates_of_key._FIRST_IDS, {"of": "device_id", "wanted": "spki_sha256"}),
        (certificates_of_key._LEFT, {"of": "device_id", "wanted": "spki_sha256"}),
    ],
    ids=["doubt", "newest", "first", "left"],
)
async def test_what_a_device_had_for_other_keys_is_not_read_for_one(
    fleet: Fleet, prepared: Prepared, named: dict[str, str]
) -> None:
    await with_old_trials(fleet)

    def read(connection: Connection) -> int:
        its = certificates.selected().where(tables.devices.c.name == "meter-1").order_by(tables.certificates.c.id)
        first = connection.execute(its.add_columns(tables.certificates.c.device_id, tables.certificates.c.spki_sha256))
        row = first.first()
        assert row is not None
        most = {"most": 9} if prepared is certificates_of_key._FIRST_IDS else {}
        return touched(connection, prepared, {name: getattr(row, column) for name, column in named.items()} | most)

    assert await fleet.database.write(read) <= 2


async def test_what_others_have_is_not_read_for_what_a_device_may_use(fleet: Fleet) -> None:
    """PostgreSQL without statistics would look at all trials, and at whatever has not ended."""
    await with_old_trials(fleet)
    await fleet.enrol("meter-2")

    def read(connection: Connection) -> tuple[int, int]:
        device = devices.find(connection, "meter-2")
        assert device is not None
        now = fleet.clock()
        values = {"wanted": device.id, "since": now, "now": now}
        used = certificates_of_device._IN_USE
        return touched(connection, used, values), len(used.rows(connection, values))

    found, number = await fleet.database.write(read)
    assert (number, found <= 2) == (1, True), found


async def test_what_can_still_be_renewed_is_in_use_and_a_trial_that_has_ended_is_not(fleet: Fleet) -> None:
    """Whoever has copied a claim has made thousands of them: what replaces a device's certificates would read each."""
    grace = timedelta(days=7)
    identifier = await with_old_trials(fleet)
    first, *_, newest = await fleet.database.read(
        lambda connection: certificates_of_device.every(connection, identifier)
    )
    expiry = max(first.not_after, newest.not_after)
    fleet.clock.advance(expiry - fleet.clock())

    async def in_use() -> list[int]:
        now = fleet.clock()
        found = await fleet.database.read(
            lambda connection: certificates_of_device.in_use(connection, identifier, now, grace)
        )
        return [each.id for each in found]

    fleet.clock.advance(timedelta(days=6))
    assert await in_use() == [first.id, newest.id]
    fleet.clock.advance(timedelta(days=1))
    assert await in_use() == []
