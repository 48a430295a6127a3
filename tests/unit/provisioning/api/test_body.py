from __future__ import annotations

import asyncio
from typing import Any

import pytest

from provisioning.api.body import BodyLimit
from provisioning.enrolment.problems import text_answer

LIMIT = 10


async def ask(
    messages: list[dict[str, Any]], *, declared: bytes | None = None, method: str = "POST", seconds: float = 5
) -> tuple[int, bytes, int]:
    """Send a request through the limit; return the status, what the application read, and what was left unread."""
    received: list[bytes] = []
    statuses: list[int] = []

    async def application(_scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        received.append(message.get("body", b""))
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> dict[str, Any]:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    limit = BodyLimit(
        application,
        maximum_for=lambda _path: LIMIT,
        seconds=seconds,
        answer=lambda _path, refusal: text_answer(refusal),
    )
    headers = [] if declared is None else [(b"content-length", declared)]
    await limit({"type": "http", "method": method, "path": "/", "headers": headers}, receive, send)
    return (statuses or [0])[0], b"".join(received), len(messages)


def part(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_a_body_within_the_limit_arrives_whole() -> None:
    for declared in (None, b"10", b"0010"):
        assert await ask([part(b"12345", more=True), part(b"67890")], declared=declared) == (200, b"1234567890", 0)


async def test_a_body_is_given_up_as_soon_as_it_is_too_large() -> None:
    unread = [part(b"x" * 6, more=True), part(b"x" * 6, more=True), part(b"x" * 6, more=True), part(b"")]
    assert await ask(unread) == (413, b"", 2)


@pytest.mark.parametrize("declared", [b"11", b"-1", b"1e3", b"9" * 50, b""])
def test_a_declared_length_that_is_too_large_or_none_is_refused_unread(declared: bytes) -> None:
    assert asyncio.run(ask([part(b"x")], declared=declared)) == (413, b"", 1)


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    assert await ask([part(b"x", more=True)], seconds=0.01) == (408, b"", 0)


async def test_who_leaves_gets_no_answer() -> None:
    assert await ask([part(b"x", more=True), {"type": "http.disconnect"}]) == (0, b"", 0)


async def test_what_has_no_body_is_handed_on_at_once() -> None:
    assert await ask([part(b"")], method="GET") == (200, b"", 0)
