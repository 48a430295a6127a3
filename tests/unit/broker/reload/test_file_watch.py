"""A changed file is noticed however it was changed, once, and not while it is being written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.reload.file_watch import FileWatch


def in_place(path: Path) -> None:
    path.write_text("new, and longer")


def renamed(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_text("new")
    other.replace(path)


def linked_elsewhere(path: Path) -> None:
    """As Kubernetes does it: the name is a link, and the link is replaced."""
    other = path.with_suffix(".2")
    other.write_text("new")
    link = path.with_suffix(".link")
    link.symlink_to(other)
    link.replace(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("old")
    return path


@pytest.mark.parametrize("change", [in_place, renamed, linked_elsewhere])
def test_a_change_is_told_once_when_it_has_stood_for_a_look(path: Path, change: Callable[[Path], None]) -> None:
    watch = FileWatch([path])
    assert not watch.changed([path])
    change(path)
    assert [watch.changed([path]) for _ in range(4)] == [False, True, False, False]


def test_a_file_more_in_a_directory_is_a_change(path: Path) -> None:
    watch = FileWatch([path.parent])
    path.with_name("another").touch()
    assert [watch.changed([path.parent]) for _ in range(3)] == [False, True, False]


def test_a_file_that_grows_is_not_read_yet(path: Path) -> None:
    watch = FileWatch([path])
    for content in ("1", "22", "333"):
        path.write_text(content)
        assert not watch.changed([path])
    assert watch.changed([path])


def test_a_file_that_is_gone_is_waited_for(path: Path) -> None:
    watch = FileWatch([path])
    path.unlink()
    assert [watch.changed([path]) for _ in range(3)] == [False] * 3
    path.write_text("back")
    assert [watch.changed([path]) for _ in range(3)] == [False, True, False]


def test_a_file_that_stays_away_does_not_hide_the_changes_of_others(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("x")
    watch = FileWatch([path, other])
    path.unlink()
    other.write_text("new, and longer")
    told = [watch.changed([path, other]) for _ in range(100)]
    assert told.count(True) == 1
    assert told.index(True) > 20, "it may come back"
    other.write_text("newer, and even longer")
    assert [watch.changed([path, other]) for _ in range(3)] == [False, True, False]


def test_another_list_of_files_is_a_change(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("x")
    watch = FileWatch([path])
    assert [watch.changed([path, other]) for _ in range(3)] == [False, True, False]


def test_what_was_looked_at_before_it_was_read_is_known_as_it_was_then(path: Path, tmp_path: Path) -> None:
    steady, other = tmp_path / "steady", tmp_path / "other"
    for each in (steady, other):
        each.write_text("x")
    watch = FileWatch([path, steady])
    watch.begin([path, steady, other])
    assert [watch.changed([path, steady, other]) for _ in range(2)] == [False] * 2, "one more is no change"
    watch = FileWatch([path, steady])
    path.write_text("new, and longer")
    watch.begin([path, steady, other])
    assert [watch.changed([path, steady, other]) for _ in range(3)] == [True, False, False]


def test_a_pipe_does_not_change() -> None:
    """A shell's ``<(…)``: what has been read of it is not there again."""
    reading, writing = os.pipe()
    os.utime(reading, (1, 1))
    pipe = Path(f"/dev/fd/{reading}")
    watch = FileWatch([pipe])
    os.write(writing, b"[role.device]")
    os.close(writing)
    os.utime(reading, (2, 2))  # A kernel may do so by itself, or not.
    assert [watch.changed([pipe]) for _ in range(3)] == [False] * 3
    os.close(reading)
