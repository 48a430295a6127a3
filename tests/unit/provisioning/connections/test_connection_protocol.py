"""HTTP as one connection speaks it: heads in time, answers in their order, an end that is told."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest
from uvicorn.server import ServerState

from provisioning.connections import connection_protocol
from provisioning.connections.connection_protocol import ConnectionProtocol
from provisioning.connections.places import Places
from provisioning.pki.late_handshake import drop
from tests.support.one_connection import ANOTHER, LARGE_SIZE, LISTENS, Whole, answered, connected, post


@pytest.mark.parametrize("first", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"], ids=["silent", "begun", "half"])
async def test_headers_that_do_not_come_end_the_connection(monkeypatch: pytest.MonkeyPatch, first: bytes) -> None:
    monkeypatch.setattr(connection_protocol, "_REQUEST_SECONDS", 0.05)
    async with connected() as (reader, writer):
        writer.write(first)
        assert await reader.read() == b""


async def test_an_answered_request_begins_a_new_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_protocol, "_REQUEST_SECONDS", 0.2)
    async with connected() as (reader, writer):
        for _ in range(2):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await reader.readuntil(b"\r\n\r\nok")
        assert await reader.read() == b""


async def test_headers_are_counted_before_they_are_kept() -> None:
    async with connected() as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 1000) for n in range(40)))
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1", b"400"),
        (b"POST /whole HTTP/1.1\r\nContent-Length: 0", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nhost: x", b"400"),
        (b"GET / HTTP/1.0\r\nHost: x\r\nHost: y", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x y", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x/y", b"400"),
        (b"GET / HTTP/1.1\r\nHost: [1]", b"400"),
        (b"GET http://x/ HTTP/1.1", b"400"),
        (b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c", b"400"),
        (b"GET / HTTP/0.9\r\nHost: x", b"400"),
        (b"GET / HTTP/2.0\r\nHost: x", b"400"),
        (b"GET / HTTP/2.0\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c", b"400"),
        (b"GET / HTTP/1.0", b"200"),
        (b"GET / HTTP/1.1\r\nHost:", b"200"),
        (b"GET / HTTP/1.1\r\nHost:\tca.example \t", b"200"),
        (b"GET / HTTP/1.1\r\nHost: [::1]:8443", b"200"),
        (b"GET / HTTP/1.1\r\nHost: ca.example:8443\r\nConnection: Upgrade\r\nUpgrade: h2c", b"200"),
    ],
)
async def test_a_request_says_once_for_which_host_it_is(head: bytes, status: bytes) -> None:
    async with connected(Whole()) as (reader, writer):
        writer.write(head + b"\r\n\r\n")
        assert (await reader.readuntil(b"\r\n")).split()[1] == status, "RFC 9112 section 3.2"


@pytest.mark.parametrize(
    ("version", "user_agent", "names_as_printed"),
    [
        (b"1.0", b"libest 3.2.0p", True),
        (b"1.1", b"libest 3.2.0p", False),
        (b"1.0", b"ab", False),
        (b"1.0", b"nolibest 1", False),
    ],
)
async def test_libest_alone_is_answered_in_the_version_that_it_reads(
    version: bytes, user_agent: bytes, *, names_as_printed: bool
) -> None:
    async with connected(Whole()) as (reader, writer):
        writer.write(b"GET / HTTP/%b\r\nHost: x\r\nUser-Agent: %b\r\n\r\n" % (version, user_agent))
        head, body = await answered(reader)
        assert body.startswith(b"ok")
        assert head.startswith(b"HTTP/1.0 200 OK\r\n" if names_as_printed else b"HTTP/1.1 200 OK\r\n")
        assert (b"\r\nContent-Length: " in head, b"\r\ncontent-length: " in head) == (
            names_as_printed, not names_as_printed,
        )  # fmt: skip


async def test_nobody_is_told_to_continue_in_the_older_version() -> None:
    """Who asks in HTTP/1.0 would take it for the answer (RFC 9110 §10.1.1), and libest would get it in HTTP/1.1."""
    async with connected(Whole()) as (reader, writer):
        whole = post(b"a", "/whole", "Expect: 100-continue", "User-Agent: libest 3.2.0p")
        writer.write(whole.replace(b"HTTP/1.1", b"HTTP/1.0")[:-1])
        writer.write(b"a")
        head, body = await answered(reader)
        assert head.startswith(b"HTTP/1.0 200 OK\r\n")
        assert body.startswith(b"ok")


async def test_what_comes_whole_is_answered_without_the_application() -> None:
    async with connected(Whole()) as (reader, writer):
        for body in (b"", b"a", b"b" * 100):
            writer.write(post(body))
            head, answer = await answered(reader)
            assert answer == b"whole " + body
            assert head.startswith(b"HTTP/1.1 200 OK\r\nx-default: yes\r\n")
            assert b"connection:" not in head


@pytest.mark.parametrize(
    "request_",
    [
        post(b"a", "/other"),
        post(b"b" * 101),
        post(b"odd"),
        post(b"a", "/whole?x"),
        post(b"a", "/whole", "Expect: 100-continue"),
        post(b"a").replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"Host: x", b"Connection: keep-alive"),
        b"PUT" + post(b"a")[4:].replace(b"Content-Length: 1", b"Content-Length: 0")[:-1],
    ],
    ids=["path", "size", "answer", "query", "expect", "version", "method"],
)
async def test_what_nobody_takes_is_the_application_s(request_: bytes) -> None:
    async with connected(Whole()) as (reader, writer):
        writer.write(request_)
        if b"Expect:" in request_:
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert (await answered(reader))[1].startswith(b"ok")


async def test_what_is_there_already_leaves_at_once_and_in_order() -> None:
    state = ServerState()
    async with connected(Whole(), state) as (reader, writer):
        get = b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n"
        writer.write(get + post(b"", "/ready") + post(b"second", "/other") + get + post(b"third") + get)
        answers = [await answered(reader) for _ in range(6)]
        assert [body for _, body in answers] == [b"GET 1", b"POST 2", b"oksecond", b"ok", b"okthird", b"ok"]
        assert answers[0][0] == b"HTTP/1.1 200 OK\r\nx-default: yes\r\ncontent-length: 5\r\n\r\n"
        state.default_headers = [(b"x-default", b"another")]
        writer.write(get.replace(b"x\r\n\r\n", b"x\r\nConnection: close\r\n\r\n") + get)
        head, body = await answered(reader)
        assert body == b"GET 3"
        # Where the interface writes it, too.
        assert head.endswith(b"x-default: another\r\ncontent-length: 5\r\nconnection: close\r\n\r\n")
        assert await reader.read() == b""
    assert state.total_requests == 7


async def test_who_takes_nothing_of_what_is_there_is_answered_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_protocol, "_REQUEST_SECONDS", 0.05)  # The kernel may take all but a little.
    whole, state = Whole(), ServerState()
    state.connections = kept = Connections()
    async with connected(whole, state, stall_seconds=0.2) as (_, writer):
        writer.write(post(b"much", "/ready") * 2000)
        async with asyncio.timeout(20):
            await kept.gone.wait()
    assert whole.asked < 200, "half a gigabyte was made for somebody who reads nothing"


async def test_a_connection_that_is_used_again_and_again_has_its_time_for_each_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection_protocol, "_REQUEST_SECONDS", 0.3)
    async with connected(Whole()) as (reader, writer):
        for _ in range(6):  # Together longer than one may take.
            writer.write(b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n")
            await answered(reader)
            await asyncio.sleep(0.1)
        writer.write(b"GET /ready HTTP/1.1\r\nHost: x\r\n")
        assert await reader.read() == b""


async def test_a_request_that_waits_for_its_body_behind_another_is_past_its_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection_protocol, "_REQUEST_SECONDS", 0.1)
    second = post(b"second", "/other")
    async with connected(Whole()) as (reader, writer):
        writer.write(post(b"first") + second[:-3])
        assert (await answered(reader))[1] == b"whole first"
        await asyncio.sleep(0.2)
        writer.write(second[-3:])
        assert (await answered(reader))[1] == b"oksecond"
        assert await reader.read() == b"", "from here on the next head is awaited"


OFFER = ("Connection: Upgrade, HTTP2-Settings, close", "Upgrade: h2c", "HTTP2-Settings: AAEA")


@pytest.mark.parametrize("target", ["/whole", "/other"])
@pytest.mark.parametrize("cut", [0, 20, -2], ids=["whole", "in the head", "in the body"])
async def test_who_offers_another_protocol_is_answered_in_this_one(target: str, cut: int) -> None:
    kept = [line.replace(", close", "") for line in OFFER]
    first, last = post(b"body", target, *kept), post(b"bye", target, *OFFER)
    async with connected(Whole()) as (reader, writer):
        for part in filter(None, (first[:cut], first[cut:])):
            writer.write(part)
            await asyncio.sleep(0.01)
        assert (await answered(reader))[1].endswith(b"body")
        writer.write(first + first + last)
        assert [(await answered(reader))[1][-4:] for _ in range(2)] == [b"body", b"body"]
        head, answer = await answered(reader)
        assert answer.endswith(b"bye")
        assert b"connection: close" in head
        assert await reader.read() == b""


async def test_who_wants_a_proxy_or_speaks_something_else_is_told_so() -> None:
    for said in (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", b"\x16\x03\x01\x00\x05hello\r\n\r\n"):
        async with connected(Whole()) as (reader, writer):
            writer.write(said)
            assert (await reader.read()).startswith(b"HTTP/1.1 400 ")


async def test_what_comes_in_pieces_is_the_application_s_wherever_it_is_cut() -> None:
    request = post(b"wait a moment", "/whole", "X-Other: 1")
    head = len(request) - len(b"wait a moment")
    for cut in (5, head - 2, head, head + 1, len(request) - 1):
        async with connected(Whole()) as (reader, writer):
            for part in (request[:cut], request[cut:]):
                writer.write(part)
                await writer.drain()
                await _read_by_server(reader)
            _, answer = await answered(reader)
            # Cut within its head, it comes whole after all: the body is in one read with the head's end.
            assert answer == (b"whole " if cut < head else b"ok") + b"wait a moment"


async def _read_by_server(reader: asyncio.StreamReader) -> None:
    """Let the server, on this event loop, read what is there."""
    del reader
    for _ in range(20):
        await asyncio.sleep(0)


async def test_requests_in_one_piece_are_answered_in_their_order() -> None:
    whole = Whole()
    async with connected(whole) as (reader, writer):
        writer.write(post(b"wait") + post(b"second") + post(b"third", "/other") + post(b"fourth"))
        await whole.began.wait()
        whole.go_on.set()
        assert [(await answered(reader))[1] for _ in range(4)] == [b"whole wait", b"oksecond", b"okthird", b"okfourth"]
        writer.write(post(b"fifth"))
        assert (await answered(reader))[1] == b"whole fifth"


@pytest.mark.parametrize("header", [(), ("Connection: close",)], ids=["answer", "request"])
async def test_either_side_may_close_after_an_answer(header: tuple[str, ...]) -> None:
    async with connected(Whole()) as (reader, writer):
        writer.write(post(b"by request" if header else b"go", "/whole", *header))
        head, _ = await answered(reader)
        assert head.lower().count(b"connection: close") == 1
        assert await reader.read() == b""


async def test_a_client_that_leaves_does_not_stop_what_was_begun() -> None:
    whole, state = Whole(), ServerState()
    async with connected(whole, state) as (_, writer):
        writer.write(post(b"wait"))
        await whole.began.wait()
        writer.close()
        await writer.wait_closed()
        assert len(state.tasks) == 1  # An orderly end waits for it.
        whole.go_on.set()
        await whole.finished.wait()
        await asyncio.wait(state.tasks)
        assert not state.tasks


@pytest.mark.parametrize("request_", [ANOTHER, post(b"a")], ids=["application", "whole"])
async def test_nothing_is_kept_of_one_who_has_reset_his_connection(request_: bytes) -> None:
    """The library's timer for the next request would keep it for a minute, 65 KB over TLS."""
    state = ServerState()
    async with connected(Whole(), state) as (reader, writer):
        writer.write(request_)
        await answered(reader)
        (kept,) = map(weakref.ref, state.connections)
        drop(writer.get_extra_info("socket"))
        writer.transport.abort()
        async with asyncio.timeout(10):
            while state.connections:
                await asyncio.sleep(0)
    await asyncio.sleep(0)  # The loop's own handle of the loss is gone.
    gc.collect()
    assert kept() is None


async def test_the_end_of_the_service_lets_an_answer_out_and_closes() -> None:
    whole, state = Whole(), ServerState()
    async with connected(whole, state) as (reader, writer):
        writer.write(post(b"wait"))
        await whole.began.wait()
        for connection in state.connections:
            connection.shutdown()
        whole.go_on.set()
        head, answer = await answered(reader)
        assert answer == b"whole wait"
        assert b"connection: close" in head
        assert await reader.read() == b""


async def test_what_is_no_http_after_a_head_is_answered_with_400() -> None:
    async with connected(Whole()) as (reader, writer):
        writer.write(b"POST /whole HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")


_NO_HTTP = b"GET / nonsense\r\n\r\n"
_NO_CHUNK = b" / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"


@pytest.mark.parametrize("behind", [_NO_HTTP, b"POST" + _NO_CHUNK, b"GET / HTTP/1.1\r\n\r\n"])
@pytest.mark.parametrize("queued", [[], [b"second"]])
async def test_what_is_no_http_is_told_so_after_the_answers_to_what_came_before(
    behind: bytes, queued: list[bytes]
) -> None:
    whole, state = Whole(), ServerState()
    async with connected(whole, state) as (reader, writer):
        writer.write(post(b"wait") + b"".join(post(body, "/other") for body in queued) + behind)
        await whole.began.wait()
        writer.write(post(b"nobody reads this"))
        await _read_by_server(reader)
        whole.go_on.set()
        answers = [(await answered(reader))[1] for _ in range(1 + len(queued))]
        assert answers == [b"whole wait", *(b"ok" + body for body in queued)], "RFC 9112 section 9.3.2"
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 400 ")
        assert (await reader.read()).endswith(b"Invalid HTTP request received.")


async def test_a_body_that_is_no_http_behind_its_answer_ends_the_connection_without_another() -> None:
    async with connected(Whole()) as (reader, writer):
        writer.write(b"PUT" + _NO_CHUNK[:-4])
        assert (await answered(reader))[1] == b"ok", "the application has not waited for the body"
        writer.write(b"zz\r\n")
        assert await reader.read() == b""


async def test_a_body_in_chunks_may_come_whole() -> None:
    async with connected(Whole()) as (reader, writer):
        writer.write(b"POST /whole HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n")
        assert (await answered(reader))[1] == b"whole a"


@pytest.mark.parametrize("cut", [0, -60], ids=["whole", "in pieces"])
async def test_fields_behind_a_body_are_none_of_its_headers(cut: int) -> None:
    """RFC 9110 section 6.5.1; they are counted with them."""
    head = b"POST /headers HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
    request = head + b"Host: y\r\nAuthorization: Basic eDp5\r\nExpect: 100-continue\r\n\r\n"
    async with connected(Whole()) as (reader, writer):
        for _ in range(2):
            for part in filter(None, (request[:cut], request[cut:])):
                writer.write(part)
                await writer.drain()
                await _read_by_server(reader)
            assert (await answered(reader))[1] == b"host transfer-encoding"
        writer.write(head + b"X: %b\r\n\r\n" % (b"y" * 40_000))
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 400 ")


class Connections(set[Any]):
    """The server's connections; says when one has gone."""

    def __init__(self) -> None:
        super().__init__()
        self.gone = asyncio.Event()

    def discard(self, element: Any) -> None:
        super().discard(element)
        self.gone.set()


async def test_a_place_is_kept_while_an_answer_is_made_and_given_back_at_the_end() -> None:
    whole, state, places = Whole(), ServerState(), Places(2)
    state.connections = kept = Connections()
    lost: list[str] = []
    place = places.take("192.0.2.1", lambda: lost.append("first"))
    async with connected(whole, state, place=place) as (reader, writer):
        writer.write(post(b"wait"))
        await whole.began.wait()
        assert places.take("192.0.2.1", lambda: None) is None, "one of two is all that an address has"
        whole.go_on.set()
        await answered(reader)
        assert places.take("192.0.2.1", lambda: None) is not None
        assert lost == ["first"], "nothing was asked there"
    places = Places(2)
    async with connected(whole, state, place=places.take("192.0.2.1", lambda: None)) as (reader, writer):
        writer.write(post(b"more"))
        await answered(reader)
        kept.gone.clear()
        writer.close()
        await kept.gone.wait()
    assert len(places) == 0


@pytest.mark.parametrize("requests", [1, 3])
async def test_who_takes_nothing_of_his_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch, requests: int) -> None:
    """Though he asks for more meanwhile, and though the connection was closed before, when nothing was heard."""
    monkeypatch.setattr(connection_protocol, "_REQUEST_SECONDS", 0.05)
    state = ServerState()
    state.connections = kept = Connections()
    async with connected(state=state, stall_seconds=0.2) as (reader, writer):
        writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n" * requests)
        assert await reader.readexactly(100)  # And no more: the stream's own buffer is soon full.
        async with asyncio.timeout(20):
            await kept.gone.wait()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(LARGE_SIZE)


async def test_who_sends_no_http_behind_what_he_does_not_take_is_cut_off() -> None:
    state = ServerState()
    state.connections = kept = Connections()
    async with connected(Whole(), state, stall_seconds=0.1) as (reader, writer):
        writer.write(post(b"", "/ready"))
        await answered(reader)
        (connection,) = kept
        connection.transport._transport.set_write_buffer_limits(
            high=LARGE_SIZE
        )  # So little waits that nobody watches it.
        while not connection.transport.get_write_buffer_size():
            writer.write(post(b"much", "/ready"))
            await asyncio.sleep(0)
        writer.write(b"POST /whole HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
        async with asyncio.timeout(20):
            await kept.gone.wait()


async def test_who_takes_most_of_his_last_answer_and_then_no_more_is_cut_off() -> None:
    state = ServerState()
    state.connections = kept = Connections()
    async with connected(state=state, stall_seconds=0.2) as (reader, writer):
        writer.write(ANOTHER)
        await reader.readuntil(b"ok")
        (connection,) = kept
        half = LARGE_SIZE // 2
        connection.transport._transport.set_write_buffer_limits(high=half, low=half)
        writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await reader.readexactly(half)
        async with asyncio.timeout(20):
            await kept.gone.wait()


async def test_who_has_taken_his_answer_is_watched_no_longer() -> None:
    """He would be cut off while he rests."""
    state = ServerState()
    async with connected(state=state) as (reader, writer):
        writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        (connection,) = state.connections
        assert isinstance(connection, ConnectionProtocol)
        assert connection._taken._look is not None
        await reader.readexactly(LARGE_SIZE)
        assert connection._taken._look is None


async def test_who_takes_his_answer_slowly_gets_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_protocol, "_REQUEST_SECONDS", 0.05)
    async with connected(stall_seconds=0.3) as (reader, writer):
        writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        for _ in range(8):
            await asyncio.sleep(0.1)  # Three such are as long as he may take nothing.
            await reader.readexactly(LARGE_SIZE // 8)
        assert await reader.read() == b""


@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("behind", [0, 1, 3])
async def test_who_is_answering_hears_that_the_client_has_left_whatever_waits_behind(before: int, behind: int) -> None:
    left = asyncio.Event()
    async with connected(app_state={"left": left}) as (reader, writer):
        writer.write(before * ANOTHER + LISTENS + behind * ANOTHER)
        await reader.readuntil(b"listening")
        assert not left.is_set()
        writer.close()
        await asyncio.wait_for(left.wait(), 10)


async def test_who_waits_behind_what_came_whole_and_then_listens_hears_it_too() -> None:
    left, whole = asyncio.Event(), Whole()
    async with connected(whole, app_state={"left": left}) as (reader, writer):
        writer.write(post(b"wait") + LISTENS + ANOTHER)
        await whole.began.wait()
        whole.go_on.set()
        await reader.readuntil(b"listening")
        writer.close()
        await asyncio.wait_for(left.wait(), 10)
