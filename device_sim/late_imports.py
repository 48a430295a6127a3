"""How a command of `fleet-sim` imports what it needs: like `provisioning.program.starting`, but including rich.

A command shows its progress on a terminal and elsewhere, so rich may not be hidden from the code that shows it;
pygments may, and so may what httpx would import for its own command line.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from provisioning.program.starting import importing


@contextmanager
def late_imports() -> Iterator[None]:
    """Import what a command needs inside this context."""
    import rich.console  # noqa: F401 - what is imported already is not hidden

    with importing():
        yield
