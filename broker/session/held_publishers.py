"""The publishers that one recipient holds: they are not read until what waits for it is little again.

Theory
------
While a client is connected and takes messages, however slowly, who publishes to it is held before its queue is full
(decision 0011): TCP passes that on, and nothing is lost. From the first publisher that is held, or the first time that
it gives up, a recipient has one of these, until its queue is short (`broker.session.recipient`).

Rules
-----
1. Who takes nothing holds them for at most a second (`give_up`), and not again before its queue has been short, however
   often it comes back; nor do very many of one identity (`broker.session.patience`).
2. No I/O, no clock.
"""

from __future__ import annotations

from broker.session.connection import Connection


class HeldPublishers:
    """Those that wait for one recipient."""

    __slots__ = ("_publishers", "given_up")

    def __init__(self) -> None:
        self._publishers: list[Connection] = []
        self.given_up = False
        """Whether nobody is held for it any more: the client takes nothing."""

    def __len__(self) -> int:
        return len(self._publishers)

    def add(self, publisher: Connection) -> None:
        """Remember that *publisher* is not read."""
        self._publishers.append(publisher)

    def give_up(self) -> None:
        """Release them, and take note that nobody else is to be held."""
        self.given_up = True
        self.release()

    def release(self) -> None:
        """Let all of them be read again."""
        released, self._publishers = self._publishers, []
        for publisher in released:
            publisher.release()
