"""The stand of a soak: a service, a broker, perhaps a PostgreSQL, and everything that can be done to them.

Theory
------
Everything is started as a user would, with lives of minutes where the defaults are months: certificates, CRLs, OCSP
answers and signers, tokens. Their files are on a file system of their own, if root runs the soak: it can be filled. The
broker reaches the service through a `Cable`, which can be cut. Both programs have a clock that can be set, where
Debian's `faketime` is installed; the monotonic clock stays true, as on a machine whose clock is set.

Rules
-----
1. A process that ends although nobody has killed it fails the soak.
2. Each process runs under `soak_watched`, so that its objects can be counted.
3. Nothing is left behind: processes end with the block, and the file system is unmounted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from peers import ready_line
from postgresql import Postgresql, postgresql
from processes import REPOSITORY, Child, ChildFailed

from broker.admin.client import AdminClient, BrokerUnreachable
from device_sim.stage.foreign_process import free_port
from provisioning.client.enrolment import EnrolmentOperatorClient
from provisioning.pki.keys import write_private
from provisioning.pki.role import Role
from provisioning.pki.tls import CredentialFiles

BROKER, PLANT = "broker-1", "plant.example"
LIFE_SECONDS = 150
_VOLUME = "size=600m,mode=0700"  # Under 500 MB free `doctor` warns.
_TOKEN_SECONDS = 300
_SERVICE_TOML = """
device_life = "{life}s"
service_life = "{life}s"
broker_life = "{life}s"
provisioning_life = "{long}s"
crl_life = "20s"
ocsp_life = "1m"
ocsp_signer_life = "2m"
token_retention = "1m"
feed_heartbeat_seconds = 1.0
requests_per_second = 0.0
"""
_BROKER_TOML = """
host = "127.0.0.1"
port = {port}
provisioning = "https://localhost:{cable}"
cafile = "{anchors}"
token_file = "{token}"
state_dir = "{state}"
name = "{name}"
revocation_grace = 60
crl_check_seconds = 1.0
ocsp_refresh_seconds = 10.0
audit_log = "{audit}"
audit_max_bytes = 1048576
audit_max_files = 4

[[trust]]
name = "fleet"
anchors = ["{anchors}"]
roles = ["device", "service", "operator"]
feed = true
ocsp_from_certificates = true
ocsp_policy = "advisory"

[[trust]]
name = "plant"
anchors = ["{plant}/anchors"]
trust_domain = "{domain}"
groups = ["plant"]
crlfile = ["{plant}/lists"]
crl_policy = "require"

[[trust.identity]]
source = "common-name"
group = "plant"
"""


@dataclass
class Clock:
    """The clock of one process: libfaketime rereads how far it is ahead from *file*."""

    file: Path
    library: Path | None
    ahead: float = 0.0

    def set(self, ahead: float) -> None:
        """Set it *ahead* of the true time, in seconds."""
        draft = self.file.with_suffix(".new")
        draft.write_text(f"{ahead:+.0f}\n")
        draft.rename(self.file)
        self.ahead = ahead

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process needs to have it; see `tests.support.faketime` for why."""
        if self.library is None:
            return {}
        return {
            "LD_PRELOAD": str(self.library),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
            "FAKETIME_DISABLE_SHM": "1",
        }


class Cable:
    """TCP between broker and service, which can be cut and mended."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._carrying: set[asyncio.Task[None]] = set()
        self._whole = True
        self.port = 0

    async def lay(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """End every connection, and let no other come about."""
        self._whole = False
        for each in self._open:
            each.transport.abort()

    def mend(self) -> None:
        """Carry what comes from now on."""
        self._whole = True

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
        self.cut()
        await asyncio.gather(*self._carrying, return_exceptions=True)

    async def _carry(self, near: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        if not self._whole:
            answer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - A coroutine runs in one.
        self._carrying.add(task)
        self._open.add(answer)
        far: asyncio.StreamWriter | None = None
        try:
            back, far = await asyncio.open_connection("127.0.0.1", self._target)
            self._open.add(far)
            async with asyncio.TaskGroup() as both:
                both.create_task(_pump(near, far))
                both.create_task(_pump(back, answer))
        except OSError:
            pass
        finally:
            for each in (answer, far):
                if each is not None:
                    self._open.discard(each)
                    each.transport.abort()
            self._carrying.discard(task)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on until the end, and then end the other direction's peer too: both ends are ours, neither half-closes."""
    with contextlib.suppress(OSError):
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    writer.close()


@dataclass
class Program:
    """One of our programs: how it is started, again and again, and what it is now."""

    name: str
    arguments: list[str]
    log: Path
    objects: Path
    clock: Clock
    environment: dict[str, str] = field(default_factory=dict)
    child: Child | None = None
    starts: int = 0

    async def start(self) -> None:
        """Start it, and return when it says that it is ready."""
        watched = [sys.executable, "-P", str(REPOSITORY / "benchmarks" / "soak_watched.py"), str(self.objects)]
        child = Child(
            [*watched, *self.arguments],
            self.log,
            environment={"PYTHONPATH": str(REPOSITORY), **self.clock.environment, **self.environment},
        )
        try:
            await asyncio.to_thread(ready_line, child, self.name)
        except BaseException:
            child.stop()
            raise
        self.child = child
        self.starts += 1

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.running.pid

    @property
    def starved(self) -> float:
        """For how many seconds its main thread has been ready to run, and had no processor; 0 where that is unknown."""
        try:
            return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[1]) / 1e9
        except OSError:
            return 0.0

    @property
    def running(self) -> Child:
        """The process; raises `ChildFailed` if it has ended by itself (rule 1)."""
        if self.child is None:
            raise ChildFailed(f"{self.name} is not started")
        if not self.child.running:
            raise self.child.failed("ended")
        return self.child

    async def kill(self) -> None:
        """End it as a power failure would, and start it again."""
        child = self.running
        os.kill(child.pid, signal.SIGKILL)
        await asyncio.to_thread(child.wait, 30)
        child.stop()
        self.child = None
        await self.start()

    async def pause(self, seconds: float) -> None:
        """Stop it with SIGSTOP for *seconds*."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            os.kill(self.pid, signal.SIGCONT)

    async def stop(self) -> None:
        """End it in order."""
        if self.child is not None:
            await asyncio.to_thread(self.child.stop)


@dataclass
class Stand:
    """Everything that runs."""

    folder: Path
    ca: Path
    service: Program
    broker: Program
    service_url: str
    http_url: str
    broker_port: int
    cable: Cable
    operator: EnrolmentOperatorClient
    secret: Mapping[str, str]
    server: Postgresql | None
    database: str | None
    volume: Path | None
    """A file system of its own, which can be filled; None: it is not."""

    @property
    def anchors(self) -> Path:
        """The service's trust anchors."""
        return self.ca / "ca-bundle.crt"

    @property
    def plant(self) -> Path:
        """The folder of the foreign CA's anchors and lists."""
        return self.folder / "plant"

    async def command(self, *arguments: str) -> str:
        """Run ``fleet-provisioning``, and return what it printed; raise `CommandFailed`."""
        return await command(["-m", "provisioning", *arguments, "--dir", str(self.ca)], self.secret)

    def empty_logs(self) -> None:
        """Checkpoint the stores and cut off their logs, as a backup may: else these go on in room that they have."""
        for store in (self.folder / "broker" / "broker.db", self.ca / "fleet.db"):
            if store.exists():
                with contextlib.closing(sqlite3.connect(store, timeout=10, isolation_level=None)) as connection:
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def status(self) -> dict[str, object]:
        """Return the broker's status; empty: it does not answer."""
        try:
            with AdminClient.at_socket(self.folder / "broker" / "admin.sock") as client:
                found: dict[str, object] = client.get("/v1/status")
                return found
        except BrokerUnreachable:
            return {}


class CommandFailed(RuntimeError):
    """A command ended with another exit code than 0; the text is what it printed."""


async def command(arguments: list[str], environment: Mapping[str, str]) -> str:
    """Run a module of ours to its end."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", *arguments, cwd=REPOSITORY, env=environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, said = await process.communicate()
    if process.returncode:
        raise CommandFailed(
            f"{' '.join(arguments[1:4])}: exit code {process.returncode}: {(out + said).decode()[-1500:]}"
        )
    return out.decode()


@contextlib.contextmanager
def volume(folder: Path) -> Iterator[Path | None]:
    """Mount a file system in memory at *folder* for the block, if that is allowed; else None."""
    mount = ["mount", "-t", "tmpfs", "-o", _VOLUME, "none", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, check=False, capture_output=True).returncode == 0
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def fill(place: Path) -> Path:
    """Fill the file system at *place* to the last byte; return the file to remove."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, max(shutil.disk_usage(place).free - (1 << 20), 1))
        file.seek(0, os.SEEK_END)
        for size in (65536, 4096, 512):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size):
                    pass
    return ballast


def fake_clock() -> Path | None:
    """Return where libfaketime is, if it is installed."""
    return next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


def _write_settings(ca: Path, plant: Path, life: int) -> None:
    with (ca / "provisioning.toml").open("a") as file:
        file.write(_SERVICE_TOML.format(life=life, long=2 * life))
    for each in (plant, plant / "anchors", plant / "lists"):
        each.mkdir(mode=0o700)


@contextlib.asynccontextmanager
async def standing(place: Path, *, on_postgresql: bool, life: int = LIFE_SECONDS) -> AsyncIterator[Stand]:
    """Run service and broker with their files below *place* until the block ends."""
    async with contextlib.AsyncExitStack() as stack:
        folder = place / "disk"  # Not the logs: they say what happens when it is full.
        folder.mkdir(mode=0o700)
        small = stack.enter_context(volume(folder))
        ca, plant = folder / "ca", folder / "plant"
        secret = {"FLEET_PROVISIONING_PASSPHRASE": secrets.token_urlsafe(24)}
        server = database = None
        if on_postgresql:
            server = stack.enter_context(postgresql())
            database = server.new_database()
            secret["FLEET_PROVISIONING_DATABASE_URL"] = server.sqlalchemy_url(database)
        await command(["-m", "provisioning", "init", "--dir", str(ca)], secret)
        _write_settings(ca, plant, life)
        library = fake_clock()
        clocks = [Clock(place / f"{name}.clock", library) for name in ("service", "broker")]
        for clock in clocks:
            clock.set(0)
        https, http, mqtts = free_port(), free_port(), free_port()
        ends = ["--port", str(https), "--http-port", str(http), "--public-http-url", f"http://127.0.0.1:{http}"]
        service = Program(
            "fleet-provisioning", ["provisioning", "serve", "--dir", str(ca), *ends],
            place / "service.log", place / "service.objects", clocks[0], dict(secret),
        )  # fmt: skip
        stack.push_async_callback(service.stop)
        await service.start()
        cable = Cable(https)
        await cable.lay()
        stack.push_async_callback(cable.close)
        anchors, url = ca / "ca-bundle.crt", f"https://localhost:{https}"
        operator = await stack.enter_async_context(
            EnrolmentOperatorClient(url, anchors, CredentialFiles(ca / "operator.crt", ca / "operator.key"))
        )
        [token] = await operator.create_tokens(
            device=BROKER, role=Role.BROKER, dns_names=["localhost"], ip_addresses=["127.0.0.1"],
            ttl_seconds=_TOKEN_SECONDS,
        )  # fmt: skip
        write_private(folder / "broker-token", token.token.encode())
        settings = folder / "broker.toml"
        settings.write_text(
            _BROKER_TOML.format(
                port=mqtts, cable=cable.port, anchors=anchors, token=folder / "broker-token", state=folder / "broker",
                name=BROKER, audit=folder / "broker-audit" / "log", plant=plant, domain=PLANT,
            )
        )  # fmt: skip
        (folder / "broker-audit").mkdir(mode=0o700)
        broker = Program(
            "fleet-broker", ["broker", "run", "--config", str(settings)],
            place / "broker.log", place / "broker.objects", clocks[1],
        )  # fmt: skip
        stack.push_async_callback(broker.stop)
        yield Stand(
            folder, ca, service, broker, url, f"http://127.0.0.1:{http}", mqtts, cable, operator, secret, server,
            database, small,
        )  # fmt: skip
