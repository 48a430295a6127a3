"""An extension with a bug, which the port forbids: to see what becomes of a connection that meets one."""

from __future__ import annotations

from typing import Any, NoReturn

BUG = "a bug of ours"


class FaultyExtension:
    """Raises when it is asked about a message."""

    looks_at_messages = True

    def ask_publish(self, *_about: Any) -> NoReturn:
        raise RuntimeError(BUG)

    def disconnected(self, _session: Any) -> None:
        """Do nothing."""
