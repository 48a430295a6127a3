"""What an operator's program might send: bodies of all requests that change something.

The first byte of an input chooses the request; the others are its body. It is answered, and by no fault of ours. The
store is then as it was before.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import Encoding

from tests.fuzz.new_store import new_store
from tests.fuzz.target import Disagreement, Target
from tests.support.asgi import through
from tests.support.fleet import open_fleet
from tests.support.operators import operator
from tests.support.ways import register
from tests.unit.provisioning.api.test_still_operator import ACME, CHANGES, api_of, scope_of

_ASKED: Final = sorted(each for each in CHANGES if each[0] != "DELETE")
_FAULT: Final = 500
_HELD: Final[list[_Service]] = []
"""The service that is fuzzed, while there is one."""


class _Service:
    """The API of a service with an operator, a device and a manufacturer, on a store that is put back."""

    def __init__(self, path: Path, runner: asyncio.Runner) -> None:
        self._path, self._runner = path, runner
        path.write_bytes(new_store())
        self._opened = open_fleet(f"sqlite:///{path}", is_current=True)
        self._der, self._app = runner.run(self._open())
        self._before = sqlite3.connect(":memory:")
        with contextlib.closing(sqlite3.connect(path)) as store:
            store.backup(self._before)

    async def _open(self) -> tuple[bytes, Any]:
        fleet = await self._opened.__aenter__()
        der = (await operator(fleet, "boss")).public_bytes(Encoding.DER)
        await fleet.enrol()
        await register(fleet, ACME, name="meter-17")  # The name that paths have.
        return der, api_of(fleet, [])

    def ask(self, method: str, path: str, body: bytes) -> None:
        """Raise what is wrong with the answer."""
        answer = self._runner.run(through(self._app, scope_of(self._der, method, path), body))
        with contextlib.closing(sqlite3.connect(self._path)) as store:
            self._before.backup(store)
        told: Any = None
        with contextlib.suppress(ValueError):
            told = json.loads(bytes(answer.body) or b"{}")
        if answer.status_code >= _FAULT or not isinstance(told, dict | list):
            raise Disagreement(f"{method} {path}: {answer.status_code} {bytes(answer.body)!r:.300}")

    def close(self) -> None:
        """Close the store."""
        self._before.close()
        self._runner.run(self._opened.__aexit__(None, None, None))


@contextlib.contextmanager
def _serving() -> Iterator[None]:
    with (
        tempfile.TemporaryDirectory() as directory,
        asyncio.Runner() as runner,
        contextlib.closing(_Service(Path(directory, "fleet.db"), runner)) as service,
    ):
        _HELD.append(service)
        try:
            yield
        finally:
            _HELD.pop()


def _body(data: bytes) -> None:
    if data:
        _HELD[-1].ask(*_ASKED[data[0] % len(_ASKED)], data[1:])


def _seeds() -> list[bytes]:
    seeds = []
    for number, asked in enumerate(_ASKED):
        body = CHANGES[asked]
        seeds.append(bytes([number]) + (body if isinstance(body, bytes) else json.dumps(body).encode()))
    return seeds


TARGETS: Final = (
    Target(
        "body",
        _body,
        _seeds(),
        words=[b"NaN", b"1e999", b"\\u0000", b"\\ud800", b"9" * 20, b"null", b"true", b"[]", b"{}", b"-1"],
        around=_serving,
    ),
)
