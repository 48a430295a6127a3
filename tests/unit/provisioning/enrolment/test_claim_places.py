"""How many places of a claim are taken: known without a look at the trials that were lost."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from sqlalchemy import bindparam, select, text, update
from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused
from provisioning.store import claim_places, claims, groups, tables
from provisioning.store.utc_date_time import UtcDateTime
from tests.support.fleet import Fleet, successor_csr
from tests.support.many import fill
from tests.support.searched import Statement, noted
from tests.support.ways import HOUR, claim, enrol, group, refusal

MANY = 20_000
FEW = {"sqlite": 4000, "postgresql": 200}
"""Steps of SQLite's machine, rows that PostgreSQL reads: for all questions of an attempt together."""
_BY_THE_BOOK = """
SELECT count(DISTINCT device_id) FROM activations JOIN claims ON claims.id = claim_id
WHERE claims.name = :name AND (activated_at IS NOT NULL OR activations.expires_at > :now)
"""
_LOST = """
INSERT INTO activations (certificate_id, claim_id, device_id, expires_at)
SELECT certificates.id, claims.id, device_id, :ended
FROM certificates JOIN devices ON devices.id = device_id CROSS JOIN claims WHERE devices.name LIKE 'gone-%'
"""
_LOST_PLACES = """
INSERT INTO claim_places (claim_id, device_id, ends_at)
SELECT claims.id, devices.id, :ended FROM devices CROSS JOIN claims WHERE devices.name LIKE 'gone-%'
"""


def by_the_book(connection: Connection, name: str, now: datetime) -> int:
    """Count by what became of every trial: the slow twin."""
    statement = text(_BY_THE_BOOK).bindparams(bindparam("now", type_=UtcDateTime()))
    number: int = connection.execute(statement, {"name": name, "now": now}).scalar_one()
    return number


def effort(connection: Connection, asked: list[Statement]) -> int:
    """Return how much the database has to do for these questions."""
    questions = [each for each in asked if each[0].lstrip().startswith("SELECT")]
    assert questions
    if connection.dialect.name == "postgresql":
        read = "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_user_tables"
        before: int = connection.exec_driver_sql(read).scalar_one()
        for each in questions:
            connection.exec_driver_sql(*each).all()
        return int(connection.exec_driver_sql(read).scalar_one() - before)
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    driver = connection.connection.driver_connection
    assert driver is not None
    driver.set_progress_handler(step, 1)
    try:
        for each in questions:
            connection.exec_driver_sql(*each).all()
    finally:
        driver.set_progress_handler(None, 1)
    return steps


@pytest.mark.parametrize("seed", range(4))
async def test_it_is_what_counting_by_every_trial_gives(
    fleet: Fleet, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim_places, "_FREED_AT_ONCE", 2)
    choose = random.Random(seed)
    await group(fleet, "claim", new_key=groups.NewKey.REPLACE, same_key_window=timedelta())
    shared = {name: await claim(fleet, name=name, devices=3) for name in ("batch", "other")}
    newest: dict[str, x509.Certificate] = {}
    endings: list[Callable[..., Awaitable[object]]] = [
        fleet.suspension.suspend_device,
        fleet.suspension.resume_device,
        fleet.suspension.resume_device,
        fleet.revocation.decommission,
    ]
    seen = set()
    for _ in range(50):
        name = f"meter-{choose.randrange(7)}"
        doing = None
        match choose.randrange(6):
            case 0 | 1 | 2:
                before = choose.choice(list(shared))
                doing = enrol(fleet, name, certificate=shared[before])
            case 3 if name in newest:
                doing = fleet.reenrol(newest[name], successor_csr(newest[name]))
            case 4 if name in newest and choose.random() < 0.3:
                with contextlib.suppress(Refused):
                    await choose.choice(endings)(name, by="admin")
            case _:
                fleet.clock.advance(HOUR / choose.choice([1, 2]))
        if doing is not None:
            try:
                newest[name] = await doing
            except Refused as refused:
                if refused.code is Code.CLAIM_EXHAUSTED:
                    assert 3 in seen
        now = fleet.clock()
        for each in shared:
            found = await fleet.database.read(lambda connection: claims.find_named(connection, each, now))
            counted = await fleet.database.read(lambda connection: by_the_book(connection, each, now))
            assert found is not None
            assert found.used == counted
            assert counted <= 3
            seen.add(counted)
    assert len(seen) > 2
    (left,) = await fleet.database.read(
        lambda connection: connection.exec_driver_sql(
            "SELECT sum(taken) - (SELECT count(*) FROM claim_places) FROM claims"
        ).one()
    )
    assert left == 0


async def test_a_place_of_one_claim_is_none_of_another(fleet: Fleet) -> None:
    await group(fleet, "claim")
    full, other = await claim(fleet, devices=1), await claim(fleet, devices=1, name="other")
    await enrol(fleet, "meter-1", certificate=full)
    await enrol(fleet, "meter-2", certificate=other)
    assert await refusal(fleet, "meter-2", certificate=full) is Code.CLAIM_EXHAUSTED


async def test_a_place_lasts_as_long_as_the_longest_of_its_trials_and_an_activation_s_for_good(fleet: Fleet) -> None:
    await group(fleet, "claim")
    await enrol(fleet, "meter-1", certificate=await claim(fleet))
    begun = fleet.clock()

    def end_after(connection: Connection, ends_at: datetime | None) -> datetime | None:
        (place,) = connection.execute(select(tables.claim_places)).all()
        claim_places.take(connection, place.claim_id, place.device_id, ends_at)
        (place,) = connection.execute(select(tables.claim_places)).all()
        end: datetime | None = place.ends_at
        return end

    for ends_at, lasts_until in (
        (begun + HOUR / 2, begun + HOUR),
        (begun + 2 * HOUR, begun + 2 * HOUR),
        (None, None),
        (begun + 3 * HOUR, None),
    ):
        assert await fleet.database.write(lambda connection: end_after(connection, ends_at)) == lasts_until


@pytest.mark.parametrize("places", ["given back", "lost since"])
async def test_lost_trials_are_not_looked_at(fleet: Fleet, places: str) -> None:
    """Also while PostgreSQL has no statistics: it is done while nobody else can write."""
    await fleet.database.write(lambda connection: fill(connection, fleet.issuer.key_id, MANY, fleet.clock()))
    await group(fleet, "claim")
    size = 2 if places == "given back" else MANY + 2
    shared = await claim(fleet, devices=size)
    await enrol(fleet, "meter-1", certificate=shared)
    await enrol(fleet, "meter-2", certificate=shared)
    ended = fleet.clock() - HOUR

    def lose_them(connection: Connection) -> None:
        for statement in (_LOST, _LOST_PLACES)[: 1 if places == "given back" else 2]:
            connection.execute(text(statement).bindparams(bindparam("ended", type_=UtcDateTime())), {"ended": ended})
        if places == "lost since":
            connection.execute(update(tables.claims).values(taken=size))

    await fleet.database.write(lose_them)
    if places == "given back":
        asked, code = await noted(refusal(fleet, "meter-3", certificate=shared))
        assert code is Code.CLAIM_EXHAUSTED
    else:
        asked, _ = await noted(enrol(fleet, "meter-3", certificate=shared))
    steps = await fleet.database.write(lambda connection: effort(connection, asked))
    assert steps < FEW[fleet.database.url.get_backend_name()]
    stored = await fleet.database.read(lambda connection: claims.find_named(connection, "batch", fleet.clock()))
    assert stored is not None
    assert stored.used == (2 if places == "given back" else 3)


async def test_a_name_s_lost_trials_are_not_looked_at(fleet: Fleet) -> None:
    """Who copied a claim may ask for one name again and again."""
    await group(fleet, "claim", maximum_devices=9)
    shared = await claim(fleet, devices=2)
    await enrol(fleet, "meter-1", certificate=shared)
    for _ in range(60):
        fleet.clock.advance(HOUR)
        await enrol(fleet, "meter-1", certificate=shared)
    asked, few = await noted(enrol(fleet, "meter-2", certificate=shared))
    fleet.clock.advance(HOUR)
    again, _ = await noted(enrol(fleet, "meter-1", certificate=shared))
    assert few is not None
    new = await fleet.database.write(lambda connection: effort(connection, asked))
    often = await fleet.database.write(lambda connection: effort(connection, again))
    assert often < new + 300
