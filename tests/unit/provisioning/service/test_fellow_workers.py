"""What workers ask each other, with the two sides in one process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping

import pytest

from provisioning.service import fellow_workers
from provisioning.service.fellow_workers import Answer, everywhere
from tests.support.descriptors import no_descriptors
from tests.support.fellows import workers

LONG = b"figure " * 100_000
"""More than a socket holds."""


def saying(content: bytes) -> Mapping[str, Answer]:
    async def answer() -> bytes:
        return content

    return {"figures": answer}


def inherited() -> set[str]:
    """Return the descriptors that a program would have that is started now."""
    found = set()
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208 - their numbers
        with contextlib.suppress(OSError):  # That of the directory.
            if os.get_inheritable(int(number)):
                found.add(number)
    return found


async def test_everybody_answers_whole_however_long_it_is() -> None:
    async with workers(saying(b"one"), saying(LONG), saying(b"")) as (first, second, _):
        assert await first.ask("figures") == {2: LONG, 3: b""}
        asked = await asyncio.gather(*(second.ask("figures") for _ in range(5)))
        assert asked == [{1: b"one", 3: b""}] * 5


async def test_without_a_descriptor_everybody_is_left_out() -> None:
    """What the question is about has been committed here: an operator would read that it has failed."""
    async with workers(saying(b"one"), saying(b"two"), saying(b"three")) as (first, *_):
        with no_descriptors():
            assert await first.ask("figures") == {2: None, 3: None}
        assert await first.ask("figures") == {2: b"two", 3: b"three"}


async def test_who_is_silent_or_has_no_answer_is_left_out_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fellow_workers, "_PATIENCE_SECONDS", 0.1)
    async with workers(saying(b"one"), {}, saying(b"three"), silent=3) as (first, *_):
        assert await first.ask("figures") == {2: None, 3: None}
        # Its inbox is full some time, which is no reason to wait for it.
        assert await asyncio.gather(*(first.ask("figures") for _ in range(300))) == [{2: None, 3: None}] * 300


async def test_what_is_answered_through_is_no_program_s_that_is_started_meanwhile() -> None:
    before, meanwhile = inherited(), set[str]()

    async def answer() -> bytes:
        meanwhile.update(inherited())
        return b""

    async with workers({}, {"figures": answer}) as (first, _):
        assert await first.ask("figures") == {2: b""}
    assert meanwhile == before


async def test_one_that_was_silent_answers_again_once_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fellow_workers, "_PATIENCE_SECONDS", 0.1)
    async with workers(saying(b"one"), saying(b"two"), silent=2) as (first, second):
        assert await first.ask("figures") == {2: None}
        monkeypatch.undo()
        again = asyncio.create_task(second.run())
        assert await first.ask("figures") == {2: b"two"}
        again.cancel()


async def test_an_answer_that_is_cut_off_counts_as_silence() -> None:
    async with workers(saying(b"one"), saying(b"two"), silent=2) as (first, second):

        async def half() -> None:
            loop, asked = asyncio.get_running_loop(), asyncio.Event()
            loop.add_reader(second.place.inbox, asked.set)
            await asked.wait()
            loop.remove_reader(second.place.inbox)
            _, (descriptor,), _, _ = socket.recv_fds(second.place.inbox, 64, 1)
            with socket.socket(fileno=descriptor) as reply:
                reply.send((10).to_bytes(4, "big") + b"half")

        answers, _ = await asyncio.gather(first.ask("figures"), half())
        assert answers == {2: None}


async def test_what_is_done_everywhere_is_done_here_first_and_its_result_is_ours() -> None:
    done: list[str] = []

    async def here() -> bool:
        done.append("here")
        return True

    async def there() -> bytes:
        done.append("there")
        return b""

    assert everywhere(here, None, "trust") is here
    async with workers({}, {"trust": there}) as (first, _):
        assert await everywhere(here, first, "trust")() is True
    assert done == ["here", "there"]
