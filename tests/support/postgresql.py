"""A PostgreSQL server for the tests: one per worker, a database per test, copied from an up-to-date template.

    with PostgresqlServer() as server:
        with server.database() as url: …     # the schema only; reused by another test afterwards
        url = server.new_database()          # the same, but never reused
        server.stop(); server.start()        # gone and back, on the same port

It is started from Debian's binaries in a temporary directory, in memory if there is room, on a free port of the
loopback address, and never waits for the disk: the tests check our transactions, not PostgreSQL's durability. A new
database is three hundred files: in memory it takes a tenth of the time. Where ``/dev/shm`` is not writable, as in some
containers, root mounts a separate file system until the end.

It ends with the test run, even a killed one: `tests.support.outlived` ensures that.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import psycopg

from device_sim.stage.foreign_process import free_port
from provisioning.store import schema
from provisioning.store.database import Database
from tests.support import outlived
from tests.support.kept_database import KeptDatabase
from tests.support.memory_place import ROOM, memory_place

START_SECONDS = 60
AUDIT_KEY = b""
_TEMPLATE = "fleet_template"
_OFF = ("fsync", "synchronous_commit", "full_page_writes", "autovacuum")


class PostgresqlServer:
    """One cluster, created, started and removed by the test run."""

    def __init__(
        self,
        standby_of: PostgresqlServer | None = None,
        copy_of: PostgresqlServer | None = None,
        *,
        is_first: bool = False,
    ) -> None:
        """*standby_of*: follow that server, which runs; *copy_of*: be a copy of it, by itself, as it is now.

        Others are copies of a cluster that nobody has used, the *first* (`unused`).
        """
        self._original = standby_of or copy_of
        self._is_first = is_first
        self._follows = standby_of is not None
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._mounted = False
        self._kept: dict[str, list[KeptDatabase]] = {}
        self.port = 0

    def __enter__(self) -> Self:
        memory = memory_place()
        self._directory = Path(tempfile.mkdtemp(prefix="fleetgate-postgresql-", dir=memory))
        self._mounted = memory is None and _mount_memory(self._directory)
        self._data = self._directory / "data"
        self._outlived = subprocess.Popen(
            [sys.executable, "-I", "-S", outlived.__file__, self._directory, self._data / "postmaster.pid"],
            stdin=subprocess.PIPE, start_new_session=True, cwd="/",
        )  # fmt: skip
        self._user = unprivileged_user()
        if self._user is not None:  # The server refuses to run as root.
            shutil.chown(self._directory, self._user)
        try:
            if self._original is not None:
                follow = ["--write-recovery-conf"] if self._follows else []
                self._run("pg_basebackup", "--pgdata", self._data, "--host", "127.0.0.1", "--port",
                          str(self._original.port), "--username", "fleet", *follow,
                          "--checkpoint", "fast", "--no-sync")  # fmt: skip
                self.start()
                return self
            if self._is_first:
                self._found()
            else:
                subprocess.run(["cp", "--archive", unused(), self._data], check=True)
                self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        for kept in itertools.chain.from_iterable(self._kept.values()):
            kept.close()
        if self._process is not None:
            self.stop()
        if self._mounted:
            subprocess.run(["umount", "--lazy", self._directory], check=True)
        shutil.rmtree(self._directory)
        self._outlived.communicate()

    def start(self) -> None:
        """Start the server, on its previous port if it had one."""
        for _ in range(5):
            if self._try_to_start(self.port or free_port()):
                return
        raise AssertionError(f"PostgreSQL does not start\n{self._log.read_text()}")

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Stop the server and every session at once."""
        process, self._process = self._process, None
        assert process is not None
        process.send_signal(number)
        try:
            process.wait(timeout=START_SECONDS)
        finally:
            process.kill()

    def wait_until_gone(self) -> None:
        """Wait until the server has ended by itself."""
        process, self._process = self._process, None
        assert process is not None
        process.wait(timeout=START_SECONDS)

    def move_log(self, place: Path) -> None:
        """Put the write-ahead log on another file system, at *place*; the server must be stopped."""
        log = self._data / "pg_wal"
        shutil.copytree(log, place, dirs_exist_ok=True)
        shutil.rmtree(log)
        log.symlink_to(place)
        self.give(place)

    def give(self, place: Path) -> None:
        """Make the server's user the owner of *place* and what is in it."""
        if self._user is not None:
            for each in (place, *place.rglob("*")):
                shutil.chown(each, self._user)

    def promote(self) -> None:
        """Let a standby be a primary."""
        assert self._value("SELECT pg_promote()") is True

    def catch_up(self, primary: PostgresqlServer) -> None:
        """Wait until a standby has what *primary* has committed."""
        end = primary._value("SELECT pg_current_wal_lsn()")
        deadline = time.monotonic() + START_SECONDS
        while not self._value(f"SELECT pg_last_wal_replay_lsn() >= '{end}'"):
            assert time.monotonic() < deadline, "the standby does not catch up"
            time.sleep(0.01)

    def url(self, name: str) -> str:
        """Return the URL of a database, in the form of the setting ``database_url``."""
        return f"postgresql+psycopg://fleet@127.0.0.1:{self.port}/{name}"

    def new_database(self, name: str | None = None, template: str = _TEMPLATE) -> str:
        """Create a database and return its URL; with the default *template* it has the newest schema and no rows."""
        name = name or f"fleet_{next(self._numbers)}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return self.url(name)

    @contextlib.contextmanager
    def database(self, template: str = _TEMPLATE, more: str = "") -> Iterator[str]:
        """Lend a database to one test, as if new: with the default *template*, one that another test has used.

        *more* are statements that have been executed in it. With another template it is new, and dropped afterwards:
        removing hundreds at the end takes long.
        """
        if template != _TEMPLATE:
            url = self.new_database(template=template)
            yield url
            self.drop(url)
            return
        kept = self._emptied(more) or KeptDatabase(self.new_database(), more)
        try:
            yield kept.url
        finally:
            self._kept.setdefault(more, []).append(kept)

    def _emptied(self, more: str) -> KeptDatabase | None:
        """Return a kept database that can be emptied, if any; drop those that cannot."""
        waiting = self._kept.get(more, [])
        while waiting:
            kept = waiting.pop()
            if kept.emptied():
                return kept
            kept.close()
            self.drop(kept.url)
        return None

    def drop(self, url: str) -> None:
        """Remove a database, and end its sessions."""
        if self._process is not None:
            self._execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")

    def _value(self, query: str) -> object:
        with psycopg.connect(f"postgresql://fleet@127.0.0.1:{self.port}/postgres", autocommit=True) as connection:
            row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]

    def _execute(self, statement: str) -> None:
        with psycopg.connect(f"postgresql://fleet@127.0.0.1:{self.port}/postgres", autocommit=True) as connection:
            connection.execute(statement.encode())

    def _found(self) -> None:
        """Create a cluster with the template, and stop the server."""
        self._run("initdb", "--pgdata", self._data, "--username", "fleet", "--auth", "trust", "--no-sync",
                  "--locale", "C.UTF-8", "--encoding", "UTF8")  # fmt: skip
        self.start()
        self.new_database(_TEMPLATE, template="template0")
        asyncio.run(self._upgrade_template())
        self.stop()

    async def _upgrade_template(self) -> None:
        database = Database(self.url(_TEMPLATE), AUDIT_KEY)
        try:
            await schema.upgrade(database)
        finally:
            await database.close()

    @property
    def _log(self) -> Path:
        return self._directory / "log"

    def _try_to_start(self, port: int) -> bool:
        options = [f"--{name}=off" for name in _OFF]
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [binary("postgres"), "-D", self._data, "-p", str(port), "-c", "listen_addresses=127.0.0.1",
                 "-c", f"unix_socket_directories={self._directory}", "-c", "max_connections=60",
                 "-c", "dynamic_shared_memory_type=mmap",  # In its directory: one that is killed leaves nothing.
                 *options],
                stdout=log, stderr=log, cwd=self._directory, **as_user(self._user),
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(f"postgresql://fleet@127.0.0.1:{port}/postgres", connect_timeout=5).close()
                self._process, self.port = process, port
                return True
            time.sleep(0.02)
        process.kill()
        process.wait()
        return False

    def _run(self, program: str, *arguments: str | Path) -> None:
        done = subprocess.run(
            [binary(program), *arguments], capture_output=True, text=True, check=False, timeout=START_SECONDS,
            cwd=self._directory, **as_user(self._user),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


@functools.cache
def unused() -> Path:
    """Return the data of a cluster with the template alone: founding one costs six times as much as copying it.

    It is removed at the end of the process that has founded it; those that are forked from it only copy it.
    """
    server, founder = PostgresqlServer(is_first=True), os.getpid()
    server.__enter__()
    atexit.register(lambda: server.__exit__() if os.getpid() == founder else None)
    assert server._outlived.stdin is not None
    os.register_at_fork(after_in_child=server._outlived.stdin.close)  # What outlives it outlives the founder.
    return server._data


def binary(name: str) -> str:
    """Return the path of one of PostgreSQL's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4]))
    binary = str(found[-1]) if found else shutil.which(name)
    assert binary, f"{name} is not installed: run deploy/install-test-servers"
    return binary


def _mount_memory(place: Path) -> bool:
    """Mount an in-memory file system at *place*; return whether that is possible here."""
    if os.geteuid() != 0:
        return False
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM},mode=0700", "none", str(place)]
    return subprocess.run(mount, capture_output=True, check=False).returncode == 0


def unprivileged_user() -> str | None:
    """Return as whom to run a server that refuses to run as root; None: as ourselves."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def as_user(user: str | None) -> dict[str, Any]:
    """Return the arguments of `subprocess` to run a program as *user*."""
    return {} if user is None else {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
