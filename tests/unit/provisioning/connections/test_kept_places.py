"""A connection keeps its place while it is answered and takes the answers, and no longer."""

from __future__ import annotations

import asyncio

import pytest

from provisioning.connections.places import Place, Places
from tests.support.one_connection import ANOTHER, LARGE_SIZE, LISTENS, connected

LARGE = b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n"
PLENTY = 20


class Noted(Place):
    """A place, and what it was told."""

    def __init__(self, places: Places) -> None:
        super().__init__(places, (b"", b""), lambda: None, ())
        self.said: list[str] = []

    def silent(self) -> None:
        self.said.append("silent")

    def asks(self) -> None:
        self.said.append("asks")


async def crowded(places: Places, lost: asyncio.Event) -> None:
    """Have strangers come until the only connection that may be silent has lost its place."""
    while places.take("192.0.2.3", lambda: None) is None:
        await asyncio.sleep(0.01)
    assert lost.is_set()


def full(lost: asyncio.Event) -> tuple[Places, Place]:
    """Return places that are all taken, and one of them; who has the other is being answered."""
    places = Places(2)
    place, other = places.take("192.0.2.1", lost.set), places.take("192.0.2.2", lambda: None)
    assert place is not None
    assert other is not None
    other.asks()
    return places, place


@pytest.mark.parametrize("requests", [1, 2, 5])
async def test_who_takes_none_of_his_answers_is_as_silent_as_who_asks_nothing(requests: int) -> None:
    """More of them wait to be made, for which nobody else's place is kept."""
    lost = asyncio.Event()
    places, place = full(lost)
    async with connected(place=place) as (reader, writer), asyncio.timeout(PLENTY):
        writer.write(LARGE * requests)
        assert await reader.readexactly(100)
        await crowded(places, lost)


async def test_who_asks_for_more_while_he_takes_none_keeps_it_no_longer() -> None:
    lost = asyncio.Event()
    places, place = full(lost)
    async with connected(place=place) as (reader, writer), asyncio.timeout(PLENTY):
        writer.write(LARGE)
        assert await reader.readexactly(100)
        writer.write(LARGE)
        for _ in range(20):  # It is read: both are of one event loop.
            await asyncio.sleep(0)
        await crowded(places, lost)


async def test_who_takes_them_after_all_keeps_it() -> None:
    lost = asyncio.Event()
    places, place = full(lost)
    async with connected(place=place, app_state={"left": asyncio.Event()}) as (reader, writer):
        async with asyncio.timeout(PLENTY):
            writer.write(LARGE + LISTENS)
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(LARGE_SIZE)
            await reader.readuntil(b"listening")
        assert places.take("192.0.2.3", lambda: None) is None
        assert not lost.is_set()


@pytest.mark.parametrize(
    "behind",
    [b"", LISTENS + b"GET / HT", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n12"],
    ids=["nothing", "half a head", "half a body"],
)
async def test_who_takes_his_answer_late_keeps_no_place_for_what_he_has_not_asked_yet(behind: bytes) -> None:
    place = Noted(Places(2))
    async with connected(place=place, app_state={"left": asyncio.Event()}) as (reader, writer):
        async with asyncio.timeout(PLENTY):
            writer.write(LARGE + behind)
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(LARGE_SIZE)
        assert place.said[0] == "silent"
        assert place.said[-1] == "silent"
        assert "asks" in place.said


async def test_a_body_behind_its_answer_is_no_question() -> None:
    place = Noted(Places(2))
    async with connected(place=place) as (reader, writer), asyncio.timeout(PLENTY):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
        await reader.readuntil(b"ok")
        writer.write(b"12345")
        writer.write_eof()
        assert await reader.read() == b""
    assert "asks" not in place.said

    place = Noted(Places(2))
    async with connected(place=place) as (reader, writer), asyncio.timeout(PLENTY):
        writer.write(ANOTHER)
        await reader.readuntil(b"ok")
        writer.write_eof()
        assert await reader.read() == b""
    assert place.said[-3:] == ["asks", "silent", "silent"], "answered, and gone"


async def test_who_is_refused_behind_an_answer_keeps_no_place() -> None:
    """It is waited for as long as it takes a little now and then: that is an hour for each such place."""
    place = Noted(Places(2))
    async with connected(place=place) as (reader, writer), asyncio.timeout(PLENTY):
        writer.write(ANOTHER + b"no HTTP")
        assert await reader.read()
    assert "asks" in place.said
    assert place.said[-1] == "silent"
