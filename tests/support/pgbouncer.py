"""A PgBouncer in front of a PostgreSQL server, on a free port of the loopback address.

with PgBouncer(server, "session", default_pool_size=8) as pooler:
    Database(pooler.through(url))
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

from sqlalchemy.engine import make_url

from device_sim.stage.foreign_process import free_port
from tests.support.postgresql import START_SECONDS, PostgresqlServer, as_user, unprivileged_user


class PgBouncer:
    """One process, in the mode *pool_mode*; *settings* are those of pgbouncer.ini."""

    def __init__(self, server: PostgresqlServer, pool_mode: str, **settings: object) -> None:
        self._server = server
        self._settings = {"pool_mode": pool_mode, **settings}

    def __enter__(self) -> Self:
        binary = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin:/usr/local/sbin")
        assert binary, "pgbouncer is not installed: run deploy/install-test-servers"
        self._directory = Path(tempfile.mkdtemp(prefix="fleetgate-pgbouncer-"))
        self.port = free_port()
        self._users.write_text('"fleet" ""\n')
        self._write()
        user = unprivileged_user()
        if user is not None:  # It refuses to run as root.
            for path in (self._directory, self._users, self._file):
                shutil.chown(path, user)
        self._process = subprocess.Popen([binary, "-q", str(self._file)], cwd=self._directory, **as_user(user))
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert self._process.poll() is None, (self._directory / "log").read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return self
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def __exit__(self, *_error: object) -> None:
        self._process.send_signal(signal.SIGQUIT)  # At once: the other signals wait for clients.
        try:
            self._process.wait(timeout=START_SECONDS)
        finally:
            self._process.kill()
            shutil.rmtree(self._directory)

    def reload(self, **settings: object) -> None:
        """Have it read changed *settings*, which are in force a moment later."""
        self._settings |= settings
        self._write()
        self._process.send_signal(signal.SIGHUP)

    @property
    def _users(self) -> Path:
        return self._directory / "users"

    @property
    def _file(self) -> Path:
        return self._directory / "pgbouncer.ini"

    def _write(self) -> None:
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": self._users,
            "logfile": self._directory / "log",
            **self._settings,
        }
        lines = [
            "[databases]",
            f"* = host=127.0.0.1 port={self._server.port}",
            "[pgbouncer]",
            *(f"{name} = {value}" for name, value in settings.items()),
        ]
        self._file.write_text("\n".join(lines) + "\n")

    def through(self, url: str) -> str:
        """Return the URL of the same database through this process."""
        return make_url(url).set(port=self.port).render_as_string(hide_password=False)
