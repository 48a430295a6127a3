"""Both services under the service manager that deploy/systemd describes: what they tell it, and a disk they cannot use.

systemd itself is not needed: its socket is a datagram socket, and what it makes read-only is a mount.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.broker_process import BrokerProcess
from tests.support.notified import Notified
from tests.support.pki import Pki
from tests.support.postgresql import PostgresqlServer
from tests.support.provisioning import REPOSITORY, ProvisioningService

WATCHED = {"WATCHDOG_USEC": "300000"}


def _can_mount() -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    tried = ["unshare", "--mount", "mount", "--bind", "/tmp", "/tmp"]  # noqa: S108 - any directory
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


of_root = pytest.mark.skipif(not _can_mount(), reason="this user may not mount")


def with_read_only(place: Path, *command: str, **environment: str) -> tuple[int, str]:
    """Run *command*, ours, where *place* is mounted read-only; return its exit code and messages."""
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(place), sys.executable, *command],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def pki() -> Pki:
    return Pki()


def heard_out(heard: Notified, stop: Callable[[], int]) -> None:
    """See that *heard* is told of readiness, life and the end that *stop* causes."""
    assert set(heard.until("READY=1")) <= {"WATCHDOG=1"}
    assert heard.next() == "WATCHDOG=1"
    assert stop() == 0
    assert set(heard.until("STOPPING=1")) <= {"WATCHDOG=1"}


def test_the_broker_says_when_it_is_ready_alive_and_ending(tmp_path: Path, pki: Pki) -> None:
    with Notified() as heard:
        broker = BrokerProcess.with_files(tmp_path / "broker", pki).afresh()
        broker.environment |= {**heard.environment, **WATCHED}
        with broker:
            heard_out(heard, broker.stop)


def test_provisioning_says_when_it_is_ready_alive_and_ending(tmp_path: Path) -> None:
    with Notified() as heard:
        service = ProvisioningService.copied(tmp_path / "ca", afresh=True)
        service.set(**heard.environment, **WATCHED)
        with service:
            heard_out(heard, service.stop)


def test_the_supervisor_speaks_for_its_workers(tmp_path: Path, postgresql: PostgresqlServer) -> None:
    with (
        Notified() as heard,
        ProvisioningService.copied_on(postgresql, tmp_path / "ca", {"workers": 2}, afresh=True) as service,
    ):
        service.set(**heard.environment, **WATCHED)
        with service:
            heard_out(heard, service.stop)


def test_who_cannot_start_has_not_said_that_it_is_ready(tmp_path: Path, pki: Pki) -> None:
    with Notified() as heard:
        broker = BrokerProcess.with_files(tmp_path / "broker", pki).afresh()
        (broker.dir / "state").mkdir()
        (broker.dir / "state" / "broker.db").write_text("no database at all" * 100)
        broker.environment |= heard.environment
        assert broker.fail()[0] == 1
        heard.say("the end")
        assert "READY=1" not in heard.until("the end")


@of_root
@pytest.mark.parametrize("only_test", [True, False])
def test_a_broker_whose_disk_is_read_only_says_that(tmp_path: Path, pki: Pki, only_test: bool) -> None:
    broker = BrokerProcess.with_files(tmp_path / "broker", pki)
    state = broker.dir / "state"
    with broker:
        pass
    flags = ["--test-config"] if only_test else []
    code, said = with_read_only(state, "-m", "broker", *broker.arguments, *flags)
    assert code == (2 if only_test else 1)
    assert f"{state} is on a file system that is read-only here: mount it writable, or if only this service" in said
    assert "Traceback" not in said
    assert "owner" not in said


@of_root
def test_a_provisioning_service_whose_disk_is_read_only_says_that(tmp_path: Path) -> None:
    service = ProvisioningService.copied(tmp_path / "ca")
    arguments = ["serve", "--dir", str(service.dir), "--port", "0", "--http-port", "0"]
    code, said = with_read_only(service.dir, "-m", "provisioning", *arguments, **service.environment)
    assert code == 1
    assert f"fleet.db cannot be used: {service.dir} is on a file system that is read-only here: mount it" in said
    assert "Traceback" not in said


def test_a_signal_from_elsewhere_is_told_too(tmp_path: Path) -> None:
    with Notified() as heard:
        service = ProvisioningService.copied(tmp_path / "ca", afresh=True)
        service.set(**heard.environment)
        with service:
            os.kill(service.pid, signal.SIGINT)
            assert heard.until("STOPPING=1") == ["READY=1"]
