"""The listener takes nobody in while newcomers who have spoken wait to be served: real connections, turn by turn."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from structlog.testing import capture_logs

from broker.admission.refusal import RefusalCode
from broker.door.connection_rate import ConnectionRate
from broker.door.listener import _BUSY_PAUSE, Doors, Listener, Speaks
from broker.door.lobby import SECONDS_A_TURN
from broker.settings.limits import Limits
from broker.settings.origins import Origins
from broker.sockets.doze import Doze
from broker.sockets.poller import READABLE, Poller
from broker.sockets.turn import Turn
from tests.support.descriptors import no_descriptors
from tests.support.proxy_headers import LOCAL, block, line
from tests.support.turned_loop import TurnedLoop
from tests.support.watched import WatchedClient
from tests.support.wire import MemoryBroker


class Hall(TurnedLoop):
    """A listener on a loop that does not run: its turns are called by the test, its clock is in the test's hand."""

    def __init__(self) -> None:
        super().__init__(now=1.0)
        turn = Turn(self.loop.call_soon)
        self.poller = Poller(self.loop, turn)
        self.doze = Doze(self.loop, turn, self.poller, lambda: 0.1)
        engine = MemoryBroker().engine
        self.doors = doors = Doors(self.poller, self.doze)
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
        self.comes(port)

    def comes(self, port: int = 0, said: bytes = b"") -> socket.socket:
        """Connect, and send what is *said*."""
        port = port or int(self.listener.url.rpartition(":")[2])
        client = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.stack.enter_context(client)
        client.sendall(said)
        return client

    @property
    def hosts(self) -> list[str]:
        """The addresses of those who have a place."""
        return [each.host for each in self.lobby._watched.values()]

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


@pytest.fixture
def proxied(hall: Hall) -> Hall:
    """Return a hall whose visitors all come from a proxy."""
    hall.listener.proxies = ("127.0.0.0/8",)
    return hall


def test_who_comes_through_a_proxy_has_the_address_that_it_says(proxied: Hall) -> None:
    proxied.comes(said=line(("198.51.100.7", 1)) + b"!")
    proxied.comes(said=block(("2001:db8::7", 1)) + b"!")
    proxied.turn()
    assert proxied.hosts == ["198.51.100.7", "2001:db8::7"]


def test_whose_header_is_late_has_no_place_before_it_is_there(proxied: Hall) -> None:
    client = proxied.comes(said=line(("198.51.100.7", 1))[:-3])
    proxied.turn()
    proxied.turn()
    assert proxied.hosts == []
    client.sendall(b"1\r\n")
    proxied.until(lambda: proxied.hosts)
    assert proxied.hosts == ["198.51.100.7"]


def test_limits_are_of_the_clients_address_and_the_proxy_has_none(proxied: Hall) -> None:
    proxied.engine.limits = Limits(max_unadmitted_per_address=1)
    for number in range(40):
        proxied.comes(said=line((f"198.51.100.{number}", 1)))
    proxied.comes(said=line(("198.51.100.0", 2)))
    proxied.turn()
    proxied.turn()
    assert (len(proxied.lobby), len(proxied.lobby.waiting)) == (40, 1)


def test_who_has_failed_too_often_is_refused_and_others_through_the_same_proxy_are_not(proxied: Hall) -> None:
    proxied.engine.limits = Limits(max_failed_attempts=1)
    for said in ("198.51.100.7", "198.51.100.7", "203.0.113.7"):
        proxied.comes(said=line((said, 1)))
    proxied.turn()
    assert proxied.hosts == ["198.51.100.7", "203.0.113.7"]
    assert proxied.engine.metrics.refused == {RefusalCode.RATE_LIMITED: 1}
    (told,) = proxied.engine.history.strangers("198.51.100.7")
    assert told.code == "RATE_LIMITED"


def test_a_proxy_without_its_header_is_refused_counted_and_remembered(proxied: Hall) -> None:
    client = proxied.comes(said=b"\x16\x03\x01")
    with capture_logs() as logs:
        proxied.turn()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert [(each["code"], each["address"]) for each in logs] == [("BAD_PROXY_HEADER", "127.0.0.1")]
    assert proxied.engine.metrics.refused == {RefusalCode.BAD_PROXY_HEADER: 1}
    assert [each.code for each in proxied.engine.history.strangers("127.0.0.1")] == ["BAD_PROXY_HEADER"]
    proxied.comes(said=LOCAL).close()
    proxied.turn()
    proxied.until(lambda: not len(proxied.listener._arrivals))
    assert proxied.engine.metrics.refused == {RefusalCode.BAD_PROXY_HEADER: 1}, "a health check is no attack"


def test_those_whose_header_has_come_wait_their_turn(proxied: Hall) -> None:
    taking = [proxied.speaks(takes=SECONDS_A_TURN) for _ in range(2)]
    clients = [proxied.comes() for _ in range(3)]
    proxied.turn()
    assert len(proxied.listener._arrivals) == 3
    for number, client in enumerate(clients):
        client.sendall(line((f"198.51.100.{number}", 1)))
    for each in taking:
        each.says()
    proxied.lobby._ready()
    assert proxied.lobby.behind
    proxied.loop.remove_reader(proxied.lobby._epoll.fileno())  # It would call those who take time.
    while len(proxied.listener._arrivals):
        proxied.go_round()
        proxied.lobby.behind = True
    for _ in range(5):
        proxied.go_round()
        proxied.lobby.behind = True
    assert len(proxied.listener._named) == 3
    for each in taking:
        proxied.lobby.forget(each.ours.fileno())
    proxied.lobby.behind = False
    proxied.until(lambda: len(proxied.lobby) == 3)
    assert sorted(proxied.hosts) == ["198.51.100.0", "198.51.100.1", "198.51.100.2"]


def test_while_nobody_is_accepted_they_wait_too_and_then_go_before_others(proxied: Hall) -> None:
    proxied.engine.limits = Limits(max_connection_rate=1)
    clients = [proxied.comes()]
    proxied.turn()
    for _ in range(3):
        proxied.go_round()
    assert proxied.listener._paused, "one a second"
    clients[0].sendall(line(("198.51.100.0", 1)))
    proxied.comes(said=line(("198.51.100.1", 1)))
    paused = proxied.engine.metrics.accepts_paused
    for _ in range(5):
        proxied.go_round()
    assert len(proxied.listener._named) == 1
    assert proxied.engine.metrics.accepts_paused == paused, "and he does not begin another pause"
    proxied.now += 1
    proxied.until(lambda: len(proxied.hosts) == 2)
    assert proxied.hosts == ["198.51.100.0", "198.51.100.1"], "who waits for his turn was counted when he was accepted"


def test_more_than_one_turn_takes_in_are_all_taken_in(proxied: Hall) -> None:
    clients = [proxied.comes() for _ in range(40)]
    while len(proxied.listener._arrivals) < 40:
        proxied.turn()
    for number, client in enumerate(clients):
        client.sendall(line((f"198.51.100.{number}", 1)))
    proxied.until(lambda: len(proxied.hosts) == 40)


def test_those_whose_header_is_awaited_are_bounded_by_the_listeners_places(proxied: Hall) -> None:
    proxied.engine.limits = Limits(max_unadmitted=2)
    for _ in range(5):
        proxied.comes()
    proxied.turn()
    assert len(proxied.listener._arrivals) == 2
    assert proxied.engine.metrics.refused == {RefusalCode.BAD_PROXY_HEADER: 3}


def test_an_ipv4_client_of_a_listener_for_all_addresses_has_its_own_address(hall: Hall) -> None:
    """The socket reports it as ``::ffff:127.0.0.1``: `fleet-broker why 127.0.0.1` knew nothing."""
    hall.listener.stop_accepting()
    hall.listener.open("::ffff:127.0.0.1", 0)
    hall.listener.begin()
    hall.comes()
    hall.turn()
    assert hall.hosts == ["127.0.0.1"]


def test_nobody_else_is_believed_and_without_the_setting_nobody(hall: Hall) -> None:
    header = line(("198.51.100.7", 1))
    hall.comes(said=header)
    hall.listener.proxies = ("127.0.0.2/32", "10.0.0.0/8")
    hall.comes(said=header)
    hall.turn()
    assert hall.hosts == ["127.0.0.1", "127.0.0.1"]


def test_those_who_come_through_a_proxy_end_with_the_listener(proxied: Hall) -> None:
    waits, named = proxied.comes(), proxied.comes()
    proxied.turn()
    named.sendall(line(("198.51.100.7", 1)))
    while not proxied.listener._named:
        proxied.listener._paused = True  # So it gets no turn.
        proxied.go_round()
    proxied.listener.stop_accepting()
    assert waits.recv(1) == named.recv(1) == b""
    for _ in range(3):
        proxied.go_round()


@pytest.mark.parametrize("reset", [True, False])
def test_those_who_have_left_keep_nobody_waiting_when_the_queue_is_long(
    hall: Hall, capsys: pytest.CaptureFixture[str], *, reset: bool
) -> None:
    """The kernel's queue is served in order: a handshake for each of them would be in front of everybody else's."""
    for _ in range(200):
        hall.knock_and_leave(reset=reset)
    hall.knock()
    served: list[socket.socket] = []
    hall.listener._reception._serve = lambda accepted, _: served.append(hall.stack.enter_context(closing(accepted)))
    hall.listener._accept()
    assert len(served) == 32, "nothing said yet that many wait"
    hall.listener._accept()
    assert len(served) == 33, "of all others, the one who is still there"
    assert hall.engine.metrics.connections_accepted == 201
    assert hall.engine.metrics.refused["TLS_HANDSHAKE_FAILED"] == 168
    limits = hall.listener._limits()
    source = hall.lobby.strangers.source("127.0.0.1", limits, hall.now)
    assert source.failures(limits, hall.now) == 168
    assert source.under_way == source.network.under_way == 0, "they take nobody's place"
    assert [each for each in hall.engine.history.strangers("127.0.0.1") if each.code == "TLS_HANDSHAKE_FAILED"]
    assert capsys.readouterr().out.count("left before TLS began") == 1
    hall.knock_and_leave(reset=reset)
    hall.listener._accept()
    assert len(served) == 34, "the queue was empty: no need to ask"


def test_after_a_pause_they_are_accepted_as_they_come_again(proxied: Hall) -> None:
    proxied.engine.limits = Limits(max_connection_rate=1)
    for number in range(2):
        proxied.comes(said=line((f"198.51.100.{number}", 1)))
    proxied.until(lambda: proxied.hosts)
    for _ in range(5):
        proxied.go_round()
    assert len(proxied.hosts) == 1
    assert proxied.engine.metrics.accepts_paused
    proxied.engine.limits = Limits()
    proxied.now += 1
    proxied.until(lambda: len(proxied.hosts) == 2)
    late = proxied.comes(said=line(("198.51.100.2", 1))[:-1])
    proxied.until(lambda: len(proxied.listener._arrivals))
    late.sendall(b"\n")
    proxied.until(lambda: len(proxied.hosts) == 3)


def test_while_the_loop_lags_one_is_accepted_at_a_time(hall: Hall) -> None:
    hall.engine.metrics.loop_lag = hall.engine.limits.max_loop_lag + 1
    for _ in range(4):
        hall.knock()
    assert hall.turn() == 1
    hall.go_round()
    assert hall.engine.metrics.connections_accepted == 1, "and then there is a pause"
    hall.now += _BUSY_PAUSE
    hall.go_round()
    assert hall.engine.metrics.connections_accepted == 2
    hall.engine.metrics.loop_lag = 0.0
    hall.now += _BUSY_PAUSE
    hall.until(lambda: hall.engine.metrics.connections_accepted == 4)


def test_without_a_descriptor_nobody_is_accepted_for_a_moment(hall: Hall) -> None:
    hall.knock()
    with no_descriptors(), capture_logs() as logs:
        assert hall.turn() == 0
    assert [each["code"] for each in logs] == ["ACCEPT_FAILED"]
    hall.go_round()
    assert hall.turn() == 1, "who waited in the queue is still there"
    hall.knock()
    hall.go_round()
    assert hall.engine.metrics.connections_accepted == 1
    hall.now += 1
    hall.until(lambda: hall.engine.metrics.connections_accepted == 2)


def test_all_connections_count_wherever_they_are(hall: Hall) -> None:
    hall.engine.limits = Limits(max_unadmitted_per_address=1)
    hall.knock()
    hall.knock()
    hall.turn()
    assert (len(hall.lobby), len(hall.lobby.waiting)) == (1, 1)
    for set_of, times in ((hall.poller, 2), (hall.doze, 3)):
        for _ in range(times):
            client = WatchedClient()
            hall.stack.callback(client.end)
            set_of.watch(client.ours.fileno(), client, READABLE)
    assert hall.doors.connections == 7


def test_when_there_are_too_many_of_those_who_wait_one_goes_for_somebody_from_elsewhere(proxied: Hall) -> None:
    proxied.engine.limits = Limits(max_connections=4, max_unadmitted_per_address=1)
    for _ in range(4):
        proxied.comes(said=line(("198.51.100.1", 1)))
    proxied.turn()
    assert (len(proxied.lobby), len(proxied.lobby.waiting)) == (1, 3)
    proxied.comes(said=line(("203.0.113.1", 1)))
    proxied.turn()
    assert proxied.hosts == ["198.51.100.1", "203.0.113.1"]
    assert len(proxied.lobby.waiting) == 2
    assert proxied.engine.metrics.refused == {RefusalCode.TOO_MANY_CONNECTIONS: 1}


def test_those_who_wait_for_a_place_end_with_the_listener(hall: Hall) -> None:
    hall.engine.limits = Limits(max_unadmitted_per_address=1)
    _, waits = hall.comes(), hall.comes()
    hall.turn()
    assert hall.listener._socket is not None
    descriptor = hall.listener._socket.fileno()
    hall.listener.stop_accepting()
    assert waits.recv(1) == b""
    assert len(hall.lobby) == 1, "who has a place stays"
    assert not hall.loop.remove_reader(descriptor)


@pytest.mark.parametrize("speaks", [Speaks.MQTT, Speaks.WEBSOCKET])
def test_that_any_page_may_connect_is_said_where_pages_can(hall: Hall, speaks: Speaks) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with capture_logs() as logs:
        listener = Listener(hall.loop, hall.engine, hall.doors, context, speaks, origins=Origins(unsafe_any=True))
        listener.origins = Origins(frozenset({"https://example.com"}))
    assert [each["code"] for each in logs] == ["UNSAFE_ANY_ORIGIN"] * (speaks is Speaks.WEBSOCKET)
    listener._lobby.close()


def test_of_connections_that_may_come_no_more_are_saved_up_than_a_second_s() -> None:
    rate = ConnectionRate(0.0)
    assert rate.available(1, 100.0) == 1
    assert rate.available(3, 200.0) == 3
    rate.take()
    assert rate.available(3, 200.0) == 2
    for _ in range(5):
        rate.take()
    assert rate.available(3, 200.0) == 0
    assert rate.pause(4) == 0.25
    assert rate.available(4, 200.25) == 1
