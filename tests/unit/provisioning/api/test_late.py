from __future__ import annotations

import asyncio
import threading

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from provisioning.api.late import LateApplication


class Application:
    """Counts whom it has answered."""

    def __init__(self) -> None:
        self.answered = 0

    async def __call__(self, _scope: Scope, _receive: Receive, _send: Send) -> None:
        self.answered += 1


async def ask(application: ASGIApp) -> None:
    async def nothing(*_: object) -> None:
        raise AssertionError("it neither reads nor writes")

    await application({"type": "http"}, nothing, nothing)  # type: ignore[arg-type]


async def test_it_is_made_once_beside_the_event_loop_and_everybody_who_waits_is_answered() -> None:
    made: list[tuple[Application, threading.Thread]] = []
    begun, may_end = threading.Event(), threading.Event()

    def make() -> Application:
        made.append((Application(), threading.current_thread()))
        begun.set()
        assert may_end.wait(10)
        return made[-1][0]

    late = LateApplication(make, 60)
    assert not made, "nobody has asked"
    asking = [asyncio.create_task(ask(late)) for _ in range(3)]
    assert await asyncio.to_thread(begun.wait, 10), "the loop goes round while it is made"
    assert not any(each.done() for each in asking)
    may_end.set()
    await asyncio.gather(*asking)
    await ask(late)
    ((application, thread),) = made
    assert application.answered == 4
    assert thread is not threading.main_thread()


async def test_what_could_not_be_made_is_tried_again_for_the_next_one() -> None:
    application, failures = Application(), [ImportError("broken"), ImportError("broken still")]

    def make() -> Application:
        if failures:
            raise failures.pop()
        return application

    late = LateApplication(make, 60)
    for _ in range(2):
        with pytest.raises(ImportError, match="broken"):
            await ask(late)
    await ask(late)
    assert application.answered == 1


async def test_who_leaves_while_it_is_made_leaves_nobody_else_waiting() -> None:
    application, begun, may_end = Application(), threading.Event(), threading.Event()

    def make() -> Application:
        begun.set()
        assert may_end.wait(10)
        return application

    late = LateApplication(make, 60)
    first, second = asyncio.create_task(ask(late)), asyncio.create_task(ask(late))
    await asyncio.to_thread(begun.wait)
    first.cancel()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    await second
    assert application.answered == 1


async def test_it_is_made_in_time_if_nobody_asks_and_its_failure_is_told() -> None:
    application, failures = Application(), [ImportError("broken")]

    def make() -> Application:
        if failures:
            raise failures.pop()
        made.append(application)
        return application

    made: list[Application] = []
    late = LateApplication(make, 0.01)
    with pytest.raises(ImportError, match="broken"):
        await late.run()
    await late.run()
    await ask(late)
    assert (len(made), application.answered) == (1, 1)
