"""The packet identifiers of QoS 2 messages from a client: each from its PUBLISH until its PUBREL.

Rules
-----
1. A message with an identifier in here was routed before: it is answered again, and not routed again
   [MQTT-4.3.3-10].
2. They outlive the connection, with their session. Each connection has a new quota (MQTT 5 §4.9): those that came over
   an earlier one do not count against it.
"""

from __future__ import annotations

from collections.abc import Iterator


class Incoming:
    """The packet identifiers of one session."""

    __slots__ = ("_carried", "_identifiers")

    def __init__(self) -> None:
        self._identifiers: set[int] = set()
        self._carried: set[int] | None = None
        """Those that came over an earlier connection; None: none."""

    def __len__(self) -> int:
        return len(self._identifiers)

    def __contains__(self, packet_id: int) -> bool:
        return packet_id in self._identifiers

    def __iter__(self) -> Iterator[int]:
        return iter(self._identifiers)

    @property
    def opened(self) -> int:
        """How many came over the present connection."""
        return len(self._identifiers) - (len(self._carried) if self._carried is not None else 0)

    def restart(self) -> None:
        """Begin the quota of a new connection."""
        self._carried = set(self._identifiers) if self._identifiers else None

    def add(self, packet_id: int) -> None:
        """Keep *packet_id* until its PUBREL."""
        self._identifiers.add(packet_id)

    def discard(self, packet_id: int) -> None:
        """Forget *packet_id*: it is free again."""
        self._identifiers.discard(packet_id)
        if self._carried is not None:
            self._carried.discard(packet_id)
