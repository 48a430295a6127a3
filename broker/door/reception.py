"""What happens to a connection just accepted: it is served, waits for a place, or is closed before TLS.

Rules
-----
1. An address has at most `max_unadmitted_per_address` places; further connections from there wait for one.
2. When all `max_unadmitted` are taken, the newcomer gets the place of one from a network or address with too many
   (`broker.door.crowd`), or waits. For those that wait this is checked again a few times a second, since the holders of
   places may be late by then. Waiting clients are served before new ones are accepted (`broker.door.waiting_room`):
   where more places are free than can be given in one turn, those accepted in that turn wait behind them.
3. At `max_connections`, the newcomer takes the room of a waiting client: one that only waits keeps nobody out.
4. Connections that led to nothing are limited per address, and per network (`broker.door.strangers`).
5. What is closed here is counted, and logged once per minute and address.
"""

from __future__ import annotations

import resource
import socket
from collections.abc import Callable
from typing import Final

import structlog

from broker.admission.refusal import RefusalCode
from broker.door.crowd import Crowd
from broker.door.lobby import Lobby
from broker.door.strangers import Source
from broker.door.waiting_room import Waiting
from broker.engine.engine import Engine
from broker.settings.limits import Limits

log = structlog.get_logger("broker")

Address = tuple[str, int]
"""A peer's host and port."""

_WAITING: Final = 5
"""How many times the number of places may wait: a fleet of ten thousand behind one address, by default."""
_SHARE_OF_DESCRIPTORS: Final = 4
"""One in this many descriptors is for waiting clients."""
_SHARE_OF_UNNAMED: Final = 16
"""One in this many is for connections of proxies whose header is awaited."""
_TELL_AGAIN: Final = 60.0
_LOOK_AGAIN: Final = 0.25
"""Seconds between two checks whether waiting clients can displace others."""
_LEFT: Final = "left before TLS began, while many wait; for the next minute such connections are only counted"
_PUT_OUT: Final = "all connections are in use, most by this network"


class Reception:
    """The reception of one listener."""

    def __init__(
        self,
        engine: Engine,
        lobby: Lobby,
        limits: Callable[[], Limits],
        connections: Callable[[], int],
        gives_way: Callable[[Source], Waiting | None],
        serve: Callable[[socket.socket, Address], None],
    ) -> None:
        """Use *serve* to begin TLS for those with a place in *lobby*; *connections* returns the total of all listeners.

        *gives_way* takes out a waiting client, at any listener, for a newcomer here; None: the newcomer has to go.
        """
        self._engine = engine
        self._lobby = lobby
        self._limits = limits
        self._connections = connections
        self._gives_way = gives_way
        self._serve = serve
        self._descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._crowd: Crowd | None = None
        self._looks_at = 0.0
        self._behind = False
        """Whether places are free for clients that wait: new arrivals of this turn may not overtake them."""

    @property
    def full(self) -> bool:
        """Whether new arrivals can only be left in the kernel's queue."""
        return len(self._lobby) >= self._limits().max_unadmitted and self._lobby.waiting.is_full(self._most_waiting)

    def begin_turn(self, most: int, now: float) -> None:
        """Serve up to *most* of the waiting clients, as far as places are free; drop what was cached about places."""
        self._crowd = None
        self._behind = False
        lobby, limits = self._lobby, self._limits()

        def may(source: Source) -> bool:
            return source.under_way < limits.max_unadmitted_per_address

        for _ in range(most):
            if not lobby.waiting:
                return
            if len(lobby) >= limits.max_unadmitted:
                self._relieve(most, now)
                return
            waiting = lobby.waiting.next(may)
            if waiting is None:
                return
            self._serve(waiting.accepted, waiting.address)
        self._behind = bool(lobby.waiting)

    def _relieve(self, most: int, now: float) -> None:
        """Serve up to *most* of the waiting clients in places taken from others."""
        if now < self._looks_at:
            return
        lobby, limits = self._lobby, self._limits()
        crowd = self._crowd = lobby.crowd()
        freed: list[int] = []

        def may(source: Source) -> bool:
            if source.under_way >= limits.max_unadmitted_per_address:
                return False
            descriptor = crowd.makes_room(source)
            if descriptor is None:
                return False
            freed.append(descriptor)
            return True

        for _ in range(most):
            waiting = lobby.waiting.next(may, crowd.may_make_room_for) if crowd.may_make_room else None
            if waiting is None:
                self._looks_at = now + _LOOK_AGAIN
                return
            lobby.put_out(freed.pop(), RefusalCode.RATE_LIMITED, _PUT_OUT)
            self._serve(waiting.accepted, waiting.address)

    def receive(self, accepted: socket.socket, address: Address, now: float) -> bool:
        """Decide about a connection; return whether it was served."""
        host, limits = address[0], self._limits()
        source = self._lobby.strangers.source(host, limits, now)
        reason = source.refuses(limits, now)
        if reason is not None:
            self._tell(source, host, reason, now)
            self._turn_away(accepted, host, RefusalCode.RATE_LIMITED, now)
            return False
        if self._connections() >= limits.max_connections:
            waited = self._gives_way(source)
            gone, whence = (accepted, host) if waited is None else (waited.accepted, waited.address[0])
            self._turn_away(gone, whence, RefusalCode.TOO_MANY_CONNECTIONS, now)
            if waited is None:
                return False
        if self._has_place(source, limits):
            self._serve(accepted, address)
            return True
        away = self._lobby.waiting.add(Waiting(accepted, address, source), self._most_waiting)
        if away is not None:
            host = away.address[0]
            self._tell(
                away.source, host, f"too many connections wait, most of them from {away.source.network.name}", now
            )
            self._turn_away(away.accepted, host, RefusalCode.RATE_LIMITED, now)
        return False

    def left(self, accepted: socket.socket, host: str, now: float) -> None:
        """Close a connection from *host* whose client has already left: one more that has led to nothing."""
        limits = self._limits()
        source = self._lobby.strangers.source(host, limits, now)
        source.arrive(limits, now)
        source.leave(admitted=False)
        if now - source.left_told_at > _TELL_AGAIN:
            source.left_told_at = now
            log.info("refused", code=RefusalCode.TLS_HANDSHAKE_FAILED, address=host, detail=_LEFT)
        self._turn_away(accepted, host, RefusalCode.TLS_HANDSHAKE_FAILED, now)

    @property
    def most_unnamed(self) -> int:
        """How many connections of proxies may wait for the header that says whose they are."""
        return max(min(self._limits().max_unadmitted, self._descriptors // _SHARE_OF_UNNAMED), 1)

    def unnamed(self, host: str, now: float) -> None:
        """Count a connection of the proxy *host* that was closed because of its header."""
        self._engine.metrics.refused[RefusalCode.BAD_PROXY_HEADER] += 1
        self._engine.history.turned_away(host, RefusalCode.BAD_PROXY_HEADER, now)

    @property
    def _most_waiting(self) -> int:
        return min(_WAITING * self._limits().max_unadmitted, self._descriptors // _SHARE_OF_DESCRIPTORS)

    def _has_place(self, source: Source, limits: Limits) -> bool:
        """Whether there is a place for a newcomer from *source*, perhaps taken from another."""
        if source.under_way >= limits.max_unadmitted_per_address:
            return False
        if len(self._lobby) < limits.max_unadmitted:
            return not self._behind
        if self._crowd is None:
            self._crowd = self._lobby.crowd()
        descriptor = self._crowd.makes_room(source)
        if descriptor is None:
            return False
        self._lobby.put_out(descriptor, RefusalCode.RATE_LIMITED, _PUT_OUT)
        return True

    def _turn_away(self, accepted: socket.socket, host: str, code: RefusalCode, now: float) -> None:
        self._engine.metrics.refused[code] += 1
        self._engine.history.turned_away(host, code, now)
        accepted.close()

    def _tell(self, source: Source, host: str, reason: str, now: float) -> None:
        if now - source.told_at > _TELL_AGAIN:
            source.told_at = now
            log.warning("address refused", code=RefusalCode.RATE_LIMITED, address=host, detail=reason)
