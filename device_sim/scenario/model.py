"""What a scenario is: groups of devices, stages in sequence, thresholds; valid by construction.

Rules
-----
1. `load` is the only way from a file to a `Scenario`; what it returns can be run.
2. Which group a device is in depends on the seed and its name alone: a larger fleet does not change device 17.
3. A Python program may build the same model: every class here validates itself.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from bisect import bisect
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from device_sim.backoff import Backoff
from device_sim.scenario.pacer import Spread
from device_sim.scenario.threshold import InvalidThreshold, Threshold
from device_sim.telemetry import randomness_of
from provisioning.pki.revocation import RevocationReason

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")


class InvalidScenario(Exception):
    """The scenario cannot be run; the text has a line for each fault, naming field and remedy."""


def _seconds(value: Any) -> Any:
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"{value!r} is no duration: write '500ms', '10s', '2m' or '1h'")
        return float(match[1]) * _UNITS[match[2]]
    return value


SAME_PROGRAM = {"written by": "the same program"}
"""Validation context of a scenario that one process hands to another: its fractions are no slips of a person's pen."""


def _share(value: Any, info: ValidationInfo) -> Any:
    if info.context == SAME_PROGRAM:
        return value
    if isinstance(value, str):
        match = _SHARE.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"{value!r} is no share of the fleet: write '5%'")
        return float(match[1]) / 100
    raise ValueError("write a share of the fleet, as '5%'")


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=7 * 86400)]
Pause = Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=86400)]
Share = Annotated[float, BeforeValidator(_share), Field(gt=0, le=1)]
Jitter = Annotated[float, BeforeValidator(_share), Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=100_000)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Telemetry(_Part):
    """How often a device publishes a reading."""

    every: Seconds = 1.0
    jitter: Jitter = 0.0


class FullJitter(_Part):
    """How a device comes back: see `device_sim.backoff`."""

    base: Seconds = 0.5
    cap: Seconds = 30.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        self.backoff()
        return self

    def backoff(self) -> Backoff:
        """Return the policy."""
        return Backoff(self.base, self.cap)


class Flap(_Part):
    """A bad network: connected for *up* seconds on average, away for *down*; both exponentially distributed."""

    up: Seconds
    down: Seconds


class Group(_Part):
    """Devices that behave alike; *weight* is their part of the fleet. *probe*: measured apart from the others."""

    name: Annotated[str, Field(pattern=r"[A-Za-z0-9][A-Za-z0-9_-]*")]
    weight: Annotated[float, Field(gt=0)] = 1.0
    telemetry: Telemetry | None = Telemetry()
    backoff: FullJitter = FullJitter()
    flap: Flap | None = None
    probe: bool = False


class Ramp(_Part):
    """Devices connect, *rate* a second, until the share *to* of the fleet has been told to."""

    kind: Literal["ramp"] = "ramp"
    to: Share = 1.0
    rate: Rate
    spread: Spread = Spread.EVEN


class Hold(_Part):
    """Nothing changes for *seconds*."""

    kind: Literal["hold"] = "hold"
    seconds: Seconds


class Storm(_Part):
    """The share *drop* of the connections breaks within a short time; the devices come back by their own backoff."""

    kind: Literal["storm"] = "storm"
    drop: Share = 1.0
    within: Pause = 0.0
    settle: Seconds = 60.0


class Revoke(_Part):
    """An operator revokes the share *select* of the connected devices, *rate* a second; each then tries again."""

    kind: Literal["revoke"] = "revoke"
    select: Share
    rate: Rate = 10.0
    reason: RevocationReason = RevocationReason.KEY_COMPROMISE
    deadline: Seconds = 5.0


class Renew(_Part):
    """The share *select* of the devices renews its certificate with a new key and reconnects, *rate* a second."""

    kind: Literal["renew"] = "renew"
    select: Share
    rate: Rate = 10.0


class Command(_Part):
    """The backend sends the share *select* of the devices a command, *rate* a second."""

    kind: Literal["command"] = "command"
    select: Share = 1.0
    rate: Rate = 100.0
    deadline: Seconds = 10.0


class Restart(_Part):
    """The broker is stopped and started again; only where the run has started it itself (``--self-hosted``)."""

    kind: Literal["restart"] = "restart"
    settle: Seconds = 60.0


Stage = Annotated[Ramp | Hold | Storm | Revoke | Renew | Command | Restart, Field(discriminator="kind")]
_KINDS = ("ramp", "hold", "storm", "revoke", "renew", "command", "restart")


class GeneratorLimits(_Part):
    """Beyond these the simulator itself was the bottleneck, and the run is invalid."""

    lag_p99_ms: Annotated[float, Field(gt=0)] = 200.0
    busy_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    skipped_share: Annotated[float, Field(ge=0, le=1)] = 0.001
    descriptors_share: Annotated[float, Field(gt=0, le=1)] = 0.95
    ports_share: Annotated[float, Field(gt=0, le=1)] = 0.95


class Scenario(_Part):
    """A whole scenario. *receivers* is how many instances of the backend receive everything."""

    name: Annotated[str, Field(pattern=r"[a-z0-9][a-z0-9-]*")]
    summary: str = ""
    devices: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    seed: int = 42
    receivers: Annotated[int, Field(ge=1, le=100)] = 1
    groups: Annotated[list[Group], Field(min_length=1)] = [Group(name="meters")]
    stages: Annotated[list[Stage], Field(min_length=1)]
    thresholds: dict[str, list[str]] = {}
    generator: GeneratorLimits = GeneratorLimits()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [group.name for group in self.groups]
        if len(set(names)) < len(names):
            raise ValueError("groups: two have the same name; give each its own")
        if self.stages[0].kind != "ramp":
            raise ValueError("stages: the first must be a ramp: until then nothing is connected")
        self.limits()
        return self

    def limits(self) -> list[Threshold]:
        """Return the thresholds, in the order of the file. Raises `InvalidThreshold`, at validation already."""
        return [Threshold.parse(metric, text) for metric, texts in self.thresholds.items() for text in texts]

    def group_of(self, device: str) -> Group:
        """Return the group that *device* belongs to (rule 2)."""
        bounds = list(accumulate(group.weight for group in self.groups))
        drawn = randomness_of(self.seed, device, "group").uniform(0.0, bounds[-1])
        return self.groups[min(bisect(bounds, drawn), len(bounds) - 1)]

    @property
    def fingerprint(self) -> str:
        """Return a short hash of everything in the scenario: equal runs have equal fingerprints."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]


def load(path: Path) -> Scenario:
    """Return the scenario in a TOML file. Raises `InvalidScenario`."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidScenario(f"{path} cannot be read: {error}") from error
    return parse(text, str(path))


def parse(text: str, where: str) -> Scenario:
    """Return the scenario in TOML *text*; *where* names it in errors. Raises `InvalidScenario`."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidScenario(f"{where}: {error}") from error
    return build(document, where)


def build(document: dict[str, Any], where: str) -> Scenario:
    """Return the scenario that *document* describes. Raises `InvalidScenario`."""
    stages = document.get("stages")
    if isinstance(stages, list):
        document = {**document, "stages": [_stage(stage, where, number) for number, stage in enumerate(stages, 1)]}
    try:
        return Scenario.model_validate(document)
    except ValidationError as error:
        faults = "\n".join(f"{where}: {_place(fault['loc'])}{_remedy(fault)}" for fault in error.errors())
        raise InvalidScenario(faults) from error
    except InvalidThreshold as error:
        raise InvalidScenario(f"{where}: thresholds.{error}") from error


def _stage(stage: Any, where: str, number: int) -> dict[str, Any]:
    # In a file a stage is written by its kind: `hold = "10s"`, `ramp = { rate = 50 }`, `restart = {}`.
    if not isinstance(stage, dict) or len(stage) != 1 or next(iter(stage)) not in _KINDS:
        raise InvalidScenario(f'{where}: stages.{number}: write one of {", ".join(_KINDS)}, as in `hold = "10s"`')
    ((kind, fields),) = stage.items()
    if kind == "hold" and not isinstance(fields, dict):
        fields = {"seconds": fields}
    if not isinstance(fields, dict):
        raise InvalidScenario(f"{where}: stages.{number}.{kind}: write its fields in braces, as {{ rate = 50 }}")
    return {"kind": kind, **fields}


def _place(location: tuple[int | str, ...]) -> str:
    parts = [str(part + 1) if isinstance(part, int) else part for part in location]
    return f"{'.'.join(parts)}: " if parts else ""


def _remedy(fault: Any) -> str:
    match fault["type"]:
        case "extra_forbidden":
            return "there is no such field; look for a misspelling"
        case "missing":
            return "is required; add it"
        case _:
            return str(fault["msg"]).removeprefix("Value error, ")
