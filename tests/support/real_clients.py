"""Third-party MQTT clients, each behind the same command line: one test body for all of them.

    driver MODE HOST PORT CAFILE CERT KEY CLIENT-ID VERSION TOPIC QOS [PAYLOAD]

*MODE* is ``sub``, ``pub``, ``retain`` (a publish) or ``will``; a *CERT* of ``-`` is none. A driver prints ``ready``
when it is subscribed, or connected with its will; ``message RETAIN QOS TOPIC PAYLOAD`` for each message; ``done`` when
its publish is acknowledged; ``refused WHY`` (exit code 2) when it is not admitted; ``closed`` (exit code 3) when the
connection ends. The drivers are in ``tests/support/clients``; those in Python are forked (`tests.support.programs`).
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from provisioning.pki.tls import CredentialFiles
from tests.support.programs import REPOSITORY, forking_python

DRIVERS = Path(__file__).parent / "clients"
GMQTT = Path(__file__).parents[2] / ".build" / "gmqtt"
PATIENCE = 60.0


class Running:
    """A running driver; killed on leaving."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._unread = b""

    def line(self) -> str:
        """Return the next line that it prints."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + PATIENCE
        while b"\n" not in self._unread:
            readable, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self._process.stdout.fileno(), 4096) if readable else b""
            assert chunk, f"it said {self._unread!r} and no more; {self._said()}"
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def lines(self, count: int) -> list[str]:
        """Return the next *count* lines."""
        return [self.line() for _ in range(count)]

    def said_so_far(self) -> list[str]:
        """Return the lines printed since the last one read, without waiting for more."""
        assert self._process.stdout is not None
        while select.select([self._process.stdout], [], [], 0)[0]:
            chunk = os.read(self._process.stdout.fileno(), 65536)
            if not chunk:
                break
            self._unread += chunk
        *lines, self._unread = self._unread.split(b"\n")
        return [line.decode() for line in lines]

    def send_signal(self, number: signal.Signals) -> None:
        """Stop the process, or let it continue."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it without a DISCONNECT."""
        self._process.kill()
        self._process.wait()

    def exit_code(self) -> int:
        """Wait for its end and return the exit code."""
        return self._process.wait(timeout=PATIENCE)

    def _said(self) -> str:
        self._process.kill()
        assert self._process.stderr is not None
        return self._process.stderr.read().decode(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.kill()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()


@dataclass(frozen=True)
class RealClient:
    """One client in one version of MQTT."""

    command: list[str]
    version: str
    port: int
    anchors: Path
    environment: dict[str, str]

    def run(
        self, mode: str, name: str, files: CredentialFiles | None, topic: str, qos: int, payload: str = ""
    ) -> Running:
        """Start it as *name*."""
        cert, key = (str(files.certificate), str(files.key)) if files is not None else ("-", "-")
        words = [mode, "localhost", str(self.port), str(self.anchors), cert, key, name, self.version, topic, str(qos)]
        return Running([*self.command, *words, payload], self.environment)

    def publish(self, name: str, files: CredentialFiles, topic: str, qos: int, payload: str, mode: str = "pub") -> None:
        """Publish, and return when it is acknowledged."""
        with self.run(mode, name, files, topic, qos, payload) as running:
            assert running.line() == "done"


def paho_c(directory: Path) -> Path:
    """Compile Paho's C client, once in *directory*; fails if its library is missing."""
    program = directory / "paho_c_client"
    if program.exists():
        return program
    done = subprocess.run(
        ["gcc", "-Wall", "-Wextra", "-Werror", "-o", program, DRIVERS / "paho_c_client.c", "-lpaho-mqtt3cs"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stderr}\nRemedy: apt-get install libpaho-mqtt-dev"
    return program


def command_of(client: str, directory: Path) -> tuple[list[str], dict[str, str]]:
    """Return the driver command for *client*, and the environment it needs."""
    if client == "paho_c":
        return [str(paho_c(directory))], {}
    if client == "mqtt_js":
        # Where Debian keeps node packages; its own node searches there by default.
        return ["node", str(DRIVERS / "mqtt_js_client.js")], {"NODE_PATH": "/usr/share/nodejs"}
    path = str(REPOSITORY)
    if client == "gmqtt":  # Its package includes a top-level ``tests`` that would hide ours: it comes last.
        assert (GMQTT / "gmqtt").is_dir(), f"{GMQTT} is not there. Remedy: make setup-tests"
        path += f"{os.pathsep}{GMQTT}"
    python = forking_python("tests.support.clients")
    return [python, "-m", f"tests.support.clients.{client}_client"], {"PYTHONPATH": path}
