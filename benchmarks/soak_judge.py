"""Judges a soak by its figures: what grew from the first third to the last by more than it may, by name.

Theory
------
Each round gives one figure of each name. The first rounds fill caches and load code, and are left out. Of the rest, the
median of the first third is compared with the median of the last: one noisy round decides nothing, and what grows
steadily has grown by two thirds of the run between the two.

Rules
-----
1. A figure may grow by a factor and by an amount, whichever is more: small figures double by chance.
2. What a service keeps for ever, by its task (its certificates, its audit log), is `HISTORY`: shown, not judged.
3. Too few figures judge nothing, and that is a failure of the soak, not a success of what it measured. Neither does
   what was never done: nobody was refused who never asked.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

WARM_UP: Final = 0.15
"""This share of the rounds fills caches, and is not judged."""
LEAST_ROUNDS: Final = 9

HISTORY: Final = frozenset(
    {
        "activations",
        "audit_entries",
        "authorities",
        "certificates",
        "claim_places",
        "claims",
        "counters",
        "crl_history",
        "crls",
        "device_keys",
        "devices",
        "host_names",
        "idevids",
        "known_authorities",
        "manufacturers",
        "operators",
        "revocation_events",
        "revocations",
    }
)
"""Tables of provisioning that record what happened, or that remember names for good: one row more for each event, or,
for each CA that there ever was, the numbers and the last ten of its CRLs."""
HOURLY: Final = frozenset({"tokens", "idempotency_keys"})
"""Those from which what is over is removed once an hour, and which grow until then."""
HOURLY_AFTER: Final = 3 * 3600.0
"""A run of so many seconds judges them too."""


@dataclass(frozen=True, slots=True)
class Bound:
    """By what factor, and by what amount, figures with a name like *pattern* may grow."""

    pattern: str
    factor: float
    amount: float


BOUNDS: Final = (
    Bound("* CPU ms/operation", 1.5, 3.0),
    Bound("* RSS MiB", 1.25, 12.0),
    Bound("* descriptors", 1.2, 12.0),
    Bound("* threads", 1.2, 3.0),
    Bound("* garbage objects", 2.0, 20_000.0),
    Bound("* objects", 1.2, 8_000.0),
    Bound("rows service.serial_reservations", 1.5, 64.0),  # A block of them at once.
    Bound("rows *", 1.5, 15.0),
    Bound("* WAL KiB", 1.5, 6_000.0),
    Bound("log *", 2.0, 12.0),
)
"""The first whose pattern fits counts. A table with a row more in each round has grown by more than 15 in 26."""


@dataclass(frozen=True, slots=True)
class Growth:
    """What one figure did: its medians in the first and in the last third."""

    name: str
    first: float
    last: float
    bound: Bound | None

    @property
    def failed(self) -> bool:
        """Whether it has grown by more than it may."""
        bound = self.bound
        return bound is not None and self.last > max(self.first * bound.factor, self.first + bound.amount)

    @property
    def shown(self) -> bool:
        """Whether it says something to a reader though it has not failed: log lines, and what is not judged, do not."""
        return self.name.startswith("rows ") or (self.bound is not None and not self.name.startswith("log "))

    @property
    def verdict(self) -> str:
        """One word for the table."""
        if self.bound is None:
            return "history"
        return "FAIL" if self.failed else "ok"


def bound_of(name: str, seconds: float) -> Bound | None:
    """Return what the figure *name* is judged by in a run of so many *seconds*; None: it may grow."""
    table = name.rpartition(".")[2]
    if name.startswith("rows ") and (table in HISTORY or (table in HOURLY and seconds < HOURLY_AFTER)):
        return None
    return next((bound for bound in BOUNDS if fnmatchcase(name, bound.pattern)), None)


def thirds(series: Sequence[float]) -> tuple[float, float]:
    """Return the medians of the first and of the last third of *series*, after its warm-up."""
    judged = series[int(len(series) * WARM_UP) :]
    third = max(1, len(judged) // 3)
    return statistics.median(judged[:third]), statistics.median(judged[-third:])


def growths(rounds: Sequence[Mapping[str, float]]) -> list[Growth]:
    """Return what became of each figure of *rounds*, by name; one that a round lacks was 0 there.

    A figure that is taken in few rounds, and is NaN in the others, is judged by those that have it.
    """
    names = sorted({name for each in rounds for name in each})
    seconds = rounds[-1].get("at", 0.0) - rounds[0].get("at", 0.0) if rounds else 0.0
    found = []
    for name in names:
        series = [value for each in rounds if (value := each.get(name, 0.0)) == value]
        if len(series) >= LEAST_ROUNDS // 3:
            found.append(Growth(name, *thirds(series), bound_of(name, seconds)))
    return found


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold, and what was seen."""

    what: str
    holds: bool
    seen: str


def checks(grown: Iterable[Growth], rounds: int, wrong: Mapping[str, Sequence[str]]) -> list[Check]:
    """Return the verdicts: no figure grew, and of each kind of wrong event there is none."""
    failed = [f"{each.name}: {each.first:,.1f} → {each.last:,.1f}" for each in grown if each.failed]
    enough = rounds >= LEAST_ROUNDS
    if not enough:
        failed.insert(0, f"{rounds} rounds without a kill, where {LEAST_ROUNDS} are needed to judge growth")
    first = Check("nothing grows beyond its bound", not failed, "; ".join(failed) or f"in {rounds} rounds of one life")
    return [first, *(Check(what, not seen, _shown(seen)) for what, seen in wrong.items())]


def had_its_time(patience: float, elapsed: float, starved: float) -> bool:
    """Return whether a program had *patience* seconds in those *elapsed*, for *starved* of which it had no processor.

    Of a machine that gives it hardly any, ten times as long is enough.
    """
    return elapsed - starved > patience or elapsed > patience * 10


def never_done(operations: Mapping[str, int], promised: Iterable[str]) -> list[str]:
    """Return which of the *promised* kinds of operations there was none of (rule 3)."""
    return [f"never: {each}" for each in promised if not operations.get(each)]


def _shown(seen: Sequence[str], most: int = 5) -> str:
    if not seen:
        return "none"
    more = f"; and {len(seen) - most} more" if len(seen) > most else ""
    return "; ".join(seen[:most]) + more


def rounds_of_longest_lives(rounds: Sequence[Mapping[str, float]], programs: Iterable[str]) -> int:
    """Return how many rounds the longest life of each of *programs* had, at least: in so many growth can be seen."""
    return min(_longest_life(rounds, program)[1] for program in programs)


def _longest_life(rounds: Sequence[Mapping[str, float]], program: str) -> tuple[float, int]:
    lives = Counter(each[f"{program} life"] for each in rounds if f"{program} life" in each)
    return lives.most_common(1)[0] if lives else (0.0, 0)


def in_one_life(rounds: Sequence[Mapping[str, float]], programs: Iterable[str]) -> list[dict[str, float]]:
    """Return *rounds* with the figures of the longest life of each of *programs*: a start is no growth."""
    found = [dict(each) for each in rounds]
    for program in programs:
        longest, _ = _longest_life(rounds, program)
        for each in found:
            of_another = each.get(f"{program} life") != longest
            for name in [name for name in each if name.startswith(f"{program} ")]:
                if of_another or name == f"{program} life":
                    each[name] = math.nan
    return found
