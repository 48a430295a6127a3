"""A broker's name whose name servers do not answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from device_sim.credentials.fleet_directory import FleetDirectory, Origin
from provisioning.pki.role import Role
from tests.support.authority import Authority
from tests.support.broker_process import wait_until
from tests.support.slow_names import SLOW_HOST, SlowNames

SOURCE = Path(__file__).parents[3]


def test_a_name_that_is_being_looked_up_keeps_nobody_from_stopping_it(tmp_path: Path) -> None:
    """Ctrl-C was heeded when the library gave up, which takes half a minute and more: it joins its threads."""
    authority, names = Authority(), SlowNames(tmp_path)
    fleet = FleetDirectory.create(tmp_path / "fleet", Origin(), authority.pem, "backend")
    with fleet.changing():
        fleet.keep(authority.issue("backend", role=Role.SERVICE, group=None))
        fleet.keep(authority.issue("meter-0"))
    options = ["--fleet", str(fleet.path), "--devices", "1", "--broker", f"{SLOW_HOST}:8883"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), **names.environment}
    command = [sys.executable, "-m", "device_sim", "run", "steady", *options]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: names.asked, "the look-up")
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130, said
    assert said.endswith("stopped by SIGINT; nothing is left running\n")
