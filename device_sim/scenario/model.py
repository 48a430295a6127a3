"""The model of a scenario: groups of devices, stages in sequence, thresholds; valid by construction.

Rules
-----
1. `load` is the only way from a file to a `Scenario`; its result can be run.
2. A device's group depends only on the seed and its name: a larger fleet does not change device 17.
3. A Python program may build the same model: every class here validates itself.
"""

from __future__ import annotations

import hashlib
from bisect import bisect
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from device_sim.core_wait import MOST_WAITING
from device_sim.link.websocket import MQTT_PATH, checked_path
from device_sim.randomness import randomness_of
from device_sim.scenario.groups import Group
from device_sim.scenario.known import known_at
from device_sim.scenario.stages import KINDS, Command, Stage, Trouble
from device_sim.scenario.threshold import InvalidThreshold, Threshold
from device_sim.scenario.values import BY_HAND, DIRECTORY, ScenarioPart, Seconds
from provisioning.program.given_file import SETTINGS_BYTES, not_text, text_of, unread
from provisioning.program.given_toml import NotToml, toml_of
from provisioning.program.near_names import nearest

_MOST_SHOWN = 60
"""How many characters of a wrong value are shown."""


class InvalidScenario(Exception):
    """The scenario cannot be run; the text has a line for each fault, naming field, value and remedy."""


class GeneratorLimits(ScenarioPart):
    """Limits beyond which the simulator itself was the bottleneck, and the run is invalid."""

    lag_p99_ms: Annotated[float, Field(gt=0)] = 200.0
    busy_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    waiting_share: Annotated[float, Field(gt=0, le=1)] = MOST_WAITING
    skipped_share: Annotated[float, Field(ge=0, le=1)] = 0.001
    descriptors_share: Annotated[float, Field(gt=0, le=1)] = 0.95
    ports_share: Annotated[float, Field(gt=0, le=1)] = 0.95


class Scenario(ScenarioPart):
    """A complete scenario. *receivers* is how many instances of the backend receive everything.

    *certificate_life* is the lifetime of a self-hosted fleet's certificates, where that matters. *websocket*: all its
    connections are MQTT over WebSocket, which is asked for at *path*.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    summary: str = ""
    devices: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    seed: int = 42
    receivers: Annotated[int, Field(ge=1, le=100)] = 1
    groups: Annotated[list[Group], Field(min_length=1)] = Field(default_factory=lambda: [Group(name="meters")])
    stages: Annotated[list[Stage], Field(min_length=1)]
    thresholds: dict[str, Annotated[list[str], Field(min_length=1)]] = Field(default_factory=dict)
    generator: GeneratorLimits = GeneratorLimits()
    certificate_life: Annotated[Seconds, Field(ge=10)] | None = None
    websocket: bool = False
    path: Annotated[str, AfterValidator(checked_path)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [group.name for group in self.groups]
        if len(set(names)) < len(names):
            raise ValueError("groups: two have the same name; give each its own")
        if self.stages[0].kind != "ramp":
            raise ValueError("stages: the first must be a ramp: until then nothing is connected")
        for number, stage in enumerate(self.stages, 1):
            unknown = set(stage.groups) - set(names) if isinstance(stage, Trouble) else set()
            if unknown:
                raise ValueError(
                    f"stages: {number} (trouble): there is no group {min(unknown)}; these exist: {', '.join(names)}"
                )
        sleepers = [group for group in self.groups if group.sleep is not None and group.sleep.keep_session]
        for number, stage in enumerate(self.stages, 1):
            if isinstance(stage, Command) and stage.asleep and not sleepers:
                raise ValueError(
                    f"stages: {number} (command): asleep: no group sleeps and has its session kept; give one "
                    "`sleep = { awake = …, asleep = … }`"
                )
        if self.path is not None and not self.websocket:
            raise ValueError("path: it is what a WebSocket is asked for; add `websocket = true`, or leave it out")
        try:
            self.limits()
        except InvalidThreshold as error:
            raise ValueError(f"thresholds.{error}") from error
        return self

    @property
    def path_asked(self) -> str | None:
        """What a WebSocket is asked for; None: there is none."""
        return self.path or MQTT_PATH if self.websocket else None

    @property
    def qos(self) -> int:
        """The QoS at which the receivers of everything subscribe: 1, or 2 if a group publishes at 2."""
        return max([1, *(group.telemetry.qos for group in self.groups if group.telemetry is not None)])

    @property
    def own_topics(self) -> list[str]:
        """Where devices publish as the scenario says, with placeholders; each once."""
        chosen = [group.telemetry.topic for group in self.groups if group.telemetry is not None]
        return list(dict.fromkeys(topic for topic in chosen if topic is not None))

    def limits(self) -> list[Threshold]:
        """Return the thresholds, in the order of the file. Raises `InvalidThreshold`, already during validation."""
        return [Threshold.parse(metric, text) for metric, texts in self.thresholds.items() for text in texts]

    def group_of(self, device: str) -> Group:
        """Return the group that *device* belongs to (rule 2)."""
        bounds = list(accumulate(group.weight for group in self.groups))
        drawn = randomness_of(self.seed, device, "group").uniform(0.0, bounds[-1])
        return self.groups[min(bisect(bounds, drawn), len(bounds) - 1)]

    def troubled(self) -> frozenset[str]:
        """Return the groups whose network will be in trouble."""
        ordinary = [group.name for group in self.groups if not group.probe]
        stages = [stage for stage in self.stages if isinstance(stage, Trouble)]
        return frozenset(name for stage in stages for name in stage.groups or ordinary)

    @property
    def connections(self) -> int:
        """Return how many sockets one process of a run may have open at a time."""
        # A proxy in front of a troubled group has two sockets per device; and a copy of a device has one more.
        each = 1 + 2 * bool(self.troubled()) + any(group.clone is not None for group in self.groups)
        return self.devices * each + self.receivers

    @property
    def fingerprint(self) -> str:
        """Return a short hash of everything in the scenario: equal runs have equal fingerprints."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]


def load(path: Path) -> Scenario:
    """Return the scenario in a TOML file. Raises `InvalidScenario`."""
    try:
        text = text_of(path, SETTINGS_BYTES)
    except OSError as error:
        raise InvalidScenario(unread(path, error)) from error
    except UnicodeDecodeError as error:
        raise InvalidScenario(f"{path} is not TOML: {not_text(error)}") from error
    return parse(text, str(path), path.parent)


def parse(text: str, where: str, directory: Path = Path()) -> Scenario:
    """Return the scenario in TOML *text*; *where* names it in errors. Raises `InvalidScenario`.

    Files that it names are those in *directory*.
    """
    try:
        document = toml_of(text)
    except NotToml as error:
        raise InvalidScenario(f"{where}: {error}") from error
    return build(document, where, directory)


def build(document: dict[str, Any], where: str, directory: Path = Path()) -> Scenario:
    """Return the scenario that *document* describes; see `parse`. Raises `InvalidScenario`."""
    stages = document.get("stages")
    if isinstance(stages, list):
        document = {**document, "stages": [_stage(stage, where, number) for number, stage in enumerate(stages, 1)]}
    try:
        return Scenario.model_validate(document, context={**BY_HAND, DIRECTORY: directory})
    except ValidationError as error:
        raise InvalidScenario(faults_in(error, where)) from error


def faults_in(error: ValidationError, where: str, model: type[BaseModel] | None = None) -> str:
    """Return the faults in *error*, one per line, in the words of a scenario; each line begins with *where*."""
    kind = model or Scenario
    return "\n".join(f"{where}: {_place(fault['loc'])}{_remedy(fault, kind)}" for fault in error.errors())


def _stage(stage: Any, where: str, number: int) -> dict[str, Any]:
    # In a file a stage is written by its kind: `hold = "10s"`, `ramp = { rate = 50 }`, `restart = {}`.
    if not isinstance(stage, dict) or len(stage) != 1 or next(iter(stage)) not in KINDS:
        several = isinstance(stage, dict) and len(stage) > 1
        is_there = f"{', '.join(map(str, stage))} are several: each in a [[stages]] of its own; " if several else ""
        raise InvalidScenario(
            f'{where}: stages.{number}: {is_there}write one of {", ".join(KINDS)}, as in `hold = "10s"`'
        )
    ((kind, fields),) = stage.items()
    if kind == "hold" and not isinstance(fields, dict):
        fields = {"seconds": fields}
    if not isinstance(fields, dict):
        raise InvalidScenario(f"{where}: stages.{number}.{kind}: write its fields in braces, as {{ rate = 50 }}")
    return {"kind": kind, **fields}


def _place(location: tuple[int | str, ...]) -> str:
    parts = [str(part + 1) if isinstance(part, int) else part for part in location]
    return f"{'.'.join(parts)}: " if parts else ""


def _remedy(fault: Any, model: type[BaseModel]) -> str:
    match fault["type"]:
        case "extra_forbidden":
            known = known_at(model, fault["loc"][:-1])
            near = nearest(str(fault["loc"][-1]), known)
            hint = f"did you mean {near!r}? " if near else ""
            return f"there is no such field; {hint}these exist: {', '.join(known)}"
        case "missing":
            return "is required; add it"
        case "model_type" | "model_attributes_type" | "dict_type":
            return 'write its fields in braces, as { every = "10s" }, or in a table of its own'
        case "list_type":
            return "write a list, in brackets"
        case "too_short":
            return "the list is empty: write something in it, or leave it out"
        case "string_pattern_mismatch":
            return f"{fault['input']!r} is no name here: use letters, digits and hyphens ({fault['ctx']['pattern']})"
        case "value_error":
            return str(fault["msg"]).removeprefix("Value error, ")
        case _:
            told = str(fault["msg"]).removeprefix("Input ")
            return f"{_given(fault['input'])} {told}" if told.startswith("should ") else str(fault["msg"])


def _given(value: object) -> str:
    """Return *value* as it was written, unless it is long."""
    words = repr(value)
    return words if len(words) <= _MOST_SHOWN else f"{words[:_MOST_SHOWN]}…"
