"""What a webhook may answer: whatever it is, it is a yes, a no, or nothing that lets anybody in."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from provisioning.client.address import MAXIMUM_URL
from provisioning.client.bounded_head import MOST_BYTES
from provisioning.enrolment.attempt import Question
from provisioning.enrolment.webhook import _OF_A_BATCH, _TOGETHER, Webhooks, check_url
from provisioning.errors import Refused
from provisioning.pki.tls import ClientCertificate, server_context
from tests.support.pki import Pki, shared_pki
from tests.support.webhook import WebhookServer


@pytest.fixture
async def webhooks(tmp_path: Path) -> AsyncIterator[Webhooks]:
    asking = Webhooks(shared_pki().write_anchors(tmp_path))
    yield asking
    if asking._pool is not None:
        await asking._pool.aclose()


def question(url: str) -> Question:
    return Question(url, timedelta(seconds=5), "north", "meter-1", "00", ("token",), enrolled_before=False)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 16_000,
        b"9" * 16_000,
        b"\xff\xfe",
        b'{"allow": false, "allow": true}',
        b'{"allow": 1}',
        b'[{"allow": true}]',
        gzip.compress(b'{"allow": true}'),
        b" " * 16_384 + b'{"allow": true}',
    ],
    ids=["deep", "long", "no text", "both", "number", "list", "compressed", "large"],
)
async def test_what_is_no_answer_lets_nobody_in(webhooks: Webhooks, body: bytes) -> None:
    with WebhookServer(body) as server:
        with pytest.raises(Refused, match="WEBHOOK_FAILED"):
            await webhooks.ask(question(server.url))
        server.body = b'{"allow": true, "note": "more is allowed"}'
        assert (await webhooks.ask(question(server.url))).allowed


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b'{"allow": true}', 201, "status 201, not 200"),
        (b"secret", 404, "status 404, not 200"),
        (b'{"allow": "true", "secret": 1}', 200, '"allow" is true or false'),
        (b"secret", 200, "no JSON that can be read"),
        (b'{"allow": true, "allow": true}', 200, "one name twice"),
        (b"secret" * 4000, 200, "too long: 16384 octets"),
    ],
)
async def test_the_log_says_what_was_wrong_with_the_answer_and_nothing_of_it(
    webhooks: Webhooks, body: bytes, status: int, told: str
) -> None:
    """Whoever has written the webhook would else have to guess; the device is told nothing of it."""
    with WebhookServer(body, status) as server, capture_logs() as logs, pytest.raises(Refused) as refused:
        await webhooks.ask(question(server.url))
    (line,) = logs
    assert (line["code"], line["group"]) == ("WEBHOOK_FAILED", "north")
    assert told in line["detail"]
    assert "secret" not in line["detail"]
    assert str(refused.value).endswith('did not answer 200 with {"allow": true} or {"allow": false}: try again later')


YES = b'{"allow": true}'
HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
HINT = b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n"


@pytest.mark.parametrize(
    ("octets", "again"),
    [
        (CHUNKED + b"1\r\n \r\n" * 1_500 + b"f\r\n" + YES + b"\r\n0\r\n\r\n", b""),
        (CHUNKED + b"f\r\n" + YES + b"\r\n", b""),
        (CHUNKED + b"f\r\n" + YES + b"\r\n0\r\n", b"X: y\r\n" * 1_000),
        (CHUNKED + b"f;a=", b"x" * 65_536),
        (HEAD + b"Content-Length: 99\r\n\r\n" + YES, b""),
        (HEAD + b"Content-Length: 15\r\nContent-Length: 99\r\n\r\n" + YES, b""),
        (HEAD, b"X: y\r\n" * 1_000),
        (HEAD + b"X: ", b"x" * 65_536),
        (HINT, HINT * 1_000),
        (HEAD + b"Content-Length: 15\r\n\r\n", b" "),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n" + YES, b""),
        (YES, b""),
    ],
    ids=["in pieces", "cut off", "trailers", "a chunk's head", "short", "two lengths", "fields", "a field",
         "hints for ever", "drop by drop", "another protocol", "no HTTP"],
)  # fmt: skip
async def test_what_is_half_an_answer_or_never_ends_lets_nobody_in(
    webhooks: Webhooks, octets: bytes, again: bytes
) -> None:
    """*again* comes for ever after *octets*; "drop by drop", an octet now and then."""
    cut = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(octets)
            while again:
                writer.write(again)
                await writer.drain()
                await asyncio.sleep(0.1 if len(again) == 1 else 0)
        writer.close()
        cut.set()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        asked = replace(question(f"http://127.0.0.1:{port}/"), timeout=timedelta(seconds=0.5))
        with pytest.raises(Refused, match="WEBHOOK_FAILED"):
            await webhooks.ask(asked)
        await cut.wait()  # Nothing more is read.


@pytest.mark.parametrize(
    "octets", [HINT, CHUNKED + b"1\r\n \r\n", HEAD + b"X: y\r\n"], ids=["hints", "chunks", "fields"]
)
async def test_what_never_ends_is_given_up_before_its_time_and_read_a_little_at_a_time(
    webhooks: Webhooks, octets: bytes
) -> None:
    """A read of 64 KB full of hints took a quarter of a second, in which nobody else was served; then came the next."""
    turns = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(octets)
            while True:
                writer.write((octets.removeprefix(CHUNKED).removeprefix(HEAD)) * 10_000)
                await writer.drain()
        writer.close()

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        asked = replace(question(f"http://127.0.0.1:{port}/"), timeout=timedelta(seconds=60))
        others = asyncio.create_task(count())
        with pytest.raises(Refused, match="WEBHOOK_FAILED") as refused:
            await webhooks.ask(asked)
        others.cancel()
    assert "did not answer within" not in str(refused.value)
    assert turns >= MOST_BYTES // 2048 // 2


async def test_what_comes_behind_an_answer_is_none_to_the_next_question(webhooks: Webhooks) -> None:
    """On a kept connection it was: who had a webhook say more than it had announced let the next device in."""
    connections = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"}"):
                writer.write(HEAD + b'Content-Length: 16\r\n\r\n{"allow": false}')
                writer.write(HEAD + b"Content-Length: 15\r\n\r\n" + YES)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        assert not any([(await webhooks.ask(question(url))).allowed for _ in range(3)])
    assert connections == 3


async def test_no_cookie_is_kept(webhooks: Webhooks) -> None:
    with WebhookServer() as server:
        server.cookie = "one=1"
        assert (await webhooks.ask(question(server.url))).allowed
        assert (await webhooks.ask(question(server.url))).allowed
    assert server.cookies == []


async def test_a_reason_fits_into_one_line_of_text(webhooks: Webhooks) -> None:
    with WebhookServer(b'{"allow": false, "reason": "not\\ud800 \\u001b[31mthis\\none"}') as server:
        verdict = await webhooks.ask(question(server.url))
    assert (verdict.allowed, verdict.reason) == (False, "not [31mthis one")


@pytest.mark.parametrize("status", [201, 204, 302, 403, 500])
async def test_a_yes_with_another_status_is_none(webhooks: Webhooks, status: int) -> None:
    with WebhookServer(status=status) as server, pytest.raises(Refused, match=r"WEBHOOK_FAILED.*did not answer 200"):
        await webhooks.ask(question(server.url))


async def test_nobody_is_asked_but_who_was_named(webhooks: Webhooks, monkeypatch: pytest.MonkeyPatch) -> None:
    with WebhookServer() as other:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, other.url)
        with WebhookServer(status=307, location=other.url) as server:
            with pytest.raises(Refused, match="WEBHOOK_FAILED"):
                await webhooks.ask(question(server.url))
            assert len(server.asked) == 1
        with pytest.raises(Refused, match="cannot be reached"):
            await webhooks.ask(question(server.url))
        assert other.asked == []


async def test_who_does_not_answer_in_time_lets_nobody_in(webhooks: Webhooks) -> None:
    with WebhookServer() as server:
        server.release.clear()
        with pytest.raises(Refused, match=r"WEBHOOK_FAILED.*did not answer within 0\.1 s"):
            await webhooks.ask(replace(question(server.url), timeout=timedelta(seconds=0.1)))


async def test_the_time_that_counts_is_the_groups(webhooks: Webhooks) -> None:
    """The library has times of its own, five seconds each, which said "cannot be reached" of who was given thirty."""
    with WebhookServer() as server:
        assert (await webhooks.ask(question(server.url))).allowed
    assert webhooks._pool is not None
    assert set(webhooks._pool.timeout.as_dict().values()) == {None}


async def test_a_webhook_that_hangs_keeps_no_other_groups_devices_out(webhooks: Webhooks) -> None:
    hanging = Lasting()
    server = await asyncio.start_server(hanging.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    waiting = replace(question(url), timeout=timedelta(seconds=30))
    crowd = [asyncio.create_task(webhooks.ask(waiting)) for _ in range(2 * _TOGETHER)]
    async with asyncio.timeout(20):
        for _ in range(_TOGETHER):
            await hanging.asked.acquire()
        with WebhookServer() as other:
            assert (await webhooks.ask(question(other.url))).allowed
        assert hanging.asked.locked(), "no more than so many at once"
        with pytest.raises(Refused, match=r"did not answer within 0\.1 s"):
            await webhooks.ask(replace(waiting, timeout=timedelta(seconds=0.1)))
        hanging.may.set()
        assert all([(await each).allowed for each in crowd]), "who waits for his turn is asked"
        assert webhooks._pool is not None
        await webhooks._pool.aclose()
        for _ in range(hanging.connections):
            await hanging.ended.acquire()
    server.close()


async def test_who_asks_over_and_over_keeps_none_of_the_group_s_other_devices_out(webhooks: Webhooks) -> None:
    """With one token, that is worth one certificate, whoever had it held all of a slow webhook's places."""
    hanging = Lasting()
    server = await asyncio.start_server(hanging.serve, "127.0.0.1", 0)
    asked = replace(question(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"), timeout=timedelta(seconds=30))
    with_token = [replace(asked, device="token", shown="t")] * _TOGETHER
    with_claim = [replace(asked, device="claim", shown=each, batch=b"c") for each in range(_TOGETHER)]
    others = [replace(asked, device="other", shown=("other", each)) for each in range(_OF_A_BATCH - 1)]
    crowd = [asyncio.create_task(webhooks.ask(each)) for each in (*with_token, *with_claim, *others)]
    async with asyncio.timeout(20):
        for _ in range(_TOGETHER):
            await hanging.asked.acquire()
        assert Counter(hanging.devices) == {"token": 1, "claim": _OF_A_BATCH, "other": _OF_A_BATCH - 1}
        hanging.may.set()
        assert all([(await each).allowed for each in crowd]), "one after the other"
        assert webhooks._pool is not None
        await webhooks._pool.aclose()
        for _ in range(hanging.connections):
            await hanging.ended.acquire()
    server.close()


@pytest.mark.parametrize("pki", [shared_pki(), Pki()], ids=["trusted", "another"])
async def test_an_https_webhook_is_believed_by_the_anchors_alone(webhooks: Webhooks, pki: Pki) -> None:
    context = server_context(pki.broker().credential, pki.anchors, client_certificate=ClientCertificate.OPTIONAL)
    with WebhookServer(context=context) as server:
        if pki is shared_pki():
            assert (await webhooks.ask(question(server.url))).allowed
            return
        with pytest.raises(Refused, match=r"WEBHOOK_FAILED.*cannot be reached"):
            await webhooks.ask(question(server.url))
        assert server.asked == []


async def test_other_anchors_count_from_the_next_question_on(webhooks: Webhooks, tmp_path: Path) -> None:
    other = Pki()
    context = server_context(other.broker().credential, other.anchors, client_certificate=ClientCertificate.OPTIONAL)
    (tmp_path / "other").mkdir()
    use = webhooks.reading(other.write_anchors(tmp_path / "other"))
    with WebhookServer(context=context) as server:
        with pytest.raises(Refused, match=r"WEBHOOK_FAILED.*cannot be reached"):
            await webhooks.ask(question(server.url))
        use()
        assert (await webhooks.ask(question(server.url))).allowed


class Lasting:
    """A webhook that keeps its connections, and answers when it may."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.connections = 0
        self.devices: list[str] = []
        self.asked = asyncio.Semaphore(0)
        self.ended = asyncio.Semaphore(0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                content = await reader.readexactly(int(length.partition(b":")[2]))
                self.devices.append(json.loads(content)["device"])
                self.asked.release()
                await self.may.wait()
                writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"allow": true}')
        writer.close()
        self.ended.release()


async def test_who_is_asked_while_they_are_read_is_asked_to_the_end_and_left_then(
    webhooks: Webhooks, tmp_path: Path
) -> None:
    """So that no reload leaves connections behind."""
    webhook = Lasting()
    server = await asyncio.start_server(webhook.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    runs = asyncio.create_task(webhooks.run())
    async with asyncio.timeout(20):
        asks = asyncio.create_task(webhooks.ask(question(url)))
        await webhook.asked.acquire()
        webhooks.reading(shared_pki().write_anchors(tmp_path))()
        webhook.may.set()
        assert (await asks).allowed
        await webhook.ended.acquire()
        for _ in range(3):
            assert (await webhooks.ask(question(url))).allowed
            webhooks.reading(shared_pki().write_anchors(tmp_path))()
            await webhook.ended.acquire()
    runs.cancel()
    server.close()


@pytest.mark.parametrize("enrolled_before", [True, False])
async def test_the_question_is_what_is_written(webhooks: Webhooks, enrolled_before: bool) -> None:
    with WebhookServer() as server:
        await webhooks.ask(replace(question(server.url), enrolled_before=enrolled_before))
    assert server.asked == [
        {
            "group": "north",
            "device": "meter-1",
            "key_sha256": "00",
            "evidence": ["token"],
            "enrolled_before": enrolled_before,
        }
    ]


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/may-enter?for=us",
        "http://127.0.0.1:8080/",
        "http://[::1]/",
        "https://h/" + "a" * (MAXIMUM_URL - 10),
    ],
)
def test_a_webhook_may_be_behind_https_or_on_this_machine(url: str) -> None:
    assert check_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "https://h/" + "a" * (MAXIMUM_URL - 9),
        "https://müller/",
        "https://h/\t",
        "https:///path",
        "https://h:0/",
        "https://h:65536/",
        "https://[::1/",
        "https://@h/",
        "https://h/#fragment",
        "http://127.0.0.1.example.org/",
        "http://10.0.0.1/",
        "//127.0.0.1/",
    ],
)
def test_a_webhook_may_be_nowhere_else(url: str) -> None:
    with pytest.raises(ValueError, match="webhook_url"):
        check_url(url)


@pytest.mark.parametrize(
    "url", ["https://xn--/", "https://a..b/", "https://exa mple/", "https://*/", "https://a:99999/"]
)
async def test_a_host_that_is_no_name_cannot_be_reached(webhooks: Webhooks, url: str) -> None:
    with pytest.raises(Refused, match="WEBHOOK_FAILED"):
        await webhooks.ask(question(url))
