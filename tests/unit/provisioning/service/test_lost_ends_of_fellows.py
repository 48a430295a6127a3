"""What a worker that takes another's place hears from its fellows of revocations that the store has lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import pytest
from cryptography import x509
from sqlalchemy import delete, update
from sqlalchemy.engine import Connection
from structlog.testing import capture_logs

from provisioning.errors import Code, Refused
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation.feed import RevocationFeed
from provisioning.service import lost_ends_of_fellows
from provisioning.service.lost_ends_of_fellows import QUESTION, Ask, take_over, told
from provisioning.store import counters
from provisioning.store.lost_ends import LostEnd, LostEnds
from provisioning.store.tables import devices, revocation_events, revocations
from tests.support.fleet import Fleet, open_fleet, successor_csr

COMPROMISED = RevocationReason.KEY_COMPROMISE


async def lose_all(fleet: Fleet) -> None:
    def lose(connection: Connection) -> None:
        for each in (revocations, revocation_events):
            connection.execute(delete(each))
        connection.execute(update(devices).values(revoked_at=None))
        counters.put(connection, counters.REVOCATION, 0)

    await fleet.database.write(lose)


async def renews(fleet: Fleet, certificate: x509.Certificate) -> bool | Code:
    try:
        await fleet.reenrol(certificate, successor_csr(certificate))
    except Refused as refused:
        return refused.code
    return True


def answering(*answers: Callable[[], bytes] | None) -> Ask:
    """Return who asks fellows that give these answers; None: one that gives none."""

    async def ask(question: str) -> Mapping[int, bytes | None]:
        assert question == QUESTION
        return {number: None if each is None else each() for number, each in enumerate(answers, 2)}

    return ask


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
async def test_a_worker_that_takes_another_s_place_holds_what_its_fellows_hold(
    fleet: Fleet, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost_ends_of_fellows, "_PAUSE_SECONDS", 0)
    certificates = {name: await fleet.enrol(name) for name in ("lost", "repeated", "decided")}
    feed = RevocationFeed(fleet.database, 60)
    await feed.start()
    for name in certificates:
        await fleet.revocation.revoke_device(name, COMPROMISED, by="admin")
    await feed._read_new()
    await lose_all(fleet)
    lost_ends, asked = fleet.database.lost_ends, 0

    def fellow() -> bytes:
        nonlocal asked
        asked += 1
        return told(feed, lost_ends)

    async def another(fleet: Fleet, ask: Ask) -> RevocationFeed:
        feed = RevocationFeed(fleet.database, 60)
        await feed.start()
        await take_over(ask, feed, fleet.database.lost_ends)
        return feed

    async with open_fleet(store_url, fleet.authority, is_current=True) as worker:
        await another(worker, answering(None, None))
        assert await renews(worker, certificates["lost"]) is True, "of what nobody knows"
        with capture_logs() as logs:
            await another(worker, answering(fellow))
        assert asked == lost_ends_of_fellows._TRIES, "the store has not what it knows, and it has not compared"
        assert [each["log_level"] for each in logs] == ["warning"]

        with capture_logs():
            await feed._read_new()
        lost_ends.let_go("decided")
        lost_ends.doubt()
        before = told(feed, lost_ends)
        assert await renews(worker, certificates["lost"]) is True
        await fleet.revocation.revoke_device("repeated", COMPROMISED, by="admin")
        waiting = iter([before])

        def in_doubt_first() -> bytes:
            doubt = next(waiting, None)
            if doubt is None:
                lost_ends.compared(lost_ends.doubts)
            return doubt or fellow()

        taken = await another(worker, answering(None, in_doubt_first))
        assert {name: await renews(worker, each) for name, each in certificates.items()} == {
            "lost": Code.UNAVAILABLE,
            "repeated": Code.CERTIFICATE_REVOKED,
            "decided": Code.UNAVAILABLE,
        }
        with pytest.raises(Refused, match="of lost was ended"):
            await worker.enrol("lost")
        for name in ("repeated", "decided"):
            await worker.enrol(name)
        await worker.revocation.revoke_device("lost", COMPROMISED, by="admin")
        await taken._read_new()
        await worker.enrol("lost")


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
async def test_a_fellow_that_lags_has_nothing_let_go_that_another_holds(fleet: Fleet, store_url: str) -> None:
    """The new worker let go what events were about that the other one knew, and held it nevertheless."""
    await fleet.enrol("lost")
    lags, knows = (RevocationFeed(fleet.database, 60) for _ in range(2))
    await lags.start()
    await fleet.revocation.revoke_device("lost", COMPROMISED, by="admin")
    await knows.start()
    (event,) = await knows._page(0)
    end = LostEnd(event.issuer_key_id, event.serial, "lost", COMPROMISED, datetime.now(UTC), None, None, None)
    late = told(lags, LostEnds())
    holding = LostEnds()
    holding.hold([end])
    async with open_fleet(store_url, fleet.authority, is_current=True) as worker:
        feed = RevocationFeed(worker.database, 60)
        await feed.start()
        await take_over(answering(lambda: late, lambda: told(knows, holding)), feed, worker.database.lost_ends)
        assert worker.database.lost_ends.held == [end]
