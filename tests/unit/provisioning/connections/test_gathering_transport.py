"""What is written in one turn of the event loop leaves together, in order, and nothing is lost at the end."""

from __future__ import annotations

import asyncio
import gc

import pytest

from provisioning.connections import gathering_transport
from provisioning.connections.gathering_transport import GatheringTransport


class Wire(asyncio.Transport):
    """A transport that notes what reaches it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bytes | str] = []

    def write(self, data: object) -> None:
        assert isinstance(data, bytes)
        self.seen.append(data)

    def close(self) -> None:
        self.seen.append("close")

    def abort(self) -> None:
        self.seen.append("abort")

    def is_closing(self) -> bool:
        return "close" in self.seen

    def get_write_buffer_size(self) -> int:
        return 100 * len(self.seen)

    def pause_reading(self) -> None:
        self.seen.append("pause")

    def resume_reading(self) -> None:
        self.seen.append("resume")

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.seen.append(type(protocol).__name__)

    def get_extra_info(self, name: str, default: object = None) -> object:
        return name.upper() if name == "peername" else default


@pytest.fixture
def wire() -> Wire:
    return Wire()


async def test_head_and_body_leave_together_at_the_end_of_the_turn(wire: Wire) -> None:
    gathering = GatheringTransport(wire, asyncio.get_running_loop())
    gathering.write(b"head")
    gathering.write(b"body")
    assert wire.seen == []
    await asyncio.sleep(0)
    assert wire.seen == [b"headbody"]
    gathering.write(b"next")
    await asyncio.sleep(0)
    assert wire.seen == [b"headbody", b"next"]


async def test_much_leaves_at_once_and_in_order(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering_transport, "_MUCH", 5)
    gathering = GatheringTransport(wire, asyncio.get_running_loop())
    gathering.write(b"abc")
    gathering.write(b"defg")
    gathering.write(b"h")
    assert wire.seen == [b"abc", b"defg"]
    await asyncio.sleep(0)
    assert wire.seen == [b"abc", b"defg", b"h"]


async def test_closing_sends_what_was_written_and_aborting_does_not(wire: Wire) -> None:
    gathering = GatheringTransport(wire, asyncio.get_running_loop())
    gathering.write(b"last")
    gathering.close()
    assert wire.seen == [b"last", "close"]
    assert gathering.is_closing()
    gathering.write(b"lost")
    gathering.abort()
    await asyncio.sleep(0)
    assert wire.seen == [b"last", "close", "abort"]


async def test_nothing_is_written_to_one_that_has_ended_meanwhile(wire: Wire) -> None:
    """uvloop's transport raises then, and the event loop writes that into the log: anybody could fill it."""
    gathering = GatheringTransport(wire, asyncio.get_running_loop())
    gathering.write(b"answer")
    wire.close()
    await asyncio.sleep(0)
    gathering.close()
    assert wire.seen == ["close"]


async def test_it_is_closed_once_whoever_closes_it_again(wire: Wire) -> None:
    """asyncio's transport of TLS gives up its connection the second time, and can then not even be asked."""
    gathering = GatheringTransport(wire, asyncio.get_running_loop())
    gathering.close()
    gathering.close()
    assert wire.seen == ["close"]


async def test_what_waits_here_waits_too(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    gathering = GatheringTransport(wire, asyncio.get_running_loop())
    assert gathering.get_write_buffer_size() == 0
    gathering.write(b"12345")
    assert (gathering.get_write_buffer_size(), wire.seen) == (5, [])
    await asyncio.sleep(0)
    assert (gathering.get_write_buffer_size(), wire.seen) == (100, [b"12345"])
    gathering.write(b"123")
    assert gathering.get_write_buffer_size() == 103
    gathering.abort()
    assert gathering.get_write_buffer_size() == 200
    monkeypatch.setattr(gathering_transport, "_MUCH", 3)
    gathering.write(b"123")
    assert wire.seen == [b"12345", "abort"], "no more than may wait"


async def test_everything_but_writing_is_the_other_transport_s(wire: Wire) -> None:
    gathering = GatheringTransport(wire, asyncio.get_running_loop())
    gathering.pause_reading()
    gathering.resume_reading()
    gathering.set_protocol(asyncio.Protocol())
    assert wire.seen == ["pause", "resume", "Protocol"]
    assert (gathering.get_extra_info("peername"), gathering.get_extra_info("socket", 7)) == ("PEERNAME", 7)


async def test_of_a_connection_that_is_gone_nothing_is_kept_and_nothing_reaches_it(wire: Wire) -> None:
    gathering = GatheringTransport(wire, asyncio.get_running_loop())
    gathering.write(b"late")
    gathering.lose()
    gathering.write(b"later")
    await asyncio.sleep(0)
    for say in (gathering.close, gathering.abort, gathering.pause_reading, gathering.resume_reading):
        say()
    gathering.set_protocol(asyncio.Protocol())
    assert wire.seen == []
    assert (gathering.is_closing(), gathering.get_write_buffer_size()) == (True, 0)
    assert gathering.get_extra_info("peername") is None
    assert wire not in gc.get_referents(gathering)
    assert wire not in gc.get_referents(vars(gathering))
