"""Two runs side by side: what changed, and whether that is better.

Rules
-----
1. A shorter duration is better; whether a higher count is depends on the count, so only its change is stated.
2. Runs of different scenarios, seeds, brokers, machines or generators may be compared; the differences are stated
   first.
3. A figure that only one of the two measured is a difference, and is not omitted.
4. A percentile of so few values that none lies beyond it is their maximum: such a difference is stated, with how many
   there were, and called neither better nor worse.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from device_sim.results.document import Document
from device_sim.results.page import framed, table, verdict_css

_PERCENTS = (50.0, 99.0)
_ALL = 100.0
_NOISE = 0.05


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of two runs; None if it was not measured."""

    name: str
    before: float | None
    after: float | None
    duration: bool
    few: str = ""
    """Of how many values it is a percentile, if these are so few that it is their maximum."""

    @property
    def shown(self) -> str:
        """The name, as a reader needs it."""
        return self.name + self.few

    @property
    def change(self) -> str:
        """The change in words."""
        if self.before is None or self.after is None:
            return ""
        if self.before == self.after:
            return "="
        if not self.before:
            return f"{self.after - self.before:+.12g}"
        return f"{(self.after - self.before) / self.before:+.0%}"

    @property
    def css(self) -> str:
        """Whether it is better, worse, or neither."""
        if self.before is None or self.after is None:
            return "soft"
        if not self.duration or self.few or abs(self.after - self.before) <= _NOISE * max(self.before, self.after):
            return "soft"
        return "good" if self.after < self.before else "bad"


def differences(before: Document, after: Document) -> list[Difference]:
    """Return every figure that one of the runs has, durations first."""
    found = []
    for name in dict.fromkeys([*before["durations"], *after["durations"]]):
        old, new = (_curve(run, name) for run in (before, after))
        counts = [run["durations"][name]["response"]["count"] for run in (before, after) if name in run["durations"]]
        for percent in _PERCENTS:
            if percent in old or percent in new:
                few = f" (of {' and '.join(map(str, counts))})" if min(counts) * (_ALL - percent) < _ALL else ""
                what = f"{name} p{percent:g} ms"
                found.append(Difference(what, old.get(percent), new.get(percent), duration=True, few=few))
    for name in dict.fromkeys([*before["counts"], *after["counts"]]):
        value, other = (run["counts"].get(name) for run in (before, after))
        if value or other:
            found.append(Difference(name, value, other, duration=False))
    return found


def written(figure: float | None) -> str:
    """Return *figure* in readable form."""
    return "not measured" if figure is None else f"{figure:.12g}"


def _curve(run: Document, name: str) -> dict[float, float]:
    duration = run["durations"].get(name)
    return {} if duration is None else dict(map(tuple, duration["response"]["curve"]))


def conditions(before: Document, after: Document) -> list[tuple[str, str, str]]:
    """Return the conditions of the runs that differ: name, before, after."""
    old, new = before["scenario"], after["scenario"]
    pairs = [(name, str(old[name]), str(new[name])) for name in ("name", "fingerprint", "devices", "seed")]
    pairs += [
        (name, str(before["environment"].get(name)), str(after["environment"].get(name)))
        for name in dict.fromkeys([*before["environment"], *after["environment"]])
        if name != "load_average"
    ]
    by, then = before["generator"], after["generator"]
    pairs += [(name, str(by.get(name)), str(then.get(name))) for name in ("driver", "key_exchange", "sources")]
    pairs.append(("processes", str(len(by.get("processes", []))), str(len(then.get("processes", [])))))
    return [pair for pair in pairs if pair[1] != pair[2]]


def comparison_of(before: Document, after: Document) -> RenderableType:
    """Return the comparison for a terminal."""
    shown = Table(box=None, padding=(0, 2))
    for heading in ("", "before", "after", "change"):
        shown.add_column(heading, justify="left" if not heading else "right")
    shown.add_row("verdict", Text(before["verdict"]), Text(after["verdict"]), "")
    colours = {"good": "green", "bad": "red", "soft": "dim"}
    for item in differences(before, after):
        shown.add_row(Text(item.shown), written(item.before), written(item.after), Text(item.change, colours[item.css]))
    notes = [Text(f"  differs: {name}: {old} → {new}", "yellow") for name, old, new in conditions(before, after)]
    return Group(*notes, shown)


def comparison_page(before: Document, after: Document) -> str:
    """Return the comparison as an HTML page like the report's."""
    verdicts = "".join(
        f'<p>{word}: <span class="{verdict_css(run["verdict"])}">{escape(run["verdict"])}</span> '
        f'<span class="soft">{escape(run["started"])}, {run["seconds"]:.0f} s</span></p>'
        for word, run in (("before", before), ("after", after))
    )
    notes = "".join(
        f'<p class="notice">{escape(name)} differs: {escape(old)} → {escape(new)}</p>'
        for name, old, new in conditions(before, after)
    )
    rows = [
        (
            escape(item.shown),
            written(item.before),
            written(item.after),
            f'<span class="{item.css}">{escape(item.change)}</span>',
        )
        for item in differences(before, after)
    ]
    names = dict.fromkeys(run["scenario"]["name"] for run in (before, after))
    title = f"{' and '.join(names)} compared"
    body = f"<h1>{escape(title)}</h1>{verdicts}{notes}<h2>Figures</h2>"
    return framed(title, body + table(("", "before", "after", "change"), rows))
