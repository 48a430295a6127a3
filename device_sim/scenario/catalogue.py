"""The scenarios that come with the program, and how a name or a path becomes one."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from device_sim.scenario.model import InvalidScenario, Scenario, load, parse

_SUFFIX = ".toml"


def built_in() -> dict[str, Scenario]:
    """Return the built-in scenarios by name."""
    found = (file for file in files(__package__).joinpath("builtin").iterdir() if file.name.endswith(_SUFFIX))
    scenarios = (parse(file.read_text(), file.name) for file in found)
    return {scenario.name: scenario for scenario in sorted(scenarios, key=lambda scenario: scenario.name)}


def find(name: str) -> Scenario:
    """Return the built-in scenario *name*, or the one in the file *name*. Raises `InvalidScenario`."""
    if name.endswith(_SUFFIX) or "/" in name:
        return load(Path(name))
    scenarios = built_in()
    if name not in scenarios:
        raise InvalidScenario(
            f"{name}: there is no such scenario; use one of {', '.join(scenarios)}, or the path of a {_SUFFIX} file"
        )
    return scenarios[name]
