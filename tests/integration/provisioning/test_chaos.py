"""All at once, at random: kill -9, a full disk, terminated sessions while devices enrol, renew, are revoked, suspended.

Everybody keeps what it was told. At the end it is compared with the tables, the audit log and the lists, by queries of
this file's own: nothing that was answered is lost, nothing is done twice, and nothing is done that nobody was told of.
"""

from __future__ import annotations

import contextlib
import random
import resource
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.broker_process import wait_until
from tests.support.postgresql import PostgresqlServer
from tests.support.provisioning import ProvisioningService
from tests.support.told_fleet import OPERATORS, UNDECIDED, ToldFleet

SECONDS = 9.0
SEED = 20_261_130
DEVICES = 3
SETTINGS: dict[str, object] = {"crl_debounce_seconds": 0.05}
_FULL = (4096, resource.RLIM_INFINITY)
_ROOMY = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)

_CERTIFICATES = (
    "SELECT c.serial, d.name, c.der FROM certificates c JOIN devices d ON d.id = c.device_id WHERE d.role = 'device'"
)
_REVOKED = (
    "SELECT c.serial, d.name, r.reason FROM revocations r "
    "JOIN certificates c ON c.id = r.certificate_id JOIN devices d ON d.id = c.device_id"
)
_SPENT = "SELECT device, certificate_id FROM tokens WHERE used_at IS NOT NULL"
_EVENTS = "SELECT sequence FROM revocation_events ORDER BY sequence"
_TERMINATE = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid() AND random() < 0.5"
)
_SIGNED = "SELECT subject FROM audit_entries WHERE action = 'certificate signed' AND subject LIKE 'meter-%'"


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def services(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[ProvisioningService]]:
    """One service, or two on one database; they do not run yet."""
    if request.param == "SQLite":
        yield [ProvisioningService.copied(tmp_path / "fleet", SETTINGS)]
        return
    server: PostgresqlServer = request.getfixturevalue("postgresql")
    with ProvisioningService.copied_on(server, tmp_path / "fleet", SETTINGS) as one:
        shutil.copytree(one.dir, tmp_path / "other")
        yield [one, ProvisioningService(tmp_path / "other", {**SETTINGS, "database_url": one.database_url})]


def trouble(services: list[ProvisioningService], fleet: ToldFleet) -> None:
    """Kill services, fill the disk of one that has it for itself, end sessions of others, at random moments."""
    moments = random.Random(SEED)
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends or not fleet.states:
        time.sleep(moments.uniform(0.3, 1.2))  # Not for luck: the moment is what is tried.
        service = moments.choice(services)
        way = moments.choice(["kill", "fill", "fill and kill"] if len(services) == 1 else ["kill", "terminate"])
        if way == "terminate":
            service.stored(_TERMINATE)
            continue
        if way != "kill":
            resource.prlimit(service.pid, resource.RLIMIT_FSIZE, _FULL)
            time.sleep(moments.uniform(0.2, 0.8))
        if way == "fill":
            resource.prlimit(service.pid, resource.RLIMIT_FSIZE, _ROOMY)
        else:
            service.stop(signal.SIGKILL)
            service.start()


def test_whatever_happens_at_once_everybody_finds_what_it_was_told(services: list[ProvisioningService]) -> None:
    fleet = ToldFleet(services, SEED)
    with contextlib.ExitStack() as stack, ThreadPoolExecutor() as threads:
        for service in services:
            stack.enter_context(service)
        fleet.found_group()
        working = [threads.submit(fleet.enrol, number) for number in range(DEVICES)]
        working += [threads.submit(fleet.decide, number) for number in range(OPERATORS)]
        working.append(threads.submit(fleet.watch))
        try:
            trouble(services, fleet)
        finally:
            fleet.end()
        for work in working:
            work.result()
        for service in services:
            check(service, fleet)
            assert "Traceback" not in service.log


def check(service: ProvisioningService, fleet: ToldFleet) -> None:
    """Compare what *fleet* was told with what *service* has stored and publishes."""
    rows = service.stored(_CERTIFICATES)
    stored = {serial: (name, bytes(der)) for serial, name, der in rows}
    assert len(stored) == len(rows), "a serial number was used twice"
    assert fleet.certificates.items() <= stored.items(), "handed out, and not recorded"
    assert Counter(name for (name,) in service.stored(_SIGNED)) == Counter(name for name, _ in stored.values())
    spent = service.stored(_SPENT)
    assert len({name for name, _ in spent}) == len({bought for _, bought in spent} - {None}) == len(spent)

    revoked = {serial: (name, reason) for serial, name, reason in service.stored(_REVOKED)}
    events = [number for (number,) in service.stored(_EVENTS)]
    assert events == list(range(1, len(events) + 1)), "a gap in the feed"
    assert UNDECIDED not in fleet.states.values()
    assert {name for name, _ in revoked.values()} <= set(fleet.states), "revoked by nobody"
    for serial, (name, _) in stored.items():
        _, reason = revoked.get(serial, ("", ""))
        state = fleet.states.get(name, "active")
        assert {"active": not reason, "revoked": reason not in ("", "certificateHold")}.get(state, bool(reason)), (
            f"{name} is {state}, its certificate {serial}: {reason or 'good'}"
        )
    wait_until(lambda: fleet.take_list(service) == set(revoked), "the list has all that is revoked")
    done = service.command("audit", "verify", "--dir", str(service.dir))
    assert done.returncode == 0, done.stdout + done.stderr
