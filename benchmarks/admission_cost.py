"""Measure what the admission checks add to the processor time of a TLS handshake.

    .venv/bin/python benchmarks/admission_cost.py                 five rounds of 2,000 handshakes

Three brokers do the same work, in turns: one that admits every client that TLS accepts (`bare_broker`), ours as shipped
with provisioning's feed (identity, role, dates, revocation index, client identifier, rates; the index is consulted but
empty: its size does not affect a look-up), and ours with CRLs of a foreign CA (also the path, its issuers' terms and
their lists). The figure is the broker's processor time from before the first handshake until after the last CONNACK,
divided by the number of devices. Each round gives the ratio to the bare broker; the median is judged.

Rules
-----
1. Plain Python only: the checks cannot be taken out of a compiled broker.
2. Each broker is freshly started for each round, and warmed up with other devices.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import command
import pki
from mqload import Load
from own_broker import OwnBroker
from peers import free_port
from rich.console import Console
from rich.table import Table

GOAL_PERCENT = 5.0
_SMOKE = ("--devices", "30", "--rounds", "1")
_WARM_UP = 50
_BARE = (str(Path(__file__).with_name("bare_broker.py")),)
_AS_WITH_A_FEED = {"crlfile": "[]", "unsafe_no_revocation": "true"}
"""Revocations do not come from lists; here, from nowhere."""
BROKERS: Mapping[str, tuple[tuple[str, ...], Mapping[str, str]]] = {
    "bare": (_BARE, _AS_WITH_A_FEED),
    "feed": (("-m", "broker"), _AS_WITH_A_FEED),
    "lists": (("-m", "broker"), {}),
}


def measure(options: argparse.Namespace, folder: Path, console: Console) -> dict[str, Any]:
    """Run all rounds; return milliseconds per handshake of each broker, and the ratios."""
    console.print(f"{options.devices} devices get their certificates")
    made = pki.create(folder, options.devices, _WARM_UP)
    rounds: list[dict[str, float]] = []
    for number in range(options.rounds):
        order = list(BROKERS)
        if number % 2:
            order.reverse()
        rounds.append({name: _handshakes(made, folder / f"{name}-{number}", options.devices, name) for name in order})
        console.print(", ".join(f"{name} {rounds[-1][name]:.3f} ms" for name in BROKERS))
    return {
        "devices": options.devices,
        "rounds": options.rounds,
        "cpu_ms": {name: statistics.median(each[name] for each in rounds) for name in BROKERS},
        "added_percent": {
            name: [round((each[name] / each["bare"] - 1) * 100, 2) for each in rounds]
            for name in BROKERS
            if name != "bare"
        },
    }


def _handshakes(made: pki.BenchPki, folder: Path, devices: int, name: str) -> float:
    """Return the milliseconds per handshake and CONNECT for the broker *name*."""
    folder.mkdir()
    launcher, settings = BROKERS[name]
    broker = OwnBroker(made, folder, free_port(), settings=settings, launcher=launcher)
    broker.write_configuration()
    whom: tuple[str | Path, ...] = ("-p", str(broker.port), "-a", made.trust_anchors)
    environment = {"FLEETGATE_BENCHMARK": "bare"} if name == "bare" else {}
    with broker.start(environment) as running:
        with Load([*whom, "-D", made.probes, "-n", str(_WARM_UP)], folder / "warm-up.log") as load:
            load.phase("connect")
        before = running.cpu_seconds()
        with Load([*whom, "-D", made.devices, "-n", str(devices)], folder / "load.log") as load:
            load.phase("connect")
            return (running.cpu_seconds() - before) / devices * 1e3


def show(console: Console, figures: Mapping[str, Any]) -> None:
    """Print the table and whether the goal is met."""
    table = Table("broker", "CPU a handshake", "added by the checks", "rounds", title="full handshake and CONNECT")
    titles = {"bare": "without the checks", "feed": "revocations by feed", "lists": "another CA, CRLs"}
    for name, title in titles.items():
        added = figures["added_percent"].get(name)
        each = "" if added is None else " ".join(f"{percent:+.1f}" for percent in added)
        median = "" if added is None else f"{statistics.median(added):+.1f} %"
        table.add_row(title, f"{figures['cpu_ms'][name]:.3f} ms", median, each)
    console.print(table)
    for name in figures["added_percent"]:
        met = statistics.median(figures["added_percent"][name]) <= GOAL_PERCENT
        console.print(f"{titles[name]}: ≤ {GOAL_PERCENT:.0f} % {'met' if met else 'missed'}")


def main() -> int:
    """Measure what the command line asks for; return the exit code."""
    made = command.parser(__doc__ or "", compiled=False)
    made.add_argument("--devices", type=command.count, default=2000, help="handshakes a round (2000)")
    made.add_argument("--rounds", type=command.count, default=5, help="rounds (5)")
    options = command.parse(made, _SMOKE)
    return command.run("admission cost", options, options.devices, measure, show)


if __name__ == "__main__":
    sys.exit(main())
