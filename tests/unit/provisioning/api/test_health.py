"""Readiness while the database does not answer: said in time, and the database is asked once at a time."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import cast

import psycopg
import pytest

from provisioning.api import health
from provisioning.api.health import Check, Patient, Readiness
from provisioning.ca.ocsp import Failure, OcspRefused
from provisioning.revocation.ocsp_signer import RenewedOcspSigner
from provisioning.store.database import Database
from tests.support.postgresql import PostgresqlServer

_ANSWERED = 8.0
"""Less than the ten seconds for which the database waits for a lock."""


async def settled(check: Check) -> str:
    """Return the result of *check* when the database has answered."""
    async with asyncio.timeout(_ANSWERED):
        while (found := await check()) == "slow":
            pass
    return found


async def test_a_database_that_does_not_answer_is_slow_and_is_asked_once(
    postgresql: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its transaction cannot be cancelled, so the answer took as long: half a minute if its machine has vanished."""
    monkeypatch.setattr(health, "_PATIENCE_SECONDS", 0.3)
    with postgresql.database() as url, psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as other:
        database = Database(url)
        check = Readiness(database, dict, list, {}, lambda: datetime.now(UTC)).checks()["store"]
        assert await settled(check) == "ok"
        other.execute("BEGIN")
        other.execute("LOCK TABLE revocation_events IN ACCESS EXCLUSIVE MODE")
        begun = time.monotonic()
        assert await asyncio.gather(*(check() for _ in range(5))) == ["slow"] * 5
        assert time.monotonic() - begun < _ANSWERED
        assert await asyncio.gather(*(check() for _ in range(5))) == ["slow"] * 5
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'revocation_events'::regclass"
        assert other.execute(waiting).fetchone() == (1,), "it is asked more than once, or not at all"
        other.execute("COMMIT")
        assert await settled(check) == "ok"
        await database.close()


async def test_who_calls_nobody_good_gets_no_traffic(store_url: str) -> None:
    """It was ready while it answered 503 to all, for as long as a fellow worker hung or the feed had not looked."""
    database = Database(store_url)
    check = Readiness(database, dict, list, {}, lambda: datetime.now(UTC)).checks()["store"]
    lost_ends = database.lost_ends
    assert await settled(check) == "ok"
    lost_ends.hears_all = False
    assert await settled(check) == "in doubt"
    lost_ends.hears_all = True
    doubts = lost_ends.doubt()
    assert await settled(check) == "in doubt"
    lost_ends.compared(doubts)
    assert await settled(check) == "ok"
    await database.close()


@pytest.mark.parametrize(("is_early", "said"), [(True, "not yet valid"), (False, "expired")])
async def test_an_ocsp_signer_of_a_clock_that_was_set_back_has_not_expired(*, is_early: bool, said: str) -> None:
    now = datetime(2027, 3, 1, tzinfo=UTC)

    class Signer:
        issuer = SimpleNamespace(certificate=SimpleNamespace(not_valid_after_utc=now + timedelta(days=1)))

        def current(self, _now: datetime) -> None:
            raise OcspRefused(Failure.TRY_LATER, "due")

        def is_early(self, at: datetime) -> bool:
            assert at == now
            return is_early

    signers = cast("list[RenewedOcspSigner]", [Signer()])
    readiness = Readiness(cast("Database", None), dict, lambda: signers, {}, lambda: now)
    assert await readiness.checks()["ocsp_signer"]() == said


async def test_a_check_that_has_ended_is_run_again() -> None:
    found = iter(["unavailable", "ok"])

    async def check() -> str:
        return next(found)

    patient = Patient(check, 5)
    assert [await patient(), await patient()] == ["unavailable", "ok"]


async def test_who_gives_up_takes_no_result_from_others() -> None:
    """A probe that closes its connection cancels its request."""
    may_end = asyncio.Event()

    async def check() -> str:
        await may_end.wait()
        return "ok"

    patient = Patient(check, 60)
    first, second = (asyncio.ensure_future(patient()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    may_end.set()
    assert await second == "ok"
