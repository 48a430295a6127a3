"""That triggers of the audit log are gone or disabled is noticed by a service that runs, and by the doctor."""

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
