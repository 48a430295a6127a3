"""What breaks under a service while devices enrol: nothing is lost, nothing is done twice, nobody is let in wrongly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from cryptography import x509

from provisioning.client.csr import build_csr
from provisioning.client.est import EnrolmentUnavailable, EstClient
from provisioning.pki.keys import generate_key
from tests.support.broker_process import wait_until
from tests.support.curl import Curl
from tests.support.postgresql import PostgresqlServer
from tests.support.provisioning import ProvisioningService
from tests.support.small_volume import full, small_volume

PATIENCE = 60
WORKERS = 6
REFUSED = 30
"""So many devices are refused while the disk is full."""


@dataclass
class Crowd:
    """Devices that enrol by one-time token until they have a certificate, each with one key and one request."""

    service: ProvisioningService
    names: Sequence[str]
    certificates: dict[str, x509.Certificate] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    """What those heard who were told to come back."""
    tried: list[str] = field(default_factory=list)
    """Who has asked, in that order, as often as he has."""

    def __post_init__(self) -> None:
        made = self.service.post("/v1/groups", name="crowd", ways=["token"], same_key_seconds=3600)
        assert made.status_code == 201, made.text
        self._tokens = dict(zip(self.names, self.service.tokens(devices=list(self.names), group="crowd"), strict=True))
        self._requests = {name: build_csr(generate_key(), name) for name in self.names}

    async def enrol(self, names: Sequence[str], *, insist: bool, enough: float = math.inf) -> None:
        """Enrol devices side by side; who *insists* comes again until he is served, others try once.

        No other asks when *enough* were told to come back.
        """
        waiting = iter(names)
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as workers:
            for _ in range(WORKERS):
                workers.create_task(self._work(waiting, insist=insist, enough=enough))

    async def _work(self, waiting: Iterator[str], *, insist: bool, enough: float) -> None:
        async with EstClient(self.service.https, self.service.bundle) as client:
            for name in waiting:
                if len(self.said) >= enough:
                    return
                while not await self._try(client, name) and insist:
                    await asyncio.sleep(0.05)  # As a device does, sooner.

    async def _try(self, client: EstClient, name: str) -> bool:
        self.tried.append(name)
        try:
            issued = await client.enrol(self._requests[name], user=name, token=self._tokens[name])
        except EnrolmentUnavailable as error:
            self.said.append(str(error))
            return False
        self.certificates[name] = issued
        return True

    def check(self) -> None:
        """Check that the store has exactly what was handed out, and that the audit log is whole."""
        assert all("503: UNAVAILABLE" in each for each in self.said), set(self.said)
        rows = self.service.stored(
            "SELECT d.name, c.serial FROM certificates c JOIN devices d ON d.id = c.device_id WHERE d.role = 'device'"
        )
        handed_out = [(name, f"{issued.serial_number:x}") for name, issued in self.certificates.items()]
        assert sorted(map(tuple, rows)) == sorted(handed_out)
        done = self.service.command("audit", "verify", "--dir", str(self.service.dir))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in self.service.log


async def until(condition: Callable[[], object]) -> None:
    """Wait until *condition* holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


def ready(service: ProvisioningService) -> tuple[int, str]:
    answer = Curl(service.http).run("/readyz")
    return answer.status, json.loads(answer.body)["checks"]["store"]


@contextlib.contextmanager
def limited_files(service: ProvisioningService, _disk: Path) -> Iterator[None]:
    """Let the process write no file beyond 4 KB, its log neither."""
    resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@contextlib.contextmanager
def filled(_service: ProvisioningService, disk: Path) -> Iterator[None]:
    """Fill the file system, to the last byte."""
    with full(disk):
        yield


@pytest.fixture
def disk() -> Iterator[Path]:
    """A file system of eight megabytes; where none can be mounted, limited files are tried."""
    with small_volume("size=8m") as place:
        yield place


def test_a_start_on_a_full_disk_ends_with_which_disk_it_is(disk: Path) -> None:
    with ProvisioningService.copied(disk / "fleet") as service:
        assert service.stop(signal.SIGTERM) == 0
        with full(disk):
            done = service.command("serve", "--dir", str(service.dir), "--port", "0", "--http-port", "0")
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert "fleet.db cannot be used: the disk " in last, done.stderr
    assert "make room there" in last


def test_a_start_on_a_damaged_store_ends_with_where_another_is(tmp_path: Path) -> None:
    with ProvisioningService.copied(tmp_path / "fleet") as service:
        assert service.stop(signal.SIGTERM) == 0
        store = service.dir / "fleet.db"
        for beside in service.dir.glob("fleet.db-*"):
            beside.unlink()
        store.write_bytes(store.read_bytes()[:5000])
        done = service.command("serve", "--dir", str(service.dir), "--port", "0", "--http-port", "0")
    assert (done.returncode, done.stderr.splitlines()[-1].endswith("Restore it from the backup: docs/backup.md")) == (
        1,
        True,
    ), done.stderr


@pytest.mark.parametrize("kind", ["limit", "file system"])
def test_a_full_disk_is_said_costs_nothing_and_is_forgotten_when_there_is_room(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place: Path = request.getfixturevalue("disk") if kind == "file system" else tmp_path
    full = filled if kind == "file system" else limited_files
    with ProvisioningService.copied(place / "fleet", {"crl_debounce_seconds": 0.05}) as service:
        crowd = Crowd(service, [f"meter-{number}" for number in range(400)])
        asyncio.run(crowd.enrol(crowd.names[:20], insist=False))
        assert len(crowd.certificates) == 20
        with full(service, place):
            # SQLite may have room in its files for a while.
            asyncio.run(crowd.enrol(crowd.names[20:360], insist=False, enough=REFUSED))
            assert len(crowd.said) >= REFUSED
            assert ready(service) == (503, "unavailable")
            refused = service.post("/v1/revocations", device="meter-0", reason="keyCompromise")
            assert (refused.status_code, refused.json()["code"]) == (503, "UNAVAILABLE")
            assert int(refused.headers["retry-after"]) > 0
            assert Curl(service.http).run("/crl/issuing-ca.crl").status == 200
            assert Curl(service.https, service.bundle).run("/.well-known/est/cacerts").status == 200
            if kind == "file system":
                doctor = service.command("doctor", "--dir", str(service.dir))
                assert doctor.returncode == 1
                assert "remedy: free disk space: nothing is issued or revoked until then" in doctor.stdout
            status = service.command("status", "--dir", str(service.dir))
            assert re.search(r"^ready +no: store unavailable; doctor and the log say why$", status.stdout, re.MULTILINE)
        assert ready(service) == (200, "ok")
        refused_before = set(crowd.tried) - set(crowd.certificates)
        asyncio.run(crowd.enrol([*refused_before, *crowd.names[360:]], insist=False))
        assert set(crowd.certificates) == set(crowd.tried), "no token was spent for nothing"
        assert refused_before | set(crowd.names[360:]) <= set(crowd.certificates)
        assert service.post("/v1/revocations", device="meter-0", reason="keyCompromise").status_code == 201
        crowd.check()
        assert service.stop(signal.SIGTERM) == 0


@pytest.fixture
def volume() -> Iterator[Path]:
    """A file system that a server of another user can use."""
    with small_volume() as place:
        yield place


def executed(url: str, *statements: str) -> None:
    """Execute *statements* in the database at *url*, as another program."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def test_a_full_volume_under_postgresql_is_said_costs_nothing_and_is_forgotten_when_there_is_room(
    tmp_path: Path, volume: Path
) -> None:
    """The tables' volume: the server goes on, and some tables still have room in their files."""
    with PostgresqlServer() as server:
        (volume / "tables").mkdir(mode=0o700)
        server.give(volume)
        executed(server.url("postgres"), f"CREATE TABLESPACE small LOCATION '{volume / 'tables'}'")
        executed(server.url("postgres"), "CREATE DATABASE small TEMPLATE template0 TABLESPACE small")
        with ProvisioningService.founded(tmp_path / "fleet", {"database_url": server.url("small")}) as service:
            crowd = Crowd(service, [f"meter-{number}" for number in range(160)])
            asyncio.run(crowd.enrol(crowd.names[:10], insist=False))
            assert len(crowd.certificates) == 10
            with filled(service, volume):
                asyncio.run(crowd.enrol(crowd.names[10:150], insist=False, enough=REFUSED))
                assert len(crowd.said) >= REFUSED
                for _ in range(2):
                    assert ready(service) == (503, "unavailable"), "though something small can still be written"
                assert "No space left on device" in service.log
                assert Curl(service.http).run("/crl/issuing-ca.crl").status == 200
            assert ready(service) == (200, "ok")
            refused_before = set(crowd.tried) - set(crowd.certificates)
            asyncio.run(crowd.enrol([*refused_before, *crowd.names[150:]], insist=False))
            assert set(crowd.certificates) == set(crowd.tried), "no token was spent for nothing"
            crowd.check()


def test_a_server_that_ends_for_a_full_log_volume_loses_nothing_and_is_used_again_when_it_is_back(
    tmp_path: Path, volume: Path
) -> None:
    """PostgreSQL ends with PANIC in the middle of a COMMIT, and cannot start again before there is room."""
    with PostgresqlServer() as server:
        server.stop()
        server.move_log(volume)
        server.start()
        url = server.new_database(template="template0")
        with ProvisioningService.founded(tmp_path / "fleet", {"database_url": url}) as service:
            crowd = Crowd(service, [f"meter-{number}" for number in range(40)])
            asyncio.run(crowd.enrol(crowd.names[:10], insist=False))

            async def while_it_fills() -> None:
                enrolling = asyncio.create_task(crowd.enrol(crowd.names[10:30], insist=False))
                with contextlib.suppress(psycopg.Error):
                    while True:
                        write = "SELECT pg_logical_emit_message(true, 'test', repeat('x', 1000000))"
                        await asyncio.to_thread(executed, url, write)
                await enrolling

            with filled(service, volume):
                asyncio.run(while_it_fills())
                server.wait_until_gone()
                heard = len(crowd.said)
                asyncio.run(crowd.enrol(crowd.names[30:35], insist=False))
                assert len(crowd.said) == heard + 5
                assert ready(service) == (503, "unavailable")
                assert Curl(service.http).run("/crl/issuing-ca.crl").status == 200
            server.start()
            refused_before = set(crowd.tried) - set(crowd.certificates)
            asyncio.run(crowd.enrol([*refused_before, *crowd.names[35:]], insist=True))
            assert set(crowd.certificates) == set(crowd.names)
            crowd.check()
            # Soon: once, on a busy machine, the probe still failed at something when all were enrolled.
            wait_until(lambda: ready(service) == (200, "ok"), f"it is ready again:\n{service.log[-4000:]}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_a_database_that_restarts_under_load_loses_no_certificate_and_makes_none_twice(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Killed, too, and with a server whose own settings let it forget what it has just committed."""
    with PostgresqlServer() as server:
        url = server.new_database(template="template0")
        with ProvisioningService.founded(tmp_path / "fleet", {"database_url": url}) as service:
            crowd = Crowd(service, [f"meter-{number}" for number in range(120)])

            async def restart_meanwhile() -> None:
                *many, first, second = crowd.names
                enrolling = [asyncio.create_task(crowd.enrol(many, insist=True))]
                for share, late in ((30, first), (70, second)):
                    await until(lambda: len(crowd.certificates) >= share)
                    await asyncio.to_thread(server.stop, number)
                    heard = len(crowd.said)
                    enrolling.append(asyncio.create_task(crowd.enrol([late], insist=True)))  # All others may be done.
                    await until(lambda: len(crowd.said) > heard)
                    await asyncio.to_thread(server.start)
                await asyncio.gather(*enrolling)

            asyncio.run(restart_meanwhile())
            assert set(crowd.certificates) == set(crowd.names)
            crowd.check()
            deadline = time.monotonic() + PATIENCE
            while ready(service) != (200, "ok"):
                assert time.monotonic() < deadline
                time.sleep(0.05)
