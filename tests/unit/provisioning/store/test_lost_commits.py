"""A connection breaks, or hangs: what was asked for is done or not, never by half, nor twice; what is gone is seen."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from structlog.testing import capture_logs

from provisioning.enrolment.attempt import TokenCredential
from provisioning.errors import Code, Refused
from provisioning.pki.keys import generate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.store import approvals, audit, opened_sessions, schema
from provisioning.store.approvals import ApprovalRequest
from provisioning.store.audit import Action
from provisioning.store.audit_findings import findings
from provisioning.store.database import Database
from tests.support.cut_connections import Way
from tests.support.fleet import Fleet, open_fleet
from tests.support.postgresql import PostgresqlServer
from tests.support.requests import csr_der
from tests.support.ways import HOUR, group

_COUNTS = (
    "SELECT (SELECT count(*) FROM tokens WHERE used_at IS NOT NULL), (SELECT count(*) FROM certificates), "
    "(SELECT count(*) FROM certificates JOIN serial_reservations USING (serial)), (SELECT count(*) FROM revocations)"
)
"""Tokens that are spent, certificates, serial numbers that could be used twice, revocations."""


async def counts(fleet: Fleet) -> tuple[int, ...]:
    return await fleet.database.read(lambda connection: tuple(connection.execute(text(_COUNTS)).one()))


_ENDED: Final = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


def changed(url: str, *changes: str) -> None:
    """Make *changes* as an administrator."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as administrator:
        administrator.execute("SET session_replication_role = replica")  # Triggers refuse changes of the log.
        for each in changes:
            administrator.execute(each.encode())


def moved(url: str, *changes: str) -> None:
    """Make *changes*, and end all other sessions, as a move to another server does."""
    changed(url, *changes, _ENDED)


async def lost(work: Callable[[], Awaitable[object]], way: Way, *, passed_on: bool | None) -> None:
    """Do *work*, which is told that it may or may not have been done; None: its COMMIT is heard later."""
    if passed_on is None:
        way.hang()
    else:
        way.cut(passed_on=passed_on)
    with pytest.raises(Refused) as caught:
        await work()
    assert way.was_cut
    assert caught.value.code is Code.UNAVAILABLE
    if passed_on is None:
        await way.goes_on()


@pytest.mark.parametrize("passed_on", [False, True, None], ids=["not heard", "answer not heard", "heard later"])
async def test_a_lost_commit_is_done_once_or_not_at_all_and_asking_again_helps(
    postgresql: PostgresqlServer, monkeypatch: pytest.MonkeyPatch, *, passed_on: bool | None
) -> None:
    done = passed_on is not False
    if passed_on is None:  # The server's own limit, as the URL may have it, and what comes on top.
        monkeypatch.setattr(opened_sessions, "_LATE_SECONDS", 0.5)
    with postgresql.database() as url:
        async with Way(postgresql.port) as way, open_fleet(url) as direct:
            limits = (
                "-c lock_timeout=500ms -c idle_in_transaction_session_timeout=2min"  # Else the server ends it first.
            )
            hasty = {"options": limits} if passed_on is None else {}
            through = make_url(url).set(port=way.port).update_query_dict(hasty).render_as_string(hide_password=False)
            async with open_fleet(through, direct.authority) as fleet:
                await group(direct, "token", name="north", same_key_window=HOUR)
                token = TokenCredential("meter-1", await direct.token("meter-1"))
                request = csr_der(generate_key(), names=["meter-1"])
                async with fleet.serial_numbers.reservation(fleet.clock()):
                    pass  # A block is there: its COMMIT is not the one that is lost.

                async def enrol() -> object:
                    return await fleet.enrolment.enrol(request, token)

                async def revoke() -> object:
                    return await fleet.revocation.revoke_device("meter-1", RevocationReason.KEY_COMPROMISE, by="boss")

                await lost(enrol, way, passed_on=passed_on)
                assert await counts(direct) == ((1, 1, 0, 0) if done else (0, 0, 0, 0))
                with capture_logs() as logs:
                    first = await enrol()
                assert "STORE_WENT_BACK" not in {each.get("code") for each in logs}, "nothing that was answered is lost"
                assert await enrol() == first
                await lost(revoke, way, passed_on=passed_on)
                assert await counts(direct) == ((1, 1, 0, 1) if done else (1, 1, 0, 0))
                await revoke()
                assert await counts(direct) == (1, 1, 0, 1)
                assert await direct.database.read(lambda connection: list(findings(connection))) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("SELECT 1", []),
        ("SELECT 2", []),
        ("DELETE FROM audit_entries WHERE number = 2", ["STORE_WENT_BACK"]),
        ("UPDATE audit_entries SET mac = decode(repeat('00', 32), 'hex') WHERE number = 2", ["STORE_WENT_BACK"]),
    ],
    ids=["the same store", "one without another process's event", "an older one", "another one"],
)
async def test_a_store_without_what_was_committed_last_is_told_of(
    postgresql: PostgresqlServer, change: str, told: list[str]
) -> None:
    """Found behind the same address: a standby that did not have it, or that went its own way; not at the first try."""

    async def note(number: int) -> None:
        await fleet.database.write(
            lambda connection: audit.append(connection, fleet.clock(), "anna", Action.REVOKED, f"meter-{number}", {})
        )

    with postgresql.database() as url:
        async with open_fleet(url) as fleet:
            await note(1)
            await note(2)
            fleet.database.lost_ends.is_known = lambda _connection: change != "SELECT 2"
            await fleet.database.write(lambda connection: connection.execute(text("SELECT 1")).scalar())  # No entry.
            moved(url, change, "ALTER TABLE hastened_renewals RENAME TO away")  # Its numbers are asked for first.
            with pytest.raises(Refused):
                await note(3)
            changed(url, "ALTER TABLE away RENAME TO hastened_renewals")
            with capture_logs() as logs:
                await note(3)
            assert [each["code"] for each in logs if "code" in each] == told
            assert fleet.database.lost_ends.in_doubt is (change != "SELECT 1"), "nobody is let in"


async def test_numbers_go_on_at_a_server_that_has_the_rows_and_not_their_numbers(postgresql: PostgresqlServer) -> None:
    """Logical replication carries no sequences: the start ended for a certificate with number 1, which there was."""
    begun_again = "SELECT setval(seqrelid, 1, false) FROM pg_sequence"
    numbers = text("SELECT array_agg(id ORDER BY issued_at, id), array_agg(id ORDER BY id) FROM certificates")
    with postgresql.database() as url:
        async with open_fleet(url) as fleet:
            await fleet.enrol("meter-1")
            await fleet.enrol("meter-2")
            # Numbered by a counter, which is a row: this was taken for numbers that begin again, at each start.
            asked = ApprovalRequest("north", "meter-5", bytes(32), "none", None)
            await fleet.database.write(lambda connection: approvals.put(connection, asked, fleet.clock()))
            moved(url, "DELETE FROM tokens; DELETE FROM certificates WHERE id = 1")
            moved(url, begun_again)
            fleet.clock.advance(HOUR)
            with capture_logs() as logs:
                await fleet.enrol("meter-3")  # Under a running service.
            (said,) = [each for each in logs if each.get("code") == "NUMBERS_MOVED_UP"]
            assert said["to"] == {"authorities": 2, "certificates": 2, "devices": 2}
            moved(url, begun_again)
            database = Database(url)
            with capture_logs() as logs:
                await schema.upgrade_founded(database, "meter-1")
            await database.close()
            assert [each["to"]["certificates"] for each in logs if each.get("code") == "NUMBERS_MOVED_UP"] == [3]
            fleet.clock.advance(HOUR)
            await fleet.enrol("meter-4")
            issued, ascending = await fleet.database.read(lambda connection: tuple(connection.execute(numbers).one()))
            assert issued == ascending == [2, 3, 4]
