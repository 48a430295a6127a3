"""A greedy publisher cannot starve the others: reads are counted, turn by turn; nothing here is timed.

Real sockets in a real epoll set, so that the poller decides who is served; in the place of TLS a session that always
has another record, as a publisher has that sends as fast as it is read.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from broker.metrics import Metrics
from broker.sockets.poller import Poller
from broker.sockets.transport import TlsTransport
from broker.sockets.turn import ALLOWANCE, Turn
from broker.sockets.work import PORTION
from provisioning.pki.openssl_library import RECORD

MOST_READS = 64
MOST_FULL_READS = 31
"""Each counts once, and once more for each of its 16 KB."""
GREEDY = 40


class Endless:
    """A TLS session that has always another record; it counts what is read of it."""

    session_reused = False

    def __init__(self, record: bytes) -> None:
        self.record = record
        self.reads = 0

    def do_handshake(self) -> None: ...
    def getpeercert(self, _binary: bool) -> None: ...
    def version(self) -> None: ...
    def shutdown(self) -> None: ...

    def read(self, size: int) -> bytes:
        self.reads += 1
        return self.record[:size]

    def write(self, data: bytes) -> int:
        return len(data)


class Receiver:
    """Takes everything."""

    def secured(self, *_arguments: Any) -> None: ...
    def receive(self, data: bytes, now: float) -> None: ...
    def lost(self, code: str, now: float, detail: str = "") -> None: ...
    def choke(self, now: float) -> None: ...
    def unchoke(self, now: float) -> None: ...
    def drained(self, now: float) -> None: ...


class Costly(Receiver):
    """What it is sent costs more than its bytes."""

    def __init__(self, turn: Turn, each: int) -> None:
        self.turn, self.each = turn, each

    def receive(self, _data: bytes, _now: float) -> None:
        self.turn.work.done += self.each


class Crowd:
    """Clients of one poller, whose turns are in the test's hand."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        loop.time = lambda: 1.0  # type: ignore[method-assign]  # Everybody is in the middle of a burst.
        self.turn = Turn(loop.call_soon)
        self.poller = Poller(loop, self.turn)
        loop.remove_reader(self.poller._epoll.fileno())  # Turns come when the test says so.
        self.metrics = Metrics()
        self.sockets: list[socket.socket] = []

    def join(self, record: bytes, receiver: Receiver | None = None) -> Endless:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.send(b"!")  # Nobody takes it: the socket stays readable.
        self.sockets += [ours, theirs]
        session = Endless(record)
        transport = TlsTransport(
            self.loop,
            ours,
            session,  # type: ignore[arg-type]
            ("192.0.2.1", 1),
            self.metrics,
            self.poller,
            self.turn,
            1 << 20,
        )
        transport.start(receiver or Receiver())
        return session

    def close(self) -> None:
        self.poller.abort()
        self.poller._epoll.close()
        for each in self.sockets:
            each.close()


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    loop = asyncio.new_event_loop()
    opened = Crowd(loop)
    yield opened
    opened.close()
    loop.close()


def turns(crowd: Crowd, sessions: list[Endless], count: int) -> list[list[int]]:
    """Let *count* turns pass; return how often each of *sessions* was read in each."""
    seen = []
    for _ in range(count):
        before = [session.reads for session in sessions]
        crowd.poller._ready()
        seen.append([session.reads - earlier for session, earlier in zip(sessions, before, strict=True)])
    return seen


@pytest.mark.parametrize(("size", "most"), [(1023, MOST_READS), (RECORD, MOST_FULL_READS)])
def test_one_greedy_publisher_is_read_so_often_a_turn_and_no_more(crowd: Crowd, size: int, most: int) -> None:
    greedy = crowd.join(b"x" * size)
    turns(crowd, [greedy], 2)  # The handshake, and a first read, which is no burst yet.
    assert {reads for (reads,) in turns(crowd, [greedy], 20)} == {most}


@pytest.mark.parametrize(("size", "most"), [(1023, ALLOWANCE), (RECORD, MOST_FULL_READS)])
def test_many_greedy_publishers_share_an_allowance_and_everybody_is_served_in_every_turn(
    crowd: Crowd, size: int, most: int
) -> None:
    greedy = [crowd.join(b"x" * size) for _ in range(GREEDY)]
    turns(crowd, greedy, 2)
    for reads in turns(crowd, greedy, 20):
        assert min(reads) >= 1, "somebody was not served"
        assert sum(reads) <= most + len(greedy), "one turn is too long"


def test_who_sends_little_is_served_in_every_turn_beside_them(crowd: Crowd) -> None:
    meek = [crowd.join(b"x") for _ in range(5)]
    greedy = [crowd.join(b"x" * RECORD) for _ in range(GREEDY)]
    later = [crowd.join(b"x") for _ in range(5)]
    sessions = [*meek, *greedy, *later]
    turns(crowd, sessions, 2)
    for reads in turns(crowd, sessions, 20):
        assert min(reads) >= 1, "somebody was not served"
        assert sum(reads) <= ALLOWANCE + len(sessions), "one turn is too long"


@pytest.mark.parametrize(("each", "reads"), [(0, MOST_READS), (PORTION // 4, 4), (PORTION * 2, 1)])
def test_reads_that_cost_much_end_the_turn_of_who_sends_so(crowd: Crowd, each: int, reads: int) -> None:
    """Portions are of a turn, not of a read: each of 64 reads could be just below one."""
    greedy = crowd.join(b"x", Costly(crowd.turn, each))
    meek = crowd.join(b"x")
    turns(crowd, [greedy, meek], 2)
    for of_greedy, of_meek in turns(crowd, [greedy, meek], 20):
        assert of_greedy == reads
        assert of_meek >= 1


def test_beyond_the_work_of_a_turn_the_others_wait_and_whoever_is_new_is_among_the_first(crowd: Crowd) -> None:
    meek = crowd.join(b"x")
    ours, theirs = crowd.sockets
    costly = [crowd.join(b"x", Costly(crowd.turn, 2 * PORTION)) for _ in range(9)]
    turns(crowd, costly, 2)
    assert ours.recv(1) == b"!", "it has sent nothing from now on"
    seen = turns(crowd, costly, 27)
    assert all(sum(reads) == 2 for reads in seen), "one turn is too long, or nobody was called"
    for of_one in zip(*seen, strict=True):
        assert min(sum(of_one[start : start + 9]) for start in range(19)) >= 1, "somebody was not served"
    assert turns(crowd, [meek], 9) == [[0]] * 9
    theirs.send(b"!")
    assert turns(crowd, [meek], 1) > [[0]], "it waits behind those who have waited"


def test_who_has_left_or_is_held_meanwhile_is_not_called(crowd: Crowd) -> None:
    costly = [crowd.join(b"x", Costly(crowd.turn, 4 * PORTION)) for _ in range(4)]
    turns(crowd, costly, 8)
    _, held, gone, _ = (transport for _, transport in sorted(crowd.poller._watched.items()))
    assert len(crowd.poller._left) == 3
    held.hold()  # type: ignore[attr-defined]
    gone.abort()
    before = [session.reads for session in costly]
    turns(crowd, costly, 6)
    now = [session.reads - earlier for session, earlier in zip(costly, before, strict=True)]
    assert now[1:3] == [0, 0]
    assert min(now[0], now[3]) >= 2


def test_who_is_aborted_is_gone_even_if_its_receiver_fails_at_that(crowd: Crowd) -> None:
    """Nobody else would close the socket: the poller has let it go then."""

    class Failing(Receiver):
        def lost(self, *_arguments: Any) -> None:
            raise ZeroDivisionError

    crowd.join(b"x", Failing())
    with pytest.raises(ZeroDivisionError):
        crowd.poller.abort()
    assert len(crowd.poller) == 0
    assert crowd.sockets[0].fileno() == -1
