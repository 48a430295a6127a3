"""What it costs to keep devices connected that say nothing: server CPU and memory, with a keep alive of 60 seconds.

    make bench-idle                                              10,000 devices for a minute, the compiled broker
    .venv/bin/python benchmarks/idle.py --devices 2000 --seconds 20 --peer fleetgate --peer mosquitto

Each device sends a PINGREQ every 60 seconds, one after the other, so that no two of them share a turn of the server's
loop: 167 a second for 10,000 devices, the most expensive way to be idle. Measurement starts when each has sent one, in
steady state. The goal is 1 % of a core for 10,000 devices; with fewer, the same share per device applies (`--check`
exits with 1 above it).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import mqload
import peers
import pki
from mqload import Load, LoadFailed
from processes import ChildFailed, ended_by_signals
from rich.console import Console

GOAL = 0.01
_GOAL_DEVICES = 10_000
_SETTLE_SECONDS = 3
_EMPTY_SECONDS = 10
_SMOKE = {"devices": 100, "seconds": 2, "keep_alive": 10}


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    options = _parser().parse_args()
    if options.smoke:
        vars(options).update(_SMOKE)
    console = Console(stderr=True)
    worst = 0.0
    try:
        with ended_by_signals(), tempfile.TemporaryDirectory(prefix="fleetgate-bench-") as folder:
            mqload.allow_many_connections(options.devices + 500)
            mqload.build()
            console.print(f"making {options.devices} device certificates")
            made = pki.create(Path(folder), options.devices)
            for peer in options.peer or ["fleetgate-compiled"]:
                (own := Path(folder) / peer).mkdir()
                worst = max(worst, _idle(peer, made, own, options))
    except KeyboardInterrupt:
        console.print("stopped; nothing is left running")
        return 130
    except (mqload.NotBuilt, LoadFailed, ChildFailed, peers.PeerMissing) as error:
        console.print(f"idle: {error}", style="red", markup=False)
        return 2
    allowed = GOAL * options.devices / _GOAL_DEVICES
    return 1 if options.check and worst > allowed else 0


def _idle(peer: str, made: pki.BenchPki, folder: Path, options: argparse.Namespace) -> float:
    """Measure one peer, print the result, and return its share of a core."""
    with peers.start(peer, made, folder) as server:
        time.sleep(_SETTLE_SECONDS)
        empty_kib, before = server.process.memory_kib(), server.process.cpu_seconds()
        alone = 1 if options.smoke else _EMPTY_SECONDS
        time.sleep(alone)
        empty = (server.process.cpu_seconds() - before) / alone
        arguments: list[str | Path] = ["-p", str(server.port), "-a", made.trust_anchors, "-D", made.devices]
        before_it = 1 if options.smoke else options.keep_alive + _SETTLE_SECONDS
        arguments += ["-n", str(options.devices), "-A", str(options.keep_alive), "-H", str(before_it + options.seconds)]
        with Load(arguments, folder / "load.log") as load:
            load.phase("connect")
            time.sleep(_SETTLE_SECONDS)
            kib = (server.process.memory_kib() - empty_kib) / options.devices
            load.proceed()
            time.sleep(before_it)
            before, started = server.process.cpu_seconds(), time.monotonic()
            held = load.phase("hold")
            share = (server.process.cpu_seconds() - before) / (time.monotonic() - started)
            load.proceed()
        if held["lost"]:
            raise LoadFailed(f"{held['lost']} idle devices were disconnected")
    pings = held["pings"] * options.seconds // (before_it + options.seconds)
    sys.stdout.write(
        f"{peer}: {options.devices} idle devices, {pings} pings in {options.seconds} s: {share:.2%} of a core "
        f"({empty:.2%} without any), {(share - empty) * options.seconds / max(1, pings) * 1e6:.0f} µs a ping, "
        f"{kib:.1f} KiB a device\n"
    )
    sys.stdout.flush()
    return share


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--devices", type=int, default=_GOAL_DEVICES, help="connected devices (10,000)")
    parser.add_argument("--seconds", type=int, default=60, help="how long they are idle (60)")
    parser.add_argument("--keep-alive", type=int, default=60, help="seconds between two pings of a device (60)")
    parser.add_argument("--peer", action="append", choices=peers.PEERS, help="may be repeated (fleetgate-compiled)")
    parser.add_argument("--smoke", action="store_true", help="a few devices for two seconds; its figures mean nothing")
    parser.add_argument("--check", action="store_true", help="exit with 1 above 1 %% of a core for 10,000 devices")
    return parser


if __name__ == "__main__":
    sys.exit(main())
