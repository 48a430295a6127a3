"""Groups of devices and their behaviours: each behaviour is a table of its own in the group that has it.

Rules
-----
1. A behaviour that is not named is absent. `Group.model_fields` lists those that exist; an unknown name is an error
   that lists them too.
"""

from __future__ import annotations

import random
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from device_sim.backoff import Backoff, Jitter
from device_sim.link.closure import Closure
from device_sim.scenario.given_payload import GivenPayload
from device_sim.scenario.values import Fraction, Interval, Offset, Pause, ScenarioPart, Seconds, Share
from device_sim.telemetry.models import Model
from device_sim.telemetry.own_payload import OwnPayload, own_payload
from device_sim.telemetry.own_topic import checked_topic, pattern_of, topic_of
from device_sim.telemetry.payload import LARGEST, Format

TELEMETRY = "fleet/{group}/{name}/telemetry"
"""Where devices publish, unless the scenario says otherwise."""


class Telemetry(ScenarioPart):
    """What a device publishes, how often, in which format. QoS 0 guarantees nothing; lost messages are counted.

    QoS 2 is exactly once on an unbroken connection; what a broken one has left open is sent again as a new message.

    *topic* and *payload*, or *payload_file*, are the scenario's own (`telemetry.own_topic`, `telemetry.own_payload`).
    """

    model: Model = Model.SMART_METER
    every: Interval = 1.0
    jitter: Fraction = 0.0
    format: Format = Format.JSON
    qos: Literal[0, 1, 2] = 1
    topic: Annotated[str, AfterValidator(checked_topic)] | None = None
    payload: str | None = None
    payload_file: GivenPayload | None = None

    @model_validator(mode="after")
    def _one_payload(self) -> Self:
        if self.payload is not None and self.payload_file is not None:
            raise ValueError("payload and payload_file: there is one payload; leave one of them out")
        if self.has_own_payload and self.format is not Format.JSON:
            raise ValueError(f"format: {self.format} is a payload of ours, and this is another; leave it out")
        if (content := self._content) is not None:
            if len(content) > LARGEST:
                raise ValueError(f"payload: {len(content)} bytes; {LARGEST} at most")
            try:
                own_payload(content, self.model)
            except ValueError as error:
                raise ValueError(f"{'payload' if self.payload_file is None else 'payload_file'}: {error}") from None
        return self

    @property
    def is_own(self) -> bool:
        """Whether the scenario says where, or what, to publish."""
        return self.topic is not None or self.has_own_payload

    @property
    def has_own_payload(self) -> bool:
        """Whether the payload is not one of the simulator's."""
        return self.payload is not None or self.payload_file is not None

    @property
    def own_payload(self) -> OwnPayload | None:
        """The payload, if it is not one of the simulator's."""
        return None if (content := self._content) is None else own_payload(content, self.model)

    @property
    def _content(self) -> bytes | None:
        if self.payload is not None:
            return self.payload.encode()
        return None if self.payload_file is None else self.payload_file.content

    def topic_of(self, device: str, group: str) -> str:
        """Return what *device*, whose certificate says *group*, publishes to."""
        return topic_of(self.topic or TELEMETRY, device, group)

    def pattern_of(self, group: str) -> str:
        """Return the topic filter for all devices of *group*."""
        return pattern_of(self.topic or TELEMETRY, group)


class BackoffPolicy(ScenarioPart):
    """How a device reconnects: see `device_sim.backoff`."""

    base: Seconds = 0.5
    cap: Seconds = 30.0
    jitter: Jitter = Jitter.FULL
    retry_after: bool = True
    """Whether it stays away as long as the broker asks it to, in addition to its own pause."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        self.backoff()
        return self

    def backoff(self) -> Backoff:
        """Return the policy."""
        return Backoff(self.base, self.cap, self.jitter)

    def pause(self, attempt: int, randomness: random.Random, closure: Closure | None) -> float:
        """Return how many seconds to stay away before *attempt* (0, 1, 2, …), after *closure*."""
        hint = closure.retry_after if self.retry_after and closure is not None else None
        # The broker's hint is the same for many devices: their own pauses spread them after it.
        return (hint or 0.0) + self.backoff().pause(attempt, randomness)


class Flap(ScenarioPart):
    """A bad network: connected for *up* seconds on average, disconnected for *down*; both exponentially distributed."""

    up: Seconds
    down: Seconds


class Sleep(ScenarioPart):
    """A battery device: *awake*, then *asleep* for that long; with *keep_session* the broker keeps its commands."""

    awake: Seconds
    asleep: Seconds
    jitter: Fraction = 0.1
    keep_session: bool = True


class Presence(ScenarioPart):
    """A retained message reports that it is connected; its will, that it is not."""

    qos: Literal[0, 1] = 1


class Commands(ScenarioPart):
    """How a device answers commands: after *delay*, sometimes with a refusal, sometimes not at all."""

    delay: Pause = 0.0
    refuse: Fraction = 0.0
    ignore: Fraction = 0.0


class Renewal(ScenarioPart):
    """It renews by EST, with a new key, after the share *after* of its certificate's life, plus or minus *jitter*."""

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
    """Its key was copied: once in *every* seconds, on average, the copy connects under its name."""

    every: Seconds


class Group(ScenarioPart):
    """Devices that behave alike; *weight* is their share of the fleet. *probe*: measured separately from the others."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    weight: Annotated[float, Field(gt=0, le=1e9)] = 1.0
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
