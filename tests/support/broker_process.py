"""A real broker in a process of its own, with certificates from files or from a real provisioning service.

    with BrokerProcess.with_files(tmp_path, pki) as broker: …
    with BrokerProcess.enrolled(tmp_path, service) as broker: …
        broker.port, broker.log, broker.events("REVOKED")

The port is a free one and changes with every start; the state directory stays, so a broker can be stopped, killed and
restarted, also at the port that it had: nobody else is given that meanwhile (`free_port`). `tests.support.programs`
explains processes; a broker whose start, memory or processor time is tested has its own interpreter:
``BrokerProcess.with_files(…).afresh()``.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self

from device_sim.stage.foreign_process import free_port
from tests.support import programs
from tests.support.pki import Pki
from tests.support.provisioning import ProvisioningService
from tests.support.ready_line import ready_line

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 60.0
"""Seconds: how long anything may take on a machine busy with other tests. Nothing that works takes so long."""
_ANY_PORT = ["--port", "0"]


def wait_until(condition: Callable[[], Any], what: str, patience: float = PATIENCE, pause: float = 0.01) -> Any:
    """Return the result of *condition* as soon as it is true.

    A condition that is costly to check, by a process or a TLS handshake, is checked less often, to leave the processor
    to the work awaited. *pause*: minimum seconds between two checks, if it will take long.
    """
    deadline = time.monotonic() + patience
    while True:
        asked = time.monotonic()
        if outcome := condition():
            return outcome
        now = time.monotonic()
        assert now < deadline, f"{what}: not within {patience:g} s"
        time.sleep(min(max(pause, 3 * (now - asked)), 0.5))


class Located(Protocol):
    """A provisioning service, as far as a broker is told of it."""

    @property
    def https(self) -> str:
        """Its URL."""


class BrokerProcess:
    """One broker: its state directory, and, while it runs, where it listens. *settings* go into its environment."""

    def __init__(self, directory: Path, arguments: list[str], settings: Mapping[str, object] | None = None) -> None:
        directory.mkdir(exist_ok=True, parents=True)
        self.dir = directory
        self.port = 0
        self.urls: list[str] = []
        """Where it listens, in the order of the ready line; the first is MQTT over TLS, `port`."""
        self.arguments = ["run", *_ANY_PORT, "--state-dir", str(directory / "state"), *arguments]
        self.environment = os.environ | {
            "PYTHONPATH": str(REPOSITORY),
            # A waiting test retries more often than a device would.
            "FLEET_BROKER_LIMITS__FLAPPING_COUNT": "0",
            "FLEET_BROKER_LIMITS__MAX_CONNECTS_PER_IDENTITY": "0",
            **{f"FLEET_BROKER_{name.upper()}": str(value) for name, value in (settings or {}).items()},
        }
        self._afresh = False
        self._process: programs.Process | None = None

    @classmethod
    def with_files(cls, directory: Path, pki: Pki, *arguments: str, **settings: object) -> Self:
        """Return a broker with a certificate of *pki* and no source of revocations; it does not run yet."""
        directory.mkdir(exist_ok=True, parents=True)
        files = pki.broker().write(directory)
        anchors = pki.write_anchors(directory)
        own = ["--certfile", str(files.certificate), "--keyfile", str(files.key), "--cafile", str(anchors)]
        return cls(directory, [*own, "--unsafe-no-revocation", *arguments], settings)

    @classmethod
    def with_lists(
        cls, directory: Path, pki: Pki, *arguments: str, anchors: bytes | None = None, **settings: object
    ) -> Self:
        """Return a broker with a certificate of *pki* whose revocations come from CRLs that the *settings* name."""
        directory.mkdir(exist_ok=True, parents=True)
        files = pki.broker().write(directory)
        trusted = pki.write_anchors(directory)
        if anchors is not None:
            trusted.write_bytes(anchors)
        own = ["--certfile", str(files.certificate), "--keyfile", str(files.key), "--cafile", str(trusted)]
        return cls(directory, [*own, *arguments], {"crl_check_seconds": 0.05, **settings})

    @classmethod
    def enrolled(
        cls,
        directory: Path,
        service: ProvisioningService,
        *arguments: str,
        lifetime_seconds: int | None = None,
        **settings: object,
    ) -> Self:
        """Return a broker that will enrol at *service* when it starts."""
        order: dict[str, Any] = {"device": f"broker-{directory.name}", "role": "broker"}
        order |= {"dns_names": ["localhost"], "ip_addresses": ["127.0.0.1"]}
        if lifetime_seconds is not None:
            order["lifetime_seconds"] = lifetime_seconds
        broker = cls(directory, [*arguments], settings)
        token = directory / "token"
        token.write_text(service.token(**order))
        broker.arguments += ["--name", order["device"], "--token-file", str(token), "--cafile", str(service.bundle)]
        broker.follow(service)
        return broker

    def follow(self, service: Located) -> None:
        """From the next start on, use the current address of *service*."""
        if "--provisioning" in self.arguments:
            index = self.arguments.index("--provisioning")
            del self.arguments[index : index + 2]
        self.arguments += ["--provisioning", service.https]

    def afresh(self) -> Self:
        """Give every process of this broker its own interpreter."""
        self._afresh = True
        return self

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What the broker has logged since it was first started."""
        return self._log_path.read_text(encoding="utf-8") if self._log_path.exists() else ""

    @property
    def _log_path(self) -> Path:
        return self.dir / "broker.log"

    def events(self, code: str, **facts: object) -> list[dict[str, Any]]:
        """Return the log events with *code*, or with that name, and these *facts*."""
        return [
            event
            for event in self._events()
            if code in (event.get("code"), event["event"]) and all(event.get(k) == v for k, v in facts.items())
        ]

    def told(self) -> list[dict[str, Any]]:
        """Return all log events but that it stood still: a busy machine makes a broker do so, whatever is tested."""
        return [event for event in self._events() if event.get("code") != "STOOD_STILL"]

    def _events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{") and line.endswith("}")]

    def resident_kib(self) -> int:
        """Return the memory that the process holds."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise AssertionError("no VmRSS")

    def cpu_seconds(self) -> float:
        """Return how much processor time the process has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def start(self) -> Self:
        """Start the process and wait until it is ready."""
        self.launch()
        assert self._process is not None
        line = ready_line(self._process.stdout, PATIENCE, lambda: self.log)
        assert line.startswith(("fleet-broker ready mqtts://127.0.0.1:", "fleet-broker ready mqtts://[::1]:")), (
            f"{line!r}\n{self.log}"
        )
        self.urls = line.removeprefix("fleet-broker ready ").split()
        self.port = int(self.urls[0].rpartition(":")[2])
        return self

    def launch(self) -> None:
        """Start the process."""
        arguments = list(self.arguments)
        if arguments[1:3] == _ANY_PORT:
            arguments[2] = str(free_port())
        with self._log_path.open("ab") as log:
            self._process = programs.start("broker", arguments, self.environment, log, afresh=self._afresh)

    def fail(self) -> tuple[int, str]:
        """Start a broker that is expected to fail; return its exit code and output."""
        done = programs.run("broker", self.arguments, self.environment, timeout=PATIENCE, afresh=self._afresh)
        assert done.stdout == ""
        return done.returncode, done.stderr

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal, wait for the end, and return the exit code (negative: the signal that killed it)."""
        process, self._process = self._process, None
        assert process is not None
        process.send_signal(number)
        try:
            return process.wait(timeout=PATIENCE)
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_error: object) -> None:
        if self._process is not None:
            self.stop()
