"""How a comparison is printed and written: one table of figures, notes on what limits them, and the same as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from disturbance import notes_of
from figures import FIGURES, Comparison, Figure, Verdict, compare
from rich.console import Console
from rich.table import Table
from rich.text import Text
from scenarios import Measurement

_MARKS = {
    Verdict.MET: Text("✓", "green"),
    Verdict.MISSED: Text("✗", "bold red"),
    Verdict.WITHIN_NOISE: Text("≈", "yellow"),
    Verdict.LOAD_LIMITED: Text("load", "yellow"),
}
_LOAD_LIMIT = 0.9

Pairs = Mapping[str, Sequence[tuple[Measurement, Measurement]]]
"""Scenario → (subject's, baseline's) run in each round."""


@dataclass(frozen=True, slots=True)
class Report:
    """All measurements, and the peers compared."""

    subject: str
    baseline: str
    versions: Mapping[str, str]
    pairs: Pairs
    repeated: Pairs = field(default_factory=dict)
    """Pairs that do not count, as others had the processors: for the file."""

    @property
    def comparisons(self) -> list[Comparison]:
        """What the pairs say about each figure that they contain."""
        rows = [(ours.figures, theirs.figures) for pairs in self.pairs.values() for ours, theirs in pairs]
        compared = (compare(figure, rows) for figure in FIGURES)
        return [self._fairly(comparison) for comparison in compared if comparison is not None]

    @property
    def failures(self) -> list[str]:
        """What went wrong, and how often."""
        counted = Counter(
            f"{scenario}, {peer}: {run.failure}"
            for scenario, pairs in self.pairs.items()
            for pair in pairs
            for peer, run in zip((self.subject, self.baseline), pair, strict=True)
            if run.failure
        )
        return [f"{failure} ({times} times)" if times > 1 else failure for failure, times in counted.items()]

    @property
    def worse(self) -> list[Figure]:
        """The figures in which the subject is worse than the baseline in every pair."""
        return [row.figure for row in self.comparisons if row.no_worse is Verdict.MISSED]

    def show(self, console: Console) -> None:
        """Print the table and the notes."""
        comparisons = self.comparisons
        console.print(_table(self, comparisons))
        console.print(
            "ratio: median of the pairs' ratios, their range in brackets; ✓ met in every pair, ✗ in none, ≈ in some"
        )
        for note in self._notes():
            console.print(f"note: {note}", highlight=False)
        for failure in self.failures:
            console.print(f"failed: {failure}", style="red", highlight=False, markup=False)
        no_worse = _counted([row.no_worse for row in comparisons])
        goals = _counted([row.goal for row in comparisons if row.goal is not None])
        console.print(
            f"{self.subject} is no worse than {self.baseline}: {no_worse}\nits goals are met: {goals}", style="bold"
        )

    def write(self, path: Path) -> None:
        """Write every run and the summary as JSON."""
        content = {
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "kernel": platform.release()},
            "peers": dict(self.versions),
            "subject": self.subject,
            "baseline": self.baseline,
            "figures": {row.figure.key: _as_json(row) for row in self.comparisons},
            "runs": _runs(self.pairs),
            "repeated": _runs(self.repeated),
            "failures": self.failures,
        }
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def _fairly(self, row: Comparison) -> Comparison:
        """Return *row* without penalty for a rate limited by the load generator."""
        runs = [ours for pairs in self.pairs.values() for ours, _ in pairs if row.figure.key in ours.figures]
        if not row.figure.key.endswith("_rate") or not _load_limited(runs):
            return row
        return replace(row, no_worse=_excused(row.no_worse), goal=row.goal and _excused(row.goal))

    def _notes(self) -> list[str]:
        notes = [f"{peer} {version}" for peer, version in self.versions.items()]
        negotiated = {
            peer: sorted({pair[side].tls for pairs in self.pairs.values() for pair in pairs if pair[side].tls})
            for side, peer in enumerate((self.subject, self.baseline))
        }
        if len({tuple(found) for found in negotiated.values() if found}) > 1:
            notes.append(f"the peers did not agree on the same TLS parameters, so the handshakes differ: {negotiated}")
        else:
            notes.extend(f"TLS, both: {found}" for found in negotiated[self.baseline])
        if max(len(pairs) for pairs in self.pairs.values()) == 1:
            notes.append("one round only: its marks say nothing about noise; give --rounds 3 or more")
        for scenario, pairs in self.pairs.items():
            for side, peer in enumerate((self.subject, self.baseline)):
                if _load_limited([pair[side] for pair in pairs]):
                    notes.append(f"{scenario}: the load generator, not {peer}, set the pace; compare CPU time instead")
        runs = [run for pairs in self.pairs.values() for pair in pairs for run in pair]
        notes += notes_of([run.foreign for run in runs], [run.stolen for run in runs])
        if repeated := sum(map(len, self.repeated.values())):
            notes.append(f"{repeated} pairs during which others had the processors were repeated, and do not count")
        return notes


def progress(scenario: str, round_number: int, rounds: int, report: Report) -> str:
    """Return one line about the pair that was just run."""
    ours, theirs = report.pairs[scenario][-1]
    parts = []
    for figure in FIGURES:
        row = compare(figure, [(ours.figures, theirs.figures)])
        if row is not None:
            parts.append(f"{figure.key} {row.subject.median:.{figure.digits}f}/{row.baseline.median:.{figure.digits}f}")
    parts += [f"{peer} failed" for peer, run in ((report.subject, ours), (report.baseline, theirs)) if run.failure]
    return f"round {round_number}/{rounds} {scenario}: {', '.join(parts)}"


def _table(report: Report, comparisons: Sequence[Comparison]) -> Table:
    table = Table(title=f"{report.subject} and {report.baseline}, side by side over mutual TLS")
    table.add_column("figure")
    for peer in (report.subject, report.baseline):
        table.add_column(peer, justify="right")
    table.add_column("ratio", justify="right")
    table.add_column("no worse", justify="center")
    table.add_column("goal", justify="right")
    table.add_column("", justify="center")
    for row in comparisons:
        figure = row.figure
        table.add_row(
            figure.title,
            figure.format(row.subject.median),
            figure.format(row.baseline.median),
            f"{row.ratio.median:.2f} [{row.ratio.low:.2f}…{row.ratio.high:.2f}]",
            _MARKS[row.no_worse],
            _goal(figure),
            _MARKS[row.goal] if row.goal is not None else "",
        )
    return table


def _load_limited(runs: Sequence[Measurement]) -> bool:
    """Return whether the load generator limited the rate in most of *runs*."""
    rated = [run.load_busy for run in runs if any(key.endswith("_rate") for key in run.figures)]
    return bool(rated) and statistics.median(rated) > _LOAD_LIMIT


def _counted(verdicts: Sequence[Verdict]) -> str:
    """Return how many of *verdicts* are which, in words: what was met in some pairs only is not counted as met."""
    words = {
        Verdict.MET: "in every pair",
        Verdict.WITHIN_NOISE: "in some",
        Verdict.LOAD_LIMITED: "not in all, at the load generator's limit",
        Verdict.MISSED: "in none",
    }
    said = [f"{count} {phrase}" for verdict, phrase in words.items() if (count := verdicts.count(verdict))]
    return ", ".join(said) if said else "none"


def _excused(verdict: Verdict) -> Verdict:
    return verdict if verdict is Verdict.MET else Verdict.LOAD_LIMITED


def _goal(figure: Figure) -> str:
    if figure.goal is None:
        return ""
    sign = "≤" if figure.lower_is_better else "≥"
    return f"{sign} {figure.goal.ratio:g}" + (" of a full one" if figure.goal.of else "")


def _runs(pairs: Pairs) -> dict[str, list[dict[str, object]]]:
    return {
        scenario: [{"subject": asdict(ours), "baseline": asdict(theirs)} for ours, theirs in each]
        for scenario, each in pairs.items()
    }


def _as_json(row: Comparison) -> dict[str, object]:
    return {
        "title": row.figure.title,
        "unit": row.figure.unit,
        "subject": asdict(row.subject),
        "baseline": asdict(row.baseline),
        "ratio": asdict(row.ratio),
        "no_worse": row.no_worse.value,
        "goal": row.goal.value if row.goal is not None else None,
    }
