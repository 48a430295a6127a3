"""What single-command benchmarks share: Ctrl-C, failures as sentences, a result as JSON, `--smoke`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mqload
from kept_connections import WronglyAnswered
from peers import PeerMissing
from processes import ChildFailed, ended_by_signals
from rich.console import Console

from broker.admin.client import BrokerUnreachable, RequestRefused

_SPARE_FILES = 500


class Failed(RuntimeError):
    """The broker did not do what the benchmark requires; a figure would be meaningless."""


_FAILURES = (
    *(Failed, ChildFailed, PeerMissing, WronglyAnswered, BrokerUnreachable, RequestRefused),
    *(mqload.LoadFailed, mqload.NotBuilt),
)


def parser(about: str, *, compiled: bool = True) -> argparse.ArgumentParser:
    """Return a parser with the options of every such benchmark; *compiled*: one for the compiled broker."""
    made = argparse.ArgumentParser(description=about.split("\n", 1)[0])
    if compiled:
        made.add_argument("--compiled", action="store_true", help="the broker that `make compiled` has built")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    made.add_argument("--smoke", action="store_true", help="the smallest run; its figures mean nothing")
    return made


def parse(made: argparse.ArgumentParser, smoke: Sequence[str]) -> argparse.Namespace:
    """Return the options of the command line; *smoke* are those of the smallest run."""
    given = sys.argv[1:]
    return made.parse_args([*smoke, *given] if "--smoke" in given else given)


def count(text: str) -> int:
    """Return the number, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("1 at least")
    return number


def run(
    name: str,
    options: argparse.Namespace,
    connections: int,
    measure: Callable[[argparse.Namespace, Path, Console], Mapping[str, Any]],
    show: Callable[[Console, Mapping[str, Any]], None],
) -> int:
    """Measure with a temporary folder, show and write the figures; return the exit code."""
    console = Console(stderr=True)
    figures: Mapping[str, Any] = {}
    failure: str | None = None
    try:
        with ended_by_signals(), tempfile.TemporaryDirectory(prefix="fleetgate-bench-") as folder:
            mqload.allow_many_connections(connections + _SPARE_FILES)
            mqload.build()
            figures = measure(options, Path(folder), console)
    except* KeyboardInterrupt:
        console.print("stopped; nothing is left running")
        return_code = 130
        failure = ""
    except* _FAILURES as group:
        failure = str(next(errors_in(group)))
        console.print(f"{name}: {failure}", style="red", markup=False)
        return_code = 1
    if failure is not None:
        return return_code
    show(Console(width=None if sys.stdout.isatty() else 130), figures)
    if options.json:
        written = {"measured_at": datetime.now(UTC).isoformat(timespec="seconds"), **figures}
        options.json.write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n")
    return 0


def errors_in(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors in *error*, which may be a group of groups."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from errors_in(inner)
    else:
        yield error
