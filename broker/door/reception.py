"""What becomes of a connection that was just accepted: served, made to wait for a place, or closed before TLS.

Rules
-----
1. An address has `max_unadmitted_per_address` places at most; who comes from there then waits for one.
2. When all `max_unadmitted` are taken, the newcomer has the place of one of whom there are too many
   (`broker.door.crowd`), or waits. For those who wait that is asked again a few times a second: who has a place may be
   late by then. Who waits is served before anybody is accepted (`broker.door.waiting_room`): where more places are free
   than can be given in one turn, who is accepted in that turn waits behind them.
3. When there are `max_connections`, the newcomer has the room of one who waits: who only waits shuts out nobody.
4. Those of one address that have led to nothing are bounded, and of one network (`broker.door.strangers`).
5. What is closed here is counted, and told in the log once a minute and address.
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
"""Of a peer: host and port."""

_WAITING: Final = 5
"""So many times the places may wait: a fleet of ten thousand behind one address, by default."""
_SHARE_OF_DESCRIPTORS: Final = 4
"""One of so many is for those who wait."""
_TELL_AGAIN: Final = 60.0
_LOOK_AGAIN: Final = 0.25
"""Seconds from one look at whose place those who wait might have to the next."""
_PUT_OUT: Final = "all places are taken, most by its network"


class Reception:
    """Of one listener."""

    def __init__(
        self,
        engine: Engine,
        lobby: Lobby,
        limits: Callable[[], Limits],
        connections: Callable[[], int],
        gives_way: Callable[[Source], Waiting | None],
        serve: Callable[[socket.socket, Address], None],
    ) -> None:
        """Let *serve* begin TLS with who has a place in *lobby*; there are so many *connections*, all listeners'.

        *gives_way* takes out one who waits, at any listener, for a newcomer here; None if he is to go himself.
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
        """Whether places are free for some who wait: whoever comes in this turn has none before them."""

    @property
    def full(self) -> bool:
        """Whether whoever comes now can only be left in the kernel's queue."""
        return len(self._lobby) >= self._limits().max_unadmitted and self._lobby.waiting.is_full(self._most_waiting)

    def begin_turn(self, most: int, now: float) -> None:
        """Serve *most* of those who wait, as far as there are places; what is known of these is asked anew."""
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
        """Serve *most* of those who wait, in the places of others."""
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
            self._tell(away.source, host, f"too many wait, and most are from {away.source.network.name}", now)
            self._turn_away(away.accepted, host, RefusalCode.RATE_LIMITED, now)
        return False

    @property
    def _most_waiting(self) -> int:
        return min(_WAITING * self._limits().max_unadmitted, self._descriptors // _SHARE_OF_DESCRIPTORS)

    def _has_place(self, source: Source, limits: Limits) -> bool:
        """Whether there is a place for a newcomer from *source*, perhaps since it was taken from another."""
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
