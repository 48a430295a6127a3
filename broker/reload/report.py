"""What a reload did, or would do: one value for log, command line and API.

report = await reloader.dry_run({Part.POLICY}, {Part.POLICY: candidate})
print(report)        # policy: would be reloaded; would disconnect 3 of 12,480 clients: meter-1 (…), …
report.as_dict()     # the same for a program
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from provisioning.program.printable import printable

SHOWN = 10
"""How many clients a report names."""


class Part(StrEnum):
    """What can be replaced in a running broker."""

    CERTIFICATE = "certificate"
    TRUST = "trust"
    POLICY = "policy"
    LIMITS = "limits"


class Outcome(StrEnum):
    """What happened to a part."""

    RELOADED = "reloaded"
    UNCHANGED = "unchanged"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Affected:
    """A session that loses something."""

    client_id: str
    identity: str
    why: str


@dataclass(frozen=True, slots=True)
class Effects:
    """What a change means for connected clients, and for sessions kept for clients that are away."""

    connected: int
    """How many clients were connected."""
    disconnected: int = 0
    subscriptions_ended: int = 0
    wills_dropped: int = 0
    affected: tuple[Affected, ...] = ()
    """The first sessions that lose something, connected ones before kept ones."""
    more: int = 0
    """How many others lose something."""

    def __add__(self, after: Effects) -> Effects:
        """Return the combined effects of both, one after the other."""
        affected = self.affected + after.affected
        return Effects(
            self.connected,
            self.disconnected + after.disconnected,
            self.subscriptions_ended + after.subscriptions_ended,
            self.wills_dropped + after.wills_dropped,
            affected[:SHOWN],
            self.more + after.more + len(affected[SHOWN:]),
        )


@dataclass(frozen=True, slots=True)
class PartReport:
    """What happened to one part."""

    part: Part
    outcome: Outcome
    detail: str = ""
    """Why it was refused, or what is new."""
    effects: Effects | None = None


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """What happened to all requested parts."""

    parts: tuple[PartReport, ...]
    dry_run: bool = False

    @property
    def refused(self) -> bool:
        """Whether a part was refused: the old one stays in use."""
        return any(each.outcome is Outcome.REFUSED for each in self.parts)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        parts = [asdict(each) | {"text": self._line(each)} for each in self.parts]
        return {"dry_run": self.dry_run, "refused": self.refused, "parts": parts}

    def __str__(self) -> str:
        return "\n".join(self._line(each) for each in self.parts)

    def _line(self, each: PartReport) -> str:
        verb = f"would be {each.outcome}" if self.dry_run and each.outcome is not Outcome.UNCHANGED else each.outcome
        text = f"{each.part}: {verb}"
        if each.detail:
            text += f": {each.detail}"
        return text if each.effects is None else f"{text}; {self._consequences(each.effects)}"

    def _consequences(self, effects: Effects) -> str:
        would, ended = ("would disconnect", "end") if self.dry_run else ("disconnected", "ended")
        text = f"{would} {effects.disconnected:,} of {effects.connected:,} clients"
        if effects.subscriptions_ended:
            text += f", {ended} {_count(effects.subscriptions_ended, 'subscription')}"
        if effects.wills_dropped:
            text += f", {'drop' if self.dry_run else 'dropped'} {_count(effects.wills_dropped, 'will')}"
        if effects.affected:
            text += ": " + "; ".join(f"{printable(each.client_id)} ({each.why})" for each in effects.affected)
            text += "; …" if effects.more else ""
        return text


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
