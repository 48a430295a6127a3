"""Addresses come from certificates, answers from anybody on the way: one that is none is a failure like any other."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
from collections.abc import AsyncIterator
from ipaddress import ip_network

import pytest

from broker.sources.ocsp_http import OcspHttp
from provisioning.client import neighbourhood
from provisioning.client.list_download import NotFetched, download
from provisioning.client.plain_http import HttpFailed, PlainHttp, body_of
from provisioning.pki.late_handshake import drop
from provisioning.pki.ocsp import OcspRefused
from tests.support.pki import shared_pki


@pytest.fixture
async def plain() -> AsyncIterator[PlainHttp]:
    http = PlainHttp(timeout=5)
    yield http
    await http.close()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://ca.example/x.crl", "is no http:// URL"),
        ("http://xn--/x.crl", "Malformed A-label"),
        ("http://\u2603/x.crl", "Invalid IDNA hostname"),
        ("http://[::1/x.crl", "Invalid port"),
        ("http:///x.crl", "names no host"),
        ("http://ca.example:99999/x.crl", "no port 99999"),
        ("http://127.0.0.1:-1/x.crl", "no port -1"),
        ("http://" + "a" * 70_000, "URL too long"),
        ("http://[::1%20\u00e9]/x.crl", "ordinal not in range"),
    ],
)
async def test_an_address_that_is_none_is_said(plain: PlainHttp, url: str, why: str) -> None:
    with pytest.raises(HttpFailed, match=why):
        async with plain.asked("GET", url, {}):
            raise AssertionError("nobody is there")


@pytest.mark.parametrize(
    ("behind", "connections"),
    [(b"", 1), (b"\r\n", 3), (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n0", 3)],
    ids=["nothing", "an empty line", "another answer"],
)
async def test_what_comes_behind_an_answer_is_no_part_of_the_next(
    plain: PlainHttp, behind: bytes, connections: int
) -> None:
    """With an empty line behind each answer, half of an OCSP responder's failed, and it was left alone for seconds."""
    begun, asked = 0, 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal begun, asked
        begun += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                asked += 1
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % asked + behind)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        for number in (b"1", b"2", b"3"):
            async with plain.asked("POST", url, {}) as response:
                assert await body_of(response, 10) == number
        assert begun == connections
        await plain.close()


async def test_whoever_names_an_address_of_the_machines_own_network_has_nothing_asked_there(
    plain: PlainHttp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate may name a cloud's metadata service, or a name that resolves to it: to 127.0.0.1, here."""
    monkeypatch.setattr(neighbourhood, "_SERVICES", (ip_network("127.0.0.1"),))
    asked = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.read(10))
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    ocsp, lists, why = (
        OcspHttp(),
        PlainHttp(5, elsewhere=True),
        "at 127.0.0.1, an address of this machine's own network",
    )
    async with server:
        url = f"http://localhost:{server.sockets[0].getsockname()[1]}/latest"
        with pytest.raises(OcspRefused, match=why):
            await ocsp.ask(url, 7, shared_pki().issuing.certificate)
        with pytest.raises(NotFetched, match=why):
            await download(lists, url, etag="", modified="", most_bytes=65_536)
        assert not any(asked), "a connection, and then its end"
        with pytest.raises(NotFetched, match="HTTP status 404"):  # Where only the administrator names URLs.
            await download(plain, url, etag="", modified="", most_bytes=65_536)
    await ocsp.close()
    await lists.close()


@pytest.mark.parametrize(
    ("headers", "body", "why"),
    [
        (b"Content-Encoding: gzip, gzip\r\n", gzip.compress(gzip.compress(bytes(1 << 20))), "answer is compressed"),
        (b"", bytes(65_537), "more than 65536 bytes"),
        (b"Transfer-Encoding: chunked\r\n", b"1\r\nx\r\n" * 600, "chunks of a few bytes"),
        (b"Transfer-Encoding: chunked\r\n", b"\xff" * 90_000 + b"\r\n", "illegal chunk header"),
    ],
    ids=["compressed", "large", "in crumbs", "no chunk"],
)
async def test_what_is_compressed_or_too_large_is_taken_from_no_responder_and_no_server_of_lists(
    plain: PlainHttp, headers: bytes, body: bytes, why: str
) -> None:
    """A kilobyte that is compressed twice may be gigabytes, all at once."""
    asked = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n%b\r\n%b" % (headers, body))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    ocsp = OcspHttp()
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        with pytest.raises(OcspRefused, match=why) as refused:
            await ocsp.ask(url, 7, shared_pki().issuing.certificate)
        with pytest.raises(NotFetched, match=why) as unfetched:
            await download(plain, url, etag="", modified="", most_bytes=65_536)
    await ocsp.close()
    assert max(len(str(refused.value)), len(str(unfetched.value))) < 500, "nobody on the way fills the log"
    assert all(b"\r\naccept-encoding: identity\r\n" in each.lower() for each in asked)
    assert len(asked) == 2


async def test_nothing_that_somebody_has_set_is_sent_again(plain: PlainHttp) -> None:
    """Cookies would be a memory that anybody on the way fills, and words of his in what is asked elsewhere."""
    asked = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).lower())
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nSet-Cookie: a=b\r\nContent-Length: 1\r\n\r\nx")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x.crl"
        for _ in range(2):
            await download(plain, url, etag="", modified="", most_bytes=9)
    assert len(asked) == 2
    assert b"cookie" not in asked[1]


@pytest.mark.parametrize("status", [b"100 Continue", b"103 Early Hints", b"102 x\r\nLink: </a>; rel=preload"])
async def test_answers_that_announce_others_without_end_are_read_so_far_and_no_farther(
    plain: PlainHttp, status: bytes
) -> None:
    """The library reads them itself, however many: the event loop would be busy until somebody loses patience."""

    async def announce(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"HTTP/1.1 %b\r\n\r\n" % status * 100)
                await writer.drain()
        writer.close()

    async with await asyncio.start_server(announce, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x.crl"
        with pytest.raises(NotFetched, match="more than 32768 bytes, and no answer to the request in them"):
            await download(plain, url, etag="", modified="", most_bytes=9)


async def test_a_few_of_them_a_long_body_and_another_request_are_in_order(plain: PlainHttp) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 20)
            writer.write(b"HTTP/1.1 200 OK\r\nX: %b\r\nContent-Length: 300000\r\n\r\n" % (b"x" * 8000))
            writer.write(bytes(300_000))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x.crl"
        for _ in range(2):  # On the same connection.
            fetched = await download(plain, url, etag="", modified="", most_bytes=300_000)
            assert fetched is not None
            assert fetched.content == bytes(300_000)


@contextlib.asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Serve *answers*, one a connection, the last of them again and again; yield the URL, and what is asked there."""
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        head, _, body = answers[min(len(asked), len(answers)) - 1].partition(b"\n\n")
        writer.write(b"HTTP/1.1 %b\r\nConnection: close\r\n\r\n%b" % (head.replace(b"\n", b"\r\n"), body))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x.crl", asked


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (b'ETag: "1"\nLast-Modified: Sat, 28 Nov 2026 00:00:00 GMT', ('"1"', "Sat, 28 Nov 2026 00:00:00 GMT")),
        (b'ETag: "1"', ('"1"', "")),
        (b"Last-Modified: yesterday", ("", "yesterday")),
        (b"ETag: " + b"x" * 200, ("x" * 200, "")),
        (b"ETag: " + b"x" * 201, ("", "")),
        (b'ETag: "\xe9"', ("", "")),
        (b'ETag: "\t"', ("", "")),
        (b"Vary: *", ("", "")),
    ],
)
async def test_what_is_still_the_same_is_asked_for_by_what_its_answer_has_said(
    plain: PlainHttp, said: bytes, kept: tuple[str, str]
) -> None:
    """RFC 9110 section 8.8; what no request could say is not kept. An answer to what was not asked is none."""
    first_answer = b"200 OK\n" + said + b"\n\nlist"
    async with answering(first_answer, b"304 Not Modified", b"200 OK\n\nnews") as (url, asked):
        first = await download(plain, url, etag="", modified="", most_bytes=4)
        assert first is not None
        assert (first.content, first.etag, first.modified) == (b"list", *kept)
        if not any(kept):
            with pytest.raises(NotFetched, match="HTTP status 304"):
                await download(plain, url, etag="", modified="", most_bytes=4)
        else:
            assert await download(plain, url, etag=first.etag, modified=first.modified, most_bytes=4) is None
            again = await download(plain, url, etag=first.etag, modified=first.modified, most_bytes=4)
            assert again is not None
            assert again.content == b"news", "it was asked whether it is the same, and is not"
    assert b"\r\nif-" not in asked[0].lower()
    lines = asked[1].split(b"\r\n")
    conditions = {b"If-None-Match": kept[0].encode(), b"If-Modified-Since": kept[1].encode()}
    assert {line for line in lines if line.startswith(b"If-")} == {
        b"%b: %b" % (name, value) for name, value in conditions.items() if value
    }


async def test_whoever_answers_and_whatever_the_environment_says_nobody_else_is_asked(
    plain: PlainHttp, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with answering(b"200 OK\n\nnot the list") as (elsewhere, asked_there):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, elsewhere)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        async with answering(b"302 Found\nLocation: " + elsewhere.encode()) as (url, asked):
            with pytest.raises(NotFetched, match="HTTP status 302"):
                await download(plain, url, etag="", modified="", most_bytes=99)
        assert (len(asked), len(asked_there)) == (1, 0)


async def test_who_accepts_and_says_nothing_is_waited_for_so_long() -> None:
    http = PlainHttp(timeout=0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x.crl"
        async with asyncio.timeout(3):  # As long as the library would wait unasked, and less.
            with pytest.raises(NotFetched, match=r"cannot be fetched: nothing came any more for too long$"):
                await download(http, url, etag="", modified="", most_bytes=9)
    await http.close()


async def test_where_nothing_listens_that_is_said(plain: PlainHttp) -> None:
    """The library says that all connection attempts have failed, which an operator found in the log."""
    with socket.socket() as taken:  # Bound, so nobody else gets the port, and it does not listen.
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/x.crl"
        with pytest.raises(NotFetched, match=r"^cannot be fetched: nothing listens there$"):
            await download(plain, url, etag="", modified="", most_bytes=9)
    with pytest.raises(NotFetched, match=r"^cannot be fetched: (Permission denied|Network is unreachable)$"):
        await download(plain, "http://255.255.255.255/x.crl", etag="", modified="", most_bytes=9)


@pytest.mark.parametrize(
    ("reset", "words"),
    [
        (False, "cannot be fetched: peer closed connection without sending complete message body"),
        (True, "cannot be fetched: the connection broke off$"),
    ],
)
async def test_a_list_that_is_cut_off_half_way_is_told_of_and_nothing_of_it_is_taken(
    plain: PlainHttp, words: str, *, reset: bool
) -> None:
    came = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + bytes(500))
        await came.wait()  # Or the reset overtakes it.
        if reset:
            drop(writer.get_extra_info("socket"))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x.crl"
        with pytest.raises(NotFetched, match=words):
            await download(plain, url, etag="", modified="", most_bytes=9999, arrived=lambda _bytes: came.set())
