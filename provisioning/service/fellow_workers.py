"""How the workers of one command query each other: a question to an inbox, sent with a socket for the answer.

Theory
------
The process that gets a request for the metrics, or that changes whom TLS accepts, is a random one of several that share
a port. So it asks the others::

    worker 1 ── datagram: "metrics", one end of a new socket pair ──► inbox of worker 2
        ◄────────── the answer, its length first, through that pair ──────┘

Nothing has a name in the file system or the network: the inboxes are made before the fork, and no other process can
write to them. Two workers communicate directly, so they depend on no third process.

Rules
-----
1. A worker that does not answer within `_PATIENCE_SECONDS` is left out: it is being restarted, or busy.
2. A question is one of the words in `answers`; anything else is closed without an answer.
3. An incomplete answer counts as none.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final

from provisioning.service.worker_place import WorkerPlace

Answer = Callable[[], Awaitable[bytes]]

_PATIENCE_SECONDS: Final = 1.0
_LONGEST_QUESTION: Final = 64
_LENGTH_OCTETS: Final = 4
_CHUNK: Final = 65536


class FellowWorkers:
    """The others; used from one event loop."""

    def __init__(self, place: WorkerPlace, answers: Mapping[str, Answer]) -> None:
        """*answers* has this worker's answer to each question."""
        self.place: Final = place
        self._answers = answers
        self._answering: Final[set[asyncio.Task[None]]] = set()

    async def run(self) -> None:
        """Answer the others, until cancelled."""
        loop = asyncio.get_running_loop()
        asked = asyncio.Event()
        loop.add_reader(self.place.inbox, asked.set)
        try:
            while True:
                await asked.wait()
                asked.clear()
                self._take_questions()
        finally:
            loop.remove_reader(self.place.inbox)

    async def ask(self, question: str) -> dict[int, bytes | None]:
        """Return every other worker's answer by its number, None if it did not answer in time."""
        numbers = list(self.place.fellows)
        return dict(zip(numbers, await asyncio.gather(*(self._ask(each, question) for each in numbers)), strict=True))

    async def _ask(self, number: int, question: str) -> bytes | None:
        try:
            ours, theirs = socket.socketpair()
        except OSError:  # No descriptor is left: what was done here is done, whoever hears of it later.
            return None
        with ours:
            ours.setblocking(False)
            try:
                socket.send_fds(self.place.fellows[number], [question.encode()], [theirs.fileno()])
            except OSError:  # Its inbox is full: it has not read for a while.
                return None
            finally:
                theirs.close()
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    return await _read(ours)
            return None

    def _take_questions(self) -> None:
        while True:
            try:
                question, descriptors, _, _ = socket.recv_fds(self.place.inbox, _LONGEST_QUESTION, 1)
            except BlockingIOError:
                return
            for descriptor in descriptors:
                task = asyncio.get_running_loop().create_task(self._answer(question.decode(), descriptor))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)

    async def _answer(self, question: str, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        with socket.socket(fileno=descriptor) as reply:
            reply.setblocking(False)
            answer = self._answers.get(question)
            if answer is None:
                return
            content = await answer()
            with contextlib.suppress(ConnectionError, TimeoutError):  # The asker no longer waits.
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    whole = len(content).to_bytes(_LENGTH_OCTETS, "big") + content
                    await asyncio.get_running_loop().sock_sendall(reply, whole)


async def _read(source: socket.socket) -> bytes | None:
    loop, content = asyncio.get_running_loop(), b""
    while chunk := await loop.sock_recv(source, _CHUNK):
        content += chunk
    length, answer = int.from_bytes(content[:_LENGTH_OCTETS], "big"), content[_LENGTH_OCTETS:]
    return answer if len(content) >= _LENGTH_OCTETS and len(answer) == length else None


def everywhere(
    here: Callable[[], Coroutine[Any, Any, bool]], fellows: FellowWorkers | None, question: str
) -> Callable[[], Coroutine[Any, Any, bool]]:
    """Return a function that does *here*, after asking all *fellows* to do the same with *question*."""
    if fellows is None:
        return here

    async def done() -> bool:
        changed = await here()
        await fellows.ask(question)
        return changed

    return done
