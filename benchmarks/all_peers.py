"""Run every broker of `peers` in one go, over mutual TLS with the same rights, and print what each costs.

    make bench-peers                                              the compiled broker and five others, half an hour
    .venv/bin/python benchmarks/all_peers.py --quick --only fan-out
    … --peer fleetgate --peer amqtt                               these only

In each round every scenario runs against every peer in turn, and the order rotates with each round, so that a machine
that slows down favours no peer. `side_by_side` judges a pair; here the first peer's figures are shown beside those of
the best other peer, with its name.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import mqload
import peers
import pki
from figures import FIGURES, Figure, Spread
from processes import ended_by_signals
from rich.console import Console
from rich.table import Table
from scenarios import FULL, QUICK, SCENARIOS, SMOKE, Measurement, Workbench, run

ALL = ("fleetgate-compiled", "mosquitto", "nats-server", "rabbitmq", "aedes", "amqtt")
_SIZES = {"full": (FULL, 3), "quick": (QUICK, 2), "smoke": (SMOKE, 1)}

Runs = dict[str, dict[str, list[Measurement]]]
"""Measurements by scenario and peer."""


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    options = _parser().parse_args()
    console = Console(stderr=True)
    chosen: list[str] = options.peer or list(ALL)
    try:
        with ended_by_signals(), tempfile.TemporaryDirectory(prefix="fleetgate-bench-") as folder:
            versions = {peer: peers.describe(peer) for peer in chosen}
            runs = _run(options, chosen, Path(folder), console)
    except KeyboardInterrupt:
        console.print("stopped; nothing is left running")
        return 130
    except (mqload.NotBuilt, mqload.LoadFailed, peers.PeerMissing) as error:
        console.print(f"all_peers: {error}", style="red", markup=False)
        return 2
    failures = _show(Console(width=None if sys.stdout.isatty() else 200), chosen, runs, versions)
    if options.json:
        content = {
            scenario: {peer: [asdict(each) for each in measured] for peer, measured in by_peer.items()}
            for scenario, by_peer in runs.items()
        }
        options.json.write_text(json.dumps({"versions": versions, "runs": content}, indent=2) + "\n")
    return 1 if failures else 0


def _run(options: argparse.Namespace, chosen: list[str], folder: Path, console: Console) -> Runs:
    sizes, rounds = _SIZES[options.size]
    rounds = options.rounds or rounds
    names: list[str] = options.only or list(SCENARIOS)
    mqload.allow_many_connections(sizes.devices + 500)
    mqload.build()
    console.print(f"making {sizes.devices} device certificates")
    bench = Workbench(pki.create(folder, sizes.devices), folder, sizes)
    runs: Runs = {name: {peer: [] for peer in chosen} for name in names}
    for number in range(rounds):
        turn = number % len(chosen)
        for name in names:
            for peer in [*chosen[turn:], *chosen[:turn]]:
                measured = run(name, bench, peer)
                runs[name][peer].append(measured)
                said = measured.failure or ", ".join(f"{key} {value:.4g}" for key, value in measured.figures.items())
                line = f"round {number + 1}/{rounds} {name} {peer}: {said}"
                console.print(line, highlight=False, soft_wrap=True, markup=False)
    return runs


def _show(console: Console, chosen: list[str], runs: Runs, versions: dict[str, str]) -> list[str]:
    """Print the table and notes on it; return what failed."""
    table = Table(title="Every broker, mutual TLS, the same rights; medians")
    table.add_column("figure")
    for peer in chosen:
        table.add_column(peer, justify="right")
    table.add_column(f"{chosen[0]} to the best other", justify="right")
    for figure in FIGURES:
        found = {peer: values for peer in chosen if (values := _values(runs, peer, figure))}
        if not found:
            continue
        medians = {peer: Spread.of(values).median for peer, values in found.items()}
        cells = [figure.format(medians[peer]) if peer in medians else "-" for peer in chosen]
        table.add_row(figure.title, *cells, _against_the_best(figure, chosen, medians))
    console.print(table)
    for peer, version in versions.items():
        console.print(f"note: {peer} {version}", highlight=False, soft_wrap=True, markup=False)
    failures = [
        f"{scenario} {peer}: {each.failure}"
        for scenario, by_peer in runs.items()
        for peer, measured in by_peer.items()
        for each in measured
        if each.failure
    ]
    for failure in failures:
        console.print(f"failed: {failure}", style="red", highlight=False, soft_wrap=True, markup=False)
    return failures


def _values(runs: Runs, peer: str, figure: Figure) -> list[float]:
    return [each.figures[figure.key] for by in runs.values() for each in by[peer] if figure.key in each.figures]


def _against_the_best(figure: Figure, chosen: list[str], medians: dict[str, float]) -> str:
    others = {peer: value for peer, value in medians.items() if peer != chosen[0]}
    if not others or chosen[0] not in medians:
        return "-"
    best = (min if figure.lower_is_better else max)(others, key=lambda peer: others[peer])
    return f"{medians[chosen[0]] / others[best]:.2f} ({best})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--peer", action="append", choices=peers.PEERS, help="this one; may be repeated (all)")
    parser.add_argument("--only", action="append", choices=list(SCENARIOS), help="this scenario; may be repeated")
    parser.add_argument("--rounds", type=int, help="rounds (3; 2 with --quick)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run there")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="size", action="store_const", const="quick", help="less work each")
    size.add_argument("--smoke", dest="size", action="store_const", const="smoke", help="only shows that it all runs")
    parser.set_defaults(size="full")
    return parser


if __name__ == "__main__":
    sys.exit(main())
