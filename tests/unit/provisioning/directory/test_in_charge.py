"""Who serves a directory, and where: the lock and the address in it, on a real file."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from provisioning.directory.in_charge import in_charge
from provisioning.directory.whereabouts import build_of, found, lock_of, process_of, served
from provisioning.errors import ConfigurationError
from provisioning.program.build import build_identity

HERE, ELSEWHERE = "https://127.0.0.1:9443", "https://127.0.0.1:9444"


SOMEBODY = 65534
only_as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


@pytest.fixture
def of_somebody() -> Iterator[Path]:
    """A directory of somebody else's, where he can reach it."""
    directory = Path(tempfile.mkdtemp(prefix="fleetgate-"))
    try:
        os.chown(directory, SOMEBODY, SOMEBODY)
        yield directory
    finally:
        os.seteuid(0)
        shutil.rmtree(directory)


def test_an_address_is_found_while_the_service_runs(tmp_path: Path) -> None:
    assert found(tmp_path) is None
    with in_charge(tmp_path, HERE, os.getpid(), alone=True):
        assert found(tmp_path) == "https://localhost:9443"
        assert lock_of(tmp_path).stat().st_mode & 0o777 == 0o600
    assert found(tmp_path) is None
    with in_charge(tmp_path, ELSEWHERE, os.getpid(), alone=True):
        assert found(tmp_path) == "https://localhost:9444"


def test_a_second_service_is_refused_or_leaves_the_first_one_to_be_found(tmp_path: Path) -> None:
    with in_charge(tmp_path, HERE, os.getpid(), alone=True):
        with (
            pytest.raises(
                ConfigurationError, match=f"by process {os.getpid()}, at https://localhost:9443: .* on SQLite one"
            ),
            in_charge(tmp_path, ELSEWHERE, os.getpid(), alone=True),
        ):
            pytest.fail("two serve one directory")
        with in_charge(tmp_path, ELSEWHERE, os.getpid(), alone=False):
            assert found(tmp_path) == "https://localhost:9443"
        assert found(tmp_path) == "https://localhost:9443"
        lock_of(tmp_path).write_text("")
        with (
            pytest.raises(ConfigurationError, match="at an address that it has not told: "),
            in_charge(tmp_path, ELSEWHERE, os.getpid(), alone=True),
        ):
            pytest.fail("two serve one directory")


def test_who_is_to_be_signalled_is_told_while_the_service_runs_and_only_then(tmp_path: Path) -> None:
    assert served(tmp_path) is None, "nobody has been here"
    with in_charge(tmp_path, HERE, os.getpid(), alone=True):
        assert (process_of(tmp_path), build_of(tmp_path)) == (os.getpid(), build_identity())
        assert served(tmp_path) == (
            f"{tmp_path} is served already, by process {os.getpid()}, at https://localhost:9443: stop that first "
            f"(kill {os.getpid()}), or have it read its settings anew (kill -HUP {os.getpid()})"
        )
    assert (served(tmp_path), process_of(tmp_path), build_of(tmp_path)) == (None, None, None)
    with in_charge(tmp_path, HERE, 17, alone=True):
        assert process_of(tmp_path) == 17
    lock_of(tmp_path).write_text(f"{HERE}\n17\n", encoding="utf-8")
    assert served(tmp_path) is None, "killed: what it has written stays, the lock does not"
    lock_of(tmp_path).unlink()
    lock_of(tmp_path).symlink_to("/etc/passwd")
    assert served(tmp_path) is None


def test_a_service_of_an_earlier_version_has_not_told_its_process(tmp_path: Path) -> None:
    with in_charge(tmp_path, HERE, os.getpid(), alone=True):
        for written in (HERE, f"{HERE}\nseventeen"):
            lock_of(tmp_path).write_text(written, encoding="utf-8")
            assert served(tmp_path) == (
                f"{tmp_path} is served already, by another process, at https://localhost:9443: stop that first"
            )


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("https://[::1]:8443", "https://localhost:8443"),
        ("https://0.0.0.0:8443", "https://localhost:8443"),
        ("https://[::]:8443", "https://localhost:8443"),
        ("https://192.0.2.7:8443", "https://192.0.2.7:8443"),
        ("https://ca.example.org:8443\n", "https://ca.example.org:8443"),
        ("", None),
        ("http://127.0.0.1:8443", None),
        ("https://127.0.0.1", None),
        ("https://127.0.0.1:x", None),
        ("https://[::1:8443", None),
    ],
)
def test_the_certificates_own_name_is_asked_where_it_can_be(tmp_path: Path, written: str, asked: str | None) -> None:
    lock_of(tmp_path).write_text(written, encoding="utf-8")
    assert found(tmp_path) == asked


def test_a_lock_that_cannot_be_written_keeps_no_service_from_starting(tmp_path: Path) -> None:
    lock_of(tmp_path).mkdir()
    with capture_logs() as said, in_charge(tmp_path, HERE, os.getpid(), alone=True):
        assert found(tmp_path) is None
    assert [each["event"] for each in said] == ["lock file not written"]


def test_an_address_that_cannot_be_written_keeps_no_service_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_file: int, _size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "ftruncate", full)
    with capture_logs() as said, in_charge(tmp_path, HERE, os.getpid(), alone=False):
        assert found(tmp_path) is None
    assert [each["event"] for each in said] == ["file with the service's address not written"] * 2


def test_a_lock_that_another_holds_is_not_kept_open_by_who_serves_beside_him(tmp_path: Path) -> None:
    with in_charge(tmp_path, HERE, os.getpid(), alone=True):
        before = set(Path("/proc/self/fd").iterdir())
        with in_charge(tmp_path, ELSEWHERE, os.getpid(), alone=False):
            assert set(Path("/proc/self/fd").iterdir()) == before
        assert set(Path("/proc/self/fd").iterdir()) == before


def test_where_nothing_can_be_locked_it_starts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(_file: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with capture_logs() as said, in_charge(tmp_path, HERE, os.getpid(), alone=True):
        assert found(tmp_path) is None
    assert [(each["event"], each["detail"]) for each in said] == [("lock file not written", "No locks available")]


@only_as_root
def test_what_root_has_left_is_in_nobodys_way(of_somebody: Path) -> None:
    with in_charge(of_somebody, HERE, os.getpid(), alone=True):
        os.seteuid(SOMEBODY)
        with (
            pytest.raises(ConfigurationError, match=r"is served already, by process \d+, at https://localhost:9443"),
            in_charge(of_somebody, ELSEWHERE, os.getpid(), alone=True),
        ):
            pytest.fail("two serve one directory")
        os.seteuid(0)
    os.seteuid(SOMEBODY)
    with in_charge(of_somebody, ELSEWHERE, os.getpid(), alone=True):
        assert found(of_somebody) == "https://localhost:9444"


@only_as_root
def test_a_lock_of_another_user_s_is_refused_on_sqlite_with_the_remedy(of_somebody: Path) -> None:
    lock_of(of_somebody).touch(0o600)
    os.seteuid(SOMEBODY)
    says = "service.lock belongs to root and nobody may not open it, .*: stop root's, then chown nobody /"
    with pytest.raises(ConfigurationError, match=says), in_charge(of_somebody, HERE, os.getpid(), alone=True):
        pytest.fail("nobody knows whether another serves")
    with capture_logs() as said, in_charge(of_somebody, HERE, os.getpid(), alone=False):
        pass
    assert [(each["event"], each["detail"]) for each in said] == [("lock file not written", "Permission denied")]


@only_as_root
def test_where_no_lock_can_be_made_the_directorys_owner_is_named(of_somebody: Path) -> None:
    os.chown(of_somebody, 0, 0)
    of_somebody.chmod(0o711)
    os.seteuid(SOMEBODY)
    says = "belongs to root and service.lock cannot be made there, .*: run it as root"
    with pytest.raises(ConfigurationError, match=says), in_charge(of_somebody, HERE, os.getpid(), alone=True):
        pytest.fail("nobody knows whether another serves")


def test_what_somebody_has_linked_is_not_written_to(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept", encoding="utf-8")
    lock_of(tmp_path).symlink_to(precious)
    with capture_logs() as said, in_charge(tmp_path, HERE, os.getpid(), alone=True):
        pass
    assert [each["event"] for each in said] == ["lock file not written"]
    assert precious.read_text(encoding="utf-8") == "kept"
