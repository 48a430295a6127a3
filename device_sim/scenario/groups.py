"""Groups of devices and how they behave: each behaviour is a part of its own, named in the group that has it.

Rules
-----
1. A behaviour that is not named is not there. Which exist: `Group.model_fields`; an unknown name is an error that lists
   them.
"""

from __future__ import annotations

import random
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from device_sim.backoff import Backoff, Jitter
from device_sim.link.closure import Closure
from device_sim.scenario.values import Fraction, Offset, Pause, ScenarioPart, Seconds, Share
from device_sim.telemetry.models import Model
from device_sim.telemetry.payload import Format


class Telemetry(ScenarioPart):
    """What a device publishes, how often, in which format. QoS 0 promises nothing; what is lost is counted.

    QoS 2 is exactly once on a connection that stands; what one that breaks has left open is sent again, as a new one.
    """

    model: Model = Model.SMART_METER
    every: Seconds = 1.0
    jitter: Fraction = 0.0
    format: Format = Format.JSON
    qos: Literal[0, 1, 2] = 1


class BackoffPolicy(ScenarioPart):
    """How a device comes back: see `device_sim.backoff`."""

    base: Seconds = 0.5
    cap: Seconds = 30.0
    jitter: Jitter = Jitter.FULL
    retry_after: bool = True
    """Whether it stays away for as long as the broker asks it to, beside its own pause."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        self.backoff()
        return self

    def backoff(self) -> Backoff:
        """Return the policy."""
        return Backoff(self.base, self.cap, self.jitter)

    def pause(self, attempt: int, randomness: random.Random, closure: Closure | None) -> float:
        """Return for how many seconds to stay away before *attempt* (0, 1, 2, …), after *closure*."""
        hint = closure.retry_after if self.retry_after and closure is not None else None
        # The broker's hint is the same for many: their own pauses spread them behind it.
        return (hint or 0.0) + self.backoff().pause(attempt, randomness)


class Flap(ScenarioPart):
    """A bad network: connected for *up* seconds on average, away for *down*; both exponentially distributed."""

    up: Seconds
    down: Seconds


class Sleep(ScenarioPart):
    """A battery device: *awake* for so long, asleep for *asleep*; with *keep_session* the broker keeps its commands."""

    awake: Seconds
    asleep: Seconds
    jitter: Fraction = 0.1
    keep_session: bool = True


class Presence(ScenarioPart):
    """A retained message says that it is there; its will says that it is not."""

    qos: Literal[0, 1] = 1


class Commands(ScenarioPart):
    """How a device answers commands: after *delay*, sometimes with a refusal, sometimes not at all."""

    delay: Pause = 0.0
    refuse: Fraction = 0.0
    ignore: Fraction = 0.0


class Renewal(ScenarioPart):
    """It renews by EST, with a new key, when *after* of its certificate's life has passed, give or take *jitter*."""

    after: Share = 2 / 3
    jitter: Fraction = 0.05


class Clock(ScenarioPart):
    """Its clock is wrong: it renews too early or too late, and finds the broker's certificate outside its validity."""

    offset: Offset


class SlowReader(ScenarioPart):
    """Once in *every* seconds, on average, it reads nothing for *stall* seconds."""

    every: Seconds
    stall: Seconds


class Clone(ScenarioPart):
    """Somebody copied its key: once in *every* seconds, on average, the copy connects under its name."""

    every: Seconds


class Group(ScenarioPart):
    """Devices that behave alike; *weight* is their part of the fleet. *probe*: measured apart from the others."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    weight: Annotated[float, Field(gt=0)] = 1.0
    probe: bool = False
    telemetry: Telemetry | None = Telemetry()
    backoff: BackoffPolicy = BackoffPolicy()
    commands: Commands | None = None
    presence: Presence | None = None
    renewal: Renewal | None = None
    flap: Flap | None = None
    sleep: Sleep | None = None
    slow_reader: SlowReader | None = None
    clock: Clock | None = None
    clone: Clone | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.flap is not None and self.sleep is not None:
            raise ValueError("flap and sleep: a device has one of them; make two groups")
        return self
