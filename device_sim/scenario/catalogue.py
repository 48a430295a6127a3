"""The scenarios that come with the program, and how a name or a path becomes one."""

from __future__ import annotations

import runpy
from importlib.resources import files
from pathlib import Path

from device_sim.scenario.model import InvalidScenario, Scenario, load, parse
from device_sim.scenario.threshold import InvalidThreshold

_SUFFIX, _PROGRAM = ".toml", ".py"


def built_in() -> dict[str, Scenario]:
    """Return the built-in scenarios by name."""
    found = (file for file in files(__package__).joinpath("builtin").iterdir() if file.name.endswith(_SUFFIX))
    scenarios = (parse(file.read_text(), file.name) for file in found)
    return {scenario.name: scenario for scenario in sorted(scenarios, key=lambda scenario: scenario.name)}


def find(name: str) -> Scenario:
    """Return the built-in scenario *name*, or the one in the file *name*. Raises `InvalidScenario`."""
    if name.endswith(_PROGRAM):
        return _built_by(Path(name))
    if name.endswith(_SUFFIX) or "/" in name:
        return load(Path(name))
    scenarios = built_in()
    if name not in scenarios:
        raise InvalidScenario(
            f"{name}: there is no such scenario; use one of {', '.join(scenarios)}, or the path of a {_SUFFIX} or "
            f"{_PROGRAM} file"
        )
    return scenarios[name]


def _built_by(program: Path) -> Scenario:
    """Return what the Python file *program* calls ``scenario``; it is run, as any program that its user names."""
    try:
        found = runpy.run_path(str(program)).get("scenario")
    except OSError as error:
        raise InvalidScenario(f"{program} cannot be read: {error.strerror}") from error
    except (ValueError, InvalidThreshold) as error:  # pydantic's is a ValueError.
        raise InvalidScenario(f"{program}: {error}") from error
    if not isinstance(found, Scenario):
        raise InvalidScenario(f"{program}: it has no `scenario = Scenario(…)` (device_sim.scenario.model)")
    return found
