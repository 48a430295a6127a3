"""Run the broker and mosquitto side by side over mutual TLS, and print what each costs and their ratios.

    make bench                                           about five minutes
    .venv/bin/python benchmarks/side_by_side.py --quick  about one
    … --subject mosquitto --baseline mosquitto           a peer with itself: what the noise of this machine is

In each round every scenario runs against both peers in turn, and the order changes with each round, so that a machine
that slows down favours neither. See docs/performance-in-detail.md for what the figures mean.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import command
import mqload
import peers
import pki
from processes import ended_by_signals
from report import Report, progress
from rich.console import Console
from scenarios import FULL, QUICK, SCENARIOS, SMOKE, Measurement, Sizes, Workbench, run


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    options = _parser().parse_args()
    console = Console(stderr=True)
    sizes, rounds = _amount(options)
    try:
        with ended_by_signals(), tempfile.TemporaryDirectory(prefix="fleetgate-bench-") as folder:
            report = _compare(options, sizes, rounds, Path(folder), console)
    except KeyboardInterrupt:
        console.print("stopped; nothing is left running")
        return 130
    except (mqload.NotBuilt, mqload.LoadFailed, peers.PeerMissing) as error:
        console.print(f"side_by_side: {error}", style="red", markup=False)
        return 2
    report.show(Console(width=None if sys.stdout.isatty() else 150))
    if options.json:
        report.write(options.json)
    return 1 if report.failures or (options.check and report.worse) else 0


def _compare(options: argparse.Namespace, sizes: Sizes, rounds: int, folder: Path, console: Console) -> Report:
    names: list[str] = options.only or list(SCENARIOS)
    mqload.allow_many_connections(sizes.devices + 500)
    mqload.build()
    versions = {peer: peers.describe(peer) for peer in (options.subject, options.baseline)}
    console.print(f"making {sizes.devices} device certificates")
    server_cores, load_cores = mqload.two_cores() if options.pin else (None, None)
    bench = Workbench(pki.create(folder, sizes.devices), folder, sizes, server_cores, load_cores)
    pairs: dict[str, list[tuple[Measurement, Measurement]]] = {name: [] for name in names}
    repeated: dict[str, list[tuple[Measurement, Measurement]]] = {name: [] for name in names}
    report = Report(options.subject, options.baseline, versions, pairs, repeated)
    for number in range(1, rounds + 1):
        for name in names:
            pair = _pair(options, name, bench, number)
            while any(each.disturbed for each in pair) and len(repeated[name]) < options.repeat:
                repeated[name].append(pair)
                console.print(f"round {number}/{rounds} {name}: others had the processors; once more", highlight=False)
                pair = _pair(options, name, bench, number)
            pairs[name].append(pair)
            console.print(progress(name, number, rounds, report), highlight=False, soft_wrap=True)
    return report


def _pair(options: argparse.Namespace, name: str, bench: Workbench, number: int) -> tuple[Measurement, Measurement]:
    """Run scenario *name* against both, and return the subject's result first."""
    if number % 2:
        ours, theirs = run(name, bench, options.subject), run(name, bench, options.baseline)
    else:
        theirs, ours = run(name, bench, options.baseline), run(name, bench, options.subject)
    return ours, theirs


def _amount(options: argparse.Namespace) -> tuple[Sizes, int]:
    """Return how much work a run is and how many rounds there are."""
    sizes, rounds = {"full": (FULL, 5), "quick": (QUICK, 2), "smoke": (SMOKE, 1)}[options.size]
    return sizes, options.rounds or rounds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=command.count, help="pairs of runs of each scenario (5; 2 with --quick)")
    parser.add_argument(
        "--repeat", type=command.count, default=0, metavar="N",
        help="repeat up to N pairs of each scenario during which others had the processors; the times do not matter",
    )  # fmt: skip
    parser.add_argument("--only", action="append", choices=list(SCENARIOS), help="this scenario; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run and the summary there")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="size", action="store_const", const="quick", help="about one minute")
    size.add_argument("--smoke", dest="size", action="store_const", const="smoke", help="only shows that it all runs")
    parser.set_defaults(size="full")
    parser.add_argument("--pin", action="store_true", help="server on one core, load generator on another")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a figure is worse in every pair")
    parser.add_argument("--subject", choices=peers.PEERS, default="fleetgate")
    parser.add_argument("--baseline", choices=peers.PEERS, default="mosquitto")
    return parser


if __name__ == "__main__":
    sys.exit(main())
