"""The garbage collector, paused while very many values are made that all stay until they are used.

What a batch of a thousand makes is freed by its reference counts. A collection finds nothing in it, and examines all of
it each time: half as much again as the work itself.

Rules
-----
1. Whoever finds the collector off leaves it off; so two that pause it at once end with a collector that runs.
2. Only for work that is bounded: nothing that is only kept by cycles is freed meanwhile.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Collect nothing in the block, in any thread."""
    runs = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if runs:
            gc.enable()
