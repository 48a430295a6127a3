"""How a command of `fleet-sim` imports what it does: `provisioning.program.starting`, and rich all the same.

A command shows how far it is on a terminal and elsewhere, so rich is not to be hidden from what shows it; pygments is,
and so what httpx would import for a command line of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from provisioning.program.starting import importing


@contextmanager
def late_imports() -> Iterator[None]:
    """Import within the context what a command needs."""
    import rich.console  # noqa: F401 - what is imported already is not hidden

    with importing():
        yield
