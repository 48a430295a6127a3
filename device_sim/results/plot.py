"""Drawings for the report: plain SVG, styled by the page, readable without a script.

Theory
------
A `Plot` maps data to a fixed number of SVG units, and one SVG unit is about one CSS pixel: scaling a wide drawing down
to a phone would scale its text down too. So `drawn_twice` draws for a wide and for a narrow screen; the page shows one.

Rules
-----
1. What is drawn is data; colours are classes that the page defines, for light and for dark.
2. Every word from outside is escaped.
3. A line has no more points than can be seen: that of a day would be a megabyte, and a report has a dozen, twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from itertools import pairwise

Point = tuple[float, float]

_WIDE, _NARROW = 880, 344
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 22, 26
_CHARACTER = 6.2
_SERIES = ("c0", "c1", "c3", "c4", "c5")
_SEEN = 4
"""Points in a column of a drawing that determine how a line looks: the first, the lowest, the highest, the last."""
_NICE = (1.0, 2.0, 2.5, 5.0, 10.0)


def colour(number: int) -> str:
    """Return the class of the *number*-th series; grey is reserved for what was expected."""
    return _SERIES[number % len(_SERIES)]


def drawn_twice(draw: Callable[[int], str]) -> str:
    """Return what *draw* makes for a wide and for a narrow page; the page's style shows one."""
    return f'<div class="wide">{draw(_WIDE)}</div><div class="narrow">{draw(_NARROW)}</div>'


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """Return at most about *most* round numbers between *low* and *high*."""
    if high <= low:
        return [low]
    rough = (high - low) / max(most, 1)
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * nice for nice in _NICE if scale * nice >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return the powers of ten from *low* to *high*."""
    return [10.0**power for power in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)]


def short(value: float) -> str:
    """Return *value* as shown on an axis."""
    if value >= 10_000:  # noqa: PLR2004 - five digits are too wide for an axis
        return f"{value / 1000:g}k"
    return f"{value:.3g}" if value < 1 else f"{value:g}"


class Plot:
    """One drawing, *width* by *height* units, of the ranges *x* and *y*."""

    def __init__(
        self,
        width: int,
        height: int,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        log_y: bool = False,
        log_x: bool = False,
        name: str,
    ) -> None:
        self._width, self._height = width, height
        self._x, self._y = x, (y[0], max(y[1], y[0] * 1.0001, 1e-9))
        self._log_x, self._log_y = log_x, log_y
        self._name = name
        self._parts: list[str] = []

    def axes(self, unit: str, x_ticks: Sequence[tuple[float, str]] | None = None) -> None:
        """Draw the grid and its figures; *unit* is written above the vertical axis."""
        rows = log_ticks(*self._y) if self._log_y else nice_ticks(*self._y, most=4)
        for value in rows:
            at = self._vertical(value)
            self._parts.append(f'<line class="grid" x1="{_LEFT}" x2="{self._width - _RIGHT}" y1="{at}" y2="{at}"/>')
            self._text(_LEFT - 6, at + 4, short(value), "tick end")
        if x_ticks is None:
            most = 10 if self._width > _NARROW else 5
            x_ticks = [(value, f"{value:g} s") for value in nice_ticks(*self._x, most=most)]
        bottom = self._height - _BOTTOM
        for value, label in x_ticks:
            at = self._horizontal(value)
            self._parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{_TOP}" y2="{bottom}"/>')
            self._text(min(at, self._width - _RIGHT - len(label) * 3), bottom + 16, label, "tick middle")
        self._text(4, 12, unit, "tick")

    def shade(self, start: float, end: float, label: str, css: str) -> None:
        """Shade a span of time and name it, if the name fits."""
        left, right = self._horizontal(start), self._horizontal(end)
        self._parts.append(
            f'<rect class="stage {css}" x="{left}" y="{_TOP}" width="{max(right - left, 0.5):.1f}" '
            f'height="{self._height - _TOP - _BOTTOM}"><title>{escape(label)}</title></rect>'
        )
        self._parts.append(f'<line class="edge" x1="{left}" x2="{left}" y1="4" y2="{self._height - _BOTTOM}"/>')
        room = int((right - left) / _CHARACTER)
        word = label if len(label) <= room else label.split(" ", maxsplit=1)[0]
        if len(word) <= room:
            self._text((left + right) / 2, 13, word, "tick middle")

    def line(self, points: Sequence[Point], css: str) -> None:
        """Draw a line through *points*; a dot if there is one."""
        if len(points) == 1:
            ((x, y),) = points
            self._parts.append(
                f'<circle class="dot {css}" cx="{self._horizontal(x)}" cy="{self._vertical(y)}" r="2.5">'
                f"<title>{y:g}</title></circle>"
            )
        elif points:
            self._parts.append(f'<polyline class="line {css}" points="{self._path(self._seen(points))}"/>')

    def steps(self, points: Sequence[Point], css: str) -> None:
        """Draw a line that rises at each point and is level between them."""
        stepped = [corner for before, after in pairwise(points) for corner in (before, (after[0], before[1]))]
        self.line([*stepped, *points[-1:]], css)

    def band(self, low: Sequence[Point], high: Sequence[Point], css: str) -> None:
        """Fill what is between two lines."""
        if low and high:
            outline = self._path([*self._seen(low), *reversed(self._seen(high))])
            self._parts.append(f'<polygon class="band {css}" points="{outline}"/>')

    def bars(self, bars: Iterable[tuple[float, float, float]], width: float, css: str, title: str) -> None:
        """Draw a bar of *width* (in data) at each x, from one value to another."""
        for x, low, high in bars:
            left, right = self._horizontal(x), self._horizontal(x + width)
            top, bottom = self._vertical(high), self._vertical(low)
            self._parts.append(
                f'<rect class="bar {css}" x="{left}" y="{top}" width="{max(right - left - 0.5, 1.5):.1f}" '
                f'height="{max(bottom - top, 1):.1f}"><title>{escape(title)}: {high - low:g}</title></rect>'
            )

    def markers(self, moments: Iterable[tuple[float, str]], css: str) -> None:
        """Draw a tick at the foot of the drawing for each moment."""
        bottom = self._height - _BOTTOM
        for x, title in moments:
            at = self._horizontal(x)
            self._parts.append(
                f'<path class="marker {css}" d="M{at} {bottom - 9}l-4 9h8z"><title>{escape(title)}</title></path>'
            )

    def svg(self) -> str:
        """Return the drawing."""
        return (
            f'<svg viewBox="0 0 {self._width} {self._height}" role="img" aria-label="{escape(self._name)}">'
            f"{''.join(self._parts)}</svg>"
        )

    def _path(self, points: Iterable[Point]) -> str:
        return " ".join(f"{self._horizontal(x)},{self._vertical(y)}" for x, y in points)

    def _seen(self, points: Sequence[Point]) -> Sequence[Point]:
        """Return *points*, whose x grow, without those that nobody would see."""
        if len(points) <= _SEEN * self._width:
            return points
        columns: dict[int, list[Point]] = {}
        for point in points:
            columns.setdefault(int(self._horizontal(point[0])), []).append(point)
        seen: list[Point] = []
        for column in columns.values():
            seen += sorted({column[0], min(column, key=_y), max(column, key=_y), column[-1]})
        return seen

    def _text(self, x: float, y: float, text: str, css: str) -> None:
        self._parts.append(f'<text class="{css}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>')

    def _horizontal(self, value: float) -> float:
        return round(_LEFT + _share(value, self._x, log=self._log_x) * (self._width - _LEFT - _RIGHT), 1)

    def _vertical(self, value: float) -> float:
        return round(
            self._height - _BOTTOM - _share(value, self._y, log=self._log_y) * (self._height - _TOP - _BOTTOM), 1
        )


def _y(point: Point) -> float:
    return point[1]


def _share(value: float, bounds: tuple[float, float], *, log: bool) -> float:
    low, high = bounds
    value = min(max(value, low), high)
    if log:
        low, high, value = math.log10(low), math.log10(high), math.log10(value)
    return (value - low) / (high - low) if high > low else 0.0
