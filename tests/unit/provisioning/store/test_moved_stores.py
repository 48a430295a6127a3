"""A store that was moved to another server: still filled from the former, without rights, or ordered otherwise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

import psycopg
import pytest
from sqlalchemy.engine import Connection, make_url
from structlog.testing import capture_logs

from provisioning.doctor import doctor
from provisioning.doctor.doctor_finding import Verdict
from provisioning.doctor.doctor_server import server_findings
from provisioning.errors import Code, ConfigurationError, Refused
from provisioning.store import revocations, schema
from provisioning.store.database import Database
from provisioning.store.lanes import is_forbidden
from provisioning.store.revision import CURRENT
from provisioning.store.usable import usable
from tests.support.fleet import open_fleet
from tests.support.postgresql import PostgresqlServer


def done(url: str, *statements: str) -> list[tuple[object, ...]]:
    """Do it as an administrator, and return what the last one finds."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as administrator:
        for each in statements:
            cursor = administrator.execute(each.encode())
        return cursor.fetchall() if cursor.description else []


@contextlib.contextmanager
def subscribed(url: str) -> Iterator[None]:
    """Have the database subscribe to itself, which nobody carries out, and all its other sessions end."""
    here = make_url(url)
    done(
        url,
        "CREATE PUBLICATION move FOR ALL TABLES",
        f"CREATE SUBSCRIPTION move CONNECTION 'host=127.0.0.1 port={here.port} user=fleet dbname={here.database}' "
        "PUBLICATION move WITH (create_slot = false, enabled = false, slot_name = NONE)",
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    try:
        yield
    finally:
        done(url, "DROP SUBSCRIPTION move", "DROP PUBLICATION move")


async def test_a_store_that_another_server_still_fills_is_not_used(postgresql: PostgresqlServer) -> None:
    """Tables arrive one by one: the audit log was whole, to its head, and revocations were missing."""
    told = "a subscription still fills "
    with postgresql.database() as url:
        async with open_fleet(url) as fleet:
            await fleet.enrol("meter-1")
            fleet.database.keep_to(CURRENT)
            with subscribed(url):
                with capture_logs() as logs:
                    for work in (
                        lambda: fleet.enrol("meter-2"),
                        lambda: fleet.database.look(revocations.newest),
                        lambda: fleet.database.read(revocations.newest),
                    ):
                        with pytest.raises(Refused) as caught:
                            await work()
                        assert caught.value.code is Code.UNAVAILABLE
                failures = [each["detail"] for each in logs if each.get("code") == "STORE_FAILED"]
                assert failures
                assert all(told in each for each in failures)
                started = Database(url)
                with pytest.raises(ConfigurationError) as refused, usable(started):
                    await schema.upgrade_founded(started, "meter-1")
                assert told in str(refused.value)
                assert ", and has not copied all of activations, approvals, audit_entries" in str(refused.value)
                assert "then DROP SUBSCRIPTION" in str(refused.value)
                done(url, "UPDATE pg_subscription_rel SET srsubstate = 'r'")
                finding = await started.read(lambda connection: doctor._whole(connection, started))
                assert finding.verdict is Verdict.FAILED
                assert told in finding.detail
                assert "has not copied" not in finding.detail
                await started.close()
            await fleet.enrol("meter-2")


async def test_a_server_of_which_it_cannot_be_told_is_not_used(postgresql: PostgresqlServer) -> None:
    """The session was kept, and the next transaction used it unasked."""
    with postgresql.database() as url:
        async with open_fleet(url):
            pass
        done(
            url,
            "CREATE ROLE poor LOGIN",
            "GRANT ALL ON ALL TABLES IN SCHEMA public TO poor",
            "REVOKE SELECT ON pg_subscription_rel FROM PUBLIC",
        )
        database = Database(make_url(url).set(username="poor").render_as_string())
        try:
            for _ in range(2):
                with pytest.raises(Refused) as refused:
                    await database.write(revocations.newest)
                assert refused.value.code is Code.UNAVAILABLE
                assert "permission denied for table pg_subscription_rel" in str(refused.value.__cause__)
            done(url, "GRANT SELECT ON pg_subscription_rel TO PUBLIC")
            await database.write(revocations.newest)
        finally:
            await database.close()
            done(url, "DROP OWNED BY poor", "DROP ROLE poor")


async def test_rights_that_sequences_lack_are_told_with_the_remedy(postgresql: PostgresqlServer) -> None:
    """Whoever restores the schema as another user grants the tables, and forgets the sequences."""
    with postgresql.database() as url:
        async with open_fleet(url) as fleet:
            await fleet.enrol("meter-1")
        done(url, "CREATE ROLE poor LOGIN", "GRANT ALL ON ALL TABLES IN SCHEMA public TO poor")
        database = Database(make_url(url).set(username="poor").render_as_string())
        try:
            with pytest.raises(ConfigurationError) as refused, usable(database):
                await schema.upgrade_founded(database, "meter-1")
            assert "permission denied for sequence " in str(refused.value)
            assert "ALTER TABLE … OWNER TO" in str(refused.value)
            finding = await database.read(lambda connection: doctor._whole(connection, database))
            assert finding.verdict is Verdict.FAILED
            assert "permission denied for sequence authorities_id_seq, certificates_id_seq, " in finding.detail
            done(url, "REVOKE INSERT ON audit_entries FROM poor")
            finding = await database.read(lambda connection: doctor._whole(connection, database))
            assert finding.verdict is Verdict.FAILED
            assert "no INSERT on audit_entries" in finding.detail
            done(url, "GRANT INSERT ON audit_entries TO poor")
            assert "ALTER TABLE … OWNER TO" in finding.remedy
            for statement, is_owners in (("CREATE INDEX m ON devices (role)", True), ("CREATE TABLE m ()", False)):
                with pytest.raises(Refused) as forbidden:
                    await database.write(partial(Connection.exec_driver_sql, statement=statement))
                assert is_forbidden(forbidden.value) is is_owners
            done(url, "GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO poor")
            await schema.upgrade_founded(database, "meter-1")
            finding = await database.read(lambda connection: doctor._whole(connection, database))
            assert finding.verdict is Verdict.WARNING
            assert "no UPDATE on sequence authorities_id_seq, certificates_id_seq, " in finding.detail
        finally:
            await database.close()
            done(url, "DROP OWNED BY poor", "DROP ROLE poor")


async def test_another_order_of_text_is_told_of(postgresql: PostgresqlServer) -> None:
    """A standby on another system has taken over, or the system was upgraded: an index may lack what is there."""
    url = postgresql.new_database()
    ((locale,),) = done(
        url,
        "SELECT attname::text FROM pg_attribute WHERE attrelid = 'pg_database'::regclass "
        "AND attname IN ('daticulocale', 'datlocale')",
    )

    async def codes() -> list[str]:
        with capture_logs() as logs:
            async with open_fleet(url, is_current=True) as fleet:
                found = await fleet.database.read(lambda connection: list(server_findings(connection)))
        said = [each["code"] for each in logs if each.get("code") == "COLLATION_CHANGED"]
        assert [each.verdict for each in found if "REINDEX DATABASE" in each.remedy] == [Verdict.FAILED] * len(said)
        return said

    change = "UPDATE pg_database SET datlocprovider = 'i', {} = 'en' WHERE datname = current_database()"
    version = "UPDATE pg_database SET datcollversion = {} WHERE datname = current_database()"
    done(url, change.format(locale), version.format("'1'"))
    assert await codes() == ["COLLATION_CHANGED"]
    done(url, version.format("pg_database_collation_actual_version(oid)"))
    assert await codes() == []
