"""Connections of proxies, over real sockets: the header is taken to its last byte and not one further, or they end."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from structlog.testing import capture_logs

from provisioning.program.proxy_arrivals import ProxyArrivals
from provisioning.program.proxy_header import Address
from tests.support.proxy_headers import LOCAL, UNKNOWN, block, line
from tests.support.turned_loop import TurnedLoop

CLIENT = ("198.51.100.7", 49152)
PROXY = ("10.0.0.1", 4000)
TLS = b"\x16\x03\x01\x02\x00"
SECONDS = 10.0


class Yard(TurnedLoop):
    """Arrivals on a loop that runs only when told to, with a clock in the test's hand."""

    def __init__(self) -> None:
        super().__init__(now=1_000.0)
        self.arrived: list[tuple[socket.socket, Address]] = []
        self.refused: list[str] = []
        self.arrivals = ProxyArrivals(self.loop, lambda *arrived: self.arrived.append(arrived), self.refused.append)
        self.stack = ExitStack()
        self.listening = self.stack.enter_context(socket.create_server(("127.0.0.1", 0)))

    def connected(self) -> tuple[socket.socket, socket.socket]:
        """Return a proxy's end of a connection, and ours."""
        theirs = self.stack.enter_context(socket.create_connection(self.listening.getsockname(), timeout=10))
        ours = self.stack.enter_context(self.listening.accept()[0])
        ours.setblocking(False)
        theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return theirs, ours

    def take(self, ours: socket.socket, most: int = 5, peer: Address = PROXY) -> Address | None:
        return self.arrivals.take(ours, peer, SECONDS, most)

    def close(self) -> None:
        self.arrivals.close()
        self.stack.close()
        self.loop.close()


@pytest.fixture
def yard() -> Iterator[Yard]:
    made = Yard()
    yield made
    made.close()


@pytest.mark.parametrize("header", [line(CLIENT), block(CLIENT)], ids=["v1", "v2"])
def test_a_header_that_is_there_is_read_at_once_and_tls_behind_it_stays(yard: Yard, header: bytes) -> None:
    theirs, ours = yard.connected()
    theirs.sendall(header + TLS)
    assert yard.take(ours) == CLIENT
    assert ours.recv(100) == TLS
    assert (len(yard.arrivals), yard.arrived, yard.refused) == (0, [], [])


@pytest.mark.parametrize("header", [line(CLIENT), block(CLIENT, fields=[(0x02, b"b")])], ids=["v1", "v2"])
def test_a_header_that_comes_byte_by_byte_is_awaited_and_the_loop_is_woken_once_a_byte(
    yard: Yard, header: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = yard.connected()
    looked = []
    look = ProxyArrivals._looked_at

    def looks(arrivals: ProxyArrivals, arrival: Any) -> Address | None:
        looked.append(1)
        return look(arrivals, arrival)

    monkeypatch.setattr(ProxyArrivals, "_looked_at", looks)
    assert yard.take(ours) is None
    for number, each in enumerate(header + TLS):
        if number >= len(header):
            break
        theirs.sendall(bytes([each]) if number < len(header) - 1 else bytes([each]) + TLS)
        yard.until(lambda: len(looked) == number + 2)
        for _ in range(3):
            yard.go_round()
        assert len(looked) == number + 2, "what was seen once is no event again"
    assert yard.arrived == [(ours, CLIENT)]
    assert ours.recv(100) == TLS
    assert (len(yard.arrivals), yard.refused) == (0, [])


@pytest.mark.parametrize(
    "header", [LOCAL, UNKNOWN, block(None), line(("127.0.0.1", 5)), block(("::1", 5)), line((PROXY[0], 5))]
)
def test_a_connection_of_the_proxy_itself_has_its_address_once_it_speaks(yard: Yard, header: bytes) -> None:
    theirs, ours = yard.connected()
    theirs.sendall(header)
    assert yard.take(ours) is None
    assert len(yard.arrivals) == 1
    theirs.sendall(TLS)
    yard.until(lambda: yard.arrived)
    assert yard.arrived == [(ours, PROXY)]
    assert ours.recv(100) == TLS


def test_a_proxy_on_this_machine_may_have_clients_on_it(yard: Yard) -> None:
    theirs, ours = yard.connected()
    theirs.sendall(line(("127.0.0.2", 5)))
    assert yard.take(ours, peer=("::ffff:127.0.0.1", 4000)) == ("127.0.0.2", 5)


@pytest.mark.parametrize(
    "said", [b"", LOCAL, UNKNOWN, line((PROXY[0], 4000))], ids=["nothing", "local", "unknown", "itself"]
)
@pytest.mark.parametrize("reset", [False, True])
def test_a_health_check_that_only_connects_ends_without_a_word(yard: Yard, said: bytes, *, reset: bool) -> None:
    theirs, ours = yard.connected()
    with capture_logs() as logs:
        theirs.sendall(said)
        assert yard.take(ours) is None
        if reset:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        theirs.close()
        yard.until(lambda: len(yard.arrivals) == 0)
    assert ours.fileno() == -1
    assert (yard.refused, yard.arrived, logs) == ([], [], [])


def test_a_health_check_that_stays_ends_without_a_word_too(yard: Yard) -> None:
    theirs, ours = yard.connected()
    theirs.sendall(LOCAL)
    with capture_logs() as logs:
        assert yard.take(ours) is None
        yard.now += SECONDS
        yard.until(lambda: len(yard.arrivals) == 0)
    assert (theirs.recv(10), yard.refused, logs) == (b"", [], [])


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (TLS, "TLS began without a PROXY header: the proxy does not send it"),
        (b"\x10", "the connection does not begin with a PROXY header"),
        (block(CLIENT, fields=[(3, bytes(4))]), "the checksum of the PROXY header is wrong"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_what_is_no_header_is_refused(yard: Yard, said: bytes, why: str, *, late: bool) -> None:
    theirs, ours = yard.connected()
    with capture_logs() as logs:
        if late:
            assert yard.take(ours) is None
        theirs.sendall(said)
        if not late:
            assert yard.take(ours) is None
        yard.until(lambda: yard.refused)
    assert yard.refused == [PROXY[0]]
    assert ours.fileno() == -1
    assert [(each["code"], each["address"], each["detail"]) for each in logs] == [("BAD_PROXY_HEADER", PROXY[0], why)]
    assert yard.arrived == []


def test_a_header_that_ends_too_early_or_never_comes_is_refused(yard: Yard) -> None:
    theirs, ours = yard.connected()
    with capture_logs() as logs:
        assert yard.take(ours) is None
        theirs.sendall(block(CLIENT)[:20])
        yard.go_round()
        theirs.close()
        yard.until(lambda: yard.refused)
        yard.now += 61
        silent, there = yard.connected()
        half, other = yard.connected()
        assert yard.take(there) is None
        yard.now += 1
        half.sendall(line(CLIENT)[:-1])
        assert yard.take(other) is None
        yard.now += SECONDS - 1
        yard.until(lambda: len(yard.refused) == 2)
        assert (there.fileno(), len(yard.arrivals)) == (-1, 1), "each has its own time"
        yard.now += 1
        yard.until(lambda: len(yard.refused) == 3)
    assert [each["detail"] for each in logs] == [
        "the connection ended within its PROXY header",
        "the PROXY header did not come in time",
    ], "and once a minute"
    assert silent.recv(10) == half.recv(10) == b""


def test_of_too_many_that_wait_the_oldest_ends_and_the_proxy_is_not_limited_otherwise(yard: Yard) -> None:
    pairs = [yard.connected() for _ in range(5)]
    with capture_logs() as logs:
        for _, ours in pairs:
            assert yard.take(ours, most=3) is None
    assert [ours.fileno() >= 0 for _, ours in pairs] == [False, False, True, True, True]
    assert len(yard.arrivals) == 3
    assert [(each["detail"], each["connections"]) for each in logs] == [
        ("more than 3 connections wait for their PROXY headers, this one longest", 1)
    ]
    for theirs, _ in pairs[2:]:
        theirs.sendall(line(CLIENT))
    yard.until(lambda: len(yard.arrived) == 3)
    for _ in range(20):
        theirs, ours = yard.connected()
        theirs.sendall(line(CLIENT))
        assert yard.take(ours, most=3) == CLIENT


def test_of_too_many_that_wait_a_health_check_ends_without_a_word(yard: Yard) -> None:
    """It was refused as if its header had not come, and counted so: BAD_PROXY_HEADER."""
    pairs = [yard.connected() for _ in range(2)]
    pairs[0][0].sendall(LOCAL)
    with capture_logs() as logs:
        for _, ours in pairs:
            assert yard.take(ours, most=1) is None
    assert (pairs[0][0].recv(1), logs, yard.refused, len(yard.arrivals)) == (b"", [], [], 1)


def test_urgent_data_does_not_break_the_order(yard: Yard) -> None:
    theirs, ours = yard.connected()
    header = line(CLIENT)
    theirs.sendall(header[:10])
    theirs.send(header[10:11], socket.MSG_OOB)
    theirs.sendall(header[11:] + TLS)
    assert yard.take(ours) is None
    yard.until(lambda: yard.refused or yard.arrived or yard.now > 1e9 or _later(yard))
    assert yard.arrived == []


def _later(yard: Yard) -> bool:
    yard.now += 1
    return False


def test_all_are_closed_at_the_end(yard: Yard) -> None:
    theirs, ours = yard.connected()
    assert yard.take(ours) is None
    yard.arrivals.close()
    assert theirs.recv(10) == b""
    assert len(yard.arrivals) == 0
    assert yard.arrivals._timer is None
