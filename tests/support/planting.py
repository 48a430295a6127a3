"""Runs one of our programs with faults planted in its source: ``python -m tests.support.planting broker run …``.

The faults are in the file that `FAULTS` names: a JSON list of [file, text, replacement], relative to the repository. A
text that is not there exactly once is refused before anything starts: the test has to follow the source.

It may be forked from an interpreter that has imported what is not ours (`tests.support.programs`). A module that is
imported already has no fault and would keep none: such a program ends at once.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Callable, Container, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

FAULTS = "PLANTED_FAULTS"
REPOSITORY = Path(__file__).parents[2]

Fault = tuple[str, str, str]


def command(arguments: Sequence[str], *, afresh: bool = False) -> list[str]:
    """Return what to run with ``python -m`` in place of *arguments*, a program of ours and its own.

    *afresh*: also where ``python`` stands for one that would have it forked, which knows it by the first word.
    """
    return [*(["runpy"] if afresh else []), "tests.support.planting", *arguments]


def planted_in(
    running: Callable[..., Any], faults: Sequence[Fault], *, afresh: Container[str] = ()
) -> Callable[..., Any]:
    """Return *running* (`device_sim.stage.processes.running`) for programs with the *faults*.

    The service imports nothing of the others: where none of the faults is its own, it is forked with its imports done.
    *afresh* names those that are killed or measured: their parent must see them, and not a stand-in.
    """
    packages = {name.partition("/")[0] for name, _, _ in faults}

    def start(name: str, arguments: Sequence[str], **options: Any) -> Any:
        if arguments[0] == "provisioning" and "provisioning" not in packages:
            return running(name, arguments, **options)
        return running(name, command(arguments, afresh=arguments[0] in afresh), **options)

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
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) in sources:
            sys.exit(f"{module.__name__} was imported before its fault was planted")

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
