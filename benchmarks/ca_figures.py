"""The figures measured of a CA, with their goals, and how several paired rounds are shown."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from figures import Figure, Spread, Verdict, compare
from rich.console import Console
from rich.table import Table

Run = dict[str, float]
Pair = tuple[Run, Run]
"""One round's measurements of ours and the other; empty if the other did not run."""

FIGURES: Sequence[tuple[Figure, float | None]] = (
    # With the goal for ours, in the figure's unit.
    (Figure("issue_kept_cpu", "certificate over a kept TLS connection, stored: server CPU", "µs", True, 0), 1000.0),
    (Figure("issue_kept_database_cpu", "… CPU of the database beside it", "µs", True, 0), None),
    (Figure("issue_kept_rate", "… a second", "/s", False, 0), 1000.0),
    (Figure("issue_kept_p99", "… 99th percentile", "ms", True, 1), None),
    (Figure("issue_new_cpu", "certificate over a new TLS connection each, X25519: server CPU", "µs", True, 0), None),
    (Figure("issue_new_rate", "… a second", "/s", False, 0), None),
    (Figure("issue_chosen_cpu", "… with the key exchange that both ends choose: server CPU", "µs", True, 0), None),
    (Figure("issue_chosen_rate", "… a second", "/s", False, 0), None),
    (Figure("ocsp_signed_cpu", "OCSP answer, signed for the request: server CPU", "µs", True, 0), 200.0),
    (Figure("ocsp_signed_rate", "… a second", "/s", False, 0), 5000.0),
    (Figure("ocsp_remembered_cpu", "OCSP answer, signed before: server CPU", "µs", True, 0), 66.7),
    (Figure("ocsp_remembered_rate", "… a second", "/s", False, 0), 15000.0),
    (Figure("revoke_one_cpu", "revocation, one at a time: server CPU", "µs", True, 0), None),
    (Figure("revoke_one_p99", "… 99th percentile", "ms", True, 1), 50.0),
    (Figure("revoke_many_cpu", "revocation, many at a time: server CPU", "µs", True, 0), None),
    (Figure("revoke_many_p99", "… 99th percentile", "ms", True, 1), 50.0),
    (Figure("revoke_many_rate", "… a second", "/s", False, 0), None),
    (Figure("memory_start", "memory when it starts to listen", "MiB", True, 1), None),
    (Figure("memory_end", "… after all of this", "MiB", True, 1), None),
)
_MARKS = {Verdict.MET: "✓", Verdict.MISSED: "✗", Verdict.WITHIN_NOISE: "≈", Verdict.LOAD_LIMITED: "load"}


@dataclass(frozen=True, slots=True)
class Report:
    """Every round on every store."""

    peers: Sequence[str]
    versions: Sequence[str]
    stores: Mapping[str, Sequence[Pair]]
    facts: Mapping[str, object]

    @property
    def missed(self) -> list[str]:
        """The goals that no round reached."""
        return [
            f"{store}: {figure.title}"
            for store, pairs in self.stores.items()
            for figure, goal in FIGURES
            if (values := _of(figure, pairs, 0)) and goal is not None and _mark(figure, values, goal) is Verdict.MISSED
        ]

    def show(self, console: Console) -> None:
        """Print a table per store."""
        for store, pairs in self.stores.items():
            console.print(_table(store, self.peers, pairs))
        console.print("ratio: ours to the other's, median of the rounds, their range in brackets")
        for line in self.versions:
            console.print(f"note: {line}", highlight=False)
        for line in self.missed:
            console.print(f"missed: {line}", style="red", highlight=False)

    def write(self, path: Path) -> None:
        """Write everything as JSON."""
        content = {
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "kernel": platform.release()},
            "peers": list(self.versions),
            "facts": dict(self.facts),
            "figures": {
                store: {
                    figure.key: {
                        "title": figure.title,
                        "unit": figure.unit,
                        "goal": goal,
                        **{peer: asdict(Spread.of(values)) for place, peer in enumerate(self.peers)
                           if (values := _of(figure, pairs, place))},
                    }
                    for figure, goal in FIGURES
                    if _of(figure, pairs, 0)
                }
                for store, pairs in self.stores.items()
            },
            "rounds": {store: list(pairs) for store, pairs in self.stores.items()},
        }  # fmt: skip
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _table(store: str, peers: Sequence[str], pairs: Sequence[Pair]) -> Table:
    table = Table(title=f"{' and '.join(peers)} on {store}, {len(pairs)} round{'s' * (len(pairs) > 1)}")
    table.add_column("figure")
    for peer in peers:
        table.add_column(peer, justify="right")
    table.add_column("ratio", justify="right")
    table.add_column("goal", justify="right")
    table.add_column("", justify="center")
    for figure, goal in FIGURES:
        ours = _of(figure, pairs, 0)
        if not ours:
            continue
        shown = [figure.format(Spread.of(values).median) if (values := _of(figure, pairs, place)) else ""
                 for place in range(len(peers))]  # fmt: skip
        compared = compare(figure, pairs)
        ratio = compared and f"{compared.ratio.median:.2f} [{compared.ratio.low:.2f}…{compared.ratio.high:.2f}]"
        sign = "≤" if figure.lower_is_better else "≥"
        table.add_row(
            figure.title,
            *shown,
            ratio or "",
            "" if goal is None else f"{sign} {goal:,.0f} {figure.unit}",
            "" if goal is None else _MARKS[_mark(figure, ours, goal)],
        )
    return table


def _of(figure: Figure, pairs: Sequence[Pair], place: int) -> list[float]:
    return [pair[place][figure.key] for pair in pairs if figure.key in pair[place]]


def _mark(figure: Figure, values: Sequence[float], goal: float) -> Verdict:
    return Spread.of(values).against(goal, lower_is_better=figure.lower_is_better)
