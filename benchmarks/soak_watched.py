"""Runs a program of ours so that its Python objects can be counted from outside: SIGUSR2 has them written to a file.

    python -P benchmarks/soak_watched.py FILE broker run …      then kill -USR2 PID, and FILE has the count of each type

Rules
-----
1. Everything is counted, what a program has frozen too, and twice: with the garbage in reference cycles that it has
   left for a later collection, and without.
2. So a count is a full collection, which the program might not have made: it is asked for rarely. Afterwards all that
   is alive is frozen, as both programs do at their start: what of it dies in cycles is collected by the next count.
3. The file appears whole: it is renamed into place.
"""

from __future__ import annotations

import gc
import json
import runpy
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType


def main() -> None:
    """Run the module that the command line names."""
    place, module, *arguments = sys.argv[1:]

    def count(_signal: int, _frame: FrameType | None) -> None:
        gc.unfreeze()
        before = len(gc.get_objects())
        gc.collect()
        found = gc.get_objects()
        types = Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in found)
        draft = Path(f"{place}.new")
        try:
            left = {"objects": len(found), "garbage": before - len(found), "types": dict(types)}
            draft.write_text(json.dumps(left))
            draft.rename(place)
        except OSError:  # A full disk is one of the faults.
            draft.unlink(missing_ok=True)
        gc.freeze()

    signal.signal(signal.SIGUSR2, count)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
