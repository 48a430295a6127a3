"""How a session reaches its client: what it asks of a connection.

`broker.connection.connection.ClientConnection` is the only one in production.
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
        """Whether something that was sent before waits for the socket."""

    def send(self, packets: list[bytes]) -> None:
        """Write *packets* out; the list is the caller's again afterwards."""

    def disconnect(
        self, code: str, reason_code: ReasonCode, detail: str, now: float, *, publish_will: bool = True
    ) -> None:
        """End the connection, saying why."""

    def release(self) -> None:
        """Read again from the client, which was held because it publishes faster than a subscriber takes."""
