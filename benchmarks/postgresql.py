"""A PostgreSQL server for a benchmark: durable, like a production server, in a temporary folder, removed afterwards.

    with postgresql() as server:
        name = server.new_database()
        server.cpu_seconds()                # of all its processes

It runs Debian's binaries with their defaults: ``fsync`` and ``synchronous_commit`` are on.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from foreign_peers import NotInstalled

_START_SECONDS = 60
_USER = "fleet"


@dataclass(slots=True)
class Postgresql:
    """A running server."""

    process: subprocess.Popen[bytes]
    port: int
    launch: Callable[[], subprocess.Popen[bytes]]
    """Starts it again, on the same port."""

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    def kill_and_restart(self) -> None:
        """End it by SIGKILL, as a failed machine would, and start it again at once; return when it answers."""
        self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + _START_SECONDS
        while True:
            self.process = self.launch()
            try:
                _wait(self)
            except NotInstalled:  # Sessions of the one before have its shared memory until they notice.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def new_database(self) -> str:
        """Create an empty database; return its name."""
        name = f"bench_{secrets.token_hex(4)}"
        with psycopg.connect(self._address("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template0".encode())
        return name

    def run(self, name: str, *statements: str) -> None:
        """Execute *statements* in the database *name*."""
        with psycopg.connect(self._address(name), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def sqlalchemy_url(self, name: str) -> str:
        """Return the database's URL for Fleetgate."""
        return f"postgresql+psycopg://{_USER}@127.0.0.1:{self.port}/{name}"

    def libpq_url(self, name: str) -> str:
        """Return the database's URL for a Go program."""
        return f"{self._address(name)}?sslmode=disable"

    def cpu_seconds(self) -> float:
        """Return the CPU time of the server and its sessions, including ended ones; to 10 ms."""
        ticks = sum(_ticks(pid) for pid in [self.pid, *_children(self.pid)])
        return ticks / os.sysconf("SC_CLK_TCK")

    def _address(self, name: str) -> str:
        return f"postgresql://{_USER}@127.0.0.1:{self.port}/{name}"


@contextmanager
def postgresql() -> Iterator[Postgresql]:
    """Run a server until the block ends."""
    # Not in TMPDIR: a folder that only its owner may enter is closed to the user that the server runs as.
    folder = "/tmp" if os.geteuid() == 0 else None  # noqa: S108 - The name in it is random.
    with (
        tempfile.TemporaryDirectory(prefix="fleetgate-bench-postgresql-", dir=folder) as name,
        _started(Path(name)) as server,
    ):
        yield server


@contextmanager
def _started(folder: Path) -> Iterator[Postgresql]:
    user = _unprivileged_user()
    if user is not None:  # The server refuses to run as root.
        shutil.chown(folder, user)
    data = folder / "data"
    options: dict[str, Any] = {} if user is None else {"user": user, "group": pwd.getpwnam(user).pw_gid,
                                                       "extra_groups": []}  # fmt: skip
    with (folder / "log").open("ab") as log:
        subprocess.run(
            [_binary("initdb"), "--pgdata", data, "--username", _USER, "--auth", "trust", "--no-sync",
             "--locale", "C.UTF-8", "--encoding", "UTF8"],
            check=True, stdout=log, stderr=log, cwd=folder, timeout=_START_SECONDS, **options,
        )  # fmt: skip
    port = _free_port()

    def launch() -> subprocess.Popen[bytes]:
        with (folder / "log").open("ab") as log:
            return subprocess.Popen(
                [_binary("postgres"), "-D", data, "-p", str(port), "-c", "listen_addresses=127.0.0.1",
                 "-c", f"unix_socket_directories={folder}", "-c", "max_connections=60"],
                stdout=log, stderr=log, cwd=folder, start_new_session=True, **options,
            )  # fmt: skip

    server = Postgresql(launch(), port, launch)
    try:
        _wait(server)
        yield server
    finally:
        server.process.send_signal(signal.SIGINT)  # Fast shutdown: ends sessions that a failed run has left.
        _end(server.process)


def _wait(server: Postgresql) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while server.process.poll() is None and time.monotonic() < deadline:
        try:
            server.run("postgres", "SELECT 1")
        except psycopg.OperationalError:
            time.sleep(0.05)
        else:
            return
    raise NotInstalled("PostgreSQL does not start")


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _binary(name: str) -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4]))
    if not found:
        raise NotInstalled("PostgreSQL is not installed. Remedy, as root: apt-get install postgresql")
    return found[-1]


def _children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0
    return sum(int(field) for field in fields[11:15])  # User and system time, its own and its children's.


def _unprivileged_user() -> str | None:
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port
