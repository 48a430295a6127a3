"""How a session reaches its client: the part of a connection that it uses.

In production `broker.connection.connection.ClientConnection` is the only implementation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from broker.mqtt.codes import ReasonCode

if TYPE_CHECKING:
    from broker.session.session import Session


class Connection(Protocol):
    """A client's connection."""

    @property
    def session(self) -> Session | None:
        """The session, until the connection ends."""

    @property
    def unsent(self) -> bool:
        """Whether data sent earlier still waits for the socket."""

    def send(self, packets: list[bytes]) -> None:
        """Write *packets* out; the caller may reuse the list afterwards."""

    def drain_later(self, now: float) -> None:
        """Call the session's `send_again` when all other clients have had a turn."""

    def disconnect(
        self, code: str, reason_code: ReasonCode, detail: str, now: float, *, publish_will: bool = True
    ) -> None:
        """End the connection, with the reason."""

    def release(self) -> None:
        """Resume reading from the client, which was held because it publishes faster than a subscriber takes."""
