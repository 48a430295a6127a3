"""Runs one of our programs with faults planted in its source: ``python -m tests.support.planting broker run …``.

The faults are in the file that `FAULTS` names: a JSON list of [file, text, replacement], relative to the repository. A
text that is not there exactly once ends the program at once: the test has to follow the source.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

FAULTS = "PLANTED_FAULTS"
REPOSITORY = Path(__file__).parents[2]

Fault = tuple[str, str, str]


def command(arguments: Sequence[str]) -> list[str]:
    """Return what to run with ``python -m`` in place of *arguments*, a program of ours and its own."""
    return ["tests.support.planting", *arguments]


def planted_in(running: Callable[..., Any]) -> Callable[..., Any]:
    """Return *running* (`device_sim.stage.processes.running`) for programs with the faults."""

    def start(name: str, arguments: Sequence[str], **options: Any) -> Any:
        return running(name, command(arguments), **options)

    return start


def write(file: Path, faults: Sequence[Fault]) -> None:
    """Write *faults* to *file*, after checking that each is where it is looked for."""
    for name, text, _ in faults:
        found = (REPOSITORY / name).read_text(encoding="utf-8").count(text)
        assert found == 1, f"{name} has {found} times {text!r}"
    file.write_text(json.dumps(faults))


def _plant(faults: Sequence[Sequence[str]]) -> None:
    sources: dict[str, str] = {}
    for name, text, replacement in faults:
        path = str(REPOSITORY / name)
        source = sources.get(path) or Path(path).read_text(encoding="utf-8")
        sources[path] = source.replace(text, replacement)

    plain = SourceFileLoader.get_code

    class Planting(SourceFileLoader):
        def get_code(self, fullname: str) -> CodeType | None:
            source = sources.get(self.path)
            if source is None:
                return plain(self, fullname)
            return compile(source, self.path, "exec", dont_inherit=True)  # Not from the cache of compiled files.

    SourceFileLoader.get_code = Planting.get_code  # type: ignore[method-assign,assignment]


def _main() -> None:
    _plant(json.loads(Path(os.environ[FAULTS]).read_text()))
    program = sys.argv[1]
    sys.argv = sys.argv[1:]
    runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
