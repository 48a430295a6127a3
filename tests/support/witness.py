"""Whoever hears what the broker has decided, as the audit log does."""

from __future__ import annotations


class Witness:
    """Whoever writes the audit log."""

    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, object]]] = []

    def told(self, event: str, **facts: object) -> None:
        self.said.append((event, facts))

    def saw(self, event: object) -> None:
        """Hear what happened to a client."""
