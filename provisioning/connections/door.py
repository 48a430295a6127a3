"""Accepts connections: each is given a place and taken through its handshake.

Theory
------
The event loop's own server accepts every connection and reports it only after its handshake, for which it waits up to
a minute. So the socket is accepted here, and each connection has a place (`provisioning.connections.places`) from the
start. The broker's port for operators is such a door, too (`broker.admin.operator_door`).

Rules
-----
1. A bounded number is accepted per turn, so that others are served in between; if the process has no descriptors
   left, none for a second, and the log says so. While more wait than a turn accepts, those whose client has already
   left are closed before TLS: the kernel's queue is served in order, and a handshake takes a thousand times as long
   (docs/decisions/0224-departed-clients-are-closed-before-tls.md). Without TLS a client may send its request and
   nothing more.
2. A place is given back when the connection has ended, or has not begun, for whatever reason. An unexpected error is
   one connection's, and has its traceback in the log.
3. A handshake that takes too long ends with a reset. Where large packets vanish on the way, the end of the stream would
   wait behind our part of the handshake, and a client without a time limit of its own would wait for ever.
4. Handshakes are begun, and continued in portions, in turn (`provisioning.pki.handshake_turns`): those of known
   addresses first, of the others one address after the other. To accept is a hundredth of the work. So nobody waits in
   the kernel's queue behind clients that only connect; one that is cut off, or leaves, before its handshake has begun
   costs nothing more.
5. A connection of a proxy begins with a PROXY header (`provisioning.program.proxy_arrivals`), and has a place when that
   has come, counted for the client's address. Before that it counts for no address; there is a bound for all of those.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import socket
import ssl
from collections.abc import Callable
from typing import Final

import structlog

from provisioning.connections.places import Place, Places, hang_up
from provisioning.pki.address_key import plain
from provisioning.pki.handshake_turns import SECONDS_A_TURN, Turns, Whose, shake_hands
from provisioning.pki.late_handshake import reset_if_late
from provisioning.pki.refused_handshake import end_if_refused
from provisioning.pki.tcp_state import has_left
from provisioning.program.once_a_minute import OnceAMinute
from provisioning.program.out_of_memory import told
from provisioning.program.proxy_arrivals import ProxyArrivals
from provisioning.program.proxy_header import Address
from provisioning.program.proxy_networks import ProxyNetworks

log = structlog.get_logger(__name__)

BACKLOG: Final = 2048
_ACCEPTS_A_TURN: Final = 32
_LOOKS_A_TURN: Final = 256
"""How many may be accepted per turn, those included whose client has left: each of these costs some microseconds."""
_BEGUN_A_TURN: Final = 10
"""Handshakes: the transports of one take half a millisecond."""
HANDSHAKE_SECONDS: Final = 10.0
_LOST_MILLISECONDS: Final = 30_000
"""After this long without acknowledgement of sent data the connection, say a feed subscriber's, counts as lost."""
_UNSENT_BYTES: Final = 64 * 1024
"""What the kernel takes of answers that it cannot send yet. Otherwise it is megabytes, which a client that reads a part
of a long CRL and then nothing leaves there; and what is sent and not confirmed has the limit above."""
_MOST_UNNAMED: Final = 1_000
"""Connections of proxies whose header is awaited, or a quarter of the places if that is less."""
_PAUSE: Final = 1.0
_GONE: Final = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.EINTR})
"""Errors of one connection; all others are the listening socket's, or the process's."""

Make = Callable[[Place, Address | None], asyncio.Protocol]
"""Makes the protocol of a connection; it gives the place back when the connection is lost.

The address is what a proxy says of the client, or that of an IPv4 client where the socket reports it as IPv6; None: it
is that of the connection's other end.
"""

Failed = Callable[[str, Exception], None]
"""Hears of a handshake that has failed: the client's address, and why."""


def _debug(host: str, error: Exception) -> None:
    log.debug("handshake failed", address=host, reason=str(error))  # Anybody can cause it: not worth a line each.


class Door:
    """One listening socket."""

    def __init__(
        self,
        listening: socket.socket,
        context: Callable[[], ssl.SSLContext] | None,
        make: Make,
        places: Places,
        proxies: ProxyNetworks | None = None,
        handshake_seconds: float = HANDSHAKE_SECONDS,
        *,
        backlog: int = BACKLOG,
        accepts_a_turn: int = _ACCEPTS_A_TURN,
        begun_a_turn: int = _BEGUN_A_TURN,
        line: Places | None = None,
        shutdown_seconds: float | None = None,
        failed: Failed = _debug,
    ) -> None:
        """Accept on *listening*, over TLS with the present *context*, as many as there are *places* for.

        A connection from *proxies* begins with a PROXY header. That, and the handshake, may each take
        *handshake_seconds*, the end of TLS *shutdown_seconds* (None: what the event loop gives it). Before its
        handshake begins, a connection has its place in *line*, if there is one, and takes one of *places* then.
        """
        self._loop = asyncio.get_running_loop()
        self._listening = listening
        self._context = context
        self._make = make
        self._places = places
        self._proxies = proxies
        self._seconds = handshake_seconds
        self._backlog = backlog
        self._accepts_a_turn = accepts_a_turn
        self._seconds_to_begin = SECONDS_A_TURN / begun_a_turn
        self._line = places if line is None else line
        self._shutdown_seconds = shutdown_seconds
        self._failed = failed
        self._turns = Turns(self._loop)
        self._arrivals = ProxyArrivals(self._loop, self._arrived)
        self._tasks: set[asyncio.Task[None]] = set()
        self._next: dict[socket.socket, Place] = {}
        """Those whose handshake has not begun, with their place, or that in the line."""
        self._pause: asyncio.TimerHandle | None = None
        self._crowded = False
        """Whether the last turn left connections in the kernel's queue."""
        self._crowding = OnceAMinute()

    def open(self) -> None:
        """Accept from now on."""
        self._listening.setblocking(False)
        for option, value in (
            (socket.TCP_NODELAY, 1),
            (socket.TCP_USER_TIMEOUT, _LOST_MILLISECONDS),
            (socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES),
        ):
            self._listening.setsockopt(socket.IPPROTO_TCP, option, value)  # Every connection's (tcp(7)).
        self._listening.listen(self._backlog)
        self._begin()

    def close(self) -> None:
        """Stop accepting, also those whose handshake is not over: nobody would end what they begin afterwards."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listening.fileno())
        self._arrivals.close()
        for task in self._tasks:
            task.cancel()
        while self._next:  # A task that is cancelled before it begins lets go of nothing.
            next(iter(self._next.values())).lose()

    async def closed(self) -> None:
        """Wait until those are gone whose handshake `close` has ended."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listening.fileno(), self._accept)

    def _accept(self) -> None:
        admitted, crowded = 0, self._crowded
        self._crowded = True
        for _ in range(_LOOKS_A_TURN):
            try:
                accepted, address = self._listening.accept()
            except BlockingIOError:
                self._crowded = False
                return
            except OSError as error:
                if error.errno in _GONE:
                    continue
                log.warning("accept failed", code="ACCEPT_FAILED", detail=error.strerror, retry_in=_PAUSE)
                self._loop.remove_reader(self._listening.fileno())
                self._pause = self._loop.call_later(_PAUSE, self._begin)
                return
            host = plain(address[0])
            client = None if host == address[0] else (host, address[1])
            if self._proxies is not None and host in self._proxies:
                client = self._of_client(accepted, (host, address[1]))
                if client is None:
                    continue
                host = client[0]
            if crowded and self._context is not None and has_left(accepted):
                log.debug("handshake failed", address=host, reason="left before it began")
                accepted.close()
                continue
            self._admit(accepted, host, client)
            admitted += 1
            if admitted == self._accepts_a_turn:
                return

    def _of_client(self, accepted: socket.socket, proxy: Address) -> Address | None:
        """Return the address in the header of *proxy*; None if it is not there yet, or was refused."""
        accepted.setblocking(False)
        most = min(_MOST_UNNAMED, max(self._places.most // 4, 1))
        return self._arrivals.take(accepted, proxy, self._seconds, most)

    def _arrived(self, accepted: socket.socket, client: Address) -> None:
        self._admit(accepted, client[0], client)

    def _admit(self, accepted: socket.socket, host: str, client: Address | None) -> None:
        place = self._place_in(self._line, accepted, host)
        if place is None:
            return
        if self._context is None:
            self._begin_with(accepted, host, client)
        else:
            whose = Whose(place.address, place.address in self._places.known)
            self._turns.add(_Beginning(self, accepted, host, client, whose), whose)

    def _place_in(self, places: Places, accepted: socket.socket, host: str) -> Place | None:
        """Return a place for what was *accepted*, which is closed if there is none."""
        crowded = places.lost + places.turned_away
        place = places.take(host, functools.partial(self._cut, accepted))
        if places.lost + places.turned_away > crowded:
            self._tell(host, places)
        if place is None:
            accepted.close()
        else:
            self._next[accepted] = place
        return place

    def _cut(self, accepted: socket.socket) -> None:
        """End a connection whose place is somebody else's now, or whose door is closed."""
        if self._next.pop(accepted, None) is None:
            hang_up(accepted)
        else:
            accepted.close()

    def begin(self, accepted: socket.socket, host: str, client: Address | None, whose: Whose) -> float:
        """Begin the handshake on *accepted*, if it is still there; return the seconds that this takes."""
        place = self._next.get(accepted)
        if place is None:
            return 0.0
        if self._turns and has_left(accepted):
            log.debug("handshake failed", address=host, reason="left before it began")
            place.lose()
            return 0.0
        if self._line is not self._places:
            del self._next[accepted]
            place.leave()
            if self._place_in(self._places, accepted, host) is None:
                return 0.0
        self._begin_with(accepted, host, client, whose)
        return self._seconds_to_begin

    def _begin_with(
        self, accepted: socket.socket, host: str, client: Address | None, whose: Whose | None = None
    ) -> None:
        task = told(self._loop.create_task(self._shake_hands(accepted, host, client, whose)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _shake_hands(
        self, accepted: socket.socket, host: str, client: Address | None, whose: Whose | None
    ) -> None:
        place = self._next.pop(accepted, None)
        if place is None:
            return  # It was cut off meanwhile.
        try:
            end_if_refused(accepted)
            context = None if self._context is None else self._context()
            protocol = self._make(place, client)
        except Exception as error:  # noqa: BLE001 - it is logged, and one connection's
            accepted.close()  # No transport has it yet.
            self._end_of_one(place, host, error)
            return
        try:
            if context is None or whose is None:
                await self._loop.connect_accepted_socket(lambda: protocol, accepted)
            else:
                with reset_if_late(self._loop, accepted, self._seconds):
                    await shake_hands(
                        self._turns, whose, accepted, context, protocol, self._seconds, self._shutdown_seconds
                    )
        except (OSError, TimeoutError) as error:
            place.leave()
            self._failed(host, error)
        except Exception as error:  # noqa: BLE001 - the same
            self._end_of_one(place, host, error)
        except BaseException:
            place.leave()
            raise

    def _end_of_one(self, place: Place, host: str, error: Exception) -> None:
        """Give *place* back after an *error* that nobody has expected."""
        place.leave()
        if isinstance(error, MemoryError):
            raise error
        log.error("connection failed", code="INTERNAL_ERROR", address=host, exc_info=error)

    def _tell(self, host: str, places: Places) -> None:
        if self._crowding.happened(self._loop.time()):
            log.warning(
                "connections crowded out",
                code="CROWDED",
                address=host,
                connections=len(places),
                lost=places.lost,
                turned_away=places.turned_away,
            )


class _Beginning:
    """A connection whose handshake begins when it is its turn."""

    __slots__ = ("_asked", "_door")

    def __init__(self, door: Door, accepted: socket.socket, host: str, client: Address | None, whose: Whose) -> None:
        self._door = door
        self._asked = (accepted, host, client, whose)

    def go_on(self) -> float:
        """Begin; return what the rest of that takes in this turn of the event loop."""
        return self._door.begin(*self._asked)
