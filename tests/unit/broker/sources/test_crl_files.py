"""A look at the files of CRLs goes on if somebody gives up on it; many who ask share one; none waits for another."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest

from broker.sources.crl_files import CrlFiles
from broker.sources.crl_intake import CrlIntake, Taken
from provisioning.pki.crl import CrlProblem
from tests.support.descriptors import a_shell_that_allows


class SlowIntake:
    """Takes a list only when it is let."""

    learned: tuple[int, int] = (1, 0)
    bases = 0

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.taken: list[bytes] = []
        self.outcome = Taken()

    async def take(self, content: bytes, _source: str) -> Taken:
        self.begun.set()
        await self.go_on.wait()
        self.taken.append(content)
        return self.outcome

    def complain(self, code: CrlProblem, detail: str, source: str, /) -> None:
        raise AssertionError((code, detail, source))


class Bases(SlowIntake):
    """For which ``a`` is a delta, and ``b`` its base."""

    async def take(self, content: bytes, source: str) -> Taken:
        taken = await super().take(content, source)
        is_base = content == b"b"
        self.bases += is_base
        return replace(taken, baseless=not is_base and not self.bases)


async def test_a_look_that_is_given_up_goes_on_to_its_end(tmp_path: Path) -> None:
    """Of what takes longer to read than a client waits nothing was ever read, nor of the files behind it."""
    for name in ("a.crl", "b.crl"):
        (tmp_path / name).write_bytes(name.encode())
    intake = SlowIntake()
    files = CrlFiles(cast("CrlIntake", intake), [tmp_path], 60.0)
    impatient = asyncio.create_task(files.look())
    await intake.begun.wait()
    impatient.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    intake.go_on.set()
    async with asyncio.timeout(60):
        while len(intake.taken) < 2:
            await asyncio.sleep(0.001)
    await files.look()
    assert intake.taken == [b"a.crl", b"b.crl"], "nothing has changed"


async def test_nothing_that_the_settings_name_waits_for_what_cannot_be_read(tmp_path: Path) -> None:
    """On a disk that answers no more, say, a partner's; nor do lists from URLs, read in the threads of all."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    pipe, directory = tmp_path / "pipe", tmp_path / "ours"
    os.mkfifo(pipe)
    directory.mkdir()
    os.mkfifo(directory / "a.crl")
    said: list[tuple[str, str]] = []
    intake = SlowIntake()
    intake.go_on.set()
    intake.complain = lambda _code, detail, source: said.append((source, detail))  # type: ignore[method-assign]
    files = CrlFiles(cast("CrlIntake", intake), [pipe, directory], 60.0)
    looks = []
    try:
        async with asyncio.timeout(60):
            for number in (1, 2):
                (directory / "b.crl").write_bytes(b"x" * number)
                looks.append(asyncio.create_task(files.look()))
                while len(intake.taken) < number:
                    await asyncio.sleep(0.001)
        assert intake.taken == [b"x", b"xx"]
        assert said == [(str(directory / "a.crl"), "cannot be read: it is no file")], "once"
        assert not any(look.done() for look in looks)
        async with asyncio.timeout(60):
            await asyncio.to_thread(lambda: None)
    finally:
        while not all(look.done() for look in looks):
            with contextlib.suppress(OSError):  # Nobody reads it at the moment.
                os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
            await asyncio.sleep(0.001)
    await asyncio.gather(*looks)


async def test_for_a_file_that_hangs_no_client_waits_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waited for three seconds, whosever it was, for a partner's list of a CA that nobody had seen."""
    path = tmp_path / "ca.crl"
    path.write_bytes(b"list")
    intake = SlowIntake()
    intake.go_on.set()
    intake.outcome = Taken(unmatched=True)
    files = CrlFiles(cast("CrlIntake", intake), [path], 60.0)
    await files.look()

    def waits() -> bool:
        return files.undecided

    intake.learned = (1, 1)
    path.unlink()
    os.mkfifo(path)
    assert waits()
    look = asyncio.create_task(files.look())
    while not files.being_read:
        await asyncio.sleep(0)
    assert waits(), "it has just begun"
    monkeypatch.setattr("broker.sources.crl_files._LONG", -1.0)
    assert not waits()
    while not look.done():
        with contextlib.suppress(OSError):  # Nobody reads it at the moment.
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        await asyncio.sleep(0.001)
    intake.learned = (1, 2)
    assert waits()


async def test_a_delta_that_is_read_before_its_base_is_read_again_at_once(tmp_path: Path) -> None:
    """Nobody is admitted until all files are looked at: whom only the delta revokes would be let in."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.crl").write_bytes(name.encode())
    intake = Bases()
    intake.go_on.set()
    await CrlFiles(cast("CrlIntake", intake), [tmp_path], 60.0).look()
    assert intake.taken == [b"a", b"b", b"a"]


async def test_one_file_of_a_directory_that_cannot_be_read_hides_none_of_the_others(tmp_path: Path) -> None:
    for name in ("a.crl", "c.crl"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "b.crl").symlink_to(tmp_path / "nothing")
    said: list[tuple[CrlProblem, str]] = []
    intake = SlowIntake()
    intake.go_on.set()
    intake.complain = lambda code, _detail, source: said.append((code, source))  # type: ignore[method-assign]
    files = CrlFiles(cast("CrlIntake", intake), [tmp_path], 60.0)
    for _ in range(2):
        await files.look()
    assert intake.taken == [b"a.crl", b"c.crl"]
    assert said == [(CrlProblem.CRL_UNREADABLE, str(tmp_path / "b.crl"))], "once"


async def test_a_file_that_could_not_be_read_is_read_when_it_can_be(tmp_path: Path) -> None:
    """Nothing of it has changed: what was missing was a descriptor, or a right."""
    path = tmp_path / "ca.crl"
    path.write_bytes(b"list")
    said: list[tuple[CrlProblem, str]] = []
    intake = SlowIntake()
    intake.go_on.set()
    intake.complain = lambda code, _detail, source: said.append((code, source))  # type: ignore[method-assign]
    files = CrlFiles(cast("CrlIntake", intake), [path], 60.0)
    with a_shell_that_allows(0):
        for _ in range(2):
            await files.look()
    for _ in range(2):
        await files.look()
    assert intake.taken == [b"list"]
    assert said == [(CrlProblem.CRL_UNREADABLE, str(path))], "once"


async def test_where_the_system_gives_no_thread_a_list_is_unreadable_and_read_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ca.crl"
    path.write_bytes(b"list")
    said: list[str] = []
    intake = SlowIntake()
    intake.go_on.set()
    intake.complain = lambda _code, detail, source: said.append(f"{source} {detail}")  # type: ignore[method-assign]
    files = CrlFiles(cast("CrlIntake", intake), [path], 60.0)

    def none_left(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as at_its_limit:
        at_its_limit.setattr(threading.Thread, "start", none_left)
        for _ in range(2):
            await files.look()
    await files.look()
    assert (said, intake.taken) == ([f"{path} cannot be read: can't start new thread"], [b"list"]), "once"


async def test_those_who_ask_meanwhile_share_the_next_look(tmp_path: Path) -> None:
    path = tmp_path / "ca.crl"
    path.write_bytes(b"1")
    intake = SlowIntake()
    files = CrlFiles(cast("CrlIntake", intake), [path], 60.0)
    first = asyncio.create_task(files.look())
    await intake.begun.wait()
    others = [asyncio.create_task(files.look()) for _ in range(100)]
    await asyncio.sleep(0)
    path.write_bytes(b"22")
    intake.go_on.set()
    await asyncio.gather(first, *others)
    assert intake.taken == [b"1", b"22"], "who asks later sees what was written later"


async def test_a_list_that_was_refused_for_its_dates_is_read_again_when_they_allow_it(tmp_path: Path) -> None:
    """By itself, or because this machine's clock was set; until then nothing is said of it again."""
    path = tmp_path / "ca.crl"
    path.write_bytes(b"list")
    intake = SlowIntake()
    intake.go_on.set()
    now, hour = datetime.now(UTC), timedelta(hours=1)
    for window in ((now + hour, now + 2 * hour), (now - 2 * hour, now - hour), (now - hour, now + hour)):
        intake.outcome = Taken(untimely=(window,))
        files = CrlFiles(cast("CrlIntake", intake), [path], 60.0)
        await files.look()
        intake.taken.clear()
        intake.outcome = Taken()
        for _ in range(2):
            assert files.undecided is (window[0] <= now <= window[1] and not intake.taken)
            await files.look()
        assert intake.taken == ([b"list"] if window[0] <= now <= window[1] else [])


async def test_of_a_file_that_has_gone_nothing_is_kept_and_nobody_waits_for_it(tmp_path: Path) -> None:
    """Where each list has a name of its own, there would be more of them for ever."""
    said: list[str] = []
    intake = SlowIntake()
    intake.go_on.set()
    intake.complain = lambda _code, _detail, source: said.append(source)  # type: ignore[method-assign]
    files = CrlFiles(cast("CrlIntake", intake), [tmp_path], 60.0)
    now, hour = datetime.now(UTC), timedelta(hours=1)
    paths = [tmp_path / f"{number}.crl" for number in range(5)]
    for path in paths:
        path.write_bytes(b"list")
        intake.outcome = Taken(unmatched=True, untimely=((now - hour, now + hour),))
        await files.look()
        assert files.undecided
        path.unlink()
        for _ in range(2):
            await files.look()
    assert said == [str(path) for path in paths], "of each once"
    assert (files._marks, files.undecided) == ({}, False)
    paths[0].write_bytes(b"another")
    intake.outcome = Taken()
    await files.look()
    assert intake.taken[-1] == b"another"


async def test_a_list_of_an_unknown_ca_is_read_again_whenever_more_cas_are_known(tmp_path: Path) -> None:
    """Until then nobody waits for it, and it is not read."""
    (tmp_path / "ca.crl").write_bytes(b"list")
    intake = SlowIntake()
    intake.go_on.set()
    intake.outcome = Taken(unmatched=True)
    files = CrlFiles(cast("CrlIntake", intake), [tmp_path], 60.0)
    await files.look()
    for learned, outcome, reads in (
        ((1, 0), Taken(), 1),  # As before.
        ((1, 1), Taken(unmatched=True), 2),
        ((2, 0), Taken(), 3),
        ((3, 0), Taken(), 3),  # It is matched.
    ):
        intake.learned, intake.outcome = learned, outcome
        assert files.undecided is (reads > len(intake.taken))
        for _ in range(2):
            await files.look()
            assert len(intake.taken) == reads
            assert not files.undecided


async def test_a_list_whose_ca_is_known_now_is_read_even_if_who_asked_has_given_up(tmp_path: Path) -> None:
    """A client waits for three seconds, and a list of a million entries takes longer: it was never read then."""
    (tmp_path / "ca.crl").write_bytes(b"list")
    intake = SlowIntake()
    intake.go_on.set()
    intake.outcome = Taken(unmatched=True)
    files = CrlFiles(cast("CrlIntake", intake), [tmp_path], 60.0)
    await files.look()
    intake.learned, intake.outcome = (1, 1), Taken()
    intake.begun.clear()
    intake.go_on.clear()
    impatient = asyncio.create_task(files.look())
    await intake.begun.wait()
    impatient.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    intake.go_on.set()
    assert files.undecided
    await files.look()
    assert len(intake.taken) == 2
    assert not files.undecided


async def test_a_delta_is_read_again_whenever_another_complete_list_has_come(tmp_path: Path) -> None:
    (tmp_path / "delta.crl").write_bytes(b"delta")
    intake = SlowIntake()
    intake.go_on.set()
    intake.outcome = Taken(baseless=True)
    files = CrlFiles(cast("CrlIntake", intake), [tmp_path], 60.0)
    await files.look()
    for bases, outcome, reads in ((0, Taken(), 1), (1, Taken(baseless=True), 2), (2, Taken(), 3), (3, Taken(), 3)):
        intake.bases, intake.outcome = bases, outcome
        assert files.undecided is (reads > len(intake.taken))
        for _ in range(2):
            await files.look()
            assert len(intake.taken) == reads
            assert not files.undecided


async def test_a_file_too_large_for_a_list_is_not_read_and_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.sources.crl_files.LIST_BYTES", 10)
    for name, size in (("a.crl", 11), ("b.crl", 10)):
        (tmp_path / name).write_bytes(b"x" * size)
    said: list[str] = []
    intake = SlowIntake()
    intake.go_on.set()
    intake.complain = lambda _code, detail, _source: said.append(detail)  # type: ignore[method-assign]
    files = CrlFiles(cast("CrlIntake", intake), [tmp_path], 60.0)
    for _ in range(2):
        await files.look()
    assert intake.taken == [b"x" * 10]
    assert len(said) == 1, "once"
