"""That the audit log's triggers are gone, disabled or replaced is noticed by a service that runs, and by the doctor."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from provisioning.api.metrics import AuditGuardCollector
from provisioning.service.audit_guard import AuditGuard
from provisioning.store import missing_parts
from tests.support.fleet import Fleet

PAGE = Path(__file__).parents[4] / "docs" / "revocation-publication.md"
FOR_REPLICAS = {"postgresql": "ALTER TABLE audit_entries ENABLE REPLICA TRIGGER audit_entries_append_only"}


@pytest.mark.parametrize(("change", "how"), [("delete", ""), ("update", "ALWAYS ")])
async def test_it_is_said_once_that_changes_pass_and_once_that_they_do_not(fleet: Fleet, change: str, how: str) -> None:
    """What guards against each *change* on SQLite; on PostgreSQL one trigger does, and closes in either way."""
    kind = fleet.database.url.get_backend_name()
    name = {"sqlite": f"audit_entries_no_{change}", "postgresql": "audit_entries_append_only"}[kind]
    opened = {"sqlite": f"DROP TRIGGER {name}", "postgresql": f"ALTER TABLE audit_entries DISABLE TRIGGER {name}"}
    closed = {
        "sqlite": next(
            (line for line in PAGE.read_text(encoding="utf-8").splitlines() if f"{name} BEFORE" in line), ""
        ),
        "postgresql": f"ALTER TABLE audit_entries ENABLE {how}TRIGGER {name}",
    }

    async def do(statements: dict[str, str]) -> None:
        if kind in statements:
            await fleet.database.write(lambda connection: connection.execute(text(statements[kind])))

    guard = AuditGuard(fleet.database)

    def figures() -> list[float]:
        (family,) = AuditGuardCollector(lambda: guard.open_to).collect()
        return [each.value for each in family.samples]

    assert figures() == [], "nothing is told before it is known"
    with capture_logs() as logs:
        await guard.look()
        assert (logs, figures()) == ([], [0])
        for statements in (opened, FOR_REPLICAS):
            await do(statements)
            await guard.look()
            await guard.look()
            assert figures() == [1]
        (said,) = logs
        assert (said["code"], said["detail"]) == ("AUDIT_UNGUARDED", f"the trigger {name} is missing or disabled")
        assert said["remedy"] == missing_parts.GUARD_REMEDY
        await do(closed)
        await guard.look()
        await guard.look()
    assert [each["code"] for each in logs] == ["AUDIT_UNGUARDED", "AUDIT_GUARDED"]
    assert figures() == [0]
    assert await fleet.database.read(missing_parts.changes_that_pass) == []


ONES_THAT_REFUSE_NOTHING = {
    "sqlite": [
        "CREATE TRIGGER {} BEFORE UPDATE ON audit_entries BEGIN SELECT 1; END",
        "CREATE TRIGGER {} AFTER UPDATE ON audit_entries WHEN 0 BEGIN SELECT RAISE(ABORT, 'no'); END",
        (
            "CREATE TRIGGER {} BEFORE UPDATE OF action ON audit_entries BEGIN "
            "SELECT RAISE(ABORT, 'audit_entries is append-only'); END"
        ),
    ],
    "postgresql": [
        (
            "CREATE OR REPLACE FUNCTION audit_entries_refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RETURN NULL; END $$"
        ),
        (
            "CREATE TRIGGER {} BEFORE UPDATE OR DELETE ON audit_entries "
            "FOR EACH STATEMENT EXECUTE FUNCTION audit_entries_refuse()"
        ),
        (
            "CREATE TRIGGER {} BEFORE UPDATE OF action OR DELETE OR TRUNCATE ON audit_entries "
            "FOR EACH STATEMENT EXECUTE FUNCTION audit_entries_refuse()"
        ),
        (
            "CREATE TRIGGER {} BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_entries "
            "FOR EACH STATEMENT WHEN (1 = 0) EXECUTE FUNCTION audit_entries_refuse()"
        ),
    ],
}


async def test_that_a_trigger_does_something_else_is_noticed_and_ended_by_the_statements_of_the_page(
    fleet: Fleet,
) -> None:
    """One of the same name passed for the one that refuses changes."""
    kind = fleet.database.url.get_backend_name()
    name = {"sqlite": "audit_entries_no_update", "postgresql": "audit_entries_append_only"}[kind]
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    mended = {
        "sqlite": [each for each in lines if f"TRIGGER {name} BEFORE" in each],
        "postgresql": [
            each for each in lines if (name in each and each.endswith(";")) or "FUNCTION audit_" in each[:40]
        ],
    }[kind]
    on = {"sqlite": "", "postgresql": " ON audit_entries"}[kind]

    async def do(statement: str) -> None:
        await fleet.database.write(lambda connection: connection.exec_driver_sql(statement))

    for statement in ONES_THAT_REFUSE_NOTHING[kind]:
        if "CREATE TRIGGER" in statement:
            await do(f"DROP TRIGGER {name}{on}")
        await do(statement.format(name))
        assert await fleet.database.read(missing_parts.changes_that_pass) == [
            f"the trigger {name} was replaced, or what it calls: it does something else"
        ]
        if kind == "sqlite":
            await do(f"DROP TRIGGER {name}")
        for again in mended:
            await do(again)
        assert await fleet.database.read(missing_parts.changes_that_pass) == []
