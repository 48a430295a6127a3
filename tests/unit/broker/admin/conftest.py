"""The small HTTP server, serving."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.admin.http_server import HttpServer
from broker.admin.unix_socket import open_socket
from tests.support.echoing_server import echo


@pytest.fixture
async def path(tmp_path: Path) -> AsyncIterator[Path]:
    where = tmp_path / "deep" / "admin.sock"
    server = HttpServer(echo, lambda _: "me")
    await server.listen(open_socket(where))
    yield where
    await server.close()
