"""A store whose commits wait until the test releases each of them, so that the state between two commits can be
examined.

    with held_on_sqlite(directory) as store, store.service:       # or held_on_postgresql
        store.hold()                  # from now on each commit waits
        store.wait_until_held()       # one does
        store.let_one()               # it goes on; the next one will wait
        store.survived("SELECT …")    # what there would be after kill -9 now, and a start
        store.free()                  # all continue, to the end

SQLite's commits wait in the C library, before their first write; PostgreSQL's in the server, in a trigger deferred to
the COMMIT that needs a lock held by the test. The rest of the service continues meanwhile.

Rules
-----
1. The test must release within thirty seconds: the service waits no longer for a statement of PostgreSQL's.
2. On PostgreSQL, only commits that change a table of `_TABLES` wait.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.broker_process import wait_until
from tests.support.postgresql import PostgresqlServer
from tests.support.provisioning import ProvisioningService

_SOURCE = Path(__file__).with_name("held_disk.c")
_PATIENCE = 60
_PAUSE = 0.005
_KEY = 4711
_HELD = ("LD_PRELOAD", "HELD_DISK")
_TABLES = (
    "audit_entries",
    "certificates",
    "crls",
    "revocation_events",
    "serial_reservations",
    "tokens",
)


class HeldStore(ABC):
    """The store of *service*."""

    def __init__(self, service: ProvisioningService) -> None:
        self.service = service

    @abstractmethod
    def hold(self) -> None:
        """Make each commit wait from now on."""

    @abstractmethod
    def is_held(self) -> bool:
        """Whether a commit waits."""

    @abstractmethod
    def let_one(self) -> None:
        """Release the waiting commit; the next one waits."""

    @abstractmethod
    def free(self) -> None:
        """Release all; what is started afterwards is no longer held."""

    @abstractmethod
    def survived(self, query: str) -> list[tuple[Any, ...]]:
        """Return the rows of *query* on what is committed: the state after kill -9."""

    @abstractmethod
    def kill(self) -> None:
        """End the service by SIGKILL while a commit waits, which is never made; release all."""

    def wait_until_held(self) -> None:
        """Wait until a commit waits."""
        wait_until(self.is_held, "a commit waits", _PATIENCE, _PAUSE)


class _HeldSqlite(HeldStore):
    def __init__(self, service: ProvisioningService, flag: Path) -> None:
        super().__init__(service)
        self._flag = flag
        self._waiting = flag.with_name(flag.name + ".waiting")

    def hold(self) -> None:
        self._flag.touch()

    def is_held(self) -> bool:
        return self._waiting.exists()

    def let_one(self) -> None:
        self._waiting.unlink()

    def free(self) -> None:
        self._flag.unlink(missing_ok=True)
        self._waiting.unlink(missing_ok=True)
        self.service.unset(*_HELD)  # What is started from now on is forked, and need not import.

    def survived(self, query: str) -> list[tuple[Any, ...]]:
        with tempfile.TemporaryDirectory() as place:
            for name in ("fleet.db", "fleet.db-wal"):  # Nothing is being written: the commit waits.
                shutil.copy(self.service.dir / name, place)
            with contextlib.closing(sqlite3.connect(Path(place) / "fleet.db")) as found:
                return found.execute(query).fetchall()

    def kill(self) -> None:
        self.service.kill()
        self.free()


class _HeldPostgresql(HeldStore):
    def __init__(self, service: ProvisioningService) -> None:
        super().__init__(service)
        url = service.database_url.replace("+psycopg", "")
        self._held, self._next = (psycopg.connect(url, autocommit=True) for _ in range(2))
        self._look = psycopg.connect(url, autocommit=True)
        self._look.execute(
            "CREATE FUNCTION wait_for_leave() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0 AS $$ BEGIN "
            f"PERFORM pg_advisory_xact_lock_shared({_KEY}); RETURN NULL; END $$"
        )
        for table in _TABLES:
            self._look.execute(
                f"CREATE CONSTRAINT TRIGGER held AFTER INSERT OR UPDATE ON {table} DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW EXECUTE FUNCTION wait_for_leave()"
            )

    def close(self) -> None:
        for each in (self._held, self._next, self._look):
            each.close()

    def hold(self) -> None:
        self._held.execute(f"SELECT pg_advisory_lock({_KEY})")

    def is_held(self) -> bool:
        return bool(self._waiting())

    def let_one(self) -> None:
        # A lock request queues after earlier waiters and before later ones.
        self._next.pgconn.send_query(f"SELECT pg_advisory_lock({_KEY})".encode())
        wait_until(lambda: len(self._all_waiting()) == 2, "the test waits, too", _PATIENCE, _PAUSE)
        self._held.execute(f"SELECT pg_advisory_unlock({_KEY})")
        while self._next.pgconn.get_result() is not None:
            pass
        self._held, self._next = self._next, self._held

    def free(self) -> None:
        self._held.execute("SELECT pg_advisory_unlock_all()")

    def survived(self, query: str) -> list[tuple[Any, ...]]:
        return self._look.execute(query.encode()).fetchall()

    def kill(self) -> None:
        # The server would complete the commit of a vanished client: it is killed with it.
        (process,) = self._waiting()
        self.service.kill()
        self._look.execute("SELECT pg_terminate_backend(%s, 5000)", [process])
        self.free()

    def _waiting(self) -> list[int]:
        mine = {self._held.info.backend_pid, self._next.info.backend_pid}
        return [each for each in self._all_waiting() if each not in mine]

    def _all_waiting(self) -> list[int]:
        rows = self._look.execute(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = %s AND NOT granted "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            [_KEY],
        )
        return [each for (each,) in rows]


@contextlib.contextmanager
def held_on_sqlite(
    directory: Path, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> Iterator[HeldStore]:
    """Create a service in *directory*, not running yet; its store is a file there."""
    library, flag = directory / "held_disk.so", directory / "held"
    compiler = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(_SOURCE), "-ldl"]
    subprocess.run(compiler, check=True)
    with monkeypatch.context() as changed:
        for variable, value in zip(_HELD, (library, flag), strict=True):
            changed.setenv(variable, str(value))
        service = ProvisioningService.copied(directory / "fleet", settings)
    store = _HeldSqlite(service, flag)
    try:
        yield store
    finally:
        store.free()


@contextlib.contextmanager
def held_on_postgresql(directory: Path, settings: dict[str, object], server: PostgresqlServer) -> Iterator[HeldStore]:
    """Create a service in *directory*, not running yet; its store is a database on *server*."""
    with ProvisioningService.copied_on(server, directory / "fleet", settings) as service:
        store = _HeldPostgresql(service)
        try:
            yield store
        finally:
            store.free()
            store.close()
