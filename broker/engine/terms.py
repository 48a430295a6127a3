"""The terms under which a connection began; they hold as long as it lasts, whatever a reload replaces meanwhile.

Theory
------
CONNACK tells a client its Receive Maximum, Maximum Packet Size and Topic Alias Maximum (MQTT 5 §3.2.2.3), and there is
no packet that could tell it others later. A client that keeps to what it was told must not be closed for it.

Rules
-----
1. Terms are never changed. All connections that began under the same ones share one object: ten thousand connected
   devices hold one of them, not numbers each.
2. No I/O, no clock.
"""

from __future__ import annotations

from broker.settings.limits import Limits


class Terms:
    """What counted when a connection began."""

    __slots__ = ("generation", "limits")

    def __init__(self, generation: int, limits: Limits) -> None:
        self.generation = generation
        """The generation of trust whose anchors TLS believed."""
        self.limits = limits
        """The limits: what CONNACK tells of them is judged by these, everything else by the engine's present ones."""


class CurrentTerms:
    """The terms of the connections that begin now."""

    __slots__ = ("_terms",)

    def __init__(self, generation: int, limits: Limits) -> None:
        self._terms = Terms(generation, limits)

    def at(self, generation: int, limits: Limits) -> Terms:
        """Return the terms with these, the same object as before if nothing was replaced."""
        terms = self._terms
        if terms.generation != generation or terms.limits is not limits:
            terms = self._terms = Terms(generation, limits)
        return terms
