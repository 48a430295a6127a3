"""How a program imports what it needs: undisturbed, and without what libraries have for people at a terminal.

Importing is most of what a start costs. A tenth of it was garbage collections that looked at modules and classes, which
stay, time and again; another was rich, which structlog and httpx import where they find it, for coloured tracebacks and
for a command line of httpx's own.

    with importing():
        from provisioning.service.server import serve

Rules
-----
1. Only imports happen inside. What runs has its garbage collected; what was imported is looked at no more (of the
   service's modules, a collection would find nothing to free).
2. At a terminal, tracebacks are as colourful as ever: rich is hidden where nobody watches. httpx's command line is
   always: with it come click, pygments and the whole of rich, and nothing of ours calls it.
3. A standard stream that is closed (``2>&-``) becomes the null device first: the next file that is opened would get its
   number, and be written into by whoever prints.
4. Ctrl-C meanwhile ends the process at once, as it ends any program: there is nothing yet to put in order, and where
   in an import it came interests nobody.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, Final

_FOR_TERMINALS: Final = ("rich", "pygments")
_FOR_NOBODY: Final = ("httpx._main",)


def _have_streams() -> None:
    """Open what nobody has given us (rule 3)."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        # The lowest number that is free, which is this one.
        opened = os.open(os.devnull, os.O_RDWR)
        setattr(sys, name, os.fdopen(opened, "w" if number else "r", encoding="utf-8"))


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import without collections then or later, and without rich unless it is there already or somebody watches."""
    _have_streams()
    collected = gc.isenabled()
    modules: dict[str, Any] = sys.modules
    unwanted = _FOR_NOBODY if sys.stderr.isatty() else _FOR_NOBODY + _FOR_TERMINALS
    hidden = [name for name in unwanted if name not in modules]
    # Only the main thread may change what a signal does; and whoever has said so already keeps what he said.
    plain = threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    modules.update(dict.fromkeys(hidden))  # None: to import it is an ImportError, as if it were not installed.
    gc.disable()
    if plain:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if plain:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        for name in hidden:
            del modules[name]
        gc.freeze()
        if collected:
            gc.enable()
