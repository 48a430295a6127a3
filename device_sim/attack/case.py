"""A case: one way to misbehave, the expected outcome, and the code that tries it.

Rules
-----
1. A name is ``<number in the catalogue>-<words>``; it never changes, since capability files and CI histories hold it.
2. What a tester cannot do is reported (`Impossible`) as `skip` with the reason; it is never left out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from device_sim.attack.capabilities import Feature, TimeLimits
from device_sim.attack.scene import PATIENCE, Scene
from device_sim.attack.verdict import Seen

Attempt = Callable[[Scene], Awaitable[Seen]]
Limit = Callable[[TimeLimits], float]

_SECONDS = 10.0

IN = "mqtt CONNACK 0x00"
NOWHERE = "mqtt not-delivered"
BAD = ("tls bad_certificate", "tls unsupported_certificate", "tls certificate_unknown")
REVOKED = ("mqtt CONNACK 0x87", "mqtt CONNACK 0x8a", "tls certificate_revoked")
"""Right answers of many cases: admitted; not delivered to anybody; a certificate that is not accepted; kept out, with
revocation as the reason."""


def revocation(limits: TimeLimits) -> float:
    """Return the limit of a case in which a revocation must take effect."""
    return limits.revocation


def patience(_: TimeLimits) -> float:
    """Return the limit of a case in which others must be served or heard."""
    return PATIENCE


@dataclass(frozen=True, slots=True)
class Case:
    """One case. *idle* cases only wait, and run concurrently; *last* ones leave the target changed.

    *clause*: what part of the standard it is judged by, if its description does not say.
    """

    name: str
    description: str
    expected: tuple[str, ...]
    attempt: Attempt
    needs: frozenset[Feature] = frozenset()
    limit: Limit = lambda _: _SECONDS
    idle: bool = False
    last: bool = False
    clause: str = ""
    times: int = 1
    """How often, one after the other, it may take as long as its limit."""

    @property
    def number(self) -> str:
        """Its number in the catalogue."""
        return self.name.partition("-")[0]


@dataclass(slots=True)
class Chapter:
    """Cases that belong together, in order of definition."""

    cases: list[Case] = field(default_factory=list)

    def case(
        self,
        name: str,
        description: str,
        *expected: str,
        needs: tuple[Feature, ...] = (),
        limit: Limit = lambda _: _SECONDS,
        idle: bool = False,
        last: bool = False,
        times: int = 1,
    ) -> Callable[[Attempt], Attempt]:
        """Add the decorated attempt to the chapter."""

        def add(attempt: Attempt) -> Attempt:
            self.add(name, description, expected, attempt, needs=needs, limit=limit, idle=idle, last=last, times=times)
            return attempt

        return add

    def add(
        self,
        name: str,
        description: str,
        expected: tuple[str, ...],
        attempt: Attempt,
        *,
        needs: tuple[Feature, ...] = (),
        limit: Limit = lambda _: _SECONDS,
        idle: bool = False,
        last: bool = False,
        clause: str = "",
        times: int = 1,
    ) -> None:
        """Add an attempt that belongs to a family."""
        required = frozenset(needs)
        self.cases.append(Case(name, description, expected, attempt, required, limit, idle, last, clause, times))
