"""How a program imports what it needs: undisturbed, and without what libraries have for people at a terminal.

Importing is most of what a start costs. A tenth of it was garbage collections that looked at modules and classes, which
stay, time and again; another was rich, which structlog and httpx import where they find it, for coloured tracebacks and
for a command line of httpx's own.

    with importing():
        from provisioning.server import serve

Rules
-----
1. Only imports happen inside. What runs has its garbage collected; what was imported is looked at no more (of the
   service's modules, a collection would find nothing to free).
2. At a terminal, tracebacks are as colourful as ever: rich is hidden where nobody watches.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from typing import Any, Final

_FOR_TERMINALS: Final = ("rich", "pygments")


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import without collections then or later, and without rich unless it is there already or somebody watches."""
    collected = gc.isenabled()
    hidden = [] if sys.stderr.isatty() else [name for name in _FOR_TERMINALS if name not in sys.modules]
    modules: dict[str, Any] = sys.modules
    modules.update(dict.fromkeys(hidden))  # None: to import it is an ImportError, as if it were not installed.
    gc.disable()
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]
        gc.freeze()
        if collected:
            gc.enable()
