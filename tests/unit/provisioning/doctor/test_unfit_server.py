"""What the doctor says of a server where no service must work: what is wrong, and what to do about just that."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr

from provisioning.config import Settings
from provisioning.directory.files import AuthorityFiles
from provisioning.doctor import doctor, doctor_server
from provisioning.doctor.doctor_finding import Verdict
from provisioning.store import opened_sessions
from tests.support.pgbouncer import PgBouncer
from tests.support.postgresql import PostgresqlServer
from tests.support.prepared_fleet import prepared


@pytest.mark.parametrize(
    ("mode", "size", "what", "remedy"),
    [
        (
            "transaction",
            20,
            "gives its sessions to all clients in turn",
            "pool_mode=session behind it in pgbouncer.ini",
        ),
        ("session", 1, "has no second session for this service", "raise pool_size in pgbouncer.ini"),
    ],
)
async def test_a_pool_that_is_of_no_use_is_said_to_be_the_cause(
    tmp_path: Path,
    postgresql: PostgresqlServer,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    size: int,
    what: str,
    remedy: str,
) -> None:
    """The remedy was to start the server, and to look at its firewall."""
    monkeypatch.setattr(opened_sessions, "_PROBE_SECONDS", 0.2)
    directory = tmp_path / "fleet"
    shutil.copytree(prepared(), directory)
    with postgresql.database() as url, PgBouncer(postgresql, mode, default_pool_size=size) as pooler:
        settings = Settings(directory=directory, database_url=SecretStr(pooler.through(url)))
        found = doctor._store(settings, AuthorityFiles(directory), datetime.now(UTC))
        (finding,) = [each async for each in found]
    assert (finding.verdict, finding.check) == (Verdict.FAILED, "database")
    assert what in finding.detail
    assert finding.remedy.endswith(f"{remedy}: docs/postgresql.md")
    assert remedy not in finding.detail


async def test_a_table_that_another_program_keeps_locked_is_named_with_that(
    tmp_path: Path, postgresql: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All was well where only changes were refused, and otherwise one was to start the server."""
    monkeypatch.setattr(doctor_server, "_LOCK_SECONDS", 0.05)
    directory = tmp_path / "fleet"
    shutil.copytree(prepared(), directory)
    with postgresql.database() as url:
        settings = Settings(directory=directory, database_url=SecretStr(url))
        with psycopg.connect(url.replace("+psycopg", "")) as other:
            other.execute("LOCK TABLE revocations IN ACCESS EXCLUSIVE MODE")
            process = other.info.backend_pid
            found = doctor._store(settings, AuthorityFiles(directory), datetime.now(UTC))
            (finding,) = [each async for each in found]
    assert (finding.verdict, finding.check) == (Verdict.FAILED, "tables")
    assert f"process {process} (no application_name) has locked the table revocations for more than" in finding.detail
    assert f"pg_terminate_backend({process}) ends it" in finding.remedy
