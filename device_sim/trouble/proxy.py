"""A TCP proxy on loopback that turns a good network into a bad one: no root, no kernel module, no second process.

    async with Proxy("127.0.0.1", broker_port) as proxy:
        …                                             # devices connect to proxy.port
        proxy.set(Trouble(latency=0.2, jitter=0.05))
        proxy.set(Trouble(half_open=True))            # the broker talks to nobody; proxy.orphans says to how many
        proxy.set(NONE)

Theory
------
Each connection consists of two TCP connections and two `line.Line`. In a blackhole nothing is read, so the kernel's
buffers fill and the sender gets no acknowledgements, as on a cut wire. Half-open is used as in RFC 9293 §3.5.1: one end
is gone, and the other does not know.

Rules
-----
1. `set` applies from that moment to open connections and later ones; `reset` and `half_open` act at once.
2. Waiting bytes are bounded per connection (`line.CAPACITY`, and socket buffers of 64 KiB towards the broker).
3. Each group of devices has its own proxy: its trouble is the group's.
4. The broker sees the device's source address if that is on loopback: its per-address limits remain valid.
5. The end of one side is passed on in order, after the bytes before it; a reset at once. If no broker is behind the
   proxy, a device gets a reset.

Handles: any number of connections of any protocol, including TLS, on asyncio's loop or uvloop.
Does not handle: UDP; what `trouble` excludes.
"""

from __future__ import annotations

import asyncio
import socket
from random import Random
from typing import Self

from device_sim.trouble.connection import Connection, ended, reset
from device_sim.trouble.trouble import NONE, Trouble
from provisioning.program.loopback import own_loopback

_BUFFER = 64 * 1024
_DIAL_DEADLINE = 10.0


class Proxy:
    """Listens on a free loopback port; connections go to *host* and *port*, through the configured trouble."""

    def __init__(self, host: str, port: int, *, listen: str | None = None, seed: int = 0) -> None:
        self.host = host
        self.to_port = port
        self.port = 0
        self.trouble = NONE
        self.listens_at = listen or own_loopback()
        self._random = Random(seed)  # noqa: S311 - jitter, the same in every run
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._orphans: list[asyncio.Transport] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Listen; `port` says where."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accepted, self.listens_at, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Stop listening and reset every connection, including orphans."""
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
        """How many half-open connections the broker has not ended yet: for tests of a broker, as nothing here asks."""
        self._sweep()
        return len(self._orphans)

    def set(self, trouble: Trouble) -> None:
        """Apply *trouble* from now on, replacing the former."""
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

    # Called by its connections

    def opened(self, connection: Connection) -> None:
        """Register *connection*; its device has connected."""
        self._connections.add(connection)
        if self.trouble.reset:
            connection.reset()
        else:
            connection.set(self.trouble)

    def dial(self, connection: Connection, source: str | None) -> None:
        """Connect *connection* to the broker, from *source* if given."""
        task = asyncio.create_task(self._dialled(connection, source), name="proxy dials")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _dialled(self, connection: Connection, source: str | None) -> None:
        loop = asyncio.get_running_loop()
        dialled = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
        try:
            dialled.setblocking(False)
            dialled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)  # Only effective before connect.
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
        """Unregister *connection*: both its sides are closed."""
        self._connections.discard(connection)

    def adopt(self, orphan: asyncio.Transport) -> None:
        """Keep the broker's side of a connection whose device is gone."""
        self._orphans.append(orphan)
