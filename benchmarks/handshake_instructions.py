"""Count the instructions that a handshake costs, ours and mosquitto's: what no other program on the machine changes.

    .venv/bin/python benchmarks/handshake_instructions.py            200 handshakes each, about two minutes
    .venv/bin/python benchmarks/handshake_instructions.py --compiled

Theory
------
A clock measures a handshake's cost here and now, within a tenth or two; so it cannot tell whether a change saves a
hundredth. Instruction counts can: each broker runs under valgrind (callgrind), is warmed up, and the instructions it
executes between two phases of the load are counted by library and divided by the devices. Under valgrind a handshake
takes a hundred times as long, and what a broker does each second anyway would count for as much more: it is counted for
some seconds without a client, and subtracted by the time that a phase took. Two runs differ by less than a hundredth.

Not included: the kernel, and the time per instruction. An interpreter's instructions are spread over megabytes and wait
for memory more often than OpenSSL's, so a ratio of times is higher than the ratio of counts. valgrind's processor has
AVX2 but no instructions for SHA or long multiplication: OpenSSL's part differs from what yours would execute.

Needs Debian's valgrind. No test runs it: a start takes half a minute.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import command
import peers
import pki
from mqload import Load
from rich.console import Console
from rich.table import Table

_SMOKE = ("--devices", "4")
_WARM_UP = 50
_SETTLE_SECONDS = 2.0
_IDLE_SECONDS = 6.0
_PARTS = {"libcrypto": "OpenSSL", "libssl": "OpenSSL", "libc.so": "C library", "ld-linux": "C library"}
_REST = "all else"
_PHASES = ("full", "resumed", "full again")
"""A device's first handshake, a resumed one, and another full one."""
_COST = re.compile(r"[+\-*]?\d*(?: [+\-*]?\d+)* (\d+)$")


def measure(options: argparse.Namespace, folder: Path, console: Console) -> dict[str, Any]:
    """Count both brokers' phases; return instructions per handshake, by part."""
    if shutil.which("valgrind") is None:
        raise command.Failed("valgrind is not installed. Remedy, as root: apt-get install valgrind")
    console.print(f"{options.devices} devices get their certificates")
    made = pki.create(folder, options.devices, _WARM_UP)
    ours = "fleetgate-compiled" if options.compiled else "fleetgate"
    counted: dict[str, Any] = {}
    for peer in (ours, "mosquitto"):
        console.print(f"{peer} runs under valgrind")
        counted[peer] = _handshakes(made, folder, options.devices, peer)
    return {"devices": options.devices, "ours": ours, "instructions": counted}


def _handshakes(made: pki.BenchPki, folder: Path, devices: int, peer: str) -> dict[str, dict[str, float]]:
    """Return the instruction counts of a handshake with CONNECT in *peer*, of each phase."""
    place = folder / peer
    place.mkdir()
    written = place / "counted"
    under = ("valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={written}")
    with peers.start(peer, made, place, under=under) as server:

        def control(order: str) -> None:
            subprocess.run(["callgrind_control", order, str(server.process.pid)], check=True, capture_output=True)

        whom: tuple[str | Path, ...] = ("-p", str(server.port), "-a", made.trust_anchors)
        with Load([*whom, "-D", made.probes, "-n", str(_WARM_UP)], place / "warm-up.log") as load:
            load.phase("connect")
        control("--instr=on")
        time.sleep(_SETTLE_SECONDS)
        seconds: list[float] = []

        def zero() -> float:
            control("--zero")
            return time.monotonic()

        def dump(since: float) -> None:
            seconds.append(time.monotonic() - since)
            control("--dump")

        began = zero()
        time.sleep(_IDLE_SECONDS)
        dump(began)
        began = zero()
        with Load([*whom, "-D", made.devices, "-n", str(devices), "-R"], place / "load.log") as load:
            load.phase("connect")
            dump(began)
            load.proceed()
            load.phase("closed")
            time.sleep(_SETTLE_SECONDS)
            began = zero()
            load.proceed()
            resumed = load.phase("resume")["resumed"]
            dump(began)
        time.sleep(_SETTLE_SECONDS)
        began = zero()
        with Load([*whom, "-D", made.devices, "-n", str(devices)], place / "again.log") as load:
            load.phase("connect")
            dump(began)
    if resumed != devices:
        raise command.Failed(f"{resumed} of {devices} TLS sessions were resumed")
    idle, *phases = (_by_part(Path(f"{written}.{number}")) for number in range(1, len(seconds) + 1))
    return {
        phase: {part: (count - idle[part] / seconds[0] * took) / devices for part, count in counted.items()}
        for phase, counted, took in zip(_PHASES, phases, seconds[1:], strict=True)
    }


def _by_part(dump: Path) -> Counter[str]:
    """Return the instructions in a callgrind file, by the part they belong to."""
    found: Counter[str] = Counter()
    names: dict[str, str] = {}
    part, inclusive = _REST, False
    with dump.open(errors="replace") as lines:
        for line in lines:
            if line.startswith(("ob=", "cob=")):
                kind, _, named = line.strip().partition("=")
                number, _, name = named.partition(" ")
                names[number] = Path(name).name if name else names[number]
                if kind == "ob":
                    part = next((of for start, of in _PARTS.items() if names[number].startswith(start)), _REST)
            elif line.startswith("calls="):
                inclusive = True  # The next line is the callee, which has lines of its own.
            elif cost := _COST.match(line):
                if not inclusive:
                    found[part] += int(cost[1])
                inclusive = False
    return found


def show(console: Console, figures: Mapping[str, Any]) -> None:
    """Print a table in thousands, and the ratios."""
    ours = figures["ours"]
    parts = [*dict.fromkeys(_PARTS.values()), _REST]
    table = Table("", *parts, "together", title="instructions a handshake with CONNECT, in thousands")
    total: dict[tuple[str, str], float] = {}
    for phase in _PHASES:
        for peer in (ours, "mosquitto"):
            counted = figures["instructions"][peer][phase]
            total[peer, phase] = sum(counted.values())
            cells = [f"{counted.get(part, 0) / 1e3:.0f}" for part in parts]
            table.add_row(f"{peer}, {phase}", *cells, f"{total[peer, phase] / 1e3:.0f}")
    console.print(table)
    for phase in _PHASES:
        console.print(f"{phase}: {total[ours, phase] / total['mosquitto', phase]:.2f} of mosquitto's")
    console.print(f"resumed: {total[ours, 'resumed'] / total[ours, 'full']:.2f} of a full one")


def main() -> int:
    """Count what the command line asks for; return the exit code."""
    made = command.parser(__doc__ or "")
    made.add_argument("--devices", type=command.count, default=200, help="handshakes of each kind (200)")
    options = command.parse(made, _SMOKE)
    return command.run("handshake instructions", options, options.devices, measure, show)


if __name__ == "__main__":
    sys.exit(main())
