"""Whatever is sent in one go, and wherever it is cut, each request is answered as it is alone, in its turn."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import uvloop
from hypothesis import given
from hypothesis import strategies as st

from tests.support.examples import examples
from tests.support.one_connection import Whole, answered, connected, post

_OFFER = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c")
_SIZES = st.one_of(st.integers(0, 120), st.integers(1500, 9000))
"""So small that it is answered without the application, and about as large as what is parsed at once."""


@dataclass(frozen=True)
class Asked:
    request: bytes
    body: bytes
    """In capital letters; whoever makes the answer, it ends with this."""


@st.composite
def requests(draw: st.DrawFn) -> Asked:
    body = bytes(65 + number % 26 for number in range(draw(_SIZES)))
    target = draw(st.sampled_from(["/whole", "/other"]))
    match draw(st.sampled_from(["length", "chunks", "offer", "none"])):
        case "length":
            return Asked(post(body, target), body)
        case "offer":
            return Asked(post(body, target, *_OFFER), body)
        case "none":
            return Asked(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"")
        case _:
            size = draw(st.integers(1, 3000))
            pieces = [body[start : start + size] for start in range(0, len(body), size)]
            chunks = b"".join(b"%x;a=b\r\n%b\r\n" % (len(each), each) for each in pieces)
            head = f"POST {target} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            return Asked(b"%b%b0\r\n\r\n" % (head, chunks), body)


class After(Enum):
    """What comes after the last request."""

    ANOTHER = auto()
    NO_HTTP = auto()
    END = auto()


async def answers(pieces: list[bytes], number: int, after: After) -> list[bytes]:
    async with asyncio.timeout(60), connected(Whole()) as (reader, writer):
        for each in pieces:
            writer.write(each)
            for _ in range(4):  # It is read before the next one comes: both are of one event loop.
                await asyncio.sleep(0)
        if after is After.END:
            writer.write_eof()
        found = [(await answered(reader))[1] for _ in range(number)]
        if after is After.NO_HTTP:
            assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        elif after is After.END:
            assert await reader.read() == b""
        else:
            writer.write(post(b"alone"))
            assert (await answered(reader))[1] == b"whole alone", "nothing is left over"
        return found


@examples(120)
@given(
    st.lists(requests(), min_size=1, max_size=12),
    st.lists(st.floats(0, 1), max_size=6),
    st.sampled_from(After),
    st.sampled_from([asyncio.run, uvloop.run]),
)
def test_each_is_answered_as_it_is_alone(
    asked: list[Asked],
    cuts: list[float],
    after: After,
    run: Callable[[Coroutine[Any, Any, list[bytes]]], list[bytes]],
) -> None:
    sent = b"".join(each.request for each in asked)
    places = sorted({0, len(sent), *(int(each * len(sent)) for each in cuts)})
    pieces = [sent[begin:end] for begin, end in itertools.pairwise(places)]
    if (
        after is After.NO_HTTP
    ):  # In one piece with its end: what came later would meet a closed connection, and reset it.
        pieces[-1] += b"no HTTP\r\n\r\n"
    found = run(answers(pieces, len(asked), after))
    assert [each.removeprefix(b"whole ").removeprefix(b"ok") for each in found] == [each.body for each in asked]
