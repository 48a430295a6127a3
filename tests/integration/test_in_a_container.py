"""docs/container.md, "Any other way": what a container's programs have, and nothing else, is all that ours need.

Each program is process 1 of a process namespace of its own, without a capability, its root file system is read-only but
for one directory, and its environment has a path and our settings. Namespaces stand for the container's runtime.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.broker_process import wait_until
from tests.support.provisioning import REPOSITORY

PROGRAMS = {"fleet-provisioning": "provisioning", "fleet-broker": "broker", "fleet-sim": "device_sim"}
STOP_SECONDS = 30
"""What Kubernetes gives by default."""
INSIDE = """
mount --bind "$1" "$1" && mount -o remount,bind,ro / && cd / || exit 125
touch "$2/written" 2> /dev/null && { rm "$2/written"; exit 126; }
shift 2
exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all -- "$@"
"""


def _unshare() -> list[str]:
    of_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return [
        "unshare",
        *of_root,
        "--mount",
        "--propagation",
        "private",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]


def _cannot() -> bool:
    if not (shutil.which("unshare") and shutil.which("setpriv")):
        return True
    tried = [*_unshare(), "sh", "-c", "mount --bind /tmp /tmp"]
    return subprocess.run(tried, capture_output=True, check=False).returncode != 0


pytestmark = pytest.mark.skipif(_cannot(), reason="this user may make no namespaces")


class Container:
    """A program's container: what it may write, and its settings."""

    def __init__(self, directory: Path, settings: dict[str, str]) -> None:
        directory.mkdir(mode=0o700)
        self.directory = directory
        self.environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), **settings}

    def command(self, program: str, *arguments: str) -> list[str]:
        inside = [sys.executable, "-m", PROGRAMS[program], *arguments]
        return [*_unshare(), "sh", "-c", INSIDE, "sh", str(self.directory), str(REPOSITORY), *inside]

    def run(self, program: str, *arguments: str, may: tuple[int, ...] = (0,)) -> str:
        done = subprocess.run(
            self.command(program, *arguments), env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode in may, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def running(self, program: str, *arguments: str, log: Path) -> Iterator[list[str]]:
        """Yield the addresses of the ready line; then SIGTERM, as a runtime sends it to process 1, and exit code 0."""
        with log.open("w") as errors:
            process = subprocess.Popen(
                self.command(program, *arguments),
                env=self.environment, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
        try:
            assert process.stdout is not None
            ready = process.stdout.readline().split()
            assert ready[:2] == [program, "ready"], log.read_text()
            yield ready[2:]
            (first,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(first), signal.SIGTERM)
            assert process.wait(STOP_SECONDS) == 0
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        lines = log.read_text().splitlines()
        assert lines
        assert all({"event", "level", "timestamp"} <= json.loads(line).keys() for line in lines), log.read_text()


def probe(url: str, path: str) -> tuple[int, object]:
    answer = httpx.get(f"{url}{path}", trust_env=False)
    return answer.status_code, answer.json()


def test_the_programs_need_a_directory_their_settings_and_no_more(tmp_path: Path) -> None:
    secret = tmp_path / "passphrase"
    secret.write_text("of a test")
    service = Container(
        tmp_path / "ca",
        {
            "FLEET_PROVISIONING_DIRECTORY": str(tmp_path / "ca" / "fleet"),
            "FLEET_PROVISIONING_PASSPHRASE_FILE": str(secret),
            "FLEET_PROVISIONING_PORT": "0",
            "FLEET_PROVISIONING_HTTP_PORT": "0",
            "FLEET_PROVISIONING_HOST": "0.0.0.0",
            "FLEET_PROVISIONING_PUBLIC_LISTENER": "true",
            "FLEET_PROVISIONING_SERVER_NAMES": "ca.example.org, localhost",
        },
    )
    service.run("fleet-provisioning", "init")
    fleet = tmp_path / "ca" / "fleet"
    with service.running("fleet-provisioning", "serve", log=tmp_path / "ca.log") as urls:
        https, http = (url.replace("0.0.0.0", "localhost") for url in urls)
        assert probe(http, "/healthz") == (200, {"status": "ok"})
        assert probe(http, "/readyz")[0] == 200
        token = ("--device", "broker-1", "--role", "broker", "--dns-name", "localhost")
        (tmp_path / "broker.token").write_text(service.run("fleet-provisioning", "token", "create", *token))
        broker = Container(
            tmp_path / "mqtt",
            {
                "FLEET_BROKER_CAFILE": str(fleet / "ca-bundle.crt"),
                "FLEET_BROKER_PROVISIONING": https,
                "FLEET_BROKER_TOKEN_FILE": str(tmp_path / "broker.token"),
                "FLEET_BROKER_STATE_DIR": str(tmp_path / "mqtt" / "state"),
                "FLEET_BROKER_PORT": "0",
                "FLEET_BROKER_METRICS_PORT": "0",
            },
        )
        with broker.running("fleet-broker", "run", log=tmp_path / "mqtt.log") as (mqtts, metrics):
            url = metrics.removesuffix("/metrics")
            assert probe(url, "/healthz") == (200, {"status": "ok"})
            checks = {"newcomers": "ok", "certificate": "ok", "store": "ok", "issuing_cas": "ok", "clock": "ok"}
            ready = (200, {"ready": True, "checks": checks})
            # The feed tells of the CAs behind what it tells of revocations, for which a ready broker has waited.
            wait_until(lambda: probe(url, "/readyz") == ready, "the broker is ready, and knows every CA")
            sim = Container(tmp_path / "sim", {})
            meters = str(tmp_path / "sim" / "meters")
            where = ("--provisioning", https, "--cafile", str(fleet / "ca-bundle.crt"))
            operator = ("--cert", str(fleet / "operator.crt"), "--key", str(fleet / "operator.key"))
            sim.run("fleet-sim", "enrol", meters, "--devices", "2", *where, *operator)
            port = mqtts.rpartition(":")[2]
            load = ("bench", "conn", "-c", "2", "-R", "10", "-d", "1", "-p", port, "--fleet", meters)
            said = sim.run("fleet-sim", *load, may=(0, 3))  # 3: its figures mean nothing on a machine as busy as this.
            assert "2 of 2 clients admitted" in said
            assert json.loads(broker.run("fleet-broker", "status", "--json"))["admitted"] == 2
