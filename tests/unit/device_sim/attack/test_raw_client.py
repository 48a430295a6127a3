"""What the client of the attack knows of its connection."""

from __future__ import annotations

import asyncio
import socket

from broker.mqtt.codes import ProtocolVersion
from device_sim.attack.raw_client import RawClient


async def test_what_was_sent_has_arrived_when_the_peer_s_kernel_has_all_of_it() -> None:
    """A revocation that is to come behind it would else overtake what was lost on the way, and is sent again."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    with ours, theirs:
        ours.setblocking(False)
        client = RawClient(ours, ProtocolVersion.V5)  # type: ignore[arg-type]
        assert await client.arrived(30.0), "nothing was sent"
        size = ours.send(bytes(1_000_000))
        assert size > 100_000
        assert not await client.arrived(0.05), "it is not read, and there is no place for it"

        def read() -> None:
            left = size
            while left:
                left -= len(theirs.recv(65536))

        reading = asyncio.create_task(asyncio.to_thread(read))
        assert await client.arrived(30.0)
        await reading
        client.abort()
        assert not await client.arrived(30.0), "its connection has ended"
