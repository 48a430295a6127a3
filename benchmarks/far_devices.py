"""Devices at the far end of bad links: do they get in, and how long does it take? Needs root and mosquitto's clients.

    .venv/bin/python benchmarks/far_devices.py                      some minutes
    … --handshake-timeout 30 --connect-timeout 15                   with longer limits
    … --link "600 ms, 10 %, 20 kbit/s" --devices 6 --attempts 5     one link

Each device has a network namespace, and with it a link, of its own (`bad_links`). It connects with mosquitto_pub,
publishes one message with QoS 1 and leaves: TCP, TLS 1.3 with a full handshake, CONNECT, PUBLISH, DISCONNECT. The
seconds are those of the whole program. A link's losses are those of each direction. See docs/cellular-links.md.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import command
import pki
from bad_links import Line, Network
from foreign_peers import program
from own_broker import OwnBroker
from peers import free_port, ready_line
from processes import Child
from rich.console import Console
from rich.table import Table

LINKS: Final[Mapping[str, Line]] = {
    "600 ms": Line(delay=0.3),
    "600 ms, 10 %": Line(delay=0.3, jitter=0.05, loss=0.1, double=0.02, late=0.05),
    "600 ms, 5 %, 20 kbit/s": Line(delay=0.3, loss=0.05, double=0.02, late=0.05, rate=20_000),
    "600 ms, 10 %, 20 kbit/s": Line(delay=0.3, loss=0.1, double=0.02, late=0.05, rate=20_000),
    "packets above 576 bytes vanish": Line(delay=0.3, largest=576),
}
_SMOKE = ("--devices", "1", "--attempts", "1", "--link", "600 ms")
_PATIENCE_SECONDS: Final = 90


def measure(options: argparse.Namespace, folder: Path, console: Console) -> dict[str, Any]:
    """Let each device connect over each link, as often as asked."""
    if os.geteuid() != 0:
        raise command.Failed("network namespaces need root")
    return asyncio.run(_measure(options, folder, console))


async def _measure(options: argparse.Namespace, folder: Path, console: Console) -> dict[str, Any]:
    made = pki.create(folder, options.devices, 1)
    fields = [f"field{number}" for number in range(options.devices)]
    found: dict[str, Any] = {}
    async with Network("broker", *fields) as network:
        broker = OwnBroker(made, folder, free_port())
        broker.write_configuration(
            f"[limits]\nhandshake_timeout = {options.handshake_timeout}\nconnect_timeout = {options.connect_timeout}\n",
            host='"0.0.0.0"',
            unsafe_public_listener="true",
        )
        run = network.inside("broker", [sys.executable, "-m", "broker", "run", "--config", broker.configuration])
        with Child(run, folder / "broker.log") as running:
            await asyncio.to_thread(ready_line, running, "fleet-broker")
            for name in options.link or LINKS:
                for field in fields:
                    network.between(field, "broker", LINKS[name])
                visits = [_visits(network, field, made, broker.port, options.attempts) for field in fields]
                seconds = [each for some in await asyncio.gather(*visits) for each in some]
                found[name] = {"attempts": len(seconds), "seconds": sorted(each for each in seconds if each)}
                console.print(f"{name}: {len(found[name]['seconds'])} of {len(seconds)}")
    return {"links": found, "handshake_timeout": options.handshake_timeout, "connect_timeout": options.connect_timeout}


async def _visits(network: Network, field: str, made: pki.BenchPki, port: int, attempts: int) -> list[float]:
    """Return how long each attempt took, 0 for one that failed."""
    stem = sorted(made.devices.glob("*.crt"))[int(field.removeprefix("field"))]
    visit: list[str | Path] = [
        *(program("mosquitto_pub", "mosquitto-clients"), "-V", "5", "-i", stem.stem, "-q", "1", "-m", "x"),
        *("-h", network.address("broker"), "-p", str(port), "-t", f"fleet/{pki.GROUP}/{stem.stem}/telemetry"),
        *("--cafile", made.trust_anchors, "--insecure", "--cert", stem, "--key", stem.with_suffix(".key")),
    ]
    took = []
    for _ in range(attempts):
        begun = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *network.inside(field, visit), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                succeeded = await process.wait() == 0
        except TimeoutError:
            succeeded = False
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        took.append(time.monotonic() - begun if succeeded else 0.0)
    return took


def show(console: Console, figures: Mapping[str, Any]) -> None:
    """Print the table."""
    limits = f"handshake_timeout {figures['handshake_timeout']}, connect_timeout {figures['connect_timeout']}"
    table = Table("round trip, losses, rate", "succeed", "median, s", "longest, s", title=f"mosquitto_pub, {limits}")
    for name, link in figures["links"].items():
        seconds = link["seconds"]
        times = [f"{seconds[len(seconds) // 2]:.1f}", f"{seconds[-1]:.1f}"] if seconds else ["", ""]
        table.add_row(name, f"{len(seconds)} of {link['attempts']}", *times)
    console.print(table)


def main() -> int:
    """Measure what the command line asks for; return the exit code."""
    made = command.parser(__doc__ or "", compiled=False)
    made.add_argument("--devices", type=command.count, default=6, help="side by side (6)")
    made.add_argument("--attempts", type=command.count, default=5, help="of each device over each link (5)")
    made.add_argument(
        "--link", action="append", choices=LINKS, metavar="LINK", help="; ".join(LINKS).replace("%", "%%")
    )
    made.add_argument("--handshake-timeout", type=command.count, default=10, help="the broker's limit (10)")
    made.add_argument("--connect-timeout", type=command.count, default=5, help="the same (5)")
    options = command.parse(made, _SMOKE)
    return command.run("far_devices", options, options.devices, measure, show)


if __name__ == "__main__":
    sys.exit(main())
