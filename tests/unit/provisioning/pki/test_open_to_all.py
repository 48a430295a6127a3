"""A private file that everybody may read is told with its mode and the remedy."""

from __future__ import annotations

import os
import shlex
import tempfile
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from provisioning.config import Settings
from provisioning.directory.closed_directory import secrets_of, warn_of_open_secrets
from provisioning.pki.open_to_all import told_of


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o666, 0o444])
def test_who_may_read_it_is_told_with_the_remedy(tmp_path: Path, mode: int) -> None:
    key = tmp_path / "the operator's.key"
    key.touch()
    key.chmod(mode)
    link = tmp_path / "link.key"
    link.symlink_to(key)
    for path in (key, link):
        remedy = shlex.join(["chmod", "600", str(path)])
        assert told_of(path) == f"{path} has mode {mode:04o}, everybody on this machine may read it: {remedy}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_who_does_not_own_it_is_told_to_own_it_first() -> None:
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o711)
        (key := Path(place) / "broker.key").touch()
        key.chmod(0o644)
        os.seteuid(65534)
        try:
            said = told_of(key)
        finally:
            os.seteuid(0)
        assert said is not None
        assert said.endswith(f"may read it: chown nobody {key} && chmod 600 {key}")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o440, 0o400, 0o602])
def test_what_others_may_not_read_is_nothing_to_tell(tmp_path: Path, mode: int) -> None:
    key = tmp_path / "operator.key"
    key.touch()
    key.chmod(mode)
    assert told_of(key) is None


def test_what_is_no_file_is_nothing_to_tell(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for other in (tmp_path, tmp_path / "none", Path("/dev/null"), tmp_path / ("x" * 300)):
        assert told_of(other) is None


def test_a_service_logs_which_of_its_secrets_are_open(tmp_path: Path) -> None:
    for name in ("issuing-ca.key", "audit.key", "server.key", "passphrase", "pin", "issuing-ca.crt"):
        (tmp_path / name).touch(0o644)
        (tmp_path / name).chmod(0o644)
    (tmp_path / "server.key").chmod(0o600)
    settings = Settings(directory=tmp_path, passphrase_file=tmp_path / "passphrase", pkcs11_pin_file=tmp_path / "pin")
    with capture_logs() as said:
        warn_of_open_secrets(settings)
    named = [tmp_path / name for name in ("audit.key", "issuing-ca.key", "passphrase", "pin")]
    assert [(each["log_level"], each["detail"]) for each in said] == [("warning", told_of(path)) for path in named]
    assert secrets_of(Settings(directory=tmp_path / "none")) == []
