"""What the kernel keeps of a connection that the broker has closed: nothing for long, whatever the peer does."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from broker.sockets.kernel_buffer import UNTAKEN_MILLISECONDS, gather, give_up_in_time, next_attempt
from provisioning.pki.late_handshake import do_not_drop, drop
from tests.support.broker_process import wait_until
from tests.support.kernel_sockets import state_of

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A connection whose second end reads nothing, and whose first has filled its buffers."""
    with socket.create_server(("127.0.0.1", 0)) as door, socket.create_connection(door.getsockname()) as theirs:
        ours, _ = door.accept()
        with ours:
            yield ours, theirs


def fill(ours: socket.socket) -> None:
    ours.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            ours.send(bytes(65536))


def read_all(theirs: socket.socket) -> None:
    while theirs.recv(1 << 20):
        pass


def ports(ours: socket.socket) -> tuple[int, int]:
    return ours.getsockname()[1], ours.getpeername()[1]


def test_what_a_peer_does_not_take_is_given_up_in_time(pair: Pair) -> None:
    """Without a limit the kernel asks a peer that has stopped reading for minutes, and keeps its bytes meanwhile."""
    ours, _ = pair
    fill(ours)
    where = ports(ours)
    give_up_in_time(ours, 300)
    ours.close()
    assert state_of(*where) == "FIN_WAIT1"
    wait_until(lambda: state_of(*where) is None, "the kernel has given up")


def test_a_peer_that_has_been_silent_for_longer_is_given_up_at_once(pair: Pair) -> None:
    """The kernel looks at its limit when the next attempt is due, which may be two minutes away."""
    ours, _ = pair
    assert next_attempt(ours) < 0.5
    fill(ours)
    where = ports(ours)
    wait_until(lambda: next_attempt(ours) > 0.5, "the peer has not answered for a while")
    give_up_in_time(ours, 500)
    ours.close()
    assert state_of(*where) is None


def test_the_time_is_enough_for_a_farewell_on_a_bad_link() -> None:
    """Lost three times with a round trip of a second: it is sent again after 1, 3 and 7 seconds."""
    assert 8_000 <= UNTAKEN_MILLISECONDS <= 30_000


def test_what_is_dropped_is_gone_at_once(pair: Pair) -> None:
    ours, theirs = pair
    fill(ours)
    where = ports(ours)
    drop(ours)
    ours.close()
    assert state_of(*where) is None
    with pytest.raises(ConnectionResetError):
        read_all(theirs)


def test_what_is_gathered_is_sent_by_the_end_of_the_stream(pair: Pair) -> None:
    ours, theirs = pair
    gather(ours)
    ours.send(b"last ")
    ours.send(b"words")
    ours.shutdown(socket.SHUT_WR)
    assert theirs.recv(100) == b"last words"


def test_what_is_no_tcp_socket_is_left_alone() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        gather(ours)
        assert next_attempt(ours) == 0
        give_up_in_time(ours)
        ours.send(b"still")
        assert theirs.recv(10) == b"still"


def test_what_was_to_be_dropped_is_delivered_after_all(pair: Pair) -> None:
    ours, theirs = pair
    ours.sendall(b"the rest")
    drop(ours)
    do_not_drop(ours)
    ours.close()
    theirs.settimeout(20)
    assert theirs.recv(100) == b"the rest"
    assert theirs.recv(100) == b"", "the end, and no reset"
