"""Log lines about refused clients: one at once for what is new, and a number for its repetitions.

Theory
------
A device that is revoked or suspended seldom stops: it comes again every few seconds, some programs twenty times a
second, for months. One line each would push all others out of the log. Its first refusal is written at once. Further
ones of the same kind are counted, and the count is written every `_PERIOD` seconds for as long as they come.

The *kind* of a refusal is its code, whose certificate it is and from which host, so a change of any of these is written
at once. Of a stranger, whom TLS has refused, no identity is known: the next one at its host may be another. So the
first `_MOST_OF_STRANGERS` in a period have a line each.

Rules
-----
1. Nothing is lost: the lines, with the numbers (`more`), add up to the refusals. Metrics, history and audit log are
   told of each by others.
2. At most `MOST` kinds are remembered. The oldest makes room, and its number is written.
3. No I/O, no clock: the time is passed in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from broker.engine.held_lines import HeldLines
from provisioning.program.host_and_port import without_port

MOST: Final = 10_000
_PERIOD: Final = 300.0
_MOST_OF_STRANGERS: Final = 30
_EVENT: Final = "refused"


class _Kind:
    """Refusals of one kind."""

    __slots__ = ("facts", "last", "lines", "more", "since")

    def __init__(self, now: float, lines: int) -> None:
        self.since = now
        """When this period began."""
        self.lines = lines
        """How many may still have a line of their own in it."""
        self.more = 0
        """How many have none; *facts* of the last of them, and when it came."""
        self.facts: Mapping[str, Any] = {}
        self.last = now


class RefusedAgain:
    """What the log of one broker says of refused clients."""

    __slots__ = ("_kinds", "_lines")

    def __init__(self, lines: HeldLines) -> None:
        self._lines = lines
        self._kinds: dict[tuple[str, ...], _Kind] = {}
        """The one whose period ends first comes first."""

    def __len__(self) -> int:
        return len(self._kinds)

    def note(self, facts: Mapping[str, Any], now: float) -> None:
        """Write that somebody was refused, which is said by *facts*, or count it."""
        host = without_port(facts["address"])
        named = "serial" in facts
        # What the detail says of one with a name may change each time: for how long it is banned still.
        whose = (facts["identity"], facts["serial"]) if named else (facts["detail"],)
        key = (facts["code"], host, *whose)
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) >= MOST:
                self._write_more(self._kinds.pop(next(iter(self._kinds))), now)
            kind = self._kinds[key] = _Kind(now, 1 if named else _MOST_OF_STRANGERS)
        if kind.lines:
            kind.lines -= 1
            self._lines.info(_EVENT, **facts)
        else:
            kind.more += 1
            kind.facts, kind.last = facts, now

    def due(self, now: float) -> Iterator[None]:
        """Write the numbers of the periods that are over, one a step; forget what did not come again."""
        kinds = self._kinds
        while kinds:
            key = next(iter(kinds))
            kind = kinds[key]
            if now - kind.since < _PERIOD:
                return
            del kinds[key]
            if kind.more:
                self._write_more(kind, now)
                kinds[key] = kind
                kind.since, kind.more = now, 0
            yield

    def finish(self, now: float) -> None:
        """Write all numbers: the broker stops."""
        kinds, self._kinds = self._kinds, {}
        for kind in kinds.values():
            self._write_more(kind, now)

    def _write_more(self, kind: _Kind, now: float) -> None:
        if kind.more:
            over, ago = round(now - kind.since), round(now - kind.last)
            self._lines.info(_EVENT, **kind.facts, more=kind.more, over=over, ago=ago)
