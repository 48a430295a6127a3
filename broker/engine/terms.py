"""The terms under which a connection began; they apply until it ends, whatever a reload replaces meanwhile.

Theory
------
CONNACK tells a client its Receive Maximum, Maximum Packet Size and Topic Alias Maximum (MQTT 5 §3.2.2.3), and no packet
can change them later. A client that keeps to what it was told must not be disconnected for it.

Rules
-----
1. Terms are immutable. All connections that began under the same terms share one object, so ten thousand connected
   devices do not hold copies of the numbers.
2. No I/O, no clock.
"""

from __future__ import annotations

from broker.settings.limits import Limits


class Terms:
    """What applied when a connection began."""

    __slots__ = ("generation", "limits")

    def __init__(self, generation: int, limits: Limits) -> None:
        self.generation = generation
        """The generation of trust whose anchors TLS used."""
        self.limits = limits
        """The limits: those stated in CONNACK apply as they are here, all others as they are in the engine."""


class CurrentTerms:
    """The terms of connections that begin now."""

    __slots__ = ("_terms",)

    def __init__(self, generation: int, limits: Limits) -> None:
        self._terms = Terms(generation, limits)

    def at(self, generation: int, limits: Limits) -> Terms:
        """Return the terms with these values; the same object as before if nothing has changed."""
        terms = self._terms
        if terms.generation != generation or terms.limits is not limits:
            terms = self._terms = Terms(generation, limits)
        return terms
