"""That triggers of the audit log are gone or disabled is noticed by a service that runs, and by the doctor."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import text
from sqlalchemy.engine import Connection
from structlog.testing import capture_logs

from provisioning.api.metrics import AuditGuardCollector
from provisioning.service.audit_guard import AuditGuard
from provisioning.store import missing_parts
from tests.support.fleet import Fleet

PAGE = Path(__file__).parents[4] / "docs" / "revocation-publication.md"
OPENED = {
    "sqlite": ["DROP TRIGGER audit_entries_no_delete"],
    "postgresql": ["ALTER TABLE audit_entries DISABLE TRIGGER audit_entries_append_only"],
}
FOR_REPLICAS = {"postgresql": ["ALTER TABLE audit_entries ENABLE REPLICA TRIGGER audit_entries_append_only"]}
CLOSED = {
    "sqlite": [
        next(line for line in PAGE.read_text(encoding="utf-8").splitlines() if "no_delete BEFORE DELETE" in line)
    ],
    "postgresql": ["ALTER TABLE audit_entries ENABLE TRIGGER audit_entries_append_only"],
}


async def test_it_is_said_once_that_changes_pass_and_once_that_they_do_not(fleet: Fleet) -> None:
    kind = fleet.database.url.get_backend_name()

    async def do(statements: dict[str, list[str]]) -> None:
        def work(connection: Connection) -> None:
            for each in statements.get(kind, []):
                connection.execute(text(each))

        await fleet.database.write(work)

    guard = AuditGuard(fleet.database)

    def figures() -> list[float]:
        (family,) = AuditGuardCollector(lambda: guard.open_to).collect()
        return [each.value for each in family.samples]

    assert figures() == [], "nothing is told before it is known"
    with capture_logs() as logs:
        await guard.look()
        assert (logs, figures()) == ([], [0])
        for opened in (OPENED, FOR_REPLICAS):
            await do(opened)
            await guard.look()
            await guard.look()
            assert figures() == [1]
        (said,) = logs
        name = {"sqlite": "audit_entries_no_delete", "postgresql": "audit_entries_append_only"}[kind]
        assert (said["code"], said["detail"]) == ("AUDIT_UNGUARDED", f"the trigger {name} is missing or disabled")
        assert said["remedy"] == missing_parts.GUARD_REMEDY
        await do(CLOSED)
        await guard.look()
        await guard.look()
    assert [each["code"] for each in logs] == ["AUDIT_UNGUARDED", "AUDIT_GUARDED"]
    assert figures() == [0]
    assert await fleet.database.read(missing_parts.changes_that_pass) == []
