"""A request looks for no module: what is not installed is looked for once, and not at each lock that httpcore makes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder

import httpx
import pytest

import provisioning.client

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


class Looked(MetaPathFinder):
    """Finds nothing, and knows what it was asked for."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def find_spec(self, fullname: str, *_where: object) -> None:
        self.names.append(fullname)


@contextmanager
def looking() -> Iterator[list[str]]:
    looked = Looked()
    sys.meta_path.insert(0, looked)
    try:
        yield looked.names
    finally:
        sys.meta_path.remove(looked)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(_ANSWER)
    writer.close()


async def test_a_request_looks_for_no_module(monkeypatch: pytest.MonkeyPatch) -> None:
    assert provisioning.client.__doc__
    async with (
        await asyncio.start_server(answer, "127.0.0.1", 0) as server,
        httpx.AsyncClient(trust_env=False) as client,
    ):
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        await client.get(url)
        with looking() as names:
            assert (await client.get(url)).text == "ok"
        assert names == []
        if sys.modules["sniffio"] is None:
            monkeypatch.delitem(sys.modules, "sniffio")
            with looking() as names:
                await client.get(url)
            assert set(names) == {"sniffio"}, "httpcore asks for it no more: provisioning.client need not say so"
