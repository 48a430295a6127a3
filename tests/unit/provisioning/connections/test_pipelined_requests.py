"""Requests sent without waiting for answers: no more of them are taken apart than are soon answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop
from uvicorn.server import ServerState

from tests.support.one_connection import ANOTHER, LISTENS, Whole, answered, connected, post

MANY = 9000
"""As many as one read of the event loop can bring."""


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def of(state: ServerState) -> Any:
    (connection,) = state.connections
    return connection


async def test_few_of_them_are_taken_apart_while_one_is_being_answered() -> None:
    """One that is costs a hundred times what it was sent as, and everybody else's turn of the loop."""
    whole, state = Whole(), ServerState()
    async with connected(whole, state) as (reader, writer):
        writer.write(post(b"wait") + ANOTHER * MANY)
        await whole.began.wait()
        connection = await of(state)
        for _ in range(4):
            writer.write(ANOTHER * MANY)
            await turns(8)
            assert len(connection.pipeline) < 200
        assert len(connection._unread) < 600_000, "what is not taken apart stays with the client"
        whole.go_on.set()
        assert (await answered(reader))[1] == b"whole wait"
        for _ in range(1000):
            await reader.readexactly(len(ANSWER))
            assert len(connection.pipeline) < 200
        writer.transport.abort()


async def much_unread() -> int:
    """Return the most that waited to be parsed while requests that each ask for their body were answered."""
    state, most = ServerState(), 0
    async with connected(state=state) as (reader, writer):
        writer.write(post(b"", "/other") * 200_000)  # 10 MB
        for _ in range(200):
            await answered(reader)
            most = max(most, len((await of(state))._unread))
        writer.transport.abort()
    return most


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_request_that_asks_for_its_body_has_no_more_read_while_much_waits(
    run: Callable[[Coroutine[Any, Any, int]], int],
) -> None:
    assert 0 < run(much_unread()) < 600_000


async def test_no_time_limit_of_a_connection_without_requests_runs_during_one_that_had_to_wait() -> None:
    state, left = ServerState(), asyncio.Event()
    async with connected(state=state, app_state={"left": left}) as (reader, writer):
        second = post(b"", "/other")
        second = post(b"x" * (2048 - len(ANOTHER + second) - 3), "/other")  # A length of four digits.
        assert len(ANOTHER + second) == 2048, "what listens is alone behind what is taken apart first"
        writer.write(ANOTHER + second + LISTENS)
        await reader.readuntil(b"listening")
        assert (await of(state)).timeout_keep_alive_task is None
        writer.transport.abort()
        await left.wait()


ANSWER = b"HTTP/1.1 200 OK\r\nx-default: yes\r\ncontent-length: 2\r\n\r\nok"


async def test_a_body_behind_one_that_waits_comes_whole() -> None:
    whole, body = Whole(), bytes(range(256)) * 3000
    async with connected(whole) as (reader, writer):
        writer.write(post(b"wait") + post(body, "/other") + post(b"third") + post(body, "/other") + post(b"fifth"))
        await whole.began.wait()
        await turns(50)
        whole.go_on.set()
        answers = [(await answered(reader))[1] for _ in range(5)]
        assert answers == [b"whole wait", b"ok" + body, b"okthird", b"ok" + body, b"okfifth"]
        writer.write(post(b"sixth"))
        assert (await answered(reader))[1] == b"whole sixth"


async def test_what_is_no_http_far_behind_is_told_so_in_its_turn() -> None:
    whole = Whole()
    async with connected(whole) as (reader, writer):
        writer.write(post(b"wait") + ANOTHER * 300 + b"nonsense\r\n\r\n" + ANOTHER * 300)
        await whole.began.wait()
        whole.go_on.set()
        answers = (await reader.read()).split(b"HTTP/1.1 ")[1:]
        assert [each[:3] for each in answers] == [b"200"] * 301 + [b"400"]


async def test_who_leaves_has_nothing_more_taken_apart() -> None:
    whole, state, errors = Whole(), ServerState(), list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))
    async with connected(whole, state) as (_, writer):
        writer.write(post(b"wait") + ANOTHER * MANY)
        await whole.began.wait()
        connection = await of(state)
        writer.transport.abort()
        whole.go_on.set()
        while state.connections:
            await asyncio.sleep(0)
        await turns(20)
        assert state.total_requests < 200
        assert connection._unread == b""
    assert not errors


async def test_the_end_of_the_service_does_not_wait_for_all_of_them() -> None:
    whole, state = Whole(), ServerState()
    async with connected(whole, state) as (reader, writer):
        writer.write(post(b"wait") + ANOTHER * 300)
        await whole.began.wait()
        (await of(state)).shutdown()
        whole.go_on.set()
        answers = (await reader.read()).split(b"HTTP/1.1 ")[1:]
        assert 1 <= len(answers) < 200
        assert b"connection: close" in answers[-1]
