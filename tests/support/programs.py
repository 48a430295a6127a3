"""Our programs as processes: forked from an interpreter with the imports done, or started afresh.

    process = start("broker", ["run", …], environment, stdout=…, stderr=…)      # like subprocess.Popen, in short
    process.pid, process.poll(), process.send_signal(…), process.wait(timeout=…)
    done = run("provisioning", ["init", …], environment)
    forking_python()                                              # what to call in place of sys.executable

All are the real program in its own process, with the same code from ``__main__`` on. Importing takes longer than most
tests that need it: `tests.support.imported` does it once for all workers of a run, and each worker has a
`tests.support.fork_server` forked from there. A process is started afresh where its start matters: with *afresh*, for
tests of the start, of memory and of processor time; and whenever its environment has settings for the interpreter or
the loader that the fork server lacks. Who has its clock moved (`tests.support.faketime`) is forked from a server of its
own, which has libfaketime loaded.

Where a program is otherwise a test's child, or starts others itself, as `fleet-sim` does, the stand-in for ``python``
has it forked. Its parent sees the stand-in: not the program's processor time, memory, command line, or process number,
and of what it kills there may be something for a moment longer. A program of which it is to see these, among others
that it starts, is named by the variable `AFRESH`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.support.faketime import clock_of
from tests.support.fork_server import ROOM, lasting, order
from tests.support.imported import asked

REPOSITORY = Path(__file__).parents[2]
AFRESH = "STARTED_AFRESH"
"""A variable of whoever starts programs: the one that it names is not forked."""
PATIENCE = 60.0
"""Seconds: how long the imports may take on a machine busy with other tests."""

_IMPORTED = {
    # What `run`, `serve`, `init` and the commands import when called, what `serve` imports on an operator's call, and
    # what their libraries import then.
    "broker": (
        "broker.cli",
        "broker.process.running",
        "broker.credentials.credentials",
        "broker.revocation.revocation_feed",
        "broker.plugins.host",
        "broker.plugins.loading",
        "provisioning.program.command_line",
        "broker.commands.admin_commands",
        "broker.commands.check_command",
        "broker.commands.explain_commands",
        "broker.commands.reload_command",
        "cryptography.hazmat.backends.openssl.backend",
        "httpcore",
        "importlib.metadata._adapters",
        "sqlite3",
        "typer._adapters",
        "typer._click.decorators",
        "uvloop",
        "anyio._backends._asyncio",
        "encodings.ascii",
    ),
    "provisioning": (
        "provisioning.cli",
        "provisioning.service.server",
        "provisioning.api.operator_application",
        "provisioning.api.whole_revocations",
        "provisioning.authorities.authority",
        "provisioning.authorities.authority_life",
        "provisioning.authorities.authority_revocation",
        "provisioning.authorities.ceremony_transcript",
        "provisioning.client.enrolment",
        "provisioning.commands.ca_commands",
        "provisioning.commands.certificate_commands",
        "provisioning.commands.doctor_command",
        "provisioning.commands.group_commands",
        "provisioning.commands.lifecycle_commands",
        "provisioning.commands.operator_commands",
        "provisioning.commands.token_commands",
        "provisioning.program.core_dumps",
        "provisioning.doctor.doctor",
        "provisioning.doctor.doctor_authorities",
        "provisioning.program.logs",
        "provisioning.authorities.next_authority",
        "provisioning.authorities.root_life",
        "provisioning.store.company",
        "provisioning.service.workers",
        "alembic.command",
        "alembic.config",
        "ctypes.util",
        "httpcore",
        "importlib.metadata._adapters",
        "psycopg",
        "sqlalchemy.dialects.postgresql.psycopg",
        "sqlalchemy.dialects.sqlite",
        "sqlite3",
        "uvloop",
        "uvicorn.lifespan.off",
        "typer._adapters",
        "typer._click.decorators",
        "anyio._backends._asyncio",
        "encodings.ascii",
        "encodings.idna",
    ),
    "device_sim": (
        "device_sim.cli",
        "device_sim.attack.attacking",
        "device_sim.attack.catalogue",
        "device_sim.attack.command",
        "device_sim.attack.fleetgate_target",
        "device_sim.bench.bench",
        "device_sim.bench.benchmarking",
        "device_sim.bench.command",
        "device_sim.commands.ctl_command",
        "device_sim.demo.demonstration",
        "device_sim.commands.enrol_command",
        "device_sim.commands.fleet_enrolment",
        "device_sim.link.light_client",
        "device_sim.commands.playing",
        "device_sim.qualify.command",
        "device_sim.qualify.qualifying",
        "device_sim.commands.report_command",
        "device_sim.run.working",
        "device_sim.commands.run_command",
        "cryptography.hazmat.backends.openssl",
        "httpcore",
        "rich._emoji_codes",
        "typer._adapters",
        "typer._click.decorators",
        "uvloop",
        "anyio._backends._asyncio",
        "encodings.idna",
    ),
    # The devices of `tests.support.devices`.
    "tests": (
        "broker.mqtt.framing",
        "broker.mqtt.packets",
        "cryptography.hazmat.backends.openssl",
        "cryptography.hazmat.primitives.serialization.pkcs7",
        "cryptography.x509",
        "device_sim.backoff",
        "paho.mqtt.client",
        "provisioning.client.csr",
        "provisioning.client.est",
        "provisioning.pki.stapling",
        "provisioning.pki.tls",
    ),
    # What our programs with faults in their source import of others: of ours nothing may be imported before that.
    "tests.support.planting": (
        "anyio._backends._asyncio",
        "cryptography.hazmat.backends.openssl.backend",
        "cryptography.hazmat.primitives.ciphers.aead",
        "cryptography.hazmat.primitives.kdf.x963kdf",
        "cryptography.hazmat.primitives.keywrap",
        "cryptography.hazmat.primitives.serialization.pkcs7",
        "cryptography.x509.ocsp",
        "encodings.ascii",
        "encodings.idna",
        "fastapi.routing",
        "greenlet",
        "httpcore",
        "httpx",
        "prometheus_client.core",
        "pydantic_settings",
        "sqlalchemy.dialects.sqlite",
        "sqlalchemy.engine",
        "structlog",
        "tomllib",
        "typer._adapters",
        "typer._click.decorators",
        "typer._completion_shared",
        "uvicorn.lifespan.off",
        "uvicorn.protocols.http.httptools_impl",
        "uvloop",
    ),
    # Third-party clients, of `tests.support.real_clients`.
    "tests.support.clients": ("aiomqtt", "amqtt.client", "asyncio", "encodings.idna", "ssl"),
}
_OURS = ("broker", "provisioning", "device_sim")


class Forked:
    """One process of a fork server: the part of `subprocess.Popen` that tests need."""

    def __init__(self, report: int) -> None:
        self._report = os.fdopen(report, "rb", buffering=0)
        self.returncode: int | None = None
        try:
            self.pid = int(self._line(PATIENCE))
        except BaseException:
            self._report.close()  # Otherwise a later test fails for it, when this is collected.
            raise
        self.stdout: IO[bytes] | None = None

    def poll(self) -> int | None:
        """Return the exit code (negative: the signal that killed it), or None while the process runs."""
        if self.returncode is None and self._reported(0):
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code when available. Raises `subprocess.TimeoutExpired`."""
        if self.returncode is None:
            self.returncode = int(self._line(timeout))
            self._report.close()
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # It has just ended, which is not reported yet.
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _reported(self, seconds: float | None) -> bool:
        waiting = select.poll()
        waiting.register(self._report, select.POLLIN)
        return bool(waiting.poll(None if seconds is None else seconds * 1000))

    def _line(self, seconds: float | None) -> bytes:
        if not self._reported(seconds):
            raise subprocess.TimeoutExpired("a forked process", seconds or 0.0)
        line = self._report.readline()
        assert line.endswith(b"\n"), "the fork server has ended"
        return line


Process = subprocess.Popen[bytes] | Forked


class _Imports:
    """The process from which all fork servers of a test run are forked, until this one ends."""

    def __init__(self) -> None:
        self._open, theirs = socket.socketpair()
        self.place = str(_folder() / "imports")
        self.environment = lasting(os.environ | {"PYTHONPATH": str(REPOSITORY)})
        with theirs, _listener(self.place) as listener:
            descriptors = [each.fileno() for each in (theirs, listener)]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.imported", *map(str, descriptors), ROOM],
                env=self.environment,
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=descriptors,
            )
        atexit.register(self._end)

    def _end(self) -> None:
        self._open.close()
        self._process.wait()


Shared = tuple[str, dict[str, str]]
_joined: list[Shared] = []


@functools.cache
def shared() -> Shared:
    """Return where this test run does its imports, and their environment: for `join` in other processes.

    The importing process is started by the first call in a process that has not joined.
    """
    if _joined:
        return _joined[0]
    imports = _Imports()
    return imports.place, imports.environment


def join(place: str, environment: dict[str, str]) -> None:
    """Fork from the imports of another process of the test run, instead of starting an importer for this one."""
    _joined.append((place, environment))


def _listener(place: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(place)
    listener.listen()
    return listener


class _Server:
    """The fork server of one program, until this test worker ends; *clock* is what has its clock moved (`clock_of`)."""

    def __init__(self, program: str, clock: tuple[tuple[str, str], ...] = ()) -> None:
        self._program = program
        place, environment = shared()
        self.environment = environment | dict(clock)
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with (
            theirs,
            _listener(str(_folder() / (f"{program} by another clock" if clock else program))) as listener,
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking,
        ):
            asking.connect(place)
            request = asked(program, _IMPORTED[program], dict(clock))
            socket.send_fds(asking, [request], [theirs.fileno(), listener.fileno(), 2])
        atexit.register(self._end)

    def fork(self, arguments: Sequence[str], environment: Mapping[str, str], stdout: int, stderr: int) -> Forked:
        report, theirs = os.pipe()
        ordered = order(str(Path.cwd()), sys.executable, self._program, arguments, environment)
        nothing = os.open(os.devnull, os.O_RDONLY)
        try:
            socket.send_fds(self._orders, [ordered], [nothing, stdout, stderr, theirs])
        except BaseException:
            os.close(report)
            raise
        finally:
            os.close(nothing)
            os.close(theirs)
        return Forked(report)

    @functools.cached_property
    def pid(self) -> int:
        """Its process, as soon as the imports are done."""
        said = self._orders.recv(16)
        assert said, "the fork server has ended"
        return int(said)

    def _end(self) -> None:
        self._orders.shutdown(socket.SHUT_WR)
        while self._orders.recv(16):  # It ends when it has killed what is left.
            pass
        self._orders.close()


_server = functools.cache(_Server)


@functools.cache
def _folder() -> Path:
    """Where the fork servers listen, with the stand-in; private."""
    folder = tempfile.TemporaryDirectory(prefix="fork-", dir="/tmp")  # A socket's address must be short.
    atexit.register(folder.cleanup)
    return Path(folder.name)


def forking_python(*programs: str, environment: Mapping[str, str] | None = None) -> str:
    """Return what to call in place of ``python``: *programs* are then forked, and so are those that they start.

    By default these are all of ours. The imports are done when it returns: they do not disturb any measurement. Who
    names the *environment* that they will have is told if it is one in which they are not forked: nothing else says so.
    """
    for program in programs or _OURS:
        assert _server(program).pid
        assert environment is None or _forkable(program, environment), f"{program} is not forked in this environment"
    return _stand_in()


@functools.cache
def _stand_in() -> str:
    stand_in = _folder() / "python"
    (_folder() / "interpreter").symlink_to(sys.executable)
    source = Path(__file__).with_name("forked_python.c")
    subprocess.run(["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(stand_in), str(source)], check=True)
    return str(stand_in)


def stands_in(command_line: bytes) -> bool:
    """Whether a process with *command_line* is our stand-in, whose forked process is a different one."""
    return command_line.startswith(os.fsencode(_folder() / "python") + b"\0")


def start(
    program: str,
    arguments: Sequence[str | Path],
    environment: Mapping[str, str],
    stderr: IO[bytes],
    *,
    afresh: bool = False,
) -> Process:
    """Start *program*, with a pipe for its standard output. *afresh*: always with its own interpreter."""
    words = [str(argument) for argument in arguments]
    if afresh or (server := _fitting(program, environment)) is None:
        command = [sys.executable, "-m", program, *words]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=stderr)
    reading, writing = os.pipe()
    try:
        process = server.fork(words, environment, writing, stderr.fileno())
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    process.stdout = os.fdopen(reading, "rb")
    return process


def run(
    program: str,
    arguments: Sequence[str | Path],
    environment: Mapping[str, str],
    *,
    timeout: float,
    afresh: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run *program* to its end, and return its output. Raises `subprocess.TimeoutExpired`."""
    words = [str(argument) for argument in arguments]
    command = [sys.executable, "-m", program, *words]
    if afresh or (server := _fitting(program, environment)) is None:
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=timeout)
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = server.fork(words, environment, stdout.fileno(), stderr.fileno())
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        said = []
        for file in (stdout, stderr):
            file.seek(0)
            said.append(file.read().decode())
    return subprocess.CompletedProcess(command, code, *said)


def _forkable(program: str, environment: Mapping[str, str]) -> bool:
    """Whether a forked process sees all of *environment* as one started afresh would."""
    return lasting(environment) == _server(program).environment


def _fitting(program: str, environment: Mapping[str, str]) -> _Server | None:
    """Return the fork server whose processes see all of *environment*; none if there can be none."""
    if _forkable(program, environment):
        return _server(program)
    if not (clock := clock_of(environment)):
        return None
    moved = _server(program, tuple(sorted(clock.items())))
    return moved if lasting(environment) == moved.environment else None
