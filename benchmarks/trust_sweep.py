"""Measure how long one client waits for its PINGRESP while all others are judged below other trust anchors.

    .venv/bin/python benchmarks/trust_sweep.py                    10,000 devices connected, one CA
    .venv/bin/python benchmarks/trust_sweep.py --cas 200          200 CAs of one name, each with 50 of the devices

The longest wait is the longest pause of the broker's event loop, in which the probe comes last at worst. What is done
before the sweep (reading the anchors, and building TLS contexts of them) counts as well; it grows with the CAs, too.

Rules
-----
1. Each reload adds a CA, so that it changes something; a lost connection fails the run.
2. With several CAs each is an anchor, and so is its root; all have the same two names.
"""

from __future__ import annotations

import argparse
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import command
import pki
from mqload import Load
from own_broker import LIMITS, OwnBroker
from peers import free_port
from rich.console import Console
from rich.table import Table

from broker.mqtt.codes import ProtocolVersion
from broker.mqtt.connect import Connect
from broker.mqtt.publish import PINGREQ, PINGRESP
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from provisioning.pki.tls import CredentialFiles, client_context

_SMOKE = ("--devices", "60", "--rounds", "1", "--cas", "2")
_READ = 4096


class _Probe:
    """A client that pings without a pause."""

    def __init__(self, made: pki.BenchPki, port: int) -> None:
        credential = CredentialFiles(made.probes / "p00001.crt", made.probes / "p00001.key")
        context = client_context(made.trust_anchors.read_text(), credential)
        self._socket = context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost")
        self._socket.sendall(Connect("p00001", keep_alive=0).encode(ProtocolVersion.V311))
        self._socket.recv(_READ)

    def longest_during(self, act: Callable[[], None]) -> float:
        """Return the longest wait for an answer while *act* runs in another thread, in seconds."""
        acting = threading.Thread(target=act)
        acting.start()
        longest = 0.0
        while acting.is_alive():
            asked = time.perf_counter()
            self._socket.sendall(PINGREQ)
            if self._socket.recv(_READ) != PINGRESP:
                raise command.Failed("the probe's connection was lost")
            longest = max(longest, time.perf_counter() - asked)
        acting.join()
        return longest


def measure(options: argparse.Namespace, folder: Path, console: Console) -> dict[str, Any]:
    """Connect all, and reload the anchors several times."""
    made = pki.create(folder, 0, 1)
    pairs = [pki.Authority.create_pair() for _ in range(options.cas)]
    anchors = made.trust_anchors.read_bytes() + b"".join(each.pem for pair in pairs for each in pair)
    made.trust_anchors.write_bytes(anchors)
    console.print(f"{options.devices} devices get their certificates from {options.cas} CAs")
    for number in range(options.devices):
        identity = Identity(pki.TRUST_DOMAIN, Role.DEVICE, f"d{number + 1:05}", pki.GROUP)
        pairs[number % options.cas][1].issue(identity, made.devices / identity.name)
    broker = OwnBroker(made, folder, free_port(), compiled=options.compiled)
    broker.write_configuration(LIMITS, watch_files="false", crlfile="[]", unsafe_no_revocation="true")
    arguments: list[str | Path] = [
        *("-p", str(broker.port), "-a", made.trust_anchors, "-D", made.devices, "-n", str(options.devices)),
        *("-C", made.backend.certificate, "-K", made.backend.key, "-I", pki.BACKEND, "-s", "1", "-m", "1", "-r", "1"),
        *("-t", f"fleet/{pki.GROUP}/%s/telemetry", "-f", f"fleet/{pki.GROUP}/+/telemetry"),
    ]
    with broker.start(), Load(arguments, folder / "load.log") as load, broker.admin() as admin:
        connected = load.phase("connect")["up"]
        console.print(f"{connected} clients connected")
        probe = _Probe(made, broker.port)
        idle = probe.longest_during(lambda: time.sleep(1))
        waits: list[float] = []
        seconds: list[float] = []

        def reload() -> None:
            begun = time.monotonic()
            [outcome] = admin.post("/v1/reload", {"parts": ["trust"]})["parts"]
            seconds.append(time.monotonic() - begun if outcome["outcome"] == "reloaded" else -1.0)

        for _ in range(options.rounds):
            made.trust_anchors.write_bytes(made.trust_anchors.read_bytes() + pki.Authority.create_pair()[0].pem)
            waits.append(probe.longest_during(reload))
        if min(seconds) < 0:
            raise command.Failed("a reload was refused, or changed nothing")
        left = admin.get("/v1/status")["connected"]
    if left != connected + 1:
        raise command.Failed(f"of {connected + 1} connections {left} are left")
    return {
        "devices": options.devices,
        "cas": options.cas,
        "compiled": options.compiled,
        "idle_ms": round(idle * 1e3, 1),
        "pause_ms": [round(each * 1e3, 1) for each in sorted(waits)],
        "reload_ms": [round(each * 1e3) for each in sorted(seconds)],
    }


def show(console: Console, figures: Mapping[str, Any]) -> None:
    """Print the table."""
    table = Table("figure", "value", title=f"{figures['devices']:,} devices below {figures['cas']} CAs of one name")
    table.columns[1].justify = "right"
    table.add_row("longest wait in an idle second", f"{figures['idle_ms']} ms")
    table.add_row("longest wait during each reload", f"{figures['pause_ms']} ms")
    table.add_row("each reload", f"{figures['reload_ms']} ms")
    console.print(table)


def main() -> int:
    """Measure what the command line asks for; return the exit code."""
    made = command.parser(__doc__ or "")
    made.add_argument("--devices", type=command.count, default=10_000, help="connected devices (10000)")
    made.add_argument("--cas", type=command.count, default=1, help="CAs of one name, all of them anchors (1)")
    made.add_argument("--rounds", type=command.count, default=5, help="reloads (5)")
    options = command.parse(made, _SMOKE)
    return command.run("trust_sweep", options, options.devices, measure, show)


if __name__ == "__main__":
    sys.exit(main())
