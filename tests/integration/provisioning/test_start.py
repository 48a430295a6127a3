"""What a command imports, and what `serve` has imported when it listens."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.importtime import imported
from tests.support.prepared_fleet import prepared
from tests.support.provisioning import ProvisioningService

FRAMEWORK = {"fastapi", "pydantic.v1", "opentelemetry.trace"}
NEVER = {"alembic", "mako", "pygments.util", "rich.console", "sqlalchemy.dialects.postgresql", "sqlalchemy.orm"}
"""What neither a command that is done, nor a service on SQLite whose store is current, has a use for.

What was asked for in vain is told, too: so two are named by a part of theirs.
"""
MIGRATING = {"alembic", "mako", "sqlalchemy.dialects.postgresql"}


def telling(directory: Path) -> ProvisioningService:
    """Return a service whose processes say on stderr what they import; nothing is founded yet."""
    service = ProvisioningService(directory)
    service._environment["PYTHONPROFILEIMPORTTIME"] = "1"  # So each has an interpreter of its own.
    return service


def modules_in(said: str) -> set[str]:
    found = imported(said)
    assert "provisioning.cli" in found, "it says what it imports"
    return found


def test_the_service_listens_before_it_has_the_operators_framework(tmp_path: Path) -> None:
    shutil.copytree(prepared(), tmp_path / "fleet")
    with telling(tmp_path / "fleet") as service:
        started, serving, _ = service.log.partition('"event": "serving"')  # Some seconds later it comes by itself.
        assert serving
        assert modules_in(started) & (NEVER | FRAMEWORK | {"httpx"}) == set()
        with service.api() as operator:
            assert operator.get("/v1/status").status_code == 200
        assert "fastapi" in modules_in(service.log), "it came with the first call, if not before"
        assert modules_in(service.log) & NEVER == set()


def test_commands_import_what_they_do(tmp_path: Path) -> None:
    founding = telling(tmp_path / "fleet").command("init", "--dir", str(tmp_path / "fleet"), check=True)
    others = {"fastapi", "starlette", "uvicorn", "httpx", "prometheus_client"}
    assert modules_in(founding.stderr) & (others | NEVER - MIGRATING) == set()

    asking = telling(prepared())
    status = asking.command("status", "--dir", str(asking.dir), "--url", "https://127.0.0.1:1")
    assert (
        "does not answer: nothing listens there; start it, or name the first address of its ready line\n"
        in status.stderr
    )
    assert modules_in(status.stderr) & (NEVER | {"fastapi", "starlette", "uvicorn", "sqlalchemy", "structlog"}) == set()
