"""The proxy with real sockets on both sides, on asyncio's loop and on uvloop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from device_sim.trouble.connection import reset
from device_sim.trouble.proxy import Proxy
from device_sim.trouble.trouble import NONE, Direction, Trouble

PATIENCE = 120.0
Loop = Callable[[], asyncio.AbstractEventLoop]
loops = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


class Far:
    """The server behind the proxy: what it got, and who is connected."""

    def __init__(self) -> None:
        self.readers: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self.sources: list[str] = []

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.sources.append(writer.get_extra_info("peername")[0])
        await self.readers.put((reader, writer))


class Scene:
    def __init__(self, far: Far, proxy: Proxy) -> None:
        self.far = far
        self.proxy = proxy
        self.writers: list[asyncio.StreamWriter] = []

    async def connect(self, source: str | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        local = (source, 0) if source else None
        reader, writer = await asyncio.open_connection("127.0.0.1", self.proxy.port, local_addr=local)
        self.writers.append(writer)
        return reader, writer

    async def pair(self) -> tuple[Any, Any, Any, Any]:
        """Return the device's reader and writer, and the server's."""
        reader, writer = await self.connect()
        far_reader, far_writer = await self.far.readers.get()
        self.writers.append(far_writer)
        return reader, writer, far_reader, far_writer


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    far = Far()
    server = await asyncio.start_server(far.accept, "127.0.0.1", 0)
    async with Proxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
        made = Scene(far, proxy)
        try:
            yield made
        finally:
            for writer in made.writers:
                writer.transport.abort()
            server.close()
    await asyncio.sleep(0)


def run(new_loop: Loop, story: Callable[[Scene], Awaitable[None]]) -> None:
    async def told() -> None:
        async with asyncio.timeout(PATIENCE), scene() as made:
            await story(made)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(told())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


async def silent(reader: asyncio.StreamReader, seconds: float = 0.15) -> bool:
    try:
        return not await asyncio.wait_for(reader.read(1), seconds) and False
    except TimeoutError:
        return True


@loops
@pytest.mark.parametrize(
    "trouble",
    [
        NONE,
        Trouble(latency=0.01, jitter=0.01),
        Trouble(slice_bytes=701),
        Trouble(slice_bytes=1),
        Trouble(bandwidth=4_000_000),
        Trouble(latency=0.01, slice_bytes=5000, slice_pause=0.001, direction=Direction.TO_BROKER),
    ],
    ids=["none", "latency", "odd-slices", "bytes", "bandwidth", "to-broker"],
)
def test_bytes_pass_whole_both_ways_and_so_does_the_end(new_loop: Loop, trouble: Trouble) -> None:
    size = 3000 if trouble.slice_bytes == 1 else 400_000
    sent, answer = bytes(range(256)) * (size // 256), b"answer" * (size // 6)

    async def story(made: Scene) -> None:
        made.proxy.set(trouble)
        reader, writer, far_reader, far_writer = await made.pair()

        async def serve() -> bytes:
            got = await far_reader.read(-1)
            far_writer.write(answer)
            far_writer.write_eof()
            return bytes(got)

        served = asyncio.create_task(serve())
        writer.write(sent)
        writer.write_eof()
        assert await reader.read(-1) == answer
        assert await served == sent
        await until(lambda: made.proxy.connections == 0)

    run(new_loop, story)


@loops
def test_latency_is_added_each_way_and_taken_away_again(new_loop: Loop) -> None:
    async def round_trip(reader: Any, writer: Any, far_reader: Any, far_writer: Any) -> float:
        started = time.monotonic()
        writer.write(b"ping")
        await far_reader.readexactly(4)
        far_writer.write(b"pong")
        await reader.readexactly(4)
        return time.monotonic() - started

    async def story(made: Scene) -> None:
        ends = await made.pair()
        made.proxy.set(Trouble(latency=0.1))
        assert await round_trip(*ends) >= 0.2
        made.proxy.set(Trouble(latency=0.1, direction=Direction.TO_DEVICE))
        assert await round_trip(*ends) >= 0.1
        # What is on its way in great latency arrives at once when that ends.
        made.proxy.set(Trouble(latency=3600))
        ends[1].write(b"late")
        assert await silent(ends[2])
        made.proxy.set(NONE)
        assert await ends[2].readexactly(4) == b"late"

    run(new_loop, story)


@loops
def test_a_bandwidth_is_kept(new_loop: Loop) -> None:
    async def story(made: Scene) -> None:
        _, writer, far_reader, _ = await made.pair()
        made.proxy.set(Trouble(bandwidth=100_000))
        started = time.monotonic()
        writer.write(bytes(30_000))
        await far_reader.readexactly(30_000)
        assert time.monotonic() - started >= 0.28

    run(new_loop, story)


@loops
def test_every_byte_arrives_by_itself(new_loop: Loop) -> None:
    async def story(made: Scene) -> None:
        _, writer, far_reader, _ = await made.pair()
        made.proxy.set(Trouble(slice_bytes=1, slice_pause=0.01))
        writer.write(b"CONNECT")
        reads: list[bytes] = []
        while sum(map(len, reads)) < 7:
            reads.append(await far_reader.read(100))
        assert b"".join(reads) == b"CONNECT"
        assert len(reads) >= 5  # On a busy machine two may meet in the kernel.

    run(new_loop, story)


@loops
def test_a_reset_ends_what_is_open_and_what_comes(new_loop: Loop) -> None:
    async def story(made: Scene) -> None:
        reader, _, far_reader, _ = await made.pair()
        made.proxy.set(Trouble(reset=True))
        for end in (reader, far_reader):
            with pytest.raises(ConnectionResetError):
                await end.read(1)
        late, _ = await made.connect()
        with pytest.raises(ConnectionResetError):
            await late.read(1)
        assert made.proxy.connections == 0
        made.proxy.set(NONE)
        _, writer, far_reader, _ = await made.pair()
        writer.write(b"back")
        assert await far_reader.readexactly(4) == b"back"

    run(new_loop, story)


@loops
@pytest.mark.parametrize("by_device", [True, False])
def test_a_reset_of_one_side_reaches_the_other(new_loop: Loop, by_device: bool) -> None:
    async def story(made: Scene) -> None:
        reader, writer, far_reader, far_writer = await made.pair()
        ending, told = (writer, far_reader) if by_device else (far_writer, reader)
        reset(ending.transport)
        with pytest.raises(ConnectionResetError):
            await told.read(1)
        await until(lambda: made.proxy.connections == 0)

    run(new_loop, story)


@loops
def test_half_open_cuts_the_device_and_the_broker_is_not_told(new_loop: Loop) -> None:
    async def story(made: Scene) -> None:
        reader, _, far_reader, far_writer = await made.pair()
        made.proxy.set(Trouble(half_open=True))
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        far_writer.write(b"to nobody")
        assert await silent(far_reader)
        assert (made.proxy.connections, made.proxy.orphans) == (0, 1)
        # The device starts again and is served.
        _, writer, far_again, _ = await made.pair()
        writer.write(b"again")
        assert await far_again.readexactly(5) == b"again"
        far_writer.transport.abort()
        await until(lambda: made.proxy.orphans == 0)
        assert made.proxy.connections == 1

    run(new_loop, story)


@loops
def test_a_blackhole_takes_nothing_so_that_the_sender_fills_up(new_loop: Loop) -> None:
    async def story(made: Scene) -> None:
        reader, _, far_reader, far_writer = await made.pair()
        made.proxy.set(Trouble(blackhole=True, direction=Direction.TO_DEVICE))
        far_writer.transport.set_write_buffer_limits(0)
        far_writer.write(bytes(16_000_000))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(far_writer.drain(), 0.3)
        assert await silent(reader)
        # The other way it is well.
        made.writers[0].write(b"ping")
        assert await far_reader.readexactly(4) == b"ping"
        made.proxy.set(NONE)
        assert len(await reader.readexactly(16_000_000)) == 16_000_000

    run(new_loop, story)


@loops
def test_who_comes_in_a_blackhole_waits_and_who_gives_up_leaves_no_trace(new_loop: Loop) -> None:
    async def story(made: Scene) -> None:
        made.proxy.set(Trouble(blackhole=True))
        patient, writer = await made.connect()
        writer.write(b"hello")
        _, impatient = await made.connect()
        impatient.write(b"bye")
        await until(lambda: made.proxy.connections == 2)
        impatient.close()
        await until(lambda: made.proxy.connections == 1)
        assert made.far.sources == []
        assert await silent(patient)
        made.proxy.set(NONE)
        far_reader, far_writer = await made.far.readers.get()
        made.writers.append(far_writer)
        assert await far_reader.readexactly(5) == b"hello"
        assert made.far.readers.empty()

    run(new_loop, story)


@loops
def test_the_source_address_of_loopback_is_kept(new_loop: Loop) -> None:
    async def story(made: Scene) -> None:
        for source in ("127.0.0.1", "127.0.0.7"):
            await made.connect(source)
            await until(lambda: source in made.far.sources)

    run(new_loop, story)


@loops
def test_without_a_broker_the_device_is_reset(new_loop: Loop) -> None:
    async def told() -> None:
        server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        async with asyncio.timeout(PATIENCE), Proxy("127.0.0.1", port) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            with pytest.raises(ConnectionResetError):
                await reader.read(1)
            writer.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(told())


@loops
def test_leaving_ends_every_connection_orphans_too(new_loop: Loop) -> None:
    async def told() -> None:
        far = Far()
        server = await asyncio.start_server(far.accept, "127.0.0.1", 0)
        ends = []
        async with asyncio.timeout(PATIENCE), Proxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
            for trouble in (Trouble(half_open=True), NONE):
                reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
                far_reader, far_writer = await far.readers.get()
                ends += [(reader, writer), (far_reader, far_writer)]
                proxy.set(trouble)
        for reader, writer in ends:
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(1), PATIENCE)
            writer.transport.abort()
        server.close()
        await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(told())


@loops
def test_who_does_not_read_holds_up_who_writes_to_it(new_loop: Loop) -> None:
    """The proxy keeps no more than a line of it: a slow reader is the broker's to bear, as without a proxy."""

    async def story(made: Scene) -> None:
        reader, _, _, far_writer = await made.pair()
        far_writer.transport.set_write_buffer_limits(0)
        far_writer.write(bytes(64_000_000))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(far_writer.drain(), 0.3)
        await until(lambda: any(each.device.full for each in made.proxy._connections))
        assert len(await reader.readexactly(64_000_000)) == 64_000_000

    run(new_loop, story)
