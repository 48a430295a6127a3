"""The simulator's WebSocket against wsproto's, an implementation by others, however the bytes are cut."""

from __future__ import annotations

import base64
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Pong, Request

from device_sim.link.websocket import LARGEST_FRAME, NotUpgraded, NotWebSocket, WebSocket, checked_path
from tests.support.examples import examples

LENGTHS = st.one_of(st.integers(0, 130), st.integers(65_534, 65_537))
FEW = examples(30)  # The large ones take their time.


def upgraded() -> tuple[WebSocket, WSConnection, bytes]:
    """Return both ends, and the server's answer, which the client has not read."""
    ours, theirs = WebSocket("localhost"), WSConnection(ConnectionType.SERVER)
    theirs.receive_data(ours.request)
    (request,) = theirs.events()
    assert isinstance(request, Request)
    assert request.subprotocols == ["mqtt"]
    key = ours.request.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0]
    assert len(base64.b64decode(key)) == 16  # RFC 6455 §4.1
    return ours, theirs, theirs.send(AcceptConnection(subprotocol="mqtt"))


@FEW
@given(st.lists(LENGTHS, max_size=3))
def test_what_is_framed_is_read_by_others(lengths: list[int]) -> None:
    ours, theirs, _ = upgraded()
    sent = [bytes(i % 251 for i in range(length)) for length in lengths]
    theirs.receive_data(b"".join(map(ours.framed, sent)))
    assert b"".join(event.data for event in theirs.events() if isinstance(event, BytesMessage)) == b"".join(sent)


@FEW
@given(st.lists(LENGTHS, max_size=3), st.lists(st.integers(0, 70_000), max_size=6))
def test_what_others_frame_is_read_however_it_is_cut(lengths: list[int], cuts: list[int]) -> None:
    ours, theirs, answer = upgraded()
    sent = [bytes(i % 251 for i in range(length)) for length in lengths]
    data = answer + b"".join(theirs.send(BytesMessage(each)) + theirs.send(Ping()) for each in sent)
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[start:end] for start, end in itertools.pairwise(edges)]
    assert b"".join(map(ours.unframed, pieces)) == b"".join(sent)
    assert bool(ours.owed) is bool(sent)


def test_the_last_ping_is_answered_and_a_pong_is_not() -> None:
    ours, theirs, answer = upgraded()
    theirs_say = theirs.send(Ping(b"first")) + theirs.send(Ping(b"last")) + theirs.send(Pong(b"unasked"))
    assert ours.unframed(answer + theirs_say) == b""
    theirs.receive_data(ours.owed + ours.farewell())
    pong, close = theirs.events()
    assert isinstance(pong, Pong)
    assert isinstance(close, CloseConnection)
    assert (bytes(pong.payload), close.code) == (b"last", 1000)


def test_the_request_asks_for_a_path() -> None:
    assert WebSocket("localhost:9").request.startswith(b"GET /mqtt HTTP/1.1\r\nHost: localhost:9\r\n")
    assert WebSocket("localhost", path=checked_path("/a/~b")).request.startswith(b"GET /a/~b HTTP/1.1\r\n")


@pytest.mark.parametrize("text", ["", "mqtt", "/a b", "/a\r\nX: y", "/\u00e4", "/a?b", "/a#b", "/\x7f", "/" * 3000])
def test_what_no_request_can_ask_for_is_no_path(text: str) -> None:
    with pytest.raises(ValueError, match="path"):
        checked_path(text)


def test_a_message_in_several_frames_is_one_stretch_of_bytes() -> None:
    ours, theirs, answer = upgraded()
    first = theirs.send(BytesMessage(b"ab", message_finished=False))
    assert ours.unframed(answer + first + theirs.send(BytesMessage(b"cd"))) == b"abcd"


def test_nothing_is_read_behind_the_end() -> None:
    ours, theirs, answer = upgraded()
    data = theirs.send(BytesMessage(b"last")) + theirs.send(CloseConnection(1000))
    assert ours.unframed(answer + data + b"\x82\x01x") == b"last"
    assert ours.closed


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "HTTP/1.1 403 Forbidden"),
        (b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: x\r\n\r\n", "another Sec-WebSocket-Accept"),
        (b"x" * 20_000, "an answer without end"),
    ],
)
def test_a_server_that_does_not_upgrade_is_reported(answer: bytes, words: str) -> None:
    with pytest.raises(NotUpgraded, match=words):
        WebSocket("localhost").unframed(answer)


def test_a_server_that_forgets_the_subprotocol_is_reported() -> None:
    ours, theirs = WebSocket("localhost"), WSConnection(ConnectionType.SERVER)
    theirs.receive_data(ours.request)
    list(theirs.events())
    with pytest.raises(NotUpgraded, match="without the subprotocol mqtt"):
        ours.unframed(theirs.send(AcceptConnection()))


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (b"\x82\x81abcde", "a masked frame"),
        (b"\x81\x01x", "a frame of type 1"),
        (b"\xc2\x01x", "a frame of an extension"),
        (b"\x89\x7e\x00\x7e" + bytes(126), "a control frame of more than 125 bytes"),
        (b"\x82\x7f" + (LARGEST_FRAME + 1).to_bytes(8), f"a frame of {LARGEST_FRAME + 1} bytes"),
    ],
)
def test_a_frame_that_no_server_may_send_is_reported(frame: bytes, words: str) -> None:
    ours, _, answer = upgraded()
    with pytest.raises(NotWebSocket, match=words):
        ours.unframed(answer + frame)


def test_a_web_page_is_named_only_where_one_asks() -> None:
    assert b"origin" not in WebSocket("localhost").request.lower()
    asked = WebSocket("localhost", "https://other.example").request
    assert b"\r\nOrigin: https://other.example\r\n\r\n" in asked
