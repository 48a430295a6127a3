"""What the feed's client makes of a server's answer, and that it reads none of a server that is not to be believed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from gzip import compress
from typing import Any

import pytest
from cryptography import x509

from provisioning.client import feed as feed_client
from provisioning.client.feed import (
    HEARTBEAT,
    SILENT_HEARTBEATS,
    FeedAhead,
    FeedRefused,
    FeedSilent,
    follow_together,
    tell_known,
)
from provisioning.client.feed_reader import Current, FeedEvent, FeedLost
from provisioning.pki.identity import PROVISIONING, Identity
from provisioning.pki.role import Role
from provisioning.pki.stapling import staple
from provisioning.pki.tls import ClientCertificate, server_context
from tests.support.impostor import impostor
from tests.support.pki import DOMAIN, SERVER, Pki
from tests.support.responder import Responder, delegate, question_about

PKI = Pki()
SERVICE = PKI.certify(Identity(DOMAIN, Role.SERVICE, PROVISIONING), purposes=SERVER, names=[x509.DNSName("localhost")])
BROKER = PKI.broker().credential
STREAM, PROBLEM = "text/event-stream", "application/problem+json"
REFUSED = '{"code": "ROLE_FORBIDDEN"}'


def written(status: int, kind: str, body: str = "") -> bytes:
    return f"HTTP/1.1 {status} Said\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


@asynccontextmanager
async def answering(
    answer: bytes, until: asyncio.Event | None = None, again: bytes = b""
) -> AsyncIterator[tuple[str, list[bytes]]]:
    proof = Responder(PKI.issuing, delegate(PKI), [SERVICE], nonce=False)(question_about(SERVICE))
    async with impostor(
        SERVICE.credential, PKI.anchors, response=proof or b"", answer=answer, until=until, again=again
    ) as served:
        yield served


async def first(url: str, after: int = 7, **given: Any) -> list[FeedEvent]:
    async with aclosing(follow_together(url, PKI.anchors, BROKER, after, **given)) as feed:
        return await anext(feed)


async def told(url: str, **given: Any) -> None:
    await tell_known(url, PKI.anchors, BROKER, {"issuing-ca": True}, **given)


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (written(200, "text/html", "welcome"), FeedRefused, "refused the revocation feed: 200 welcome"),
        (written(503, STREAM), FeedRefused, "refused the revocation feed: 503"),
        (written(403, PROBLEM, REFUSED), FeedRefused, "refused the revocation feed: 403"),
        (written(409, PROBLEM, "{}"), FeedAhead, "has not what was read up to 7"),
        (written(200, f"{STREAM.upper()}; charset=utf-8"), FeedLost, "ended the revocation feed"),
    ],
)
async def test_what_is_no_feed_is_told_of(answer: bytes, error: type[Exception], said: str) -> None:
    async with answering(answer) as (url, _):
        with pytest.raises(error, match=said) as caught:
            await first(url)
    assert getattr(caught.value, "code", "") == ("ROLE_FORBIDDEN" if b"ROLE_FORBIDDEN" in answer else "")


async def test_who_says_nothing_for_three_heartbeats_is_given_up() -> None:
    until = asyncio.Event()
    async with answering(b"", until) as (url, _):
        async with aclosing(follow_together(url, PKI.anchors, BROKER, 0, heartbeat=0.2)) as feed:
            assert await anext(feed) == [Current(0)]
            with pytest.raises(FeedSilent, match=r"has been silent for 0\.6 s$"):
                await anext(feed)
        until.set()


@pytest.mark.parametrize("again", [b":\n\n", b"x", b"event: news\ndata: {}\n\n"], ids=["comments", "endless", "news"])
async def test_who_goes_on_and_tells_nothing_is_given_up(again: bytes) -> None:
    """A broker would wait for the end of what there is to read, and its operator would not hear of it."""
    async with (
        answering(b"", again=again) as (url, _),
        aclosing(follow_together(url, PKI.anchors, BROKER, 0, heartbeat=0.1)) as feed,
    ):
        assert await anext(feed) == [Current(0)]
        with pytest.raises(FeedSilent, match=r"has sent no event for 0\.3 s$"):
            async with asyncio.timeout(60):
                await anext(feed)


async def test_who_goes_on_with_heartbeats_is_followed_for_as_long_as_it_likes() -> None:
    """Also with a comment between two of them, and an event of an unknown type."""
    beat = b':\n\nevent: news\ndata: {}\n\nevent: current\ndata: {"sequence": 0}\n\n'
    now = itertools.count(0.0, 1.0)
    async with (
        answering(b"", again=beat) as (url, _),
        aclosing(follow_together(url, PKI.anchors, BROKER, 0, clock=lambda: next(now))) as feed,
        asyncio.timeout(60),
    ):
        while next(now) < 10 * SILENT_HEARTBEATS * HEARTBEAT:
            assert set(await anext(feed)) == {Current(0)}


@pytest.mark.parametrize("ask", [first, told])
@pytest.mark.parametrize("again", [b"x" * 100_000, b"x"], ids=["much", "little at a time"])
async def test_a_refusal_without_an_end_is_one(
    ask: Callable[..., Any], again: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_client, "DEFAULT_TIMEOUT", 0.3)
    slow = {"heartbeat": 0.1} if ask is first else {}
    begin = b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\n\r\nno: "
    async with answering(begin, again=again) as (url, _), asyncio.timeout(60):
        with pytest.raises(FeedRefused, match=r"403 no: x+$"):
            await ask(url, **slow)


@pytest.mark.parametrize("ask", [first, told])
@pytest.mark.parametrize("many", [10_000, 1], ids=["many at a time", "one now and then"])
async def test_a_server_that_never_begins_to_answer_is_given_up(
    ask: Callable[..., Any], many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be one that the caller would not believe; a read full of such responses took a third of a second."""
    if many == 1:
        monkeypatch.setattr(feed_client, "CONNECT_TIMEOUT", 0.1)
        monkeypatch.setattr(feed_client, "DEFAULT_TIMEOUT", 0.1)
    slow = {"heartbeat": 0.1} if ask is first and many == 1 else {}
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n"
    async with answering(hint, again=hint * many) as (url, _), asyncio.timeout(60):
        said = r"has not begun to answer within 0\.[35] s$" if many == 1 else "more than 32768 bytes, and no answer"
        with pytest.raises(FeedLost, match=said):
            await ask(url, **slow)


async def test_others_have_their_turn_while_a_feed_comes_in_chunks_of_one_byte() -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {STREAM}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    looks, most, over = 0, 0, asyncio.Event()

    def clock() -> float:
        """It is asked twice for each chunk."""
        nonlocal looks, most
        looks += 1
        most = max(most, looks)
        return 0.0

    async def others() -> None:
        nonlocal looks
        while not over.is_set():
            looks = 0
            await asyncio.sleep(0)

    async with answering(head + b"1\r\n:\r\n" * 2_000 + b"0\r\n\r\n") as (url, _):
        served = asyncio.create_task(others())
        with pytest.raises(FeedLost, match="ended the revocation feed"):
            await first(url, clock=clock)
        over.set()
        await served
    assert 256 < most <= 2 * 256 + 1


async def test_nothing_is_decompressed() -> None:
    """A few kilobytes could be gigabytes."""
    packed = compress(compress(bytes(10_000_000)))
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {STREAM}\r\nContent-Encoding: gzip, gzip\r\n\r\n".encode()
    async with answering(head + packed) as (url, heard):
        with pytest.raises(FeedLost, match="is compressed, though it was asked for as it is"):
            await first(url)
    assert b"accept-encoding: identity" in heard[0].lower()
    async with answering(head.replace(b"200 OK", b"403 No") + packed) as (url, heard):
        for ask in (first, told):
            with pytest.raises(FeedRefused, match=": 403 "):
                await ask(url)
    assert all(b"accept-encoding: identity" in each.lower() for each in heard)


async def test_a_follower_that_is_busy_with_what_has_waited_does_not_take_it_for_held_back() -> None:
    """It is ten seconds busy with each of many portions, as with the CAs of a mass revocation."""
    beat = 'event: current\ndata: {"sequence": 0, "elapsed": %.1f}\n\n'
    portions = [beat % (number / 10) + ":\n\n" * 30_000 for number in range(8)]
    now, seen = [0.0], 0

    async def follow(url: str) -> None:
        nonlocal seen
        async with aclosing(follow_together(url, PKI.anchors, BROKER, 0, clock=lambda: now[0])) as feed:
            async for _ in feed:
                now[0] += 10.0
                seen += 1

    async with answering(written(200, STREAM, "".join(portions))) as (url, _):
        with pytest.raises(FeedLost, match="ended the revocation feed"):
            await follow(url)
    assert seen == 8, "otherwise they have not come one by one"


@pytest.mark.parametrize(("mark", "asked"), [(None, "?after=7 "), ("ab", "?after=7&mark=ab ")])
async def test_the_place_is_asked_for_by_its_number_and_its_mark(mark: str | None, asked: str) -> None:
    async with answering(b"") as (url, heard):
        with pytest.raises(FeedLost, match="the revocation feed is at 0, but the last event received is 7"):
            await first(url, mark=mark)
        assert await first(url, 0) == [Current(0)]
    assert asked.encode() in heard[0]


@pytest.mark.parametrize("ask", [first, told])
@pytest.mark.parametrize(
    "answer", [b"", written(409, PROBLEM, "{}"), written(403, PROBLEM, REFUSED), written(204, PROBLEM)]
)
async def test_a_server_that_the_caller_does_not_believe_is_not_heard(answer: bytes, ask: Callable[..., Any]) -> None:
    """Whoever has copied a revoked key could end a broker's trust in what it has, or tell it that nothing is new."""
    shown: list[Sequence[bytes]] = []

    def refuse(path: Sequence[bytes]) -> str:
        shown.append(path)
        return "it is revoked"

    async with answering(answer) as (url, _):
        with pytest.raises(FeedLost, match=r"is not believed: it is revoked$") as caught:
            await ask(url, refuse=refuse)
    assert type(caught.value) is FeedLost
    ((own, issuer, *_),) = shown
    assert (own, issuer) == (SERVICE.der, PKI.issuing.der)


async def test_which_cas_are_known_is_told_or_the_refusal_is() -> None:
    async with answering(written(204, PROBLEM)) as (url, heard):
        await told(url)
    assert b'{"known":{"issuing-ca":true}}' in heard[0].replace(b" ", b"")
    for status in (200, 403):
        async with answering(written(status, PROBLEM, REFUSED)) as (url, _):
            with pytest.raises(FeedRefused, match=f"does not take which CAs are known here: {status}") as caught:
                await told(url)
        assert caught.value.code == "ROLE_FORBIDDEN"


async def test_a_certificate_under_a_root_that_was_retired_is_refused_by_tls_and_told_as_refused() -> None:
    """It had been a lost feed: a broker whose root was retired at once, with its certificate, used no token."""
    context = server_context(SERVICE.credential, Pki().anchors, client_certificate=ClientCertificate.OPTIONAL)
    proof = Responder(PKI.issuing, delegate(PKI), [SERVICE], nonce=False)(question_about(SERVICE))
    assert staple(context, proof or b"", math.inf)

    def refuse(listening: socket.socket) -> None:
        tls = context.wrap_socket(listening.accept()[0], server_side=True, do_handshake_on_connect=False)
        with pytest.raises(ssl.SSLError):
            tls.do_handshake()
        with socket.socket(fileno=tls.detach()) as plain, contextlib.suppress(OSError):
            plain.shutdown(socket.SHUT_WR)  # Not at once closed, or the alert may be lost on its way.
            while plain.recv(4096):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listening:
        for attempt in (first, told):
            refusing = asyncio.create_task(asyncio.to_thread(refuse, listening))
            with pytest.raises(FeedRefused, match="TLS alert: unknown ca") as caught:
                await attempt(f"https://localhost:{listening.getsockname()[1]}")
            assert caught.value.code == "unknown ca"
            await refusing


async def test_an_alert_before_the_handshake_is_a_lost_feed() -> None:
    """It may be anybody's on the way: taken for provisioning's refusal, it had the broker's token spent."""
    closed = asyncio.Event()

    async def alert(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(bytes.fromhex("15030300020230"))
        await reader.read()
        writer.close()
        closed.set()

    async with await asyncio.start_server(alert, "127.0.0.1", 0) as server:
        with pytest.raises(FeedLost, match="TLS alert: unknown ca"):
            await first(f"https://localhost:{server.sockets[0].getsockname()[1]}")
        await closed.wait()  # Python 3.11's server ends without its connections.
