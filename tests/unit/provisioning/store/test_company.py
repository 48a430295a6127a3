"""Works that go side by side on PostgreSQL: fewer statements, and the same as if each had gone by itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from cryptography import x509
from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DataError, IntegrityError

from provisioning.enrolment import service
from provisioning.enrolment.attempt import TokenCredential
from provisioning.errors import Code, Refused
from provisioning.pki.identity import Role
from provisioning.pki.keys import generate_key
from provisioning.pki.revocation import RevocationReason
from provisioning.store import (
    audit,
    audit_findings,
    certificates,
    certificates_of_device,
    counters,
    device_keys,
    devices,
    postgresql_group,
    postgresql_lane,
    prepared,
    revocations,
    tokens,
)
from provisioning.store.audit import Action
from provisioning.store.company import Company
from provisioning.store.counters import Counter
from provisioning.store.groups import Group
from provisioning.store.prepared import Prepared
from provisioning.store.side_by_side import go_alone
from provisioning.store.tables import serial_reservations
from tests.support.fleet import Fleet, open_fleet
from tests.support.postgresql import PostgresqlServer
from tests.support.requests import csr_der

PATIENCE = 20
Together = Callable[..., Awaitable[list[Any]]]
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
async def fleet(postgresql: PostgresqlServer) -> AsyncIterator[Fleet]:
    async with open_fleet(postgresql.new_database()) as opened:
        yield opened


@pytest.fixture
def companies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many went together, each time; a group stays open as long as somebody waits."""
    for name in ("_ALONE_SECONDS", "_GROUP_SECONDS"):
        monkeypatch.setattr(postgresql_lane, name, 60)
    seen: list[int] = []
    run = Company.run

    def counted(company: Company) -> Any:
        seen.append(len(company._members))
        return run(company)

    monkeypatch.setattr(Company, "run", counted)
    return seen


@pytest.fixture
def journeys(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The text of each statement that was handed to the driver."""
    seen: list[str] = []
    for name, text in (("_execute", "text"), ("_execute_at_once", "at_once")):
        execute = getattr(prepared, name)

        def noted(connection: Any, compiled: Any, values: Any, execute: Any = execute, text: str = text) -> Any:
            seen.append(getattr(compiled, text))
            return execute(connection, compiled, values)

        monkeypatch.setattr(prepared, name, noted)
    return seen


@pytest.fixture(params=[False, True], ids=["in a thread", "on the event loop"])
def together(request: pytest.FixtureRequest) -> Together:
    """Where a group runs that begins with a work that is not short, or is; all others here are."""
    here: bool = request.param

    async def run(fleet: Fleet, *calls: Callable[[], Any]) -> list[Any]:
        return await all_at_once(fleet, *calls, here=here)

    return run


async def all_at_once(fleet: Fleet, *calls: Callable[[], Any], here: bool) -> list[Any]:
    """Let *calls* wait, behind a work that needs a lock, until all of them do; return results and exceptions."""
    ran: list[bool] = []

    def first(_connection: Connection) -> None:
        ran.append(threading.current_thread() is threading.main_thread())

    url = fleet.database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as other:
        other.execute(f"SELECT pg_advisory_xact_lock({postgresql_group._WRITERS})".encode())
        holding = asyncio.create_task(fleet.database.write(first, short=here))
        await asyncio.sleep(0)
        running = [asyncio.create_task(call()) for call in calls]
        while fleet.database._writer._waiting + sum(task.done() for task in running) < len(calls) + 1:  # noqa: ASYNC110
            await asyncio.sleep(0)  # Nothing tells of a queue that has grown.
    async with asyncio.timeout(PATIENCE):
        _, *outcomes = await asyncio.gather(holding, *running, return_exceptions=True)
    assert ran == [here]
    return outcomes


def work(fleet: Fleet, does: Callable[[Connection], Any], *apart: str) -> Callable[[], Any]:
    return lambda: fleet.database.write(does, lambda: set(apart), short=True)


async def enrolment(
    fleet: Fleet, device: str, token: str = "", csr: bytes | None = None, group: str | None = "north"
) -> Callable[[], Any]:
    credential = TokenCredential(device, token or await fleet.token(device, group))
    request = csr or csr_der(names=[device])
    await reserve(fleet)
    return lambda: fleet.enrolment.enrol(request, credential)


async def reserve(fleet: Fleet) -> None:
    """See to it that no enrolment waits for numbers."""
    async with fleet.serial_numbers.reservation(fleet.clock()):
        pass


async def log_of(fleet: Fleet) -> list[tuple[str, str]]:
    """Return what the audit log says, once it has been found sound."""
    findings, entries = await fleet.database.read(
        lambda connection: (list(audit_findings.findings(connection)), audit.entries(connection, 0, 1000))
    )
    assert findings == []
    return [(entry.action, entry.subject) for entry in entries]


def note(connection: Connection, name: str) -> str:
    audit.append(connection, NOW, "test", Action.APPROVED, name, {})
    return name


def add(connection: Connection, name: str) -> str:
    """Add a device and say so in the audit log."""
    devices.add(connection, name, Role.DEVICE, "north", NOW)
    return note(connection, name)


async def test_enrolments_that_wait_together_make_the_journeys_of_one(
    fleet: Fleet, companies: list[int], journeys: list[str], together: Together
) -> None:
    alone = await enrolment(fleet, "alone")
    calls = [await enrolment(fleet, f"meter-{number}") for number in range(8)]
    journeys.clear()
    await alone()
    of_one = len(journeys)
    journeys.clear()
    issued = await together(fleet, *calls)
    assert len(journeys) <= of_one
    assert companies == [8]
    assert len({certificate.serial_number for certificate in issued}) == 8
    for number, certificate in enumerate(issued):
        (name,) = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        assert name.value == f"meter-{number}"
        key = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        stored = await fleet.database.read(
            lambda connection, certificate=certificate, key=key: certificates.find(  # type: ignore[misc]
                connection, key, certificate.serial_number
            )
        )
        assert stored is not None
        assert stored.device.name == name.value
    used = await fleet.database.read(lambda connection: tokens.count_open(connection, fleet.clock()))
    assert used == 0


async def test_every_entry_before_a_signature_is_written_before_the_first_signature(
    fleet: Fleet, companies: list[int], monkeypatch: pytest.MonkeyPatch, together: Together
) -> None:
    calls = [await enrolment(fleet, f"meter-{number}") for number in range(3)]
    written: list[int] = []
    sign = type(fleet.issuer).sign
    connections: list[Connection] = []
    transaction = service.EnrolmentService._transaction

    def remembered(self: Any, connection: Connection, *rest: Any) -> Any:
        connections.append(connection)
        return transaction(self, connection, *rest)

    def counted(self: Any, prepared: Any) -> Any:
        driver: Any = connections[0].connection.driver_connection
        sql = "SELECT count(*) FROM audit_entries WHERE action = %s"
        written.append(driver.execute(sql, [Action.SIGNING_CERTIFICATE.value]).fetchone()[0])
        return sign(self, prepared)

    monkeypatch.setattr(service.EnrolmentService, "_transaction", remembered)
    monkeypatch.setattr(type(fleet.issuer), "sign", counted)
    await together(fleet, *calls)
    assert companies == [3]
    assert written == [3, 3, 3]


async def test_who_is_refused_before_a_change_disturbs_nobody(
    fleet: Fleet, companies: list[int], together: Together
) -> None:
    calls = [
        await enrolment(fleet, "meter-1"),
        await enrolment(fleet, "meter-2", token=(await fleet.token("meter-2"))[:-4] + "ABCD"),
        await enrolment(fleet, "meter-3"),
    ]
    first, refused, last = await together(fleet, *calls)
    assert isinstance(first, x509.Certificate)
    assert isinstance(last, x509.Certificate)
    assert isinstance(refused, Refused)
    assert refused.code is Code.TOKEN_UNKNOWN
    assert companies == [3]


async def test_who_fails_after_a_change_undoes_his_own_changes_and_entries_only(
    fleet: Fleet, companies: list[int], together: Together
) -> None:
    def failing(connection: Connection) -> None:
        add(connection, "b")
        raise ZeroDivisionError

    before = len(await log_of(fleet))
    works = [lambda c: add(c, "a"), failing, lambda c: add(c, "c")]
    a, b, c = await together(fleet, *(work(fleet, each, str(place)) for place, each in enumerate(works)))
    assert (a, type(b), c) == ("a", ZeroDivisionError, "c")
    assert [subject for _, subject in (await log_of(fleet))[before:]] == ["a", "c"]
    found = await fleet.database.read(lambda connection: [devices.find(connection, name) for name in "abc"])
    assert [each is not None for each in found] == [True, False, True]
    assert companies == [3]


async def test_what_the_store_refuses_to_one_it_refuses_to_him_alone(
    fleet: Fleet, companies: list[int], together: Together
) -> None:
    await fleet.database.write(lambda connection: add(connection, "taken"))
    works = [lambda c, name=name: add(c, name) for name in ("a", "taken", "c", "nul\0")]
    a, taken, c, nul = await together(fleet, *(work(fleet, each, str(place)) for place, each in enumerate(works)))
    assert (a, type(taken), c) == ("a", IntegrityError, "c")
    assert isinstance(nul, Refused)
    assert nul.code is Code.INVALID_REQUEST
    assert [subject for _, subject in await log_of(fleet)][-2:] == ["a", "c"]
    assert companies == [4]


async def test_a_change_by_other_means_than_a_prepared_statement_counts_as_one(
    fleet: Fleet, companies: list[int], together: Together
) -> None:
    def failing(connection: Connection) -> None:
        connection.execute(insert(serial_reservations).values(serial="f00", reserved_at=NOW))
        raise ZeroDivisionError

    _, failed = await together(fleet, work(fleet, lambda c: add(c, "a"), "a"), work(fleet, failing, "b"))
    assert isinstance(failed, ZeroDivisionError)
    statement = select(serial_reservations).where(serial_reservations.c.serial == "f00")
    assert await fleet.database.read(lambda connection: connection.execute(statement).all()) == []
    assert companies == [2]


async def test_works_with_something_in_common_go_one_after_the_other(
    fleet: Fleet, companies: list[int], together: Together
) -> None:
    def seen(connection: Connection) -> bool:
        known = devices.find(connection, "shared") is not None
        if not known:
            devices.add(connection, "shared", Role.DEVICE, "north", NOW)
        return known

    calls = [work(fleet, seen, "shared", f"own-{number}") for number in range(3)]
    other = work(fleet, lambda c: add(c, "other"), "other")
    assert await together(fleet, *calls, other) == [False, True, True, "other"]
    assert companies == [2]  # The last two.


async def test_one_token_one_name_and_one_key_admit_one_device_of_those_who_come_together(
    fleet: Fleet, companies: list[int], together: Together
) -> None:
    token = await fleet.token("meter-1")
    key = generate_key()
    calls = [
        await enrolment(fleet, "meter-1", token),
        await enrolment(fleet, "meter-1", token),
        await enrolment(fleet, "meter-2", csr=csr_der(key, ["meter-2"])),
        await enrolment(fleet, "meter-3", csr=csr_der(key, ["meter-3"])),
    ]
    first, second, third, fourth = await together(fleet, *calls)
    assert isinstance(first, x509.Certificate)
    assert isinstance(third, x509.Certificate)
    assert (second.code, fourth.code) == (Code.TOKEN_USED, Code.KEY_REUSED)
    assert companies == [2]
    await log_of(fleet)


async def test_a_group_with_a_limit_is_counted_one_by_one(
    fleet: Fleet, companies: list[int], together: Together
) -> None:
    await fleet.groups.create(Group("small", maximum_devices=2), by="admin")
    calls = [await enrolment(fleet, f"meter-{number}", group="small") for number in range(4)]
    outcomes = await together(fleet, *calls)
    assert sum(isinstance(each, x509.Certificate) for each in outcomes) == 2
    assert [each.code for each in outcomes if isinstance(each, Refused)] == [Code.GROUP_FULL] * 2
    assert companies == [4]


async def test_whoever_has_to_goes_alone_and_the_others_go_on(
    fleet: Fleet, companies: list[int], together: Together
) -> None:
    calls: list[str] = []

    def shy(connection: Connection) -> str:
        calls.append("called")
        devices.find(connection, "shy", for_update=True)
        go_alone(connection)
        return add(connection, "shy")

    works = (work(fleet, lambda c: add(c, "a"), "a"), work(fleet, shy, "shy"), work(fleet, lambda c: add(c, "b"), "b"))
    assert await together(fleet, *works) == ["a", "shy", "b"]
    assert len(calls) == 2
    assert companies == [3]
    assert [subject for _, subject in await log_of(fleet)][-3:] == ["a", "b", "shy"]


async def test_a_company_that_fails_after_signatures_signs_nothing_twice_under_one_number(
    fleet: Fleet, companies: list[int], monkeypatch: pytest.MonkeyPatch, together: Together
) -> None:
    signed: list[int] = []
    sign = type(fleet.issuer).sign

    def noted(self: Any, prepared: Any) -> bytes:
        certificate: bytes = sign(self, prepared)
        signed.append(x509.load_der_x509_certificate(certificate).serial_number)
        return certificate

    def failing(*_: Any, **__: Any) -> bool:
        raise ZeroDivisionError

    calls = [await enrolment(fleet, f"meter-{number}") for number in range(3)]
    monkeypatch.setattr(type(fleet.issuer), "sign", noted)
    spend = tokens.spend
    monkeypatch.setattr(tokens, "spend", failing)
    outcomes = await together(fleet, *calls)
    monkeypatch.setattr(tokens, "spend", spend)
    assert [each.code for each in outcomes] == [Code.UNAVAILABLE] * 3
    assert companies == [3]
    assert len(signed) == 3
    again = await together(fleet, *calls)  # Nothing was spent.
    assert all(isinstance(each, x509.Certificate) for each in again)
    assert len(set(signed)) == 6
    assert [action for action, _ in await log_of(fleet)].count(Action.SIGNING_CERTIFICATE) == 3


async def test_a_connection_that_is_lost_refuses_everybody(
    fleet: Fleet, companies: list[int], together: Together
) -> None:
    def cut(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        driver.close()
        devices.find(connection, "a")

    before = await log_of(fleet)
    outcomes = await together(fleet, work(fleet, lambda c: add(c, "a"), "a"), work(fleet, cut, "b"))
    assert [each.code for each in outcomes] == [Code.UNAVAILABLE] * 2
    assert companies == [2]
    assert await log_of(fleet) == before
    assert await fleet.database.write(lambda connection: add(connection, "a")) == "a"


async def test_revocations_that_wait_together_are_each_in_the_feed_once(
    fleet: Fleet, companies: list[int], journeys: list[str], together: Together
) -> None:
    names = [f"meter-{number}" for number in range(6)]
    for name in names:
        await fleet.enrol(name)
        await fleet.token(name)  # Void, with the device.
    reason = RevocationReason.KEY_COMPROMISE
    journeys.clear()
    await fleet.revocation.revoke_device(names[0], reason, by="admin")
    of_one = len(journeys)
    journeys.clear()
    unknown = [lambda: fleet.revocation.revoke_device("nobody", reason, by="admin")]
    calls = [lambda name=name: fleet.revocation.revoke_device(name, reason, by="admin") for name in names[1:]]  # type: ignore[misc]
    *done, refused = await together(fleet, *calls, *unknown)
    assert companies == [6]
    assert len(journeys) <= of_one + 3  # What one inserts in a list is not counted above, and is here.
    assert refused.code is Code.DEVICE_UNKNOWN
    events = await fleet.database.read(lambda connection: revocations.after(connection, 0, 100))
    assert [event.sequence for event in events] == list(range(1, 7))
    assert [event.device for event in events] == names
    assert [outcome.revoked[0].sequence for outcome in done] == list(range(2, 7))
    assert await fleet.database.read(lambda connection: tokens.count_open(connection, fleet.clock())) == 0
    assert [subject for action, subject in await log_of(fleet) if action == Action.REVOKED] == names


async def test_a_device_that_is_enrolled_again_and_revoked_at_once_is_one_after_the_other(
    fleet: Fleet, companies: list[int], together: Together
) -> None:
    await fleet.enrol("meter-1")
    calls = [
        await enrolment(fleet, "meter-2"),
        await enrolment(fleet, "meter-1"),
        lambda: fleet.revocation.revoke_device("meter-1", RevocationReason.KEY_COMPROMISE, by="admin"),
    ]
    fresh, again, revoked = await together(fleet, *calls)
    assert isinstance(fresh, x509.Certificate)
    assert isinstance(again, x509.Certificate)
    assert len(revoked.revoked) == 2
    assert companies == [2]


async def test_numbers_that_are_taken_together_have_no_gap_and_one_owner(
    fleet: Fleet, companies: list[int], together: Together
) -> None:
    start = await fleet.database.read(lambda connection: counters.newest(connection, Counter.REVOCATION))
    counts = (1, 3, 2)
    calls = [
        work(fleet, lambda c, count=count: list(counters.take(c, Counter.REVOCATION, count)), str(count))  # type: ignore[misc]
        for count in counts
    ]
    taken = await together(fleet, *calls)
    assert [len(each) for each in taken] == [1, 3, 2]
    assert [number for each in taken for number in each] == list(range(start + 1, start + 7))
    assert await fleet.database.read(lambda c: counters.newest(c, Counter.REVOCATION)) == start + 6
    assert companies == [3]


async def test_many_at_once_are_answered_as_one_by_one(fleet: Fleet) -> None:
    table = serial_reservations
    put = Prepared(insert(table), told_by="serial")
    find = Prepared(select(table.c.reserved_at).where(table.c.serial == bindparam("wanted")), at_once=True)
    move = Prepared(update(table).where(table.c.serial == bindparam("wanted")).values(reserved_at=bindparam("at")),
                    at_once=True)  # fmt: skip
    drop = Prepared(delete(table).where(table.c.serial == bindparam("wanted")), at_once=True)
    names = ("aa", "none", "bb", "aa")

    def all_of(connection: Connection) -> list[Any]:
        rows = [{"serial": name, "reserved_at": NOW.replace(hour=hour)} for hour, name in enumerate(("bb", "aa"))]
        found: list[Any] = [answer.count for answer in put.answers(connection, rows)]
        wanted = [{"wanted": name} for name in names]
        found += [list(answer.rows) for answer in find.answers(connection, wanted)]
        moved = [{"wanted": name, "at": NOW} for name in names[:3]]
        found += [answer.count for answer in move.answers(connection, moved)]
        found += [list(answer.rows) for answer in find.answers(connection, wanted[:1])]
        return found + [answer.count for answer in drop.answers(connection, wanted[:3])]

    aa, bb = (NOW.replace(hour=1),), (NOW.replace(hour=0),)
    assert await fleet.database.write(all_of) == [1, 1, [aa], [], [bb], [aa], 1, 0, 1, [(NOW,)], 1, 0, 1]


async def test_a_key_that_is_somebodys_is_not_given_to_another_at_once(fleet: Fleet) -> None:
    def claims(connection: Connection) -> list[int]:
        first, second = (devices.add(connection, name, Role.DEVICE, None, NOW).id for name in "ab")
        device_keys.claim(connection, b"k" * 32, first)
        rows = [{"spki_sha256": key * 32, "device_id": second} for key in (b"k", b"l")]
        return [answer.count for answer in device_keys._claim("postgresql").answers(connection, rows)]

    assert await fleet.database.write(claims) == [0, 1]


async def test_what_is_too_long_is_refused_and_not_cut(fleet: Fleet) -> None:
    rows = [{"name": name, "role": "device", "group_name": None, "created_at": NOW, "origin": None}
            for name in ("short", "x" * 300)]  # fmt: skip
    with pytest.raises((Refused, DataError)):
        await fleet.database.write(lambda connection: devices._ADD.answers(connection, rows))


async def test_what_a_key_or_a_device_has_had_is_looked_up_and_not_searched_for_in_all_revocations(
    fleet: Fleet,
) -> None:
    """Also while the server has no statistics: a history has just been imported, or a database restored."""
    of_all = (
        """INSERT INTO devices (name, role, created_at)
            SELECT 'old-' || n, 'device', now() FROM generate_series(1, 30000) n""",
        """INSERT INTO certificates
            (issuer_key_id, serial, device_id, spki_sha256, fingerprint_sha256, not_before, not_after, issued_at, der)
            SELECT 'ab', 's' || id, id, decode(md5(name), 'hex'), id::text, now(), now(), now(),
            decode(repeat('00', 500), 'hex') FROM devices""",
        """INSERT INTO revocations (sequence, certificate_id, reason, revoked_at, revoked_by)
            SELECT id, id, 'superseded', now(), 'admin' FROM certificates""",
    )

    def look_up(connection: Connection) -> tuple[list[int], int]:
        of_device = certificates_of_device._OF_DEVICE.answers(connection, [{"wanted": number} for number in (7, 8, 9)])
        compromised = [{"wanted": bytes(16)}, {"wanted": bytes(15)}]
        assert [answer.count for answer in certificates._COMPROMISED.answers(connection, compromised)] == [0, 0]
        certificates.key_compromised(connection, bytes(16))
        certificates_of_device.every(connection, 7)
        read = "SELECT seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'revocations'"
        return [answer.count for answer in of_device], connection.exec_driver_sql(read).scalar_one()

    def import_all(connection: Connection) -> None:
        for each in of_all:
            connection.exec_driver_sql(each)

    await fleet.database.write(import_all)
    assert await fleet.database.write(look_up) == ([1, 1, 1], 0)
