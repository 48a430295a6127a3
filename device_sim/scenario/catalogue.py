"""The built-in scenarios, and how a name or a path becomes a scenario."""

from __future__ import annotations

import runpy
import traceback
from importlib.resources import files
from pathlib import Path

from pydantic import ValidationError

from device_sim.scenario.model import InvalidScenario, Scenario, faults_in, load, parse
from device_sim.scenario.values import ScenarioPart
from provisioning.program.given_file import unread

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
    """Return the object ``scenario`` of the Python file *program*, which is run like any program the user names."""
    try:
        with program.open("rb"):
            pass  # It exists. A file that it cannot open itself is another error.
    except OSError as error:
        raise InvalidScenario(unread(program, error)) from error
    try:
        found = runpy.run_path(str(program)).get("scenario")
    except ValidationError as error:
        model = next((kind for kind in ScenarioPart.__subclasses__() if kind.__name__ == error.title), Scenario)
        raise InvalidScenario(faults_in(error, f"{_place(program, error)}: {error.title}", model)) from error
    except (Exception, SystemExit) as error:  # It may be any program. If it exits by itself, no scenario was run.
        raise InvalidScenario(f"{_place(program, error)}: {type(error).__name__}: {error}") from error
    if not isinstance(found, Scenario):
        raise InvalidScenario(f"{program}: it has no `scenario = Scenario(…)` (device_sim.scenario.model)")
    return found


def _place(program: Path, error: BaseException) -> str:
    """Return *program*, with its last line that *error* passed through."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(program)]
    return f"{program}:{lines[-1]}" if lines else str(program)
