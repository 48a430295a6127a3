"""How many sessions of one identity may hold publishers: a few, however many sessions it has.

Theory
------
A connected session whose queue is half full holds its publishers, for a second at most, and not again before its queue
has been short (`broker.session.recipient`). That bounds what one session costs. But a service may have a thousand, and
they get the same messages: one after the other held everybody who publishes to them, for a thousand seconds together,
and for as long again when they had taken what was queued.

Rules
-----
1. Of one identity's sessions `MOST_HOLDING` may have held publishers within `SECONDS`. Any other holds nobody: beyond
   its limits it loses messages, as one does that takes nothing.
2. No I/O, no clock. What is remembered is bounded by the identities whose sessions hold publishers now.
"""

from __future__ import annotations

from typing import Final

from provisioning.pki.identity import Identity

MOST_HOLDING: Final = 4
SECONDS: Final = 10.0
_FEW: Final = 256


class Patience:
    """Which sessions have held publishers lately."""

    __slots__ = ("_last", "_sweep_at")

    def __init__(self) -> None:
        self._last: dict[Identity, dict[str, float]] = {}
        """When each last began to hold one: by owner, then by client identifier."""
        self._sweep_at = _FEW

    def allows(self, owner: Identity, client_id: str, now: float) -> bool:
        """Return whether *owner*'s session *client_id* may hold a publisher at *now*; take note of it if so."""
        last = self._last.get(owner)
        if last is None:
            self._sweep(now)
            last = self._last[owner] = {}
        elif client_id not in last:
            for each in [each for each, since in last.items() if now - since >= SECONDS]:
                del last[each]
            if len(last) >= MOST_HOLDING:
                return False
        last[client_id] = now
        return True

    def _sweep(self, now: float) -> None:
        if len(self._last) >= self._sweep_at:
            lately = {owner: last for owner, last in self._last.items() if now - max(last.values()) < SECONDS}
            self._last = lately
            self._sweep_at = max(_FEW, 2 * len(lately))
