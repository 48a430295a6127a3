"""WebSocket frames above a fake transport: cut anywhere, ended once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
import structlog
from wsproto import ConnectionType, WSConnection
from wsproto.connection import Connection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Event, Ping, Pong, Request, TextMessage

from broker.connection.connection import ClientConnection
from broker.mqtt.disconnect import Disconnect
from broker.mqtt.packets import Pingreq
from broker.mqtt.ping import Pingresp
from broker.settings.origins import NO_PAGES, Origins
from broker.sockets.websocket import WebSocket
from broker.sockets.work import PORTION
from tests.support.faulty_extension import FaultyExtension
from tests.support.pki import shared_device
from tests.support.wire import V5, FakeTransport, MemoryBroker, connect_packet, publication


class Wire(FakeTransport):
    """The TLS transport under the WebSocket."""

    choked = False

    def close(self, last: Sequence[bytes] = ()) -> None:
        if last:
            self.write(list(last))
        self.closed = True


class Browser:
    """A WebSocket client."""

    def __init__(self, broker: MemoryBroker, origins: Origins = NO_PAGES, number: int = 1) -> None:
        self.broker = broker
        self.name = f"meter-{number}"
        self.wire = Wire()
        self.server = WebSocket(self.wire, broker.metrics, broker.engine.turn, origins)
        self.connection = ClientConnection(broker.engine, self.server, broker.now)
        self.server.serve(self.connection)
        self.server.secured(shared_device(self.name).der, broker.now, datetime.now(UTC))
        self.websocket = WSConnection(ConnectionType.CLIENT)

    def send(self, *events: Event, step: int = 0) -> list[Event]:
        """Send *events* in one read, or *step* bytes a read; return what comes back."""
        data = b"".join(self.websocket.send(event) for event in events)
        for start in range(0, len(data), step or len(data)):
            if not self.wire.closed:
                self.server.receive(data[start : start + (step or len(data))], self.broker.now)
        self.broker.engine.turn.end()
        self.broker.settle()
        self.websocket.receive_data(b"".join(self.wire.packets))
        self.wire.packets.clear()
        return list(self.websocket.events())

    def answers(self) -> bytes:
        """Return what MQTT has answered since the last look."""
        self.websocket.receive_data(b"".join(self.wire.packets))
        self.wire.packets.clear()
        return b"".join(bytes(event.data) for event in self.websocket.events() if isinstance(event, BytesMessage))

    def upgrade(self) -> Event:
        (event,) = self.send(Request(host="h", target="/mqtt", subprotocols=["mqtt"]))
        return event


CONNECT = connect_packet(V5, client_id="meter-1").encode()
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
"""Of RFC 6455 §1.3."""


@pytest.fixture
def browser() -> Browser:
    made = Browser(MemoryBroker())
    assert isinstance(made.upgrade(), AcceptConnection)
    return made


def test_packets_and_frames_need_not_agree(browser: Browser) -> None:
    ping = Pingreq().encode(V5)
    frames = [BytesMessage(CONNECT[:5]), BytesMessage(CONNECT[5:] + ping + ping[:1]), BytesMessage(ping[1:])]
    events = browser.send(*frames, step=3)
    data = b"".join(event.data for event in events if isinstance(event, BytesMessage))
    assert data.endswith(Pingresp().encode(V5) * 2)
    assert browser.broker.engine.connected == 1


def test_a_ping_is_answered(browser: Browser) -> None:
    assert browser.send(Ping(b"abc")) == [Pong(b"abc")]


def test_many_frames_of_one_read_are_taken_in_portions(browser: Browser) -> None:
    browser.send(BytesMessage(CONNECT))
    ping = Pingreq().encode(V5)
    data = b"".join(browser.websocket.send(BytesMessage(ping)) for _ in range(3 * PORTION))
    for part in (data[: len(data) // 2], data[len(data) // 2 :]):
        browser.server.receive(part, browser.broker.now)
    browser.broker.engine.turn.end()
    assert browser.wire.held, "nothing is read while frames wait"
    first = browser.answers()
    browser.broker.settle()
    assert len(first) == PORTION * 2
    assert first + browser.answers() == Pingresp().encode(V5) * 3 * PORTION
    assert not browser.wire.held


@pytest.mark.parametrize("event", [Ping(b"x"), BytesMessage(b""), BytesMessage(Pingreq().encode(V5))])
def test_of_many_websockets_full_of_frames_a_round_takes_no_longer(event: Event) -> None:
    """Else each of them holds the loop for some milliseconds, in every round."""
    broker = MemoryBroker()
    browsers = [Browser(broker, number=number) for number in range(20)]
    for each in browsers:
        assert isinstance(each.upgrade(), AcceptConnection)
        each.send(BytesMessage(connect_packet(V5, client_id=each.name).encode()))
    work, reads = broker.engine.turn.work, [b"".join(map(each.websocket.send, [event] * 300)) for each in browsers]
    begun = work.done
    broker.engine.turn.begin()
    for each, data in zip(browsers, reads, strict=True):
        each.server.receive(data, broker.now)
    broker.engine.turn.end()
    done, answered = [work.done], [sum(len(each.answers()) for each in browsers)]
    assert 4 * PORTION <= done[0] - begun <= 4 * PORTION + len(browsers)
    while broker._soon:
        for _ in range(len(broker._soon)):
            broker._soon.popleft()()
        done.append(work.done)
        answered.append(sum(len(each.answers()) for each in browsers))
    assert done[-1] - begun >= 300 * len(browsers)
    assert max(map(sum, pairwise(answered[1:]))) <= 2 * len(Pingresp().encode(V5)) * (PORTION + 8), "of two rounds"
    assert max(later - before for before, later in pairwise(done)) <= PORTION + 8
    assert not any(each.wire.held for each in browsers)


def test_of_many_pings_the_last_is_answered(browser: Browser) -> None:
    pings = [Ping(b"%d" % number) for number in range(PORTION + 5)]
    assert browser.send(*pings) == [Pong(b"%d" % (PORTION - 1)), Pong(b"%d" % (PORTION + 4))]
    assert browser.send(Ping(b"x"), CloseConnection(code=1000)) == [CloseConnection(code=1000, reason="")]


def test_frames_that_wait_go_with_the_connection(browser: Browser) -> None:
    browser.send(BytesMessage(CONNECT))
    frames = [BytesMessage(Pingreq().encode(V5))] * 2 * PORTION
    browser.server.receive(b"".join(map(browser.websocket.send, frames)), browser.broker.now)
    browser.server.lost("CONNECTION_LOST", browser.broker.now)
    browser.wire.close()
    browser.broker.settle()
    assert browser.broker.metrics.closed == {"CONNECTION_LOST": 1}


def test_nobody_is_admitted_who_has_gone_while_his_frames_waited(browser: Browser) -> None:
    frames = [BytesMessage(b"")] * PORTION + [BytesMessage(CONNECT)]
    browser.server.receive(b"".join(map(browser.websocket.send, frames)), browser.broker.now)
    browser.server.lost("CONNECTION_LOST", browser.broker.now)
    browser.wire.close()
    browser.broker.settle()
    assert browser.broker.engine.connected == 0
    assert browser.broker.metrics.admitted == 0


def test_a_bad_frame_behind_many_ends_it(browser: Browser) -> None:
    browser.send(BytesMessage(CONNECT))
    frames = b"".join(map(browser.websocket.send, [BytesMessage(Pingreq().encode(V5))] * PORTION))
    browser.server.receive(frames + b"\xff" * 20, browser.broker.now)
    assert not browser.wire.closed
    browser.broker.settle()
    assert browser.wire.closed
    assert browser.broker.engine.connected == 0


def test_a_bug_that_a_frame_behind_many_meets_ends_it(browser: Browser) -> None:
    browser.send(BytesMessage(CONNECT))
    extension: Any = FaultyExtension()
    browser.broker.engine.extension = extension
    message = publication("fleet/meters/meter-1/telemetry", b"x").encode(V5)
    events = [*[BytesMessage(Pingreq().encode(V5))] * PORTION, BytesMessage(message)]
    browser.server.receive(b"".join(map(browser.websocket.send, events)), browser.broker.now)
    assert not browser.wire.closed
    with structlog.testing.capture_logs() as logs:
        browser.broker.settle()
    assert (browser.wire.closed, browser.wire.was_reset) == (True, True)
    assert browser.broker.metrics.closed == {"ABORTED": 1}
    assert [each["event"] for each in logs if each.get("code") == "INTERNAL_ERROR"] == ["connection failed"]


def test_who_is_held_stays_held_when_his_frames_are_taken(browser: Browser) -> None:
    browser.send(BytesMessage(CONNECT))
    frames = b"".join(map(browser.websocket.send, [BytesMessage(Pingreq().encode(V5))] * 2 * PORTION))
    browser.server.receive(frames, browser.broker.now)
    browser.server.hold()
    browser.broker.settle()
    assert browser.wire.held
    for _ in range(2):
        browser.server.release()
        assert not browser.wire.held
        browser.server.hold()
        assert browser.wire.held


def test_nothing_behind_the_end_is_read(browser: Browser) -> None:
    browser.send(BytesMessage(CONNECT), BytesMessage(Disconnect().encode(V5)), BytesMessage(CONNECT))
    assert browser.wire.closed
    assert browser.broker.engine.connected == 0
    assert browser.broker.metrics.admitted == 1


@pytest.mark.parametrize(
    ("event", "code"), [(TextMessage("x"), "BAD_PACKET"), (CloseConnection(code=1000), "CLIENT_CLOSED")]
)
def test_the_end_of_the_websocket_is_the_end_of_the_connection(browser: Browser, event: Event, code: str) -> None:
    browser.send(BytesMessage(CONNECT))
    browser.send(event)
    assert browser.wire.closed
    assert browser.broker.metrics.closed == {code: 1}


def test_the_last_packets_and_the_end_of_the_websocket_come_together(browser: Browser) -> None:
    browser.server.close([b"first", b"last"])
    browser.websocket.receive_data(b"".join(browser.wire.packets))
    said = list(browser.websocket.events())
    assert [type(each) for each in said] == [BytesMessage, CloseConnection]
    assert (bytes(said[0].data), said[1].code) == (b"firstlast", 1000)  # type: ignore[attr-defined]
    assert (browser.wire.writes, browser.wire.closed) == (2, True), "the answer to the upgrade, and these"


def test_who_is_closed_before_the_upgrade_gets_no_frames() -> None:
    made = Browser(MemoryBroker())
    made.server.close([b"last"])
    assert (made.wire.writes, made.wire.closed) == (0, True)


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (b"\xff" * 20, "Invalid opcode 0xf"),
        (b"\x82\x02\xc0\0", "server received unexpected unmasked frame"),  # RFC 6455 §5.1
        (b"\xc2\x80\0\0\0\0", "Reserved bit set unexpectedly"),
        (b"\x80\x80\0\0\0\0", "unexpected CONTINUATION"),
        (b"\x09\x80\0\0\0\0", "Invalid attempt to fragment control frame"),
        (b"\x88\x81\0\0\0\0\x03", "CLOSE with 1 byte payload"),
    ],
)
def test_a_frame_that_is_none_ends_it_and_the_operator_is_told_why(browser: Browser, frame: bytes, why: str) -> None:
    browser.send(BytesMessage(CONNECT))
    with structlog.testing.capture_logs() as logs:
        browser.server.receive(frame, browser.broker.now)
    assert browser.wire.closed
    assert browser.broker.engine.connected == 0
    (line,) = logs
    assert (line["event"], line["code"], line["detail"]) == ("closed", "BAD_PACKET", f"not a WebSocket: {why}")
    browser.websocket.receive_data(b"".join(browser.wire.packets))
    (*_, said) = browser.websocket.events()
    assert isinstance(said, CloseConnection)
    assert said.code == 1002


def test_a_choked_websocket_drops_qos0(browser: Browser) -> None:
    browser.wire.choked = True
    browser.server.write([b"\x30\x03\x00\x01t"])
    assert not browser.wire.packets
    assert browser.broker.metrics.dropped_slow_consumer == 1
    browser.server.write([b"\x40\x02\x00\x01"])
    assert len(browser.wire.packets) == 1


def asked(
    *,
    method: bytes = b"GET",
    version: bytes = b"1.1",
    host: bytes = b"h",
    upgrade: bytes = b"websocket",
    connection: bytes = b"Upgrade",
    websocket: bytes = b"13",
    key: bytes = KEY,
    protocol: bytes = b"mqtt",
    more: bytes = b"",
) -> bytes:
    """Return an upgrade request, with *more* header lines at its end."""
    return (
        b"%b /mqtt HTTP/%b\r\nHost: %b\r\nConnection: %b\r\nUpgrade: %b\r\nSec-WebSocket-Version: %b\r\n"
        b"Sec-WebSocket-Key: %b\r\nSec-WebSocket-Protocol: %b\r\n%b\r\n"
        % (method, version, host, connection, upgrade, websocket, key, protocol, more)
    )


@pytest.mark.parametrize("step", [1, 1000])
@pytest.mark.parametrize(
    "different",
    [
        {},
        {"upgrade": b"h2c, WebSocket", "connection": b"keep-alive, upgrade"},
        {"protocol": b"other", "more": b"sec-websocket-protocol: mqtt\r\nSec-WebSocket-Extensions: x\r\n"},
        {"more": b"Content-Length: 0\r\n"},
        {"host": b"broker.example:8443", "more": b"Origin: https://broker.example:8443\r\n"},
    ],
)
def test_an_upgrade_request_that_is_as_the_standard_says_is_accepted(different: dict[str, bytes], step: int) -> None:
    made = Browser(MemoryBroker())
    data = asked(**different)
    for start in range(0, len(data), step):
        made.server.receive(data[start : start + step], made.broker.now)
    answer = b"".join(made.wire.packets)
    assert answer.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in answer  # RFC 6455 §1.3.
    assert b"Sec-WebSocket-Protocol: mqtt\r\n" in answer


@pytest.mark.parametrize(
    ("different", "status", "why"),
    [
        ({"method": b"POST"}, b"405", b"opened with GET"),
        ({"method": b"HEAD"}, b"405", b""),
        ({"version": b"1.0"}, b"400", b"HTTP/1.1 is needed"),
        ({"upgrade": b"h2c"}, b"426", b"'Connection: Upgrade' are needed"),
        ({"connection": b"close"}, b"426", b"'Connection: Upgrade' are needed"),
        ({"websocket": b"8"}, b"426", b"'Sec-WebSocket-Version: 13'"),
        ({"protocol": b"chat"}, b"400", b"'Sec-WebSocket-Protocol: mqtt'"),
        ({"protocol": b"MQTT"}, b"400", b"'Sec-WebSocket-Protocol: mqtt'"),
        ({"key": b""}, b"400", b"Sec-WebSocket-Key is not 16 bytes in base64"),
        ({"key": b"short"}, b"400", b"Sec-WebSocket-Key is not 16 bytes in base64"),
        ({"key": b"dGhlIHNhbXBsZSBub25jZ"}, b"400", b"Sec-WebSocket-Key is not 16 bytes in base64"),
        ({"key": b"dGhlIHNhbXBsZSBub25jZQ==="}, b"400", b"Sec-WebSocket-Key is not 16 bytes in base64"),
        ({"key": b"dGhl IHNhbXBsZSBub25jZQ=="}, b"400", b"Sec-WebSocket-Key is not 16 bytes in base64"),
        ({"key": b"dGhlIHNhbXBsZSBub25jZXM="}, b"400", b"Sec-WebSocket-Key is not 16 bytes in base64"),
        ({"more": b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"}, b"400", b"once each"),
        ({"more": b"Sec-WebSocket-Version: 13\r\n"}, b"400", b"once each"),
        ({"host": b"\xff.example"}, b"400", b"a header is not text"),
        ({"more": b"Sec-WebSocket-Protocol: \xff\r\n"}, b"400", b"a header is not text"),
        ({"more": b"Sec-WebSocket-Extensions: \xff\r\n"}, b"400", b"a header is not text"),
        ({"more": b"Origin: https://\xff\r\n"}, b"400", b"a header is not text"),
        ({"more": b"Origin: https://h\r\nOrigin: https://h\r\n"}, b"400", b"Origin may occur only once"),
        ({"protocol": b"chat", "more": b"Origin: null\r\n"}, b"400", b"'Sec-WebSocket-Protocol: mqtt'"),
        ({"more": b"Host: another\r\n"}, b"400", b"this is not an HTTP/1.1 request"),
        ({"more": b"Content-Length: 1\r\n\r\nx"}, b"400", b"an upgrade request has no body"),
        ({"more": b"Transfer-Encoding: gzip\r\n"}, b"501", b"an upgrade request has no body"),
        ({"more": b"X: " + b"y" * 40_000}, b"431", b"the request is too long, by its cookies perhaps: 16 KiB at most"),
    ],
)
@pytest.mark.parametrize("step", [1, 1000])
def test_an_upgrade_request_that_is_not_is_told_what_it_lacks(
    different: dict[str, bytes], status: bytes, why: bytes, step: int
) -> None:  # RFC 6455 §4.2.1
    made = Browser(MemoryBroker())
    data = asked(**different)
    for start in range(0, len(data), step):
        if not made.wire.closed:
            made.server.receive(data[start : start + step], made.broker.now)
    head, _, body = b"".join(made.wire.packets).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %b " % status)
    assert body.endswith(why + b"\n" if why else b"")
    assert (b"\r\nUpgrade: websocket" in head) is (status == b"426"), "RFC 9110 §15.5.22"
    assert (b"\r\nAllow: GET" in head) is (status == b"405")
    assert re.search(rb"(?mi)^Connection: (upgrade, )?close\r?$", head), "RFC 9112 §9.6"
    assert made.wire.closed
    assert made.broker.metrics.refused == {"NOT_WEBSOCKET": 1}


def test_a_page_is_let_in_if_its_origin_is_named() -> None:  # RFC 6455 §10.2
    origins = Origins(frozenset({"https://dash.example"}))
    for origin, status in ((b"https://dash.example", b"101"), (b"https://evil.example", b"403"), (b"null", b"403")):
        made = Browser(MemoryBroker(), origins)
        made.server.receive(asked(more=b"Origin: %b\r\n" % origin), made.broker.now)
        assert b"".join(made.wire.packets).startswith(b"HTTP/1.1 %b " % status)
        assert made.wire.closed is (status == b"403")


def test_a_page_that_may_not_connect_is_told_so_and_the_operator_whose_it_is() -> None:
    made = Browser(MemoryBroker())
    frame = Connection(ConnectionType.CLIENT).send(BytesMessage(CONNECT))
    made.server.receive(asked(more=b"Origin: https://evil.example\r\n") + frame, made.broker.now)
    answer = b"".join(made.wire.packets)
    assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert b"websocket_origins" in answer
    assert b"evil" not in answer, "no word of the request is repeated"
    assert made.wire.closed
    assert made.broker.metrics.refused == {"ORIGIN_NOT_ALLOWED": 1}
    assert made.broker.metrics.admitted == 0
    ((event,),) = made.broker.engine.history.known()
    assert (event.code, event.name) == ("ORIGIN_NOT_ALLOWED", "meter-1")
    assert event.detail.endswith("(Origin: https://evil.example)")


@pytest.mark.parametrize("version", [b"1.1", b"1.2", b"2.0"])
def test_a_request_without_a_host_is_told_so(version: bytes) -> None:  # RFC 9112 §3.2
    made = Browser(MemoryBroker())
    made.server.receive(asked(version=version).replace(b"Host: h\r\n", b""), made.broker.now)
    assert b"".join(made.wire.packets).startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert made.wire.closed
    assert made.broker.metrics.refused == {"NOT_WEBSOCKET": 1}


def test_an_origin_of_any_length_makes_no_line_of_any_length() -> None:
    made = Browser(MemoryBroker())
    with structlog.testing.capture_logs() as logged:
        made.server.receive(asked(more=b"Origin: https://%b\r\n" % (b"x" * 15_000)), made.broker.now)
    (line,) = [each for each in logged if each.get("code") == "ORIGIN_NOT_ALLOWED"]
    assert len(line["detail"]) < 500


@pytest.mark.parametrize(
    ("said", "why"),
    [(CONNECT, b"not plain MQTT: use another port\n"), (b"\0\1\2", b"this is not an HTTP/1.1 request\n")],
)
def test_who_speaks_something_else_is_told_so(said: bytes, why: bytes) -> None:
    made = Browser(MemoryBroker())
    made.server.receive(said, made.broker.now)
    answer = b"".join(made.wire.packets)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert answer.endswith(why)
    assert made.wire.closed


def test_frames_that_come_with_the_request_are_read() -> None:
    made = Browser(MemoryBroker())
    client = WSConnection(ConnectionType.CLIENT)
    request = client.send(Request(host="h", target="/", subprotocols=["mqtt"]))
    frames = Connection(ConnectionType.CLIENT)
    made.server.receive(request + frames.send(BytesMessage(CONNECT)), made.broker.now)
    assert made.broker.engine.connected == 1


def test_what_has_nothing_to_do_with_frames_passes_between_transport_and_connection(browser: Browser) -> None:
    wire, server = browser.wire, browser.server
    wire.unsent, wire.untaken, wire.certificate, wire.path = True, 7, b"its certificate", [b"its CA"]
    assert (server.unsent, server.untaken, server.address) == (True, 7, "192.0.2.1:1883")
    assert server.presented() == (b"its certificate", [b"its CA"])
    server.settle(dozes=True)
    assert (wire.settled, wire.dozes) == (True, True)
    server.rest(0.5)
    assert wire.rests == [0.5]
