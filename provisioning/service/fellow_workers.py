"""What the workers of one command ask each other: a question to an inbox, and with it the socket for the answer.

Theory
------
Whoever is asked for the metrics, or has changed whom TLS lets through, is one of several processes that share a port,
and which one is chance. So it asks the others::

    worker 1 ── datagram: "metrics", one end of a new socket pair ──► inbox of worker 2
        ◄────────── the answer, its length first, through that pair ──────┘

Nothing has a name in the file system or the network: the inboxes are made before the fork, and nobody else can write to
them. No third process stands between, so nobody has to live for two workers to talk.

Rules
-----
1. A fellow that does not answer within `_PATIENCE_SECONDS` is left out: it is being started again, or busy.
2. What is asked is one of the words that `answers` has; anything else is closed without an answer.
3. An answer is whole or none: one that is cut off counts as silence.
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
        """*answers* says what each question is answered with here."""
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
        """Return every fellow's answer by its number, None of one that gave none in time."""
        numbers = list(self.place.fellows)
        return dict(zip(numbers, await asyncio.gather(*(self._ask(each, question) for each in numbers)), strict=True))

    async def _ask(self, number: int, question: str) -> bytes | None:
        ours, theirs = socket.socketpair()
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
            with contextlib.suppress(ConnectionError, TimeoutError):  # Whoever asked waits no longer.
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
    """Return what does *here* and returns the same, having had all *fellows* do what they answer *question* with."""
    if fellows is None:
        return here

    async def done() -> bool:
        changed = await here()
        await fellows.ask(question)
        return changed

    return done
