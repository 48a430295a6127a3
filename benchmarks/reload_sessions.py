"""Measure what a broker's clients notice while its certificate, trust, lists, policy and limits are replaced.

    .venv/bin/python benchmarks/reload_sessions.py                10,000 devices connected

All devices are connected, and all of them publish to a backend all the time. Meanwhile each part is replaced by an
equivalent one through the admin API, several times; then all of them at once by SIGHUP. Counted are lost connections
(none allowed), lost messages (none), how long a reload takes, and the messages' latency.

Rules
-----
1. A lost connection or message, or a reload that changes nothing or is refused, fails the run.
2. The load generator is a separate process and shares the machine with the broker.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import command
import pki
from mqload import Load
from own_broker import LIMITS, OwnBroker
from peers import free_port
from processes import Child
from rich.console import Console
from rich.table import Table

from broker.admin.client import AdminClient
from broker.admission.policy_file import DEFAULT_POLICY_FILE

_SMOKE = ("--devices", "60", "--rounds", "1", "--rate", "200")
_SECONDS_AT_MOST = 110
_HANGUP_SECONDS = 30
_RELOADED = "reloaded"


class _Files:
    """The broker's input files, and how each is replaced by an equivalent one."""

    def __init__(self, broker: OwnBroker) -> None:
        self._broker = broker
        self._made = broker.pki
        self._turn = 0
        self._policy = broker.folder / "policy.toml"
        self._anchors = self._made.trust_anchors.read_bytes()
        self._policy.write_text(DEFAULT_POLICY_FILE.read_text())
        self.settings()

    def settings(self) -> None:
        """Write the broker's own file with different limits."""
        limits = f"{LIMITS}max_queued_messages = {10_000 + self._turn}\n"
        self._broker.write_configuration(limits, policy_file=f'"{self._policy}"', watch_files="false")

    def certificate(self) -> None:
        """Give the broker another certificate."""
        self._made.renew_server()

    def trust(self) -> None:
        """Trust one more CA."""
        another, _ = pki.Authority.create_pair()
        self._made.trust_anchors.write_bytes(self._anchors + another.pem)

    def policy(self) -> None:
        """Add a rule that applies to no client."""
        rule = f'\n[device.nobody-{self._turn}]\npublish.allow = ["nowhere/#"]\n'
        self._policy.write_text(DEFAULT_POLICY_FILE.read_text() + rule)

    def next_turn(self) -> None:
        """Make the next files differ from the ones before."""
        self._turn += 1


def measure(options: argparse.Namespace, folder: Path, console: Console) -> dict[str, Any]:
    """Connect all, publish, and reload."""
    console.print(f"{options.devices} devices get their certificates")
    made = pki.create(folder, options.devices)
    broker = OwnBroker(made, folder, free_port(), compiled=options.compiled)
    files = _Files(broker)
    arguments: list[str | Path] = [
        *("-p", str(broker.port), "-a", made.trust_anchors, "-D", made.devices, "-n", str(options.devices)),
        *("-C", made.backend.certificate, "-K", made.backend.key, "-I", pki.BACKEND, "-s", "1", "-q", "1"),
        *("-t", f"fleet/{pki.GROUP}/%s/telemetry", "-f", f"fleet/{pki.GROUP}/+/telemetry"),
        *("-m", str(options.rate * _SECONDS_AT_MOST), "-r", str(options.rate)),
    ]
    with broker.start() as running, Load(arguments, folder / "load.log") as load, broker.admin() as admin:
        connected = load.phase("connect")["up"]
        console.print(f"{connected} clients connected")
        load.proceed()
        seconds: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            for part, write in _parts(files):
                files.next_turn()
                write()
                seconds.setdefault(part, []).append(_reload(admin, part))
        files.next_turn()
        for _, write in _parts(files):
            write()
        seconds["all, by SIGHUP"] = [_hang_up(running, admin)]
        load.proceed()
        said = load.phase("messages")
        status = admin.get("/v1/status")
    if said["lost_connections"] or status["connected"] != connected:
        raise command.Failed(f"{said['lost_connections']} connections were lost, {status['connected']} are left")
    if said["received"] != said["expected"] or said["acknowledged"] != said["sent"]:
        raise command.Failed(f"{said['received']} of {said['expected']} messages were received")
    return {
        "devices": options.devices,
        "compiled": options.compiled,
        "reloads": sum(map(len, seconds.values())),
        "dropped": 0,
        "seconds": {part: round(max(each), 4) for part, each in seconds.items()},
        "messages": said["received"],
        "message_ms_p50": said["latency_ms_p50"],
        "message_ms_p99": said["latency_ms_p99"],
        "message_ms_max": said["latency_ms_max"],
    }


def _parts(files: _Files) -> list[tuple[str, Callable[[], None]]]:
    return [
        ("certificate", files.certificate),
        ("trust", files.trust),
        ("policy", files.policy),
        ("limits", files.settings),
    ]


def _reload(admin: AdminClient, part: str) -> float:
    """Reload one part; return the seconds until it applies, including to connected clients."""
    begun = time.monotonic()
    [outcome] = admin.post("/v1/reload", {"parts": [part]})["parts"]
    if outcome["outcome"] != _RELOADED:
        raise command.Failed(outcome["text"])
    return time.monotonic() - begun


def _hang_up(running: Child, admin: AdminClient) -> float:
    """Reload everything by SIGHUP; return the seconds until a dry run finds no change."""
    begun = time.monotonic()
    os.kill(running.pid, signal.SIGHUP)
    while time.monotonic() - begun < _HANGUP_SECONDS:
        parts = admin.post("/v1/reload", {"dry_run": True})["parts"]
        if all(each["outcome"] == "unchanged" for each in parts):
            return time.monotonic() - begun
        time.sleep(0.05)
    raise running.failed("did not reload after SIGHUP")


def show(console: Console, figures: Mapping[str, Any]) -> None:
    """Print the table."""
    table = Table("figure", "value", title=f"reloading with {figures['devices']:,} devices connected")
    table.columns[1].justify = "right"
    table.add_row(f"connections dropped by {figures['reloads']} reloads", f"{figures['dropped']}")
    for part, seconds in figures["seconds"].items():
        table.add_row(f"longest reload: {part}", f"{seconds * 1e3:,.0f} ms")
    latencies = " ".join(f"{figures[f'message_ms_{which}']:.1f}" for which in ("p50", "p99", "max"))
    table.add_row(f"message ({figures['messages']:,} meanwhile, QoS 1): p50, p99, largest", f"{latencies} ms")
    console.print(table)


def main() -> int:
    """Measure what the command line asks for; return the exit code."""
    made = command.parser(__doc__ or "")
    made.add_argument("--devices", type=command.count, default=10_000, help="connected devices (10000)")
    made.add_argument("--rounds", type=command.count, default=3, help="times that each part is replaced (3)")
    made.add_argument("--rate", type=command.count, default=1000, help="messages a second of all devices (1000)")
    options = command.parse(made, _SMOKE)
    return command.run("reload", options, options.devices, measure, show)


if __name__ == "__main__":
    sys.exit(main())
