"""How many devices count in a group: known without a look at the trials that were lost."""

from __future__ import annotations

import contextlib
import random
import re
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from sqlalchemy import bindparam, text
from sqlalchemy.engine import Connection

from provisioning.enrolment.attempt import TokenCredential
from provisioning.errors import Code, Refused
from provisioning.store import certificates_of_device, claims, devices, groups
from provisioning.store.utc_date_time import UtcDateTime
from tests.support.fleet import Fleet, successor_csr
from tests.support.many import fill
from tests.support.searched import noted, scanned
from tests.support.ways import HOUR, claim, enrol, group, refusal

MANY = 30_000
ANY = 10**6
_LOST = """
INSERT INTO activations (certificate_id, claim_id, device_id, expires_at)
SELECT certificates.id, claims.id, device_id, :ended
FROM certificates JOIN devices ON devices.id = device_id CROSS JOIN claims WHERE devices.name LIKE 'gone-%'
"""
_BY_THE_BOOK = """
SELECT count(*) FROM devices WHERE group_name = 'line' AND decommissioned_at IS NULL AND EXISTS (
    SELECT 1 FROM certificates LEFT JOIN activations ON activations.certificate_id = certificates.id
    WHERE certificates.device_id = devices.id AND (
        activations.certificate_id IS NULL OR activations.activated_at IS NOT NULL OR activations.expires_at > :now))
"""


def by_the_book(connection: Connection, now: datetime) -> int:
    """Count by what became of every certificate: the slow twin."""
    statement = text(_BY_THE_BOOK).bindparams(bindparam("now", type_=UtcDateTime()))
    number: int = connection.execute(statement, {"now": now}).scalar_one()
    return number


async def enrol_by_token(fleet: Fleet, name: str, group_name: str) -> x509.Certificate:
    return await enrol(fleet, name, token=TokenCredential(name, await fleet.token(name, group_name)))


@pytest.mark.parametrize("seed", range(4))
async def test_it_is_what_counting_by_every_certificate_gives(fleet: Fleet, seed: int) -> None:
    choose = random.Random(seed)
    await group(fleet, "claim", "token", new_key=groups.NewKey.REPLACE, same_key_window=timedelta())
    shared = await claim(fleet, devices=100)
    newest: dict[str, object] = {}
    seen = set()
    for _ in range(40):
        name = f"meter-{choose.randrange(6)}"
        match choose.randrange(6):
            case 0 | 1:
                doing = enrol(fleet, name, certificate=shared)
            case 2 if name in newest:
                doing = fleet.reenrol(newest[name], successor_csr(newest[name]))  # type: ignore[arg-type]
            case 3:
                doing = enrol_by_token(fleet, name, choose.choice(["line", "north"]))
            case 4 if name in newest and choose.random() < 0.3:
                await fleet.suspension.suspend_device(name, by="admin")
                continue
            case _:
                fleet.clock.advance(HOUR / choose.choice([1, 2]))
                continue
        with contextlib.suppress(Refused):
            newest[name] = await doing
        now = fleet.clock()
        counted = await fleet.database.read(lambda connection: groups.count_devices(connection, "line", now, ANY))
        assert counted == await fleet.database.read(lambda connection: by_the_book(connection, now))
        bounded = await fleet.database.read(lambda connection: groups.count_devices(connection, "line", now, 2))
        assert bounded == min(counted, 2)
        seen.add(counted)
    assert len(seen) > 2


@pytest.mark.parametrize("seed", range(3))
async def test_a_group_is_full_when_counting_says_so_and_its_row_is_never_below(fleet: Fleet, seed: int) -> None:
    choose = random.Random(seed)
    most = 4
    await group(fleet, "claim", "token", maximum_devices=most, new_key=groups.NewKey.REPLACE)
    shared = await claim(fleet, devices=100)
    outcomes = set()
    for step in range(40):
        name = f"meter-{choose.randrange(9)}"
        now = fleet.clock()
        before = await fleet.database.read(lambda connection: by_the_book(connection, now))
        is_new = await fleet.database.read(lambda connection: devices.find(connection, name)) is None
        match choose.randrange(8):
            case 0 | 1 | 2:
                doing = enrol(fleet, name, certificate=shared)
            case 3 | 4:
                doing = enrol_by_token(fleet, name, "line")
            case 5:
                with contextlib.suppress(Refused):
                    await fleet.revocation.decommission(name, by="admin")
                continue
            case 6:
                most = choose.choice([3, 4, 5])
                await fleet.groups.change("line", {"maximum_devices": None if step % 2 else most}, by="admin")
                await enrol_by_token(fleet, f"extra-{step}", "line") if step % 2 and before < most else None
                await fleet.groups.change("line", {"maximum_devices": most}, by="admin")
                continue
            case _:
                fleet.clock.advance(HOUR / choose.choice([1, 2]))
                continue
        code = None
        try:
            await doing
        except Refused as refused:
            code = refused.code
        if is_new:
            assert (code is Code.GROUP_FULL) == (before >= most), (step, code, before, most)
        outcomes.add(code)
        taken = await fleet.database.read(lambda c: c.execute(text("SELECT taken FROM group_rooms")).scalar())
        after = await fleet.database.read(lambda connection: by_the_book(connection, now))
        assert taken is None or taken >= after
        assert (await fleet.groups.look("line"))[1] == (after >= most), "as it is shown"
    assert {None, Code.GROUP_FULL} <= outcomes


async def test_the_devices_of_a_group_are_counted_once_and_not_for_each_newcomer(fleet: Fleet) -> None:
    await group(fleet, "token", maximum_devices=50)
    counted = []
    for number in range(5):
        token = TokenCredential(f"meter-{number}", await fleet.token(f"meter-{number}", "line"))
        asked, _ = await noted(enrol(fleet, f"meter-{number}", token=token))
        counted.append(sum("trial_ends_at" in statement and "count(" in statement for statement, _ in asked))
    assert counted[0] > 0
    assert counted[1:] == [0] * 4


async def test_lost_trials_are_not_looked_at(fleet: Fleet) -> None:
    """Also while PostgreSQL has no statistics: it is done while nobody else can write."""
    await fleet.database.write(lambda connection: fill(connection, fleet.issuer.key_id, MANY, fleet.clock()))
    await group(fleet, "claim", maximum_devices=2)
    shared = await claim(fleet, devices=9)
    await enrol(fleet, "meter-1", certificate=shared)
    await enrol(fleet, "meter-2", certificate=shared)
    ended = fleet.clock() - HOUR

    def lose_them(connection: Connection) -> None:
        when = bindparam("ended", type_=UtcDateTime())
        connection.execute(text(_LOST).bindparams(when), {"ended": ended})
        change = (
            "UPDATE devices SET group_name = 'line', revoked_at = NULL, trial_ends_at = :ended WHERE name LIKE 'gone-%'"
        )
        connection.execute(text(change).bindparams(when), {"ended": ended})

    await fleet.database.write(lose_them)
    asked, code = await noted(refusal(fleet, "meter-3", certificate=shared))
    assert code is Code.GROUP_FULL
    assert await fleet.database.read(lambda connection: scanned(connection, asked)) == set()
    counting = [each for each in asked if "trial_ends_at" in each[0] and "count(" in each[0]]
    plans = await fleet.database.read(lambda connection: [plan_of(connection, *each) for each in counting])
    assert plans
    by_both = {
        "sqlite": r"ix_devices_counted \(group_name=\? AND decommissioned_at=\? AND trial_ends_at[=>]\?\)",
        "postgresql": r"ix_devices_counted.*\n\s+Index Cond: .*group_name.*trial_ends_at",
    }[fleet.database.url.get_backend_name()]
    assert all(re.search(by_both, plan) for plan in plans), plans
    fleet.clock.advance(HOUR)
    await enrol(fleet, "meter-3", certificate=shared)


def plan_of(connection: Connection, statement: str, parameters: object) -> str:
    explain = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
    rows = connection.exec_driver_sql(f"{explain} {statement}", parameters).all()  # type: ignore[arg-type]
    return "\n".join(str(row[-1]) for row in rows)


async def test_a_trial_of_a_device_that_is_here_for_good_does_not_end_its_place(fleet: Fleet) -> None:
    """As `token+claim` can give it one."""
    await group(fleet, "claim")
    await claim(fleet)
    certificate = await fleet.enrol("meter-1")
    await fleet.reenrol(certificate, successor_csr(certificate))
    await fleet.enrol("meter-2")

    def ends(connection: Connection) -> list[datetime | None]:
        found = []
        for name in ("meter-1", "meter-2"):
            device = devices.find(connection, name)
            assert device is not None
            newest = certificates_of_device.every(connection, device.id)[-1]
            claims.begin_trial(connection, 1, device.id, newest.id, fleet.clock() + HOUR)
            device = devices.find(connection, name)
            assert device is not None
            found.append(device.trial_ends_at)
        return found

    assert await fleet.database.write(ends) == [None, fleet.clock() + HOUR]
