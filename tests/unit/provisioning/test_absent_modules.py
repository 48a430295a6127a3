"""A request looks for no module that is not installed, and whoever adds a folder that has it gets it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from pathlib import Path

import httpx

from provisioning.client.async_library import look_for_no_other
from tests.support.pki import shared_pki
from tests.support.provisioning import REPOSITORY

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
_LATER = """
import asyncio, sys
from provisioning.client.est import EstClient
EstClient("https://localhost:1", open(sys.argv[1]).read())  # Which looks for none.
sys.path.insert(0, sys.argv[2])
import sniffio
import httpcore._synchronization
lock = httpcore._synchronization.AsyncLock()
try:
    lock.setup()
except RuntimeError as error:
    print(error)
"""


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


async def test_a_request_looks_for_no_module() -> None:
    import httpcore._backends.auto
    import httpcore._synchronization

    look_for_no_other()
    async with (
        await asyncio.start_server(answer, "127.0.0.1", 0) as server,
        httpx.AsyncClient(trust_env=False) as client,
    ):
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        await client.get(url)
        with looking() as names:
            assert (await client.get(url)).text == "ok"
        assert names == []
    if "sniffio" not in sys.modules:
        known = httpcore._synchronization.current_async_library
        asked = known.__closure__[0].cell_contents  # type: ignore[index]
        with looking() as names:
            asked()
        assert names == ["sniffio"], "httpcore asks for it no more: provisioning.client.async_library need not say so"


def test_who_is_asked_is_whom_somebody_has_put_there_since(tmp_path: Path) -> None:
    (tmp_path / "sniffio.py").write_text("def current_async_library():\n    return 'curio'\n")
    anchor = tmp_path / "anchor.crt"
    anchor.write_text(shared_pki().anchors)
    done = subprocess.run(
        [sys.executable, "-c", _LATER, str(anchor), str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("Running under an unsupported async environment.", "")
