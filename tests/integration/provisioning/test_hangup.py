"""SIGHUP: settings are read anew where that is safe, a terminal's end is an orderly one, and nohup is nohup."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.broker_process import wait_until
from tests.support.on_a_terminal import exit_code, first_line, on_a_terminal
from tests.support.postgresql import PostgresqlServer
from tests.support.prepared_fleet import PASSPHRASE
from tests.support.provisioning import REPOSITORY, ProvisioningService
from tests.support.workers import workers_of

PROFILE = '[profiles.short]\nrole = "device"\nlife = "PT2H"\n'
RELOADED, REFUSED = "settings reloaded", "settings not reloaded: all stays as it was"
LATER = "changed settings take effect at the next start"


def said(log: str, event: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [each for each in lines if each["event"] == event]


def hang_up(service: ProvisioningService, *events: str) -> None:
    """Send SIGHUP and wait until the service has said these once more."""
    before = {each: len(said(service.log, each)) for each in events}
    os.kill(service.pid, signal.SIGHUP)
    wait_until(lambda: all(len(said(service.log, each)) > before[each] for each in events), ", ".join(events))


def new_group(service: ProvisioningService, name: str) -> str:
    """Order a group with the profile; return its name, or why there is none."""
    answer = service.post("/v1/groups", name=name, profile="short", ways=["token"]).json()
    return str(answer.get("detail") or answer["name"])


def test_profiles_are_taken_over_and_what_is_wrong_changes_nothing(tmp_path: Path) -> None:
    with ProvisioningService.copied(tmp_path / "fleet") as service:
        file = service.dir / "provisioning.toml"
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        assert "short" in new_group(service, "north"), "there is no such profile"
        file.write_text('crl_life = "P2D"\n' + before + PROFILE, encoding="utf-8")
        hang_up(service, RELOADED, LATER)
        assert said(service.log, RELOADED)[-1]["changed"] == ["profiles"]
        assert said(service.log, LATER)[-1]["settings"] == ["crl_life"]
        assert new_group(service, "north") == "north"

        file.write_text(before + '[profiles.short]\nrole = "nobody"\n', encoding="utf-8")
        hang_up(service, REFUSED)
        assert "profiles.short" in str(said(service.log, REFUSED)[-1]["detail"])
        assert new_group(service, "south") == "south", "what counted before counts"

        file.unlink()
        hang_up(service, REFUSED)
        assert "provisioning.toml is gone: put it back" in str(said(service.log, REFUSED)[-1]["detail"])
        file.mkdir()
        hang_up(service, REFUSED)
        assert "provisioning.toml leads to no file: write one, or remove it" in str(
            said(service.log, REFUSED)[-1]["detail"]
        )
        file.rmdir()
        assert new_group(service, "east") == "east"

        file.write_text(before + PROFILE, encoding="utf-8")
        hang_up(service, RELOADED)
        assert said(service.log, RELOADED)[-1]["changed"] == []
        assert service.stop() == 0


def test_workers_reload_all_of_them(postgresql: PostgresqlServer, tmp_path: Path) -> None:
    with ProvisioningService.copied_on(postgresql, tmp_path / "fleet", {"workers": 2}) as idle, idle as service:
        workers = workers_of(service.pid)
        (service.dir / "provisioning.toml").write_text(PROFILE, encoding="utf-8")
        os.kill(service.pid, signal.SIGHUP)
        wait_until(lambda: {each["worker"] for each in said(service.log, RELOADED)} == {1, 2}, "both reload")
        assert workers_of(service.pid) == workers
        assert service.stop() == 0


def test_a_worker_in_another_s_place_has_the_settings_of_the_others(
    postgresql: PostgresqlServer, tmp_path: Path
) -> None:
    with ProvisioningService.copied_on(postgresql, tmp_path / "fleet", {"workers": 2}) as idle, idle as service:
        (service.dir / "provisioning.toml").write_text(PROFILE, encoding="utf-8")
        os.kill(service.pid, signal.SIGHUP)
        wait_until(lambda: {each["worker"] for each in said(service.log, RELOADED)} == {1, 2}, "both reload")
        (service.dir / "provisioning.toml").write_text("what is this", encoding="utf-8")
        os.kill(service.pid, signal.SIGHUP)
        wait_until(lambda: {each["worker"] for each in said(service.log, REFUSED)} == {1, 2}, "both say so")
        for pid in workers_of(service.pid):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(said(service.log, "worker is back")) == 2, "others in their places")
        assert new_group(service, "north") == "north"
        again = said(service.log, RELOADED)[2:]
        assert {each["worker"] for each in again} == {1, 2}
        assert [each["changed"] for each in again] == [["profiles"]] * 2
        assert service.stop() == 0


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    ProvisioningService.copied(tmp_path / "fleet")
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "FLEET_PROVISIONING_PASSPHRASE": PASSPHRASE}


def command(tmp_path: Path) -> list[str]:
    where = ["--dir", str(tmp_path / "fleet"), "--port", "0", "--http-port", "0"]
    return [sys.executable, "-m", "provisioning", "serve", *where]


def test_a_service_ends_in_order_with_its_terminal_and_reloads_while_that_is_there(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    log = tmp_path / "log"
    with on_a_terminal(command(tmp_path), environment, log) as (pid, terminal):
        first_line(terminal)
        os.kill(pid, signal.SIGHUP)
        wait_until(lambda: said(log.read_text(), RELOADED), RELOADED)
        os.close(terminal)
        assert exit_code(pid) == 0
    assert [bool(said(log.read_text(), each)) for each in ("the terminal is gone", "stopping")] == [True, True]


def test_nohup_is_nohup(tmp_path: Path, environment: dict[str, str]) -> None:
    log = tmp_path / "log"
    with log.open("wb") as errors:
        service = subprocess.Popen(["nohup", *command(tmp_path)], env=environment, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=errors)  # fmt: skip
    assert service.stdout is not None
    try:
        assert service.stdout.readline().startswith(b"fleet-provisioning ready")
        status = Path(f"/proc/{service.pid}/status").read_text()
        ignored = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn")), 16)
        assert ignored & 1 << signal.SIGHUP - 1
        service.send_signal(signal.SIGHUP)
        service.terminate()
        assert service.wait(timeout=30) == 0
    finally:
        service.kill()
        service.wait()
        service.stdout.close()
    assert said(log.read_text(), RELOADED) == []
