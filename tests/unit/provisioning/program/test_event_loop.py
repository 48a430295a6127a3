"""Names whose servers do not answer keep no other name from being found."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from provisioning.program import event_loop
from provisioning.program.event_loop import new_event_loop


class Names:
    """Name servers of which those of ``gone.…`` do not answer until the end."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.flags: dict[str, int] = {}
        self.end = threading.Event()

    def getaddrinfo(self, host: str, port: int, *rest: int) -> list[tuple[Any, ...]]:
        self.asked[host] += 1
        self.flags[host] = rest[-1]
        if host.startswith("unknown"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if host.startswith("gone"):
            self.end.wait(60)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    names = Names()
    monkeypatch.setattr(socket, "getaddrinfo", names.getaddrinfo)
    yield names
    names.end.set()


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Coroutine[Any, Any, None]], None]:
    if request.param == "asyncio":
        monkeypatch.setitem(__import__("sys").modules, "uvloop", None)

    def run(work: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            assert type(runner.get_loop()).__mro__[2].__module__.startswith(request.param)
            runner.run(work)

    return run


async def find(host: str, seconds: float = 20.0) -> str:
    async with asyncio.timeout(seconds):
        found = await asyncio.get_running_loop().getaddrinfo(host, 80, type=socket.SOCK_STREAM)
    return str(found[0][4][0])


def test_others_are_found_and_each_is_asked_for_once_at_a_time(
    names: Names, run: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    async def work() -> None:
        for _ in range(2):
            waiting = [asyncio.create_task(find(f"gone{number}.example", 0.05)) for number in range(20)]
            ended = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(isinstance(each, TimeoutError) for each in ended)
        assert await find("here.example") == "192.0.2.1"
        assert await find("2001:db8::1") == "192.0.2.1", "an address, for which nobody waits"
        assert names.flags["2001:db8::1"] & socket.AI_NUMERICHOST, "and no name server is asked"
        assert [names.asked[name] for name in ("gone0.example", "here.example")] == [1, 1]
        last = asyncio.create_task(find("gone0.example"))
        await asyncio.sleep(0)
        names.end.set()
        assert await last == "192.0.2.1"
        assert await find("gone0.example") == "192.0.2.1"
        assert names.asked["gone0.example"] <= 2, "then it is asked for again"

    run(work())


def test_what_is_not_found_is_said_to_all_who_have_asked(
    names: Names, run: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    async def work() -> None:
        for _ in range(2):
            with pytest.raises(socket.gaierror, match="not known"):
                await find("unknown.example")
        assert names.asked["unknown.example"] == 2

    run(work())


def test_there_are_so_many_at_a_time_and_they_keep_the_loop_from_no_end(
    names: Names, run: Callable[[Coroutine[Any, Any, None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_loop, "MOST", 3)

    async def work() -> None:
        for number in range(3):
            with contextlib.suppress(TimeoutError):
                await find(f"gone{number}.example", 0.02)
        with pytest.raises(socket.gaierror, match="3 names are being looked up already"):
            await find("here.example")
        names.end.set()
        while any(thread.name == "look-up" for thread in threading.enumerate()):
            await asyncio.sleep(0.01)
        assert await find("here.example") == "192.0.2.1"

    run(work())


def test_names_that_others_have_chosen_leave_room_for_each_other_and_for_our_own(
    names: Names, run: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    """Whoever has a CA names a host in each certificate, of a domain whose name servers hang."""

    async def given_up(whose: str, number: int) -> bool:
        event_loop.ON_BEHALF_OF.set(whose)  # Of this task.
        try:
            await find(f"gone{number}.{whose}", 20.0)
        except TimeoutError:
            return False
        except socket.gaierror:
            return True
        raise AssertionError("nobody has answered")

    async def find_for(whose: str) -> str:
        event_loop.ON_BEHALF_OF.set(whose)
        return await find("here.example")

    async def work() -> None:
        waiting: list[asyncio.Task[bool]] = []
        for whose, under_way in (("plant", 16), ("depot", 32), ("yard", 48), ("shop", 48)):
            if whose != "shop":
                assert await asyncio.create_task(find_for(whose)) == "192.0.2.1", whose
            waiting += [asyncio.create_task(given_up(whose, number)) for number in range(20)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert sum(not each.done() for each in waiting) == under_way, whose
        assert await find("feed.example") == "192.0.2.1"
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        names.end.set()
        while any(thread.name == "look-up" for thread in threading.enumerate()):
            await asyncio.sleep(0.01)
        assert await asyncio.create_task(find_for("shop")) == "192.0.2.1"

    run(work())


@pytest.mark.usefixtures("names")
def test_where_no_thread_can_be_had_that_is_a_failed_look_up_and_not_the_last_one(
    run: Callable[[Coroutine[Any, Any, None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the limit of tasks (TasksMax) the name counted for ever as one that is being looked up."""

    async def work() -> None:
        with monkeypatch.context() as at_the_limit:
            at_the_limit.setattr(threading.Thread, "start", no_thread)
            for _ in range(2):
                with pytest.raises(socket.gaierror, match="can't start new thread"):
                    await find("here.example")
        assert await find("here.example") == "192.0.2.1"

    run(work())


def no_thread(_thread: threading.Thread) -> None:
    """Fail as Python does where the system gives no thread."""
    raise RuntimeError("can't start new thread")
