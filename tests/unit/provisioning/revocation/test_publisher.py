from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from sqlalchemy import select, text
from sqlalchemy.engine import Connection

from provisioning.ca.crl import CrlIssuer, CrlRefused
from provisioning.errors import Code, ConfigurationError, Refused
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation import publisher as publisher_module
from provisioning.revocation.publisher import CrlPlan, CrlPublisher
from provisioning.store import audit, crls, revocations, tables
from provisioning.store.audit import Action
from provisioning.store.counters import crl_counter
from provisioning.store.revocations import ListedChange
from tests.support.fleet import Fleet
from tests.support.requests import NOON
from tests.support.searched import noted

FIRST = int(NOON.timestamp() * 1000) + 1
"""Of a store's first list."""


def plan(fleet: Fleet, **changes: object) -> CrlPlan:
    issuing = fleet.authority.issuing_ca
    values: dict[str, object] = {
        "name": "issuing-ca",
        "counter": crl_counter("issuing-ca"),
        "life": timedelta(hours=1),
        "debounce_seconds": 0.01,
        "open_issuer": lambda: CrlIssuer(issuing.certificate, issuing.key),
    }
    return CrlPlan(**(values | changes))  # type: ignore[arg-type]


def passing(fleet: Fleet) -> Callable[[float], Awaitable[None]]:
    """Return what waits by the fleet's clock."""

    async def sleep(seconds: float) -> None:
        fleet.clock.advance(timedelta(seconds=seconds))

    return sleep


def serials(publisher: CrlPublisher) -> set[int]:
    assert publisher.current is not None
    return {each.serial_number for each in x509.load_der_x509_crl(publisher.current.der)}


async def test_a_list_is_taken_up_again_after_a_restart_and_its_number_only_rises(fleet: Fleet) -> None:
    first = CrlPublisher(fleet.database, plan(fleet), fleet.clock, passing(fleet))
    await first.start()
    assert (await first.publish()).number == FIRST + 1
    second = CrlPublisher(fleet.database, plan(fleet), fleet.clock, passing(fleet))
    await second.start()
    assert second.current == first.current
    assert (await second.publish()).number == FIRST + 1000


async def test_a_number_is_above_those_before_a_restore_and_before_a_clock_that_was_set_back(fleet: Fleet) -> None:
    publisher = CrlPublisher(fleet.database, plan(fleet), fleet.clock)
    await publisher.start()
    fleet.clock.advance(timedelta(seconds=3))
    assert (await publisher.publish()).number == FIRST + 3000
    await fleet.database.write(
        lambda connection: connection.execute(text("UPDATE counters SET value = 57 WHERE name = 'crl/issuing-ca'"))
    )
    fleet.clock.advance(timedelta(seconds=1))
    assert (await publisher.publish()).number == FIRST + 4000, "as if the store of yesterday were back"
    fleet.clock.advance(timedelta(days=-1))
    assert (await publisher.publish()).number == FIRST + 4001
    fleet.clock.advance(timedelta(days=2))
    stored = await fleet.database.read(lambda connection: connection.execute(select(tables.crls.c.number)).all())
    assert len(stored) == 4


async def test_a_list_of_a_clock_that_was_ahead_is_the_base_of_no_delta_and_not_kept(fleet: Fleet) -> None:
    """Nobody whose clock is right uses it, and it would be in use for as long as the clock was ahead."""
    first = CrlPublisher(fleet.database, plan(fleet, delta_url=DELTA_URL), fleet.clock, passing(fleet))
    await first.start()
    fleet.clock.advance(timedelta(days=365))
    for _ in range(3):
        fleet.clock.advance(timedelta(minutes=1))
        ahead = await first.publish()
    fleet.clock.advance(timedelta(days=-365, hours=2))
    again = CrlPublisher(fleet.database, plan(fleet, delta_url=DELTA_URL), fleet.clock, passing(fleet))
    await again.start()
    for publisher in (first, again):
        for _ in range(2):
            fleet.clock.advance(timedelta(seconds=2))
            after = await publisher.publish()
            _, base, _ = delta_of(publisher)
            assert ahead.number < base <= after.number
    history = await fleet.database.read(
        lambda connection: connection.execute(select(tables.crl_history.c.next_update)).scalars().all()
    )
    assert max(history) <= fleet.clock() + timedelta(hours=1)


async def test_no_two_lists_are_of_the_same_second(fleet: Fleet) -> None:
    publisher = CrlPublisher(fleet.database, plan(fleet, delta_url=DELTA_URL), lambda: datetime.now(UTC))
    await publisher.start()
    told = []
    task = asyncio.create_task(publisher.run())
    for number in range(3):
        assert publisher.current is not None
        assert publisher.delta is not None
        told += [publisher.current.this_update]
        assert publisher.delta.this_update == told[-1]
        certificate = await fleet.enrol(f"meter-{number}")
        await fleet.revocation.revoke_device(f"meter-{number}", RevocationReason.SUPERSEDED, by="admin")
        publisher.changed()
        async with asyncio.timeout(30):
            while certificate.serial_number not in serials(publisher):
                await asyncio.sleep(0.01)
    task.cancel()
    assert told == sorted(set(told))


async def test_no_two_lists_are_of_the_same_second_whoever_makes_them_and_when_he_was_started(fleet: Fleet) -> None:
    begun = fleet.clock()
    listed: dict[datetime, int] = {}
    for _ in range(3):
        publishers = [
            CrlPublisher(fleet.database, plan(fleet, delta_url=DELTA_URL), fleet.clock, passing(fleet))
            for _ in range(3)
        ]
        for each in publishers:
            await each.start()  # Makes a list, for the delta.
            assert each.current is not None
            assert each.delta is not None
            assert each.current.this_update == each.delta.this_update <= fleet.clock()
            assert each.current.this_update not in listed
            listed[each.current.this_update] = each.current.number
    assert list(listed) == sorted(listed)
    assert list(listed.values()) == sorted(listed.values())
    assert fleet.clock() == begun + timedelta(seconds=8), "nobody waits longer than he must"
    shard = CrlPublisher(fleet.database, plan(fleet, name="issuing-ca-1", delta_url=DELTA_URL), fleet.clock)
    await shard.start()
    assert shard.current is not None
    assert shard.current.this_update == fleet.clock(), "another list"


async def test_no_two_lists_are_of_the_same_second_from_then_on_when_the_clock_was_set_back(fleet: Fleet) -> None:
    fleet.clock.advance(timedelta(days=1))
    first, second = (CrlPublisher(fleet.database, plan(fleet), fleet.clock, passing(fleet)) for _ in range(2))
    await first.start()
    fleet.clock.advance(timedelta(days=-1))
    made = [(await each.publish()).this_update for each in (first, second, first)]
    assert made == [NOON + timedelta(seconds=after) for after in range(3)]


async def test_a_number_is_in_the_audit_log_before_anything_is_signed_under_it(fleet: Fleet) -> None:
    class Away(CrlIssuer):
        def issue(self, prepared: Any) -> bytes:
            del prepared
            raise CrlRefused("the token with the key is away")

    issuing = fleet.authority.issuing_ca
    issuers: list[type[CrlIssuer]] = [CrlIssuer, Away]
    opening = plan(fleet, open_issuer=lambda: issuers.pop(0)(issuing.certificate, issuing.key))
    publisher = CrlPublisher(fleet.database, opening, fleet.clock, passing(fleet))
    await publisher.start()
    with pytest.raises(CrlRefused, match="is away"):
        await publisher.publish()
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 99))
    assert [(each.actor, each.action, each.subject, json.loads(each.details)) for each in entries] == [
        ("provisioning", Action.SIGNING_CRL, "issuing-ca", {"number": FIRST}),
        ("provisioning", Action.CRL_SIGNED, "issuing-ca", {"number": FIRST, "entries": 0}),
        ("provisioning", Action.SIGNING_CRL, "issuing-ca", {"number": FIRST + 1}),
    ]


async def test_as_many_lists_are_stored_as_tell_what_was_said_lately(fleet: Fleet) -> None:
    publisher = CrlPublisher(fleet.database, plan(fleet), fleet.clock)
    await publisher.start()
    for _ in range(12):
        fleet.clock.advance(timedelta(minutes=10))
        await publisher.publish()
    stored = await fleet.database.read(lambda connection: connection.execute(select(tables.crls.c.number)).all())
    assert sorted(number for (number,) in stored) == [FIRST + 600_000 * each for each in range(3, 13)]


async def test_a_certificate_leaves_the_list_after_one_list_past_its_end(fleet: Fleet) -> None:
    certificate = await fleet.enrol()
    await fleet.revocation.revoke_device("meter-17", RevocationReason.SUPERSEDED, by="admin")
    publisher = CrlPublisher(fleet.database, plan(fleet), fleet.clock)
    await publisher.start()
    assert serials(publisher) == {certificate.serial_number}
    fleet.clock.advance(timedelta(days=31))
    await publisher.publish()
    assert serials(publisher) == {certificate.serial_number}, "RFC 5280 §3.3: once more after its end"
    fleet.clock.advance(timedelta(seconds=1))
    await publisher.publish()
    assert serials(publisher) == set()


async def test_lists_that_nobody_may_use_any_more_are_found_by_their_numbers(fleet: Fleet) -> None:
    # Where one is made each second, a day's are 80,000: to look at the end of each, with each, would take longer.
    publisher = CrlPublisher(fleet.database, plan(fleet, delta_url=DELTA_URL), fleet.clock, passing(fleet))
    await publisher.start()

    async def kept() -> list[int]:
        numbers = select(tables.crl_history.c.number).order_by(tables.crl_history.c.number)
        return list(await fleet.database.read(lambda connection: connection.execute(numbers).scalars().all()))

    made = []
    for _ in range(4):
        fleet.clock.advance(timedelta(minutes=25))
        made.append((await publisher.publish()).number)
    assert await kept() == made[1:], "that of an hour and a quarter before is over"
    asked, _ = await noted(publisher.publish())
    forgotten = [each for each in asked if each[0].startswith("DELETE FROM crl_history")]

    def explained(connection: Connection) -> str:
        return "\n".join(
            str(row[-1])
            for statement in forgotten
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement[0]}", statement[1])
        )

    if fleet.database.url.get_backend_name() == "sqlite":
        assert "(list=? AND number<?)" in await fleet.database.read(explained)


async def test_what_concerns_other_lists_is_looked_at_once(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    # Every event wakes every list, and a CA of which nothing is revoked would read all of them again each time.
    root = fleet.authority.root_ca
    ours = plan(
        fleet,
        name="root-ca",
        counter=crl_counter("root-ca"),
        open_issuer=lambda: CrlIssuer(root.certificate, root.key),
    )
    publisher = CrlPublisher(fleet.database, ours, fleet.clock, passing(fleet))
    await publisher.start()
    first = await publisher.publish()
    looked_at: list[range] = []
    changes = revocations.changes

    def noting(
        connection: Connection, issuer_key_id: bytes, shard_id: int | None, after: int, through: int
    ) -> list[ListedChange]:
        looked_at.append(range(after, through))
        return changes(connection, issuer_key_id, shard_id, after, through)

    monkeypatch.setattr(revocations, "changes", noting)
    for number in range(4):
        await fleet.enrol(f"meter-{number}")
        await fleet.revocation.revoke_device(f"meter-{number}", RevocationReason.SUPERSEDED, by="admin")
        await publisher.publish_changes()
    assert looked_at == [range(1), range(1, 2), range(2, 3), range(3, 4)]
    assert publisher.current == first


async def test_a_burst_makes_one_list_and_a_failure_is_repeated(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "_RETRY_SECONDS", 0.01)
    failures = [ConfigurationError("elsewhere"), OSError("away"), CrlRefused("odd"), Refused(Code.UNAVAILABLE, "full")]
    opened = asyncio.Event()
    loop = asyncio.get_running_loop()
    issuing = fleet.authority.issuing_ca

    def open_issuer() -> CrlIssuer:
        if publisher.current is not None and failures:
            raise failures.pop()
        loop.call_soon_threadsafe(opened.set)
        return CrlIssuer(issuing.certificate, issuing.key)

    publisher = CrlPublisher(fleet.database, plan(fleet, open_issuer=open_issuer), fleet.clock)
    await publisher.start()
    opened.clear()
    await fleet.enrol()
    await fleet.revocation.revoke_device("meter-17", RevocationReason.SUPERSEDED, by="admin")
    task = asyncio.create_task(publisher.run())
    for _ in range(5):
        publisher.changed()
        await asyncio.sleep(0)
    await opened.wait()
    while publisher.current is None or publisher.current.number == FIRST:
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert failures == []
    assert publisher.current.number == FIRST + 1, "one at the start, none for a failure, one for the whole burst"
    assert len(serials(publisher)) == 1


async def test_a_list_is_renewed_in_time_after_a_change_too(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "_LONGEST_WAIT_SECONDS", 0.01)
    publisher = CrlPublisher(fleet.database, plan(fleet), fleet.clock, passing(fleet))
    first = await publisher.publish()
    task = asyncio.create_task(publisher.run())
    await fleet.enrol()
    await fleet.revocation.revoke_device("meter-17", RevocationReason.SUPERSEDED, by="admin")
    publisher.changed()
    for number in (first.number + 1, first.number + 2):
        while publisher.current is None or publisher.current.number < number:
            await asyncio.sleep(0.001)
        fleet.clock.advance(timedelta(minutes=31))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


DELTA_URL = "http://ca.example.org/crl/issuing-ca.delta.crl"


def delta_of(publisher: CrlPublisher) -> tuple[int, int, dict[int, x509.ReasonFlags | None]]:
    """Return the delta's number, its base's number, and its entries."""
    assert publisher.delta is not None
    crl = x509.load_der_x509_crl(publisher.delta.der)
    reasons: dict[int, x509.ReasonFlags | None] = {}
    for entry in crl:
        given = [each.value.reason for each in entry.extensions if isinstance(each.value, x509.CRLReason)]
        (reasons[entry.serial_number],) = given or (None,)
    base = crl.extensions.get_extension_for_class(x509.DeltaCRLIndicator).value.crl_number
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number, base, reasons


async def test_a_delta_continues_the_oldest_list_that_has_not_lapsed(fleet: Fleet) -> None:
    publisher = CrlPublisher(fleet.database, plan(fleet, delta_url=DELTA_URL), fleet.clock, passing(fleet))
    await publisher.start()
    assert delta_of(publisher) == (FIRST, FIRST, {})
    certificate = await fleet.enrol()
    await fleet.suspension.suspend_device("meter-17", by="admin")
    await publisher.publish()
    hold, removed = x509.ReasonFlags.certificate_hold, x509.ReasonFlags.remove_from_crl
    assert delta_of(publisher) == (FIRST + 1, FIRST, {certificate.serial_number: hold})
    await fleet.suspension.resume_device("meter-17", by="admin")
    await publisher.publish()
    assert delta_of(publisher) == (FIRST + 1000, FIRST, {certificate.serial_number: removed}), "list 2 has the hold"
    assert serials(publisher) == set()
    fleet.clock.advance(timedelta(hours=1))
    await publisher.publish()
    later = FIRST + 3_602_000
    assert delta_of(publisher) == (later, later, {}), "the others have lapsed"
    # After a restart the delta still serves the lists from before it.
    await fleet.suspension.suspend_device("meter-17", by="admin")
    second = CrlPublisher(fleet.database, plan(fleet, delta_url=DELTA_URL), fleet.clock, passing(fleet))
    await second.start()
    assert delta_of(second) == (later + 1, later, {certificate.serial_number: hold})


async def test_what_one_list_records_and_forgets_is_no_other_list_s(fleet: Fleet) -> None:
    """A CA's shards share a numbering, not a history; the others go on while one is long valid."""
    life = timedelta(days=1)
    long = CrlPublisher(fleet.database, plan(fleet, delta_url=DELTA_URL, life=life), fleet.clock, passing(fleet))
    await long.start()
    brief = CrlPublisher(
        fleet.database,
        plan(fleet, name="issuing-ca-1", delta_url=DELTA_URL, life=timedelta(minutes=20)),
        fleet.clock,
        passing(fleet),
    )
    await brief.start()
    for _ in range(12):
        fleet.clock.advance(timedelta(minutes=15))
        before, made = brief.current, await brief.publish()
        assert before is not None
        assert delta_of(brief)[1] == before.number
    fleet.clock.advance(timedelta(hours=-1))  # What was made since is of a time to come.
    made = await brief.publish()
    assert delta_of(brief)[1] == made.number
    await long.publish()
    assert delta_of(long)[1] == FIRST, "it is valid for all of the day"
    stored = await fleet.database.read(
        lambda connection: [crls.newest(connection, name) for name in ("issuing-ca", "issuing-ca-1")]
    )
    assert stored == [long.current, brief.current]
    kept = select(tables.crls.c.number).where(tables.crls.c.issuer == "issuing-ca")
    numbers = await fleet.database.read(lambda connection: connection.execute(kept).scalars().all())
    assert FIRST in numbers


async def test_a_list_that_is_not_affordable_yet_is_preceded_by_a_delta(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "_COMPLETE_SHARE", 1e9)
    publisher = CrlPublisher(fleet.database, plan(fleet, delta_url=DELTA_URL), fleet.clock, passing(fleet))
    await publisher.start()
    await publisher.publish_changes()
    assert delta_of(publisher)[0] == FIRST, "nothing has changed"
    certificate = await fleet.enrol()
    await fleet.revocation.revoke_device("meter-17", RevocationReason.SUPERSEDED, by="admin")
    await publisher.publish_changes()
    assert delta_of(publisher) == (FIRST + 1, FIRST, {certificate.serial_number: x509.ReasonFlags.superseded})
    assert publisher.current is not None
    assert publisher.current.number == FIRST
    publisher._complete_after = 0
    await publisher.publish_changes()
    assert publisher.current.number == FIRST + 1000
    assert serials(publisher) == {certificate.serial_number}


async def test_a_failure_after_the_changes_were_read_loses_none(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher = CrlPublisher(fleet.database, plan(fleet), fleet.clock)
    await publisher.start()
    certificate = await fleet.enrol()
    await fleet.revocation.revoke_device("meter-17", RevocationReason.SUPERSEDED, by="admin")

    def fail(*_arguments: object) -> None:
        raise Refused(Code.UNAVAILABLE, "the disk is full")

    monkeypatch.setattr(publisher_module, "_RETRY_SECONDS", 0.01)
    with monkeypatch.context() as patched:
        patched.setattr(crls, "add", fail)
        task = asyncio.create_task(publisher.run())
        publisher.changed()
        while not publisher._owed:
            await asyncio.sleep(0.001)
    while serials(publisher) != {certificate.serial_number}:
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_what_changes_while_a_list_is_taken_up_is_in_it(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    certificates = {name: await fleet.enrol(name) for name in ("stays", "returns", "goes")}
    stays, returns, goes = (certificate.serial_number for certificate in certificates.values())
    await fleet.revocation.revoke_device("stays", RevocationReason.SUPERSEDED, by="admin")
    await fleet.suspension.suspend_device("returns", by="admin")
    publisher = CrlPublisher(fleet.database, plan(fleet, delta_url=DELTA_URL), fleet.clock)
    listed = revocations.listed

    def meanwhile(*arguments: Any) -> list[ListedChange]:
        """Read the list, and let others change it before anything else is read of it."""
        found = listed(*arguments)
        asyncio.run_coroutine_threadsafe(others(), loop).result()
        return found

    async def others() -> None:
        await fleet.suspension.resume_device("returns", by="admin")
        await fleet.revocation.revoke_device("goes", RevocationReason.SUPERSEDED, by="admin")

    loop = asyncio.get_running_loop()
    with monkeypatch.context() as patched:
        patched.setattr(revocations, "listed", meanwhile)  # The writer is free: else this would wait for ever.
        await publisher.start()
    assert serials(publisher) == {stays, goes}
    await fleet.revocation.revoke_device("returns", RevocationReason.SUPERSEDED, by="admin")
    await publisher.publish()
    assert serials(publisher) == {stays, returns, goes}


async def test_a_clock_that_jumps_ahead_and_back_loses_no_revocation(fleet: Fleet) -> None:
    certificate = await fleet.enrol()
    await fleet.revocation.revoke_device("meter-17", RevocationReason.KEY_COMPROMISE, by="admin")
    publisher = CrlPublisher(fleet.database, plan(fleet), fleet.clock)
    await publisher.start()
    before = fleet.clock()
    fleet.clock.advance(timedelta(days=900))
    for _ in range(3):  # By this clock the certificate is over, and leaves the list.
        await publisher.publish()
        fleet.clock.advance(timedelta(seconds=1))
    assert serials(publisher) == set()
    assert publisher._seconds_to_renewal() > 0
    fleet.clock.now = before
    assert publisher._seconds_to_renewal() == 0, "a list from the future is nobody's: there is a new one at once"
    published = await publisher.publish()
    assert serials(publisher) == {certificate.serial_number}
    assert published.this_update == before.replace(microsecond=0)
    await publisher.publish()
    assert serials(publisher) == {certificate.serial_number}
    restarted = CrlPublisher(fleet.database, plan(fleet), fleet.clock)
    await restarted.start()
    assert restarted.current == publisher.current, "the number counts, not the time"
