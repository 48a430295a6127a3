"""Who sends requests and then the end of his side reads the answers all the same, where TLS does not end both."""

from __future__ import annotations

import asyncio

import pytest
import uvloop
from uvicorn.server import ServerState

from tests.support.one_connection import ANOTHER, LARGE_SIZE, LISTENS, Whole, answered, connected, post


async def ended(requests: bytes, *, expected: int) -> list[bytes]:
    whole = Whole()
    async with connected(whole) as (reader, writer):
        writer.write(requests)
        writer.write_eof()
        if post(b"wait") in requests:
            await whole.began.wait()
            for _ in range(20):  # The end is read.
                await asyncio.sleep(0)
            whole.go_on.set()
        answers = [(await answered(reader))[1] for _ in range(expected)]
        assert await reader.read() == b""
        return answers


REQUESTS = {
    "usual": (ANOTHER, [b"ok"]),
    "in order": (ANOTHER + post(b"second", "/other") + ANOTHER, [b"ok", b"oksecond", b"ok"]),
    "whole": (post(b"wait") + ANOTHER * 300, [b"whole wait"] + [b"ok"] * 300),
    "body in portions": (ANOTHER + post(bytes(9000), "/other"), [b"ok", b"ok" + bytes(9000)]),
    "many": (post(b"", "/other") * 300, [b"ok"] * 300),
    "at once": (post(b"", "/ready"), [b"POST 1"]),
    "begun": (ANOTHER + b"GET / HT", [b"ok"]),
    "large": (b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n", [bytes(LARGE_SIZE)]),
    "older": (b"GET / HTTP/1.0\r\n\r\n", [b"ok"]),
}


@pytest.mark.parametrize(("requests", "answers"), REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_what_was_asked_before_the_end_is_answered(run: object, requests: bytes, answers: list[bytes]) -> None:
    assert callable(run)
    assert run(asyncio.wait_for(ended(requests, expected=len(answers)), 20)) == answers


@pytest.mark.parametrize("begun", [b"", b"GET / HT", post(b"body", "/other")[:-1], post(b"body")[:-1]])
async def test_what_never_comes_is_not_waited_for(begun: bytes) -> None:
    async with connected(Whole()) as (reader, writer):
        writer.write(begun)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 10) == b""


async def test_what_never_comes_whole_is_not_waited_for_behind_an_answer() -> None:
    state, go_on = ServerState(), asyncio.Event()
    async with connected(state=state, app_state={"go_on": go_on}) as (reader, writer):
        writer.write(post(b"first", "/told") + post(b"body", "/other")[:-1])
        writer.write_eof()
        while not any(getattr(each, "_ended", False) for each in state.connections):
            await asyncio.sleep(0)
        go_on.set()
        assert (await answered(reader))[1] == b"okfirst"
        assert await asyncio.wait_for(reader.read(), 10) == b""


@pytest.mark.parametrize("number", [0, 2])
async def test_what_is_no_http_before_the_end_is_told_behind_the_answers(number: int) -> None:
    whole = Whole()
    async with connected(whole) as (reader, writer):
        no_chunk = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
        writer.write(post(b"wait") + ANOTHER * number + no_chunk)
        writer.write_eof()
        await whole.began.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        whole.go_on.set()
        answers = (await reader.read()).split(b"HTTP/1.1 ")[1:]
        assert [each[:3] for each in answers] == [b"200"] * (1 + number) + [b"400"]


async def test_who_listens_and_has_ended_has_left() -> None:
    """What it listens to has no end, and nobody else may say that it is gone."""
    left = asyncio.Event()
    async with connected(app_state={"left": left}) as (reader, writer):
        writer.write(LISTENS)
        await reader.readuntil(b"listening")
        writer.write_eof()
        await asyncio.wait_for(left.wait(), 10)
