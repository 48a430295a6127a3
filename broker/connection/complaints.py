"""What the log says about a client that asks for what it may not have, or does not keep up.

Rules
-----
1. The first few denials get a line each; further ones are counted, and the log gets the count
   (`broker.engine.denials`): a client can try for ever and must not fill the log. "Few" is per connection, and also per
   identity and minute, however often it connects. The same goes for clients that are too slow or too fast, which
   metrics count.
2. Most clients give no cause: their connections have no `Complaints`.
3. No I/O, no clock: the time is passed in.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from broker.engine.denials import Denials
from broker.engine.history import MOST_DENIED, History, Party, named
from broker.settings.limits import Limits

log = structlog.get_logger("broker")


class Complaints:
    """What has been logged about one connection."""

    __slots__ = ("_client_id", "_denials", "_history", "_party", "_told", "_told_fast")

    def __init__(self, history: History, party: Party, client_id: str) -> None:
        """Report to the log and to *history* about the connection *party*, whose client identifier is *client_id*."""
        self._history = history
        self._party = party
        self._client_id = client_id
        self._told = 0
        self._told_fast = False
        self._denials: Denials | None = None

    def denied(self, event: str, details: Mapping[str, object], now: float) -> None:
        """Log and record that the client was denied something."""
        if self._told < MOST_DENIED and self._history.tells_of_denials(self._party, now):
            self._told += 1
            self._history.denied(self._party, event, details, self._client_id, now)
            return
        if self._denials is None:
            self._denials = Denials(now)
        if self._denials.add((event, str(details.get("code", ""))), now):
            self._history.denied_more(self._party, self._denials, self._client_id, now)

    def slow(self, now: float) -> None:
        """Log that the client does not keep up."""
        if self._told < MOST_DENIED and self._history.tells_of_pace(self._party, now):
            self._told += 1
            self._warn("client does not keep up", code="SLOW_CONSUMER")

    def fast(self, limits: Limits, now: float) -> None:
        """Log, once, that the client sends faster than its limits allow."""
        if not self._told_fast and self._history.tells_of_pace(self._party, now):
            self._told_fast = True
            rates = {"max_packet_rate": limits.max_packet_rate, "max_byte_rate": limits.max_byte_rate}
            self._warn("client sends too fast", code="TOO_FAST", **rates)

    def end(self, now: float) -> None:
        """Report the denials that were only counted: the connection has ended."""
        if self._denials is not None:
            self._history.denied_more(self._party, self._denials, self._client_id, now)

    def _warn(self, event: str, **details: object) -> None:
        log.warning(event, client=self._client_id, address=self._party.address, **details, **named(self._party))
