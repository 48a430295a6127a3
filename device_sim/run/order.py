"""The orders that a user may give to a run in progress: one line of words, parsed in one place.

Handles: ``status``, ``revoke 5%``, ``storm 100%``, ``rate x10``, ``pause``, ``resume``, ``stop``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from device_sim.scenario.stages import Revoke, Stage, Storm

ORDERS = "status, revoke 5%, storm 100%, rate x10, pause, resume, stop"
_FASTEST, _SLOWEST = 1000.0, 0.001


class InvalidOrder(ValueError):
    """The words are not a valid order; the text says what would be."""


@dataclass(frozen=True, slots=True)
class Status:
    """Report the state."""


@dataclass(frozen=True, slots=True)
class Extra:
    """Play a stage beside the current one."""

    stage: Stage


@dataclass(frozen=True, slots=True)
class Rate:
    """Publish *factor* times as often as the scenario says."""

    factor: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Publish nothing but stay connected; or resume."""

    paused: bool


@dataclass(frozen=True, slots=True)
class Stop:
    """Drain and report, as after Ctrl-C."""


Order = Status | Extra | Rate | Pause | Stop
_PLAIN: dict[str, Order] = {"status": Status(), "pause": Pause(True), "resume": Pause(False), "stop": Stop()}


def parse(text: str) -> Order:
    """Return the order in *text*. Raises `InvalidOrder`."""
    from device_sim.scenario.stages import Revoke, Storm  # Late: `fleet-sim ctl` names orders but parses none.

    text = text.strip()
    match text.split():
        case [word] if word in _PLAIN:
            return _PLAIN[word]
        case ["revoke", share]:
            return Extra(_stage(Revoke, {"select": share}, text))
        case ["storm"]:
            return Extra(Storm())
        case ["storm", share]:
            return Extra(_stage(Storm, {"drop": share}, text))
        case ["rate", factor]:
            return Rate(_factor(factor))
        case _:
            raise InvalidOrder(f"{text!r} is no order; there are: {ORDERS}")


def _stage(kind: type[Revoke | Storm], fields: dict[str, str], text: str) -> Stage:
    from pydantic import ValidationError

    from device_sim.scenario.values import BY_HAND

    try:
        return kind.model_validate(fields, context=BY_HAND)
    except ValidationError as error:
        why = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise InvalidOrder(f"{text!r}: {why}") from error


def _factor(text: str) -> float:
    try:
        factor = float(text.removeprefix("x"))
    except ValueError:
        factor = 0.0
    if not _SLOWEST <= factor <= _FASTEST:
        raise InvalidOrder(f"rate {text}: write x10, x0.5, or x1 for the scenario's own")
    return factor
