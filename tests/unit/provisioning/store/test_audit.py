from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from functools import partial

import pytest
from sqlalchemy import text, update
from sqlalchemy.engine import Connection

from provisioning.directory.audit_chain import BEGINNING, AuditHead
from provisioning.enrolment.approvals import ApprovalService
from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.claims import ClaimOrder, ClaimService
from provisioning.enrolment.device_list import DeviceListService
from provisioning.enrolment.manufacturers import ManufacturerService
from provisioning.enrolment.renewal_info import RenewalService
from provisioning.enrolment.tokens import TokenOrder
from provisioning.errors import ConfigurationError, Pending, Refused
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.program.moments import rfc3339
from provisioning.store import audit, audit_findings, devices, inventory, schema
from provisioning.store.approvals import ApprovalState
from provisioning.store.audit import Action, AuditFilter
from provisioning.store.audit_findings import Latest
from provisioning.store.database import Database
from provisioning.store.tables import audit_head
from tests.support.fleet import Fleet
from tests.support.manufacturer import Manufacturer
from tests.support.postgresql import PostgresqlServer
from tests.support.requests import csr_der
from tests.support.ways import enrol, group, nothing

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
KEY = b"k" * 32


@pytest.fixture
async def database(store_url: str) -> AsyncIterator[Database]:
    opened = Database(store_url, KEY)
    await schema.upgrade(opened)
    for number in range(1, 6):
        await opened.write(
            lambda connection, number=number: audit.append(  # type: ignore[misc]
                connection, NOW, "admin", Action.REVOKED, f"meter-{number}", {"serials": ["1f"], "n": number}
            )
        )
    yield opened
    await opened.close()


async def test_entries_are_found_by_time_actor_and_kind(database: Database) -> None:
    def work(connection: Connection) -> None:
        hour = timedelta(hours=1)
        audit.append(connection, NOW + hour, "anna", Action.SUSPENDED, "meter-2", {"n": 6})
        audit.append(connection, NOW + hour, "anna", Action.SIGNING_CERTIFICATE, "meter-3", {"n": 7})
        audit.append(connection, NOW + hour, "anna", Action.CERTIFICATE_SIGNED, "meter-3", {"n": 8})
        audit.append(connection, NOW + 2 * hour, "service", Action.CRL_SIGNED, "issuing-ca", {"n": 9})
        audit.append(connection, NOW + 2 * hour, "annabel", Action.RESUMED, "meter-2", {"n": 10})

    await database.write(work)

    async def found(text: str = "", limit: int = 99, **wanted: object) -> list[int]:
        which = AuditFilter(**wanted)  # type: ignore[arg-type]
        entries = await database.read(lambda connection: audit.about(connection, text, limit, wanted=which))
        return [json.loads(each.details)["n"] for each in entries]

    later = NOW + timedelta(hours=1)
    assert await found(since=later) == [6, 7, 8, 9, 10]
    assert await found(until=later) == [1, 2, 3, 4, 5]
    assert await found(since=later, until=later + timedelta(hours=1)) == [6, 7, 8]
    assert await found(since=later.astimezone(timezone(timedelta(hours=5))), limit=1) == [10]
    assert await found(since=NOW, until=NOW) == []
    assert await found(by="anna") == [6, 7, 8]
    assert await found("meter-2", by="anna") == [6]
    assert await found(signatures=False) == [1, 2, 3, 4, 5, 6, 10]
    assert await found("meter-2", signatures=False, since=later) == [6, 10]


async def numbers(database: Database, text: str, limit: int, after: int | None = None) -> list[int]:
    """Return the entries with *text*, by what their details say."""
    found = await database.read(lambda connection: audit.about(connection, text, limit, after=after))
    return [json.loads(each.details).get("n", 0) for each in found]


async def test_the_last_entries_with_a_text_are_found_in_whatever_case(database: Database) -> None:
    (first,) = await database.read(lambda connection: audit.about(connection, "meter-1", 9))
    assert await numbers(database, "METER-3", 9) == [3]
    assert await numbers(database, "meter", 2) == [4, 5], "the last ones, the oldest first"
    assert await numbers(database, "meter", 2, first.number) == [2, 3]
    assert await numbers(database, '"n": 5', 9) + await numbers(database, '"n":5', 9) == [5], "in the details, too"
    for mark in ("%", "_", "m%r", "nobody"):
        assert await numbers(database, mark, 9) == [], "it is no pattern"


async def findings(database: Database, noted: AuditHead | None = None) -> list[str]:
    return await database.read(lambda connection: list(audit_findings.findings(connection, noted)))


def tamper(connection: Connection, *statements: str) -> None:
    """Do what somebody does who owns the database but not the key."""
    if connection.dialect.name == "sqlite":
        for trigger in ("update", "delete"):
            connection.execute(text(f"DROP TRIGGER audit_entries_no_{trigger}"))
    else:
        connection.execute(text("DROP TRIGGER audit_entries_append_only ON audit_entries"))
    for statement in statements:
        connection.execute(text(statement))


async def test_a_log_that_cannot_be_written_is_remembered_though_all_else_can(database: Database) -> None:
    if database.url.get_backend_name() == "sqlite":
        shut = "CREATE TRIGGER shut BEFORE INSERT ON audit_entries BEGIN SELECT RAISE(ABORT, 'shut'); END"
        opened = "DROP TRIGGER shut"
    else:
        shut = "ALTER TABLE audit_entries ADD CONSTRAINT shut CHECK (number < 6)"
        opened = "ALTER TABLE audit_entries DROP CONSTRAINT shut"

    def append(connection: Connection) -> None:
        audit.append(connection, NOW, "admin", Action.REVOKED, "meter-6", {})

    def failed() -> bool:
        return database.write_failed

    await database.write(lambda connection: connection.execute(text(shut)))
    with pytest.raises(Refused, match="the audit log cannot be written now"):
        await database.write(append)
    await database.write(lambda connection: connection.execute(text("UPDATE devices SET name = name")))
    assert failed()
    with pytest.raises(Refused):
        await database.probe()
    await database.write(lambda connection: connection.execute(text(opened)))
    assert failed()
    await database.probe()
    assert not failed()
    await database.write(append)
    assert await findings(database) == [], "what the probe has written did not stay"


@pytest.mark.parametrize("word", ["meter-1", "", 'a "quoted" \\ word', "Zähler\n\x00\x1f\x7f", "\u2028 𝄞 \ud800"])
@pytest.mark.parametrize("at", [NOW, NOW.replace(microsecond=0), NOW.astimezone(timezone(timedelta(hours=-3)))])
def test_what_is_authenticated_is_the_json_that_the_library_would_write(word: str, at: datetime) -> None:
    facts = [7, at.astimezone(UTC).isoformat(), word, "revoked", word, f'{{"n": "{word}"}}']
    assert audit.content(7, at, word, "revoked", word, f'{{"n": "{word}"}}') == json.dumps(facts)


async def test_a_log_that_nobody_touched_has_no_finding(database: Database) -> None:
    assert await findings(database) == []
    entries = await database.read(lambda connection: audit.entries(connection, 3, 10))
    assert [(each.number, each.subject) for each in entries] == [(4, "meter-4"), (5, "meter-5")]
    assert entries[0].at == NOW


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        (["UPDATE audit_entries SET actor = 'nobody' WHERE number = 3"], ["entry 3 was changed"]),
        (["UPDATE audit_entries SET at = '2026-03-01 11:00:00' WHERE number = 1"], ["entry 1 was changed"]),
        (["UPDATE audit_entries SET details = '{}' WHERE number = 5"], ["entry 5 was changed"]),
        (["DELETE FROM audit_entries WHERE number IN (2, 3)"], ["entries 2 to 3 are missing"]),
        (["DELETE FROM audit_entries WHERE number = 1"], ["entries 1 to 1 are missing"]),
        (["DELETE FROM audit_entries WHERE number > 3"], ["entries 4 to 5 are missing at the end"]),
        (["DELETE FROM audit_entries"], ["entries 1 to 5 are missing at the end"]),
        (
            ["DELETE FROM audit_entries WHERE number > 3",
             "UPDATE audit_head SET number = 3, mac = (SELECT mac FROM audit_entries WHERE number = 3)"],
            ["the head was changed"],
        ),
        (
            ["UPDATE audit_entries SET number = 9 WHERE number = 5",
             "UPDATE audit_entries SET number = 5 WHERE number = 4",
             "UPDATE audit_entries SET number = 4 WHERE number = 9"],
            ["entry 4 was changed", "entry 5 was changed", "the head names entry 5"],
        ),
        (["DELETE FROM audit_head"], ["the head is missing"]),
        (["UPDATE audit_head SET id = 2"], ["the head was changed"]),
    ],
)  # fmt: skip
async def test_every_edit_removal_and_cut_is_found(
    database: Database, statements: list[str], expected: list[str]
) -> None:
    await database.write(lambda connection: tamper(connection, *statements))
    found = await findings(database)
    assert len(found) == len(expected)
    for finding, words in zip(found, expected, strict=True):
        assert words in finding


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE audit_entries SET at = 'yesterday' WHERE number = 3", ["entry 3 was changed"]),
        ("UPDATE audit_entries SET actor = x'ff' WHERE number = 3", ["entry 3 was changed"]),
        ("UPDATE audit_entries SET mac = 'text' WHERE number = 3", ["entry 3 was changed", "entry 4 was changed"]),
        ("UPDATE audit_entries SET actor = CAST(x'ff' AS TEXT) WHERE number = 3", ["entry 3 was changed"]),
        (
            "UPDATE audit_entries SET mac = CAST(x'ff' AS TEXT) WHERE number = 5",
            ["entry 5 was changed", "the head names entry 5"],
        ),
        ("UPDATE audit_head SET mac = CAST(x'ff' AS TEXT)", ["the head was changed"]),
        ("UPDATE audit_head SET number = 'none'", ["the head was changed"]),
        ("UPDATE audit_head SET mac = 'text'", ["the head was changed"]),
        ("UPDATE audit_head SET seal = 'text'", ["the head was changed"]),
        ("DELETE FROM audit_head", ["the head is missing"]),
    ],
)
@pytest.mark.parametrize("page", [2, 500])
async def test_what_cannot_even_be_read_is_a_finding(
    sqlite_url: str, statement: str, expected: list[str], page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite keeps anything in any column; PostgreSQL would not take it."""
    monkeypatch.setattr(audit_findings, "_PAGE", page)
    database = Database(sqlite_url, KEY)
    await schema.upgrade(database)
    for number in range(1, 6):
        await database.write(
            lambda connection, number=number: audit.append(  # type: ignore[misc]
                connection, NOW, "admin", Action.REVOKED, f"meter-{number}", {}
            )
        )
    head = await database.read(audit_findings.readable_head)
    assert head is not None
    assert head.number == 5
    await database.write(lambda connection: tamper(connection, statement))
    found = await findings(database)
    assert [each.split(",")[0] for each in found] == expected
    if "seal" not in statement and "head" in statement:
        assert await database.read(audit_findings.readable_head) is None
    await database.close()


@pytest.mark.parametrize("left", [3, 0])
async def test_no_later_entry_hides_that_the_log_was_cut(database: Database, left: int) -> None:
    """The service seals the end of what it has read: of a head that it did not seal itself it vouches for none."""

    def cut(connection: Connection) -> None:
        tamper(connection, f"DELETE FROM audit_entries WHERE number > {left}")
        end = connection.execute(text("SELECT mac FROM audit_entries WHERE number = :at").bindparams(at=left))
        head = {"number": left, "mac": end.scalar() or BEGINNING, "seal": b""}
        connection.execute(update(audit_head).values(head))

    await database.write(cut)
    with contextlib.suppress(ConfigurationError):  # As a start does, of a service that has been founded.
        await schema.upgrade_founded(database, "nobody")
    for number in range(2):
        await database.write(lambda connection: audit.append(connection, NOW, "admin", Action.REVOKED, "meter-9", {}))
        assert await findings(database) == ["the head was changed, or was not written by this service"], number


async def test_nobody_writes_to_a_log_that_another_key_vouches_for(database: Database, store_url: str) -> None:
    """As after a restore of a directory and a store of two fleets: each entry would look forged for ever."""
    await database.write(lambda connection: devices.add(connection, "provisioning", Role.SERVICE, None, NOW))
    stranger = Database(store_url, b"another" * 4)
    try:
        with pytest.raises(ConfigurationError, match=r"^audit\.key is not the key of this database's audit log, .*sam"):
            await schema.upgrade_founded(stranger, "provisioning")
    finally:
        await stranger.close()
    for tampered in (
        "UPDATE audit_head SET seal = mac",
        "UPDATE audit_head SET number = 99",
        "DELETE FROM audit_head",
    ):
        assert not await schema.upgrade_founded(database, "provisioning")
        await database.write(partial(_execute, statement=tampered))
        assert not await schema.upgrade_founded(database, "provisioning"), "for that there is audit verify"


async def test_the_latest_time_is_not_hidden_by_what_was_written_since(database: Database) -> None:
    """A service that runs by a clock that is behind has written its own entries, within seconds."""
    for at in (NOW + timedelta(days=1), NOW + timedelta(days=1), NOW, NOW):
        await database.write(
            lambda connection, at=at: audit.append(connection, at, "admin", Action.REVOKED, "meter-6", {})  # type: ignore[misc]
        )
    assert await database.read(audit_findings.latest) == Latest(NOW + timedelta(days=1), 7, 2)
    for _ in range(100):
        await database.write(lambda connection: audit.append(connection, NOW, "admin", Action.REVOKED, "meter-6", {}))
    assert await database.read(audit_findings.latest) == Latest(NOW, 109, 0), "only a clock that was ahead, by then"


def _execute(connection: Connection, statement: str) -> None:
    connection.execute(text(statement))


async def test_a_restored_copy_is_found_by_a_head_that_was_noted(database: Database) -> None:
    noted = await database.read(audit_findings.readable_head)
    assert noted is not None
    assert await findings(database, noted) == []
    later = AuditHead(noted.number + 1, b"x" * 32)
    (finding,) = await findings(database, later)
    assert "an older copy was restored" in finding
    (finding,) = await findings(database, AuditHead(noted.number, b"x" * 32))
    assert "another log" in finding


async def test_who_has_not_the_key_cannot_write_an_entry(database: Database, store_url: str) -> None:
    forger = Database(store_url, b"guess")
    await forger.write(lambda connection: audit.append(connection, NOW, "admin", Action.RESUMED, "meter-1", {}))
    await forger.close()
    assert [each.split(",")[0] for each in await findings(database)] == ["entry 6 was changed", "the head was changed"]


@pytest.mark.parametrize("change", ["UPDATE audit_entries SET actor = 'x'", "DELETE FROM audit_entries"])
async def test_the_database_itself_refuses_changes(database: Database, change: str) -> None:
    with pytest.raises(Refused) as caught:
        await database.write(lambda connection: connection.execute(text(change)))
    assert "append-only" in str(caught.value.__cause__)


async def test_postgresql_refuses_to_empty_it_too(postgresql: PostgresqlServer) -> None:
    with postgresql.database() as url:
        database = Database(url)
        with pytest.raises(Refused) as caught:
            await database.write(lambda connection: connection.execute(text("TRUNCATE audit_entries")))
        assert "append-only" in str(caught.value.__cause__)
        await database.close()


async def log_of(fleet: Fleet) -> list[tuple[str, str, str]]:
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 1000))
    return [(each.actor, each.action, each.subject) for each in entries]


async def test_every_signature_and_every_operator_s_action_is_in_the_log(fleet: Fleet) -> None:
    await fleet.enrol()
    await fleet.suspension.suspend_device("meter-17", by="anna")
    await fleet.suspension.suspend_device("meter-17", by="anna")  # Nothing happens, nothing is logged.
    await fleet.suspension.resume_device("meter-17", by="bert")
    await fleet.revocation.revoke_device("meter-17", RevocationReason.SUPERSEDED, by="anna")
    await fleet.revocation.decommission("meter-17", by="bert")
    assert await log_of(fleet) == [
        ("admin", "tokens created", "meter-17"),
        ("admin", "signing certificate", "meter-17"),
        ("admin", "certificate signed", "meter-17"),
        ("anna", "suspended", "meter-17"),
        ("bert", "resumed", "meter-17"),
        ("anna", "revoked", "meter-17"),
        ("bert", "decommissioned", "meter-17"),
    ]
    assert await findings(fleet.database) == []


async def test_whatever_decides_who_gets_in_is_in_the_log_once_with_who_decided_it(fleet: Fleet) -> None:
    database, clock = fleet.database, fleet.clock
    claims, manufacturers = ClaimService(database, clock, nothing), ManufacturerService(database, clock, nothing)
    lists, approvals = DeviceListService(database, clock), ApprovalService(database, clock)
    await group(fleet, "approval", "claim", "manufacturer", "listed+token")
    await fleet.groups.change("line", {"maximum_devices": 10}, by="bert")
    claim = (await claims.create(ClaimOrder("batch", "line", 5, timedelta(days=1)), by="anna")).claim
    acme = Manufacturer(begin=clock())
    await manufacturers.add(name="acme", group="line", name_prefix="", pem=acme.pem, by="anna")
    await lists.add("line", [("meter-1", None), ("meter-2", None)], by="carl")
    await lists.remove("line", "meter-2", by="anna")
    for name, approve in (("meter-3", True), ("meter-4", False)):
        with pytest.raises(Pending):
            await enrol(fleet, name, label="line")
        newest = (await approvals.page(limit=9, after=0, group="line", state=None))[0][-1]
        decided = await approvals.decide(newest.id, approve=approve, by="bert")
        assert (decided.id, decided.decided_by, decided.decided_at) == (newest.id, "bert", clock())
        assert decided.state is (ApprovalState.APPROVED if approve else ApprovalState.DENIED)
    (token,) = await fleet.token_service.create(TokenOrder(["meter-5"], "line"), by="anna")
    await RenewalService(database, clock).hasten(group=None, spread=timedelta(hours=1), by="bert")
    for _ in range(2):  # Once more, nothing happens and nothing is logged.
        await claims.end("batch", by="carl")
        await manufacturers.end("acme", by="carl")
        assert token.number is not None
        await fleet.token_service.void(token.number, lambda _: None, by="carl")
    assert await log_of(fleet) == [
        ("admin", "group created", "line"),
        ("bert", "group changed", "line"),
        ("anna", "claim created", "batch"),
        ("anna", "manufacturer added", "acme"),
        ("carl", "devices listed", "line"),
        ("anna", "devices unlisted", "line"),
        ("bert", "approved", "meter-3"),
        ("bert", "denied", "meter-4"),
        ("anna", "tokens created", "meter-5"),
        ("bert", "renewal hastened", "every group"),
        ("carl", "claim ended", "batch"),
        ("carl", "manufacturer ended", "acme"),
        ("carl", "token voided", "meter-5"),
    ]
    entries = await database.read(lambda connection: audit.entries(connection, 0, 1000))
    facts = {each.action: json.loads(each.details) for each in entries}
    line = {"group": "line"}
    assert facts["claim created"] == line | {
        "maximum_devices": 5,
        "expires_at": rfc3339(claim.expires_at),
        "fingerprint_sha256": hashlib.sha256(claim.der).hexdigest(),
    }
    ends = rfc3339(token.expires_at)
    assert facts["tokens created"] == line | {"count": 1, "role": "device", "expires_at": ends, "devices": ["meter-5"]}
    assert facts["token voided"] == line | {"token": token.number, "role": "device"}
    asked = {"request": newest.id, "key_sha256": newest.request.spki_sha256.hex(), "evidence": "nothing"}
    assert facts["denied"] == line | asked
    assert await findings(database) == []


def fill_disk(connection: Connection) -> None:
    """Let every new entry fail, as it does when the disk is full."""
    if connection.dialect.name == "sqlite":
        connection.execute(text("ALTER TABLE audit_entries RENAME TO away"))
        return
    connection.execute(text(
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'no space left on device' USING ERRCODE = 'disk_full'; END $$"
    ))  # fmt: skip
    connection.execute(text(
        "CREATE TRIGGER full_disk BEFORE INSERT ON audit_entries FOR EACH ROW EXECUTE FUNCTION full_disk()"
    ))  # fmt: skip


def make_room(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        connection.execute(text("ALTER TABLE away RENAME TO audit_entries"))
    else:
        connection.execute(text("DROP TRIGGER full_disk ON audit_entries"))


async def test_nothing_is_signed_and_no_token_spent_while_the_log_cannot_be_written(fleet: Fleet) -> None:
    token = await fleet.token()
    await fleet.database.write(fill_disk)
    with pytest.raises(Refused, match="UNAVAILABLE"):
        await fleet.enrolment.enrol(csr_der(names=["meter-17"]), TokenCredential("meter-17", token))
    with pytest.raises(Refused, match="UNAVAILABLE"):
        await fleet.token()
    issued = await fleet.database.read(lambda connection: inventory.count(connection, fleet.clock()))
    assert set(issued.values()) == {0}
    await fleet.database.write(make_room)
    await fleet.enrolment.enrol(csr_der(names=["meter-17"]), TokenCredential("meter-17", token))
    assert await findings(fleet.database) == []


async def test_entries_that_share_a_commit_are_one_chain_without_those_that_are_undone(database: Database) -> None:
    def append(connection: Connection, subject: str) -> None:
        audit.append(connection, NOW, "admin", Action.REVOKED, subject, {})
        audit.append(connection, NOW, "admin", Action.RESUMED, subject, {})
        if subject == "undone":
            raise ZeroDivisionError

    subjects = ["first", "undone", "second", "undone", "third"]
    works = [
        database.write(lambda connection, subject=subject: append(connection, subject))  # type: ignore[misc]
        for subject in subjects
    ]
    outcomes = await asyncio.gather(*works, return_exceptions=True)
    assert [type(each) for each in outcomes] == [
        ZeroDivisionError if subject == "undone" else type(None) for subject in subjects
    ]
    entries = await database.read(lambda connection: audit.entries(connection, 5, 100))
    assert sorted(each.subject for each in entries) == ["first", "first", "second", "second", "third", "third"]
    assert [each.number for each in entries] == list(range(6, 12))
    assert await findings(database) == []
