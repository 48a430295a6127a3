"""How a program imports its modules: without garbage collections, and without libraries' extras for terminals.

Imports are most of the cost of a start. A tenth of it was garbage collections that repeatedly scanned modules and
classes, which stay; another tenth was rich, which structlog and httpx import if it is installed, for coloured
tracebacks and for httpx's own command line.

    with importing():
        from provisioning.service.server import serve

Rules
-----
1. Only imports happen inside. Later garbage is collected; imported objects are no longer scanned (a collection of the
   service's modules would free nothing).
2. At a terminal, tracebacks are still coloured: rich is hidden only elsewhere. httpx's command line is
   always hidden: it would import click, pygments and all of rich, and nothing of ours calls it.
3. A closed standard stream (``2>&-``) is first opened on the null device: otherwise the next opened file would get its
   number, and everything printed.
4. Ctrl-C meanwhile ends the process at once (`provisioning.program.interruption`).
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from typing import Any, Final

from provisioning.program.interruption import ended_by_ctrl_c

_FOR_TERMINALS: Final = ("rich", "pygments")
_FOR_NOBODY: Final = ("httpx._main",)


def _have_streams() -> None:
    """Open the closed standard streams (rule 3)."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        # Gets the lowest free number, which is this one.
        opened = os.open(os.devnull, os.O_RDWR)
        setattr(sys, name, os.fdopen(opened, "w" if number else "r", encoding="utf-8"))


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import without collections then or later, and without rich unless it is loaded already or at a terminal."""
    _have_streams()
    collected = gc.isenabled()
    modules: dict[str, Any] = sys.modules
    unwanted = _FOR_NOBODY if sys.stderr.isatty() else _FOR_NOBODY + _FOR_TERMINALS
    hidden = [name for name in unwanted if name not in modules]
    modules.update(dict.fromkeys(hidden))  # None: importing it raises ImportError, as if it were not installed.
    gc.disable()
    try:
        with ended_by_ctrl_c():
            yield
    finally:
        for name in hidden:
            del modules[name]
        gc.freeze()
        if collected:
            gc.enable()
