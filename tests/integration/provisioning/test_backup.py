"""A copy of the store, taken while the service works, is restored; nothing that was in it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from provisioning.client.operator import OperatorClient
from provisioning.directory.files import read_certificate
from tests.support.broker_process import wait_until
from tests.support.enrolled import enrol
from tests.support.postgresql import PostgresqlServer, binary
from tests.support.provisioning import REPOSITORY, ProvisioningService

SETTINGS = {"crl_debounce_seconds": 0.05, "public_http_url": "http://ca.example.org"}


def check_restored(service: ProvisioningService, head: str) -> None:
    """See that what was copied is there, and what came later is not."""
    assert service.command("audit", "verify", "--head", head, "--dir", str(service.dir)).returncode == 0
    with service.api() as api:
        assert api.get("/v1/devices/meter-1").json()["state"] == "active"
        assert api.get("/v1/devices/meter-2").json()["state"] == "revoked"
        assert api.get("/v1/devices/meter-3").status_code == 404
    enrol(service, "meter-4")
    assert [each["sequence"] for each in service.revoke(device="meter-1")] == [2]


def fill(service: ProvisioningService) -> None:
    enrol(service, "meter-1", "meter-2")
    service.revoke(device="meter-2")


def documented_copy(store: Path, copy: Path, patience: float | None = None) -> None:
    """Copy *store* to *copy*, which is not there, by the line of docs/backup.md for SQLite."""
    page = (REPOSITORY / "docs" / "backup.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"(?m)^    (sqlite3 .*?) +# SQLite; ", page)
    for told, here in (("/var/lib/fleet-ca/fleet/fleet.db", str(store)), ("copy.db", str(copy))):
        assert line.count(told) == 1, line
        line = line.replace(told, here)
    subprocess.run(shlex.split(line), check=True, timeout=patience)


def documented_command(program: str, place: Path, url: str) -> None:
    """Run PostgreSQL's *program* in *place*, for the database *url*, by its line of docs/backup.md."""
    page = (REPOSITORY / "docs" / "backup.md").read_text(encoding="utf-8")
    (line,) = re.findall(rf"(?m)^    ({program} .*?)(?: +#.*)?$", page)
    asked = make_url(url)
    words = shlex.split(line)
    for place_of, word in enumerate(words):
        if word == "fleet" and words[place_of - 1] not in {"--owner", "--username"}:  # The user's name stays.
            words[place_of] = str(asked.database)
    assert words.count(str(asked.database)) == 1, line
    server = {"PGHOST": str(asked.host), "PGPORT": str(asked.port), "PGUSER": "fleet"}
    subprocess.run([binary(program), *words[1:]], check=True, cwd=place, env={**os.environ, **server})


def test_a_copy_comes_to_its_end_however_fast_the_store_changes(tmp_path: Path) -> None:
    """Who copies some pages at a time, as .backup does, begins again after each change."""
    store, copy, stop, changes = tmp_path / "store.db", tmp_path / "copy.db", threading.Event(), []
    with contextlib.closing(sqlite3.connect(store, isolation_level=None, check_same_thread=False)) as live:
        for statement in (
            "PRAGMA page_size=1024",
            "PRAGMA journal_mode=WAL",
            "PRAGMA synchronous=OFF",  # So that changes come faster than any disk would take them.
            "CREATE TABLE pages (page BLOB)",
            "CREATE TABLE changes (number INTEGER)",
        ):
            live.execute(statement)
        live.execute("BEGIN")
        live.executemany("INSERT INTO pages VALUES (zeroblob(?))", [(900,)] * 20_000)
        live.execute("COMMIT")

        def change() -> None:
            while not stop.is_set():
                live.execute("INSERT INTO changes VALUES (1)")
                changes.append(1)

        with ThreadPoolExecutor(1) as executor:
            changing = executor.submit(change)
            try:
                wait_until(lambda: len(changes) > 0, "it changes")
                before = len(changes)
                documented_copy(store, copy, patience=30)
            finally:
                stop.set()
            changing.result()
    with contextlib.closing(sqlite3.connect(copy)) as found:
        assert found.execute("SELECT count(*) FROM pages").fetchone() == (20000,)
        assert before <= found.execute("SELECT count(*) FROM changes").fetchone()[0] <= len(changes)


def test_sqlite(tmp_path: Path) -> None:
    with ProvisioningService.copied(tmp_path / "fleet", SETTINGS) as service:
        fill(service)
        head = service.audit_head()  # First: what is noted before the copy must be in it.
        documented_copy(service.dir / "fleet.db", tmp_path / "copy.db")
        enrol(service, "meter-3")
        later = service.audit_head()
        service.stop()
        for suffix in ("-wal", "-shm"):
            (service.dir / f"fleet.db{suffix}").unlink(missing_ok=True)
        shutil.copy(tmp_path / "copy.db", service.dir / "fleet.db")
        service.start()
        found = service.command("audit", "verify", "--head", later, "--dir", str(service.dir))
        assert found.returncode == 1
        assert "an older copy was restored" in found.stdout
        check_restored(service, head)


def documented_restore(service: ProvisioningService, copy: Path) -> int:
    """Run the lines of docs/backup.md for SQLite; return their exit code."""
    page = (REPOSITORY / "docs" / "backup.md").read_text(encoding="utf-8")
    lines = page.partition("    cd /var/lib/fleet-ca/fleet &&")[1:]
    text = "".join(lines).partition("    createdb")[0]
    for told, here in (("/var/lib/fleet-ca/fleet", str(service.dir)), ("-o fleet-ca ", ""), ("COPY", str(copy))):
        assert text.count(told) == 1, text
        text = text.replace(told, here)
    return subprocess.run(["sh", "-c", text], check=False, stderr=subprocess.PIPE).returncode


def test_the_documented_restore_removes_nothing_before_the_copy_is_there(tmp_path: Path) -> None:
    with ProvisioningService.copied(tmp_path / "fleet", SETTINGS) as service:
        fill(service)
        head = service.audit_head()
        copy = tmp_path / "copy.db"
        documented_copy(service.dir / "fleet.db", copy)
        enrol(service, "meter-3")
        service.kill()
        left = {path: path.read_bytes() for path in sorted(service.dir.glob("fleet.db*"))}
        assert documented_restore(service, tmp_path / "mistyped.db") != 0
        assert left == {path: path.read_bytes() for path in sorted(service.dir.glob("fleet.db*"))}
        assert documented_restore(service, copy) == 0
        assert (service.dir / "fleet.db").stat().st_mode & 0o777 == 0o600
        service.start()
        check_restored(service, head)


def test_a_copy_is_not_mixed_with_the_log_that_a_killed_service_has_left(tmp_path: Path) -> None:
    """SQLite reads any log of that name into the file: an index may lack a revocation then, which nobody notices."""
    with ProvisioningService.copied(tmp_path / "fleet", SETTINGS) as service:
        fill(service)
        store, copy = service.dir / "fleet.db", tmp_path / "copy.db"
        head = service.audit_head()
        documented_copy(store, copy)
        enrol(service, "meter-3")
        service.kill()
        store.unlink()
        shutil.copy(copy, store)
        left = {path: path.read_bytes() for path in sorted(service.dir.glob("fleet.db*"))}
        assert len(left) == 4
        for command in ("serve --port 0 --http-port 0", "doctor", "audit verify", "ca list"):
            refused = service.command(*command.split(), "--dir", str(service.dir))
            assert refused.returncode != 0
            assert "remove fleet.db-wal and fleet.db-shm: they would damage it" in refused.stdout + refused.stderr
        assert left == {path: path.read_bytes() for path in left}, "nothing was changed"
        store.unlink()
        refused = service.command("serve", "--dir", str(service.dir), "--port", "0", "--http-port", "0")
        assert "fleet.db is missing, or empty, but not fleet.db-wal" in refused.stderr
        for suffix in ("-wal", "-shm"):
            (service.dir / f"fleet.db{suffix}").unlink()
        shutil.copy(copy, store)
        service.start()
        check_restored(service, head)
        assert "STORE_LOG_MISSING" not in service.log


def test_a_log_that_is_gone_since_a_service_was_killed_is_said_unless_a_command_has_taken_it_in(tmp_path: Path) -> None:
    with ProvisioningService.copied(tmp_path / "fleet", SETTINGS) as service:
        fill(service)
        service.kill()
        head = service.audit_head()
        service.start()
        service.command("audit", "verify", "--head", head, "--dir", str(service.dir), check=True)
        service.stop()
        service.start()
        assert "STORE_LOG_MISSING" not in service.log
        service.kill()
        (service.dir / "fleet.db-wal").unlink()
        gone = "fleet.db-wal is gone since the service was killed"
        assert f"fleet-provisioning: {gone}" in service.command("ca", "list", "--dir", str(service.dir)).stderr
        assert f"warning  database      {gone}" in service.command("doctor", "--dir", str(service.dir)).stdout
        ceremony = service.dir / "ceremonies" / "9026-01-05T101500.000000Z-ca-revoke.txt"  # After init's.
        ceremony.write_text("Ceremony: ca revoke\n", encoding="utf-8")
        service.start()
        assert '"code": "STORE_LOG_MISSING"' in service.log
        assert f"the audit log does not confirm the last ceremony, {ceremony.name}" in service.log


def test_a_service_whose_certificate_the_copy_does_not_know_has_another(tmp_path: Path) -> None:
    """Its responder, asked about it, said "unknown": whoever demands a proof that it is not revoked reached nobody."""
    with ProvisioningService.copied(tmp_path / "fleet", SETTINGS) as service:
        path = service.dir / "server.crt"
        first = read_certificate(path)
        documented_copy(service.dir / "fleet.db", tmp_path / "copy.db")
        service.revoke(serial=f"{first.serial_number:x}", reason="superseded")
        wait_until(lambda: read_certificate(path) != first, "it renews its own", patience=90)
        later = read_certificate(path)
        service.stop()
        for suffix in ("-wal", "-shm"):
            (service.dir / f"fleet.db{suffix}").unlink(missing_ok=True)
        shutil.copy(tmp_path / "copy.db", service.dir / "fleet.db")
        service.start()

        async def come() -> None:
            async with OperatorClient(service.https, service.bundle, service.operator) as operator:
                await operator.status()

        asyncio.run(come())
        assert read_certificate(path) not in (first, later)


def test_postgresql(postgresql: PostgresqlServer, tmp_path: Path) -> None:
    with ProvisioningService.copied_on(postgresql, tmp_path / "fleet", SETTINGS) as idle, idle as service:
        fill(service)
        head = service.audit_head()
        documented_command("pg_dump", tmp_path, service.database_url)
        enrol(service, "meter-3")
        service.stop()
    restored = postgresql.url("restored_as_documented")
    for program in ("createdb", "pg_restore", "vacuumdb"):
        documented_command(program, tmp_path, restored)
    with ProvisioningService(tmp_path / "fleet", SETTINGS | {"database_url": restored}) as service:
        check_restored(service, head)
        with pytest.raises(Exception, match="append-only"):
            service.stored("UPDATE audit_entries SET actor = 'x' RETURNING number")


def test_a_restore_that_has_not_come_to_its_end_is_refused(postgresql: PostgresqlServer, tmp_path: Path) -> None:
    """Its audit log may be whole, and its revocations missing: killed, pg_restore leaves what it has done."""
    with ProvisioningService.copied_on(postgresql, tmp_path / "fleet", SETTINGS) as idle, idle as service:
        fill(service)
        plain = service.database_url.replace("+psycopg", "")
        dump, some = tmp_path / "dump", tmp_path / "some"
        subprocess.run([binary("pg_dump"), "--format", "custom", "--file", dump, plain], check=True)
    listed = subprocess.run([binary("pg_restore"), "--list", dump], check=True, capture_output=True, text=True)
    parts = [line for line in listed.stdout.splitlines() if not line.startswith(";")]
    revocations = next(place for place, line in enumerate(parts) if "TABLE DATA public revocations " in line)
    for done, lacks in (
        (parts[:revocations], "the primary key of activations (certificate_id)"),
        (parts[:-1], "the reference of "),
    ):
        some.write_text("\n".join(done))
        with postgresql.database(template="template0") as restored:
            subprocess.run(
                [binary("pg_restore"), "--no-owner", "--use-list", some, "--dbname", restored.replace("+psycopg", ""),
                 dump],
                check=True,
            )  # fmt: skip
            service = ProvisioningService(tmp_path / "fleet", SETTINGS | {"database_url": restored})
            refused = service.command("serve", "--dir", str(service.dir), "--port", "0", "--http-port", "0")
            assert refused.returncode == 1
            assert f" lacks {lacks}" in refused.stderr
            assert "was not restored to the end, and may lack revocations" in refused.stderr
            found = service.command("doctor", "--dir", str(service.dir))
            assert f" lacks {lacks}" in found.stdout


def test_postgresql_s_whole_server_copied_while_devices_enrol(postgresql: PostgresqlServer, tmp_path: Path) -> None:
    """What pg_basebackup has copied holds all that was answered before it began, and nothing by halves."""
    enrolled: list[str] = []
    copied = threading.Event()
    with ProvisioningService.copied_on(postgresql, tmp_path / "fleet", SETTINGS) as idle, idle as service:
        fill(service)
        head = service.audit_head()

        def enrol_meanwhile() -> None:
            while not copied.is_set():
                name = f"busy-{len(enrolled)}"
                enrol(service, name)
                enrolled.append(name)

        with ThreadPoolExecutor(1) as pool, contextlib.closing(contextlib.ExitStack()) as ended:
            ended.callback(copied.set)
            busy = pool.submit(enrol_meanwhile)
            wait_until(lambda: len(enrolled) > 2, "devices enrol")
            before = list(enrolled)
            with PostgresqlServer(copy_of=postgresql) as copy:
                copied.set()
                busy.result()
                enrol(service, "meter-3")
                name = service.database_url.rpartition("/")[2]
                service.stop()
                restored = SETTINGS | {"database_url": copy.url(name)}
                with ProvisioningService(tmp_path / "fleet", restored) as again:
                    check_restored(again, head)
                    with again.api() as api:
                        states = {name: api.get(f"/v1/devices/{name}") for name in enrolled}
                    known = [name for name, found in states.items() if found.status_code == 200]
                    assert known[: len(before)] == before
                    assert known == enrolled[: len(known)], "in the order in which they came"
                    assert all(states[name].json()["certificate"] == "valid" for name in known)
