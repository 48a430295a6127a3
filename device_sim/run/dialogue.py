"""The dialogue between conductor and workers: one JSON object per line, over the worker's standard streams.

Rules
-----
1. Every message is one of the models here; anything else that arrives is a bug and raises.
2. No message contains a key: a worker reads its devices' credentials from the fleet's directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from device_sim.link.tls_dial import Endpoint
from device_sim.run.manner import Manner, Share
from device_sim.run.part import PartOutcome, PartState, Strays
from device_sim.run.stages import Acted
from device_sim.scenario.model import Scenario
from device_sim.scenario.stages import Stage

LONGEST_LINE = 256 * 1024 * 1024
"""A part's outcome takes a few dozen bytes per device, plus its histograms."""


class _Said(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Job(_Said):
    """The conductor's first message: which part to run, and how."""

    said: Literal["job"] = "job"
    scenario: Scenario
    fleet: Path
    broker: Endpoint
    manner: Manner
    share: Share


class Begin(_Said):
    """Publish from now on; the run began at *started* (`time.monotonic`)."""

    said: Literal["begin"] = "begin"
    started: float


class Play(_Said):
    """Play a stage and answer with `Ended`. *request* ties the two."""

    said: Literal["play"] = "play"
    request: int
    number: int
    stage: Stage


class Stop(_Said):
    """End stages early."""

    said: Literal["stop"] = "stop"


class Change(_Said):
    """Publish *rate* times as often as the scenario says; or nothing, while *paused*."""

    said: Literal["change"] = "change"
    rate: float | None = None
    paused: bool | None = None


class Finish(_Said):
    """Publish no more, drain, and answer with `Outcome`."""

    said: Literal["finish"] = "finish"


class Close(_Said):
    """The receivers have drained, too: answer with `Strayed`, and end."""

    said: Literal["close"] = "close"


class Ready(_Said):
    """The worker has its devices."""

    said: Literal["ready"] = "ready"


class Ended(_Said):
    """A stage is over, and this came of it."""

    said: Literal["ended"] = "ended"
    request: int
    acted: Acted


class State(_Said):
    """Sent once a second."""

    said: Literal["state"] = "state"
    state: PartState


class Outcome(_Said):
    """What the part has observed."""

    said: Literal["outcome"] = "outcome"
    outcome: PartOutcome


class Strayed(_Said):
    """A worker's last message."""

    said: Literal["strayed"] = "strayed"
    strays: Strays


Order = Job | Begin | Play | Stop | Change | Finish | Close
Report = Ready | Ended | State | Outcome | Strayed

_ORDERS: TypeAdapter[Order] = TypeAdapter(Annotated[Order, Field(discriminator="said")])
_REPORTS: TypeAdapter[Report] = TypeAdapter(Annotated[Report, Field(discriminator="said")])


def line(said: Order | Report) -> bytes:
    """Return the bytes for the pipe."""
    return said.model_dump_json().encode() + b"\n"


def order(text: bytes) -> Order:
    """Return the conductor's message."""
    return _ORDERS.validate_json(text)


def report(text: bytes) -> Report:
    """Return the worker's message."""
    return _REPORTS.validate_json(text)
