"""A TCP proxy on loopback that makes a good network a bad one: no root, no kernel module, no second process.

    async with Proxy("127.0.0.1", broker_port) as proxy:
        …                                             # devices connect to proxy.port
        proxy.set(Trouble(latency=0.2, jitter=0.05))
        proxy.set(Trouble(half_open=True))            # the broker talks to nobody; proxy.orphans says to how many
        proxy.set(NONE)

Theory
------
Each connection is two TCP connections and two `line.Line`. In a blackhole nothing is read, so the kernel's
buffers fill and the sender is not acknowledged, as on a wire that is cut. Half-open is what RFC 9293 §3.5.1 calls so:
one end is gone, and the other does not know.

Rules
-----
1. `set` holds for what is open and what is opened later, from that moment; `reset` and `half_open` act at once.
2. Bytes that wait are bounded for each connection (`line.CAPACITY`, and socket buffers of 64 KiB towards the broker).
3. A group of devices has a proxy of its own: its trouble is the group's.
4. The broker sees the source address of the device where that is on loopback: its limits for an address stay true.
5. The end of one side is passed on in order, behind the bytes before it; a reset at once. Without a broker behind the
   proxy, a device gets a reset.

Handles: any number of connections of any protocol, TLS among them, on asyncio's loop or uvloop.
Does not handle: UDP; what `trouble` leaves out.
"""

from __future__ import annotations

import asyncio
import socket
from random import Random
from typing import Self

from device_sim.trouble.connection import Connection, ended, reset
from device_sim.trouble.trouble import NONE, Trouble

_BUFFER = 64 * 1024
_DIAL_DEADLINE = 10.0


class Proxy:
    """Listens on a free port of loopback; what comes goes to *host* and *port*, through the trouble that is set."""

    def __init__(self, host: str, port: int, *, listen: str = "127.0.0.1", seed: int = 0) -> None:
        self.host = host
        self.to_port = port
        self.port = 0
        self.accepted = 0
        """How many connections it has had."""
        self.trouble = NONE
        self._listen = listen
        self._random = Random(seed)  # noqa: S311 - jitter, the same in every run
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._orphans: list[asyncio.Transport] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Listen; `port` says where."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accepted, self._listen, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Stop listening and reset every connection, orphans too."""
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections):
            connection.reset()
        for orphan in self._orphans:
            reset(orphan)
        self._orphans.clear()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.sleep(0)  # The transports close their sockets in the loop's next turn.

    @property
    def connections(self) -> int:
        """How many devices are connected to it."""
        return len(self._connections)

    @property
    def orphans(self) -> int:
        """How many half-open connections the broker has not ended yet."""
        self._sweep()
        return len(self._orphans)

    def set(self, trouble: Trouble) -> None:
        """Be in *trouble* from now on, in place of the former."""
        self.trouble = trouble
        self._sweep()
        for connection in tuple(self._connections):
            if trouble.reset:
                connection.reset()
            elif trouble.half_open:
                connection.orphan()
            else:
                connection.set(trouble)

    def _sweep(self) -> None:
        for orphan in [orphan for orphan in self._orphans if ended(orphan)]:
            self._orphans.remove(orphan)
            reset(orphan)

    def _accepted(self) -> asyncio.Protocol:
        return Connection(self, self._random).device

    # For its connections

    def opened(self, connection: Connection) -> None:
        """Take in *connection*; its device has connected."""
        self._connections.add(connection)
        self.accepted += 1
        if self.trouble.reset:
            connection.reset()
        else:
            connection.set(self.trouble)

    def dial(self, connection: Connection, source: str | None) -> None:
        """Connect *connection* to the broker, from *source* where that is given."""
        task = asyncio.create_task(self._dialled(connection, source), name="proxy dials")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _dialled(self, connection: Connection, source: str | None) -> None:
        loop = asyncio.get_running_loop()
        dialled = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
        try:
            dialled.setblocking(False)
            dialled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)  # Only before connect it counts.
            if source is not None:
                dialled.bind((source, 0))
            async with asyncio.timeout(_DIAL_DEADLINE):
                await loop.sock_connect(dialled, (self.host, self.to_port))
            if connection.gone:
                dialled.close()
                return
            await loop.create_connection(lambda: connection.broker, sock=dialled)
        except (OSError, TimeoutError):
            dialled.close()
            connection.reset()
        except BaseException:
            dialled.close()
            raise

    def ended(self, connection: Connection) -> None:
        """Forget *connection*: both its sides are closed."""
        self._connections.discard(connection)

    def adopt(self, orphan: asyncio.Transport) -> None:
        """Keep the broker's side of a connection whose device is gone."""
        self._orphans.append(orphan)
