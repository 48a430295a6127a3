"""Requests verified by a second process: a real one, one that dies, that hangs, and some that answer nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
from cryptography import x509
from structlog.testing import capture_logs

from provisioning.ca.ceremony import Authority
from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.tokens import TokenOrder
from provisioning.errors import Refused
from provisioning.service import verifier as module
from provisioning.service.verifier import Start, Verifier, start
from tests.support.fleet import open_fleet
from tests.support.requests import csr_der

GOOD = csr_der()
FORGED = GOOD[:-1] + bytes((GOOD[-1] ^ 1,))
OTHER = csr_der(names=["meter-18"])
NAMES = x509.SubjectAlternativeName([x509.DNSName("a.example")])
_PATIENCE = 40


class Kept:
    """Starts the process, and remembers it."""

    def __init__(self, begin: Start = start) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self._begin = begin

    def __call__(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        self.processes.append(self._begin(theirs))
        return self.processes[-1]


@pytest.fixture(autouse=True)
def always_many_and_soon_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BUSY", 0)
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.02)


@contextlib.asynccontextmanager
async def running(begin: Start, patience: float = _PATIENCE) -> AsyncIterator[Verifier]:
    verifier = Verifier(begin, patience=patience)
    task = asyncio.create_task(verifier.run())
    try:
        yield verifier
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def asked(verifier: Verifier, der: bytes) -> bool:
    """Return its answer, once there is a process that answers."""
    async with asyncio.timeout(_PATIENCE):
        while (answer := verifier.ask(der)) is None:  # noqa: ASYNC110 - nobody is told when it is ready
            await asyncio.sleep(0.005)
        return await answer


async def none_left(verifier: Verifier) -> None:
    """Wait until it has no process."""
    async with asyncio.timeout(_PATIENCE):
        while verifier._other is not None:  # noqa: ASYNC110 - nor when it has ended
            await asyncio.sleep(0.005)


def saying(text: str) -> Start:
    """Start a program that answers something else: *text* is Python, ``s`` its socket."""

    def begin(theirs: socket.socket) -> subprocess.Popen[bytes]:
        program = f"import socket, time; s = socket.socket(fileno=0); s.sendall(bytes(32)); {text}; time.sleep(99)"
        return subprocess.Popen([sys.executable, "-I", "-S", "-c", program], stdin=theirs.fileno())

    return begin


async def test_a_second_process_says_what_is_good_and_ends_with_the_service() -> None:
    kept = Kept()
    async with running(kept) as verifier:
        assert await asked(verifier, GOOD)
        together = [verifier.ask(each) for each in (FORGED, OTHER, GOOD[:-1], csr_der(names=["a", "b"]), GOOD)]
        assert [each is not None and await each for each in together] == [False, True, False, False, True]
        for other in (b"", GOOD + bytes(module._LONGEST), csr_der(extensions=[NAMES])):
            assert verifier.ask(other) is None, "it is never good as usual"
        waiting = [verifier.ask(GOOD) for _ in range(module._MOST + 1)]
        assert [each is None for each in waiting] == [False] * module._MOST + [True], "no more than that wait for it"
        assert waiting[0] is not None
        waiting[0].cancel()  # Its client has hung up.
        assert all([await each for each in waiting[1:] if each is not None])
    assert [each.returncode for each in kept.processes] == [-signal.SIGKILL]


async def test_it_ends_by_itself_when_the_service_is_killed() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        process = start(theirs)
    with ours:
        ours.settimeout(_PATIENCE)
        assert ours.recv(64) == bytes(32), "it is ready"
        process.send_signal(signal.SIGTERM)  # As systemd does to all processes of a service: that goes on meanwhile.
        ours.sendall(len(GOOD).to_bytes(2) + GOOD[:9])
        ours.sendall(GOOD[9:])
        assert len(ours.recv(64)) == 32
    assert process.wait(_PATIENCE) == 0


async def test_killed_under_load_nothing_is_lost_and_nothing_is_let_in(sqlite_url: str, authority: Authority) -> None:
    """Of six devices at a time, each first shows a request that somebody else has signed."""
    kept, names = Kept(), [f"meter-{number}" for number in range(60)]
    answers: list[bool] = []
    given = set[bytes]()
    with capture_logs() as logged:
        async with open_fleet(sqlite_url, authority, is_current=True) as fleet, running(kept) as verifier:
            todo = await fleet.token_service.create(TokenOrder(names, "north"), by="admin")
            enrolment = fleet.enrolment.service
            assert await asked(verifier, GOOD)

            def elsewhere(der: bytes) -> asyncio.Future[bool] | None:
                answer = verifier.ask(der)
                if answer is not None:
                    answer.add_done_callback(lambda done: answers.append(done.result()))
                return answer

            async def enrol() -> None:
                while todo:
                    token = todo.pop()
                    name = str(token.grant.device)
                    good, credential = csr_der(names=[name]), TokenCredential(name, token.token)
                    forged = good[:-1] + bytes((good[-1] ^ 1,))
                    with pytest.raises(Refused, match="the signature does not verify: sign the request with the key"):
                        await enrolment.enrol(forged, credential)
                    if len(todo) <= len(names) // 2:
                        kept.processes[0].kill()
                    given.add(await enrolment.enrol(good, credential))

            enrolment._elsewhere = elsewhere
            await asyncio.gather(*(enrol() for _ in range(6)))
            await none_left(verifier)
            assert verifier.ask(GOOD) is None, "the next one is not yet due"
    assert len(given) == len(names)
    assert set(answers) == {True, False}
    assert len(answers) < 2 * len(names)
    (ended,) = (each for each in logged if each.get("code") == "VERIFIER_ENDED")
    assert ended["detail"] == "it has ended"


async def test_who_waits_for_a_process_that_hangs_is_told_no() -> None:
    kept = Kept(saying("0"))
    async with running(kept, patience=0.05) as verifier:
        assert not await asked(verifier, GOOD)
        await none_left(verifier)
        assert kept.processes[0].returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("s.recv(9999); s.sendall(b'yes!' * 8)", "nonsense"),
        (f"import hashlib; s.recv(9999); s.sendall(hashlib.sha256({OTHER!r}).digest())", "about another request"),
        ("s.sendall(b'yes!' * 8)", "before it was asked"),
        ("s.recv(9999); s.sendall(b'y'); s.close()", "half an answer"),
    ],
    ids=lambda text: text.replace(" ", "-") if len(text) < 30 else "",
)
async def test_whatever_else_a_process_answers_is_no_yes(text: str, why: str) -> None:
    kept = Kept(saying(text))
    async with running(kept) as verifier:
        async with asyncio.timeout(_PATIENCE):
            while not kept.processes or verifier._other is not None:
                answer = verifier.ask(GOOD)
                assert answer is None or not await answer, why
                await asyncio.sleep(0.005)
        assert kept.processes[0].returncode == -signal.SIGKILL


async def test_where_none_can_be_started_all_is_verified_here() -> None:
    def failing(_theirs: socket.socket) -> subprocess.Popen[bytes]:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with capture_logs() as logged:
        async with running(failing) as verifier, asyncio.timeout(_PATIENCE):
            while not logged:
                assert verifier.ask(GOOD) is None
                await asyncio.sleep(0.005)
    assert logged[0]["detail"] == "the system gives none: Resource temporarily unavailable"


async def test_without_work_it_ends_and_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(saying("[s.sendall(bytes(32)) for _ in iter(lambda: s.recv(9999), b'')]"))
    async with running(kept) as verifier:
        await asked(verifier, GOOD)
        monkeypatch.setattr(module, "_IDLE_SECONDS", 0)
        await none_left(verifier)
        monkeypatch.setattr(module, "_IDLE_SECONDS", _PATIENCE)
        await asked(verifier, GOOD)
    assert len(kept.processes) == 2


def test_many_are_those_of_a_second_or_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BUSY", 3)
    verifier = Verifier()
    came = [verifier._are_many(second) for second in (5, 5, 5, 6, 6, 7, 7, 7, 9, 9)]
    assert came == [False, False, True, True, True, False, False, True, False, False]
