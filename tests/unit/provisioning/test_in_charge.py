"""Who serves a directory, and where: the lock and the address in it, on a real file."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from provisioning.errors import ConfigurationError
from provisioning.in_charge import in_charge
from provisioning.whereabouts import found, lock_of

HERE, ELSEWHERE = "https://127.0.0.1:9443", "https://127.0.0.1:9444"


def test_an_address_is_found_while_the_service_runs(tmp_path: Path) -> None:
    assert found(tmp_path) is None
    with in_charge(tmp_path, HERE, alone=True):
        assert found(tmp_path) == "https://localhost:9443"
        assert lock_of(tmp_path).stat().st_mode & 0o777 == 0o600
    assert found(tmp_path) is None
    with in_charge(tmp_path, ELSEWHERE, alone=True):
        assert found(tmp_path) == "https://localhost:9444"


def test_a_second_service_is_refused_or_leaves_the_first_one_to_be_found(tmp_path: Path) -> None:
    with in_charge(tmp_path, HERE, alone=True):
        with (
            pytest.raises(ConfigurationError, match="another process, at https://localhost:9443: on SQLite one"),
            in_charge(tmp_path, ELSEWHERE, alone=True),
        ):
            pytest.fail("two serve one directory")
        with in_charge(tmp_path, ELSEWHERE, alone=False):
            assert found(tmp_path) == "https://localhost:9443"
        assert found(tmp_path) == "https://localhost:9443"
        lock_of(tmp_path).write_text("")
        with (
            pytest.raises(ConfigurationError, match="at an address that it has not told: "),
            in_charge(tmp_path, ELSEWHERE, alone=True),
        ):
            pytest.fail("two serve one directory")


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
    with capture_logs() as said, in_charge(tmp_path, HERE, alone=True):
        assert found(tmp_path) is None
    assert [each["event"] for each in said] == ["lock not written"]


def test_an_address_that_cannot_be_written_keeps_no_service_from_starting(tmp_path: Path) -> None:
    lock_of(tmp_path).symlink_to("/dev/full")
    with capture_logs() as said, in_charge(tmp_path, HERE, alone=False):
        assert found(tmp_path) is None
    assert [each["event"] for each in said] == ["address not written"] * 2


def test_where_nothing_can_be_locked_it_starts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(_file: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with capture_logs() as said, in_charge(tmp_path, HERE, alone=True):
        assert found(tmp_path) is None
    assert [(each["event"], each["detail"]) for each in said] == [("lock not written", "No locks available")]
