"""The listener takes nobody in while newcomers who have spoken wait to be served: real connections, turn by turn."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from broker.door.listener import Doors, Listener, Speaks
from broker.door.lobby import SECONDS_A_TURN
from broker.settings.limits import Limits
from broker.sockets.doze import Doze
from broker.sockets.poller import READABLE, Poller
from broker.sockets.turn import Turn
from tests.support.watched import WatchedClient
from tests.support.wire import MemoryBroker


class Hall:
    """A listener on a loop that does not run: its turns are called by the test, its clock is in the test's hand."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.now = 1.0
        self.loop.time = lambda: self.now  # type: ignore[method-assign]
        turn = Turn(self.loop.call_soon)
        self.poller = Poller(self.loop, turn)
        self.doze = Doze(self.loop, turn, self.poller, lambda: 0.1)
        engine = MemoryBroker().engine
        doors = Doors(self.poller, self.doze)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.listener = Listener(self.loop, engine, doors, context, Speaks.UNSAFE_PLAIN)
        self.engine = engine
        self.lobby = self.listener._lobby
        self.stack = ExitStack()
        self.listener.open("127.0.0.1", 0)
        self.listener.begin()

    def knock(self) -> None:
        """Connect, and say nothing."""
        port = int(self.listener.url.rpartition(":")[2])
        self.stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))

    def knock_and_leave(self, *, reset: bool) -> None:
        """Connect, say something, and leave."""
        port = int(self.listener.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as leaving:
            leaving.sendall(b"a ClientHello")
            if reset:
                leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def turn(self) -> int:
        """Let the listener and then the lobby have a turn; return how many have been accepted in all."""
        self.listener._accept()
        self.lobby._ready()
        accepted: int = self.engine.metrics.connections_accepted
        return accepted

    def speaks(self, *, takes: float) -> WatchedClient:
        """Return a newcomer who has a place and has spoken, and takes that many seconds of a turn."""

        def act() -> None:
            self.now += takes

        newcomer = WatchedClient(act)
        self.stack.callback(newcomer.end)
        self.lobby.watch(newcomer.ours.fileno(), newcomer, READABLE)
        newcomer.says()
        return newcomer

    def close(self) -> None:
        self.listener.stop_accepting()
        for poller in (self.lobby, self.poller, self.doze):
            poller.abort()
            poller.close()
        self.stack.close()
        self.loop.close()


@pytest.fixture
def hall() -> Iterator[Hall]:
    opened = Hall()
    yield opened
    opened.close()


def test_nobody_overtakes_who_has_spoken_and_was_not_served(hall: Hall) -> None:
    taking = [hall.speaks(takes=SECONDS_A_TURN) for _ in range(2)]
    hall.lobby._ready()
    assert hall.lobby.behind
    assert sum(each.calls for each in taking) == 1
    hall.knock()
    assert hall.turn() == 0, "one who has spoken is still waiting"
    for each in taking:
        each.ours.recv(1)
    hall.turn()
    assert hall.turn() == 1, "all who have spoken were served"


def test_it_is_asked_anew_in_each_turn(hall: Hall) -> None:
    """The lobby says so again, if it is so still; what it has said once holds nobody up for ever."""
    taking = [hall.speaks(takes=SECONDS_A_TURN) for _ in range(3)]
    hall.lobby._ready()
    hall.knock()
    for _ in range(5):  # They have more to say all the time.
        assert hall.turn() == 0
        assert hall.lobby.behind
    for each in taking:
        hall.lobby.forget(each.ours.fileno())
    hall.turn()
    assert hall.turn() == 1


def test_those_who_have_gone_since_hold_up_nobody(hall: Hall) -> None:
    """Nothing wakes the lobby then."""
    taking = [hall.speaks(takes=SECONDS_A_TURN) for _ in range(2)]
    hall.lobby._ready()
    hall.knock()
    for each in taking:
        hall.lobby.forget(each.ours.fileno())
    hall.listener._accept()
    hall.listener._accept()
    assert len(hall.lobby) == 1


def test_nor_does_one_who_waits_for_a_place(hall: Hall) -> None:
    hall.engine.limits = Limits(max_unadmitted=3, max_unadmitted_per_address=1)
    hall.knock()
    hall.knock()
    assert hall.turn() == 2
    assert (len(hall.lobby), len(hall.lobby.waiting)) == (1, 1)
    taking = [hall.speaks(takes=SECONDS_A_TURN) for _ in range(2)]
    hall.lobby._ready()
    hall.engine.limits = Limits(max_unadmitted=4, max_unadmitted_per_address=2)
    hall.listener._accept()
    assert len(hall.lobby.waiting) == 1, "he may have one now, and others have spoken"
    for each in taking:
        hall.lobby.forget(each.ours.fileno())
    hall.lobby._ready()
    hall.listener._accept()
    assert len(hall.lobby.waiting) == 0


@pytest.mark.parametrize("reset", [True, False])
def test_those_who_have_left_keep_nobody_waiting_when_the_queue_is_long(
    hall: Hall, capsys: pytest.CaptureFixture[str], *, reset: bool
) -> None:
    """The kernel's queue is served in order: a handshake for each of them would be in front of everybody else's."""
    for _ in range(200):
        hall.knock_and_leave(reset=reset)
    hall.knock()
    served: list[socket.socket] = []
    hall.listener._reception._serve = lambda accepted, _: served.append(hall.stack.enter_context(accepted))
    hall.listener._accept()
    assert len(served) == 32, "nothing said yet that many wait"
    hall.listener._accept()
    assert len(served) == 33, "of all others, the one who is still there"
    assert hall.engine.metrics.connections_accepted == 201
    assert hall.engine.metrics.refused["TLS_HANDSHAKE_FAILED"] == 168
    limits = hall.listener._limits()
    assert hall.lobby.strangers.source("127.0.0.1", limits, hall.now).failures(limits, hall.now) == 168
    assert [each for each in hall.engine.history.strangers("127.0.0.1") if each.code == "TLS_HANDSHAKE_FAILED"]
    assert capsys.readouterr().out.count("left before TLS began") == 1
    hall.knock_and_leave(reset=reset)
    hall.listener._accept()
    assert len(served) == 34, "the queue was empty: no need to ask"
