"""Changing the passphrase as docs/changes.md says: whatever fails, the key opens with one of the two."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from provisioning.pki.keys import KeyFileError, PrivateKey, generate_key, key_to_pem, load_key, write_private

CHANGES = Path(__file__).parents[3] / "docs" / "changes.md"
OLD, NEW = b"the old one that was guessed", b"the new one that nobody knows"


def steps() -> str:
    """Return the commands that encrypt a key again, as they are written there."""
    chapter = CHANGES.read_text().partition("## Changing the passphrase")[2]
    found = re.search(r"^openssl pkcs8 .*?&& sync \..*?$", chapter, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[0]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_private(tmp_path / "issuing-ca.key", key_to_pem(generate_key(), OLD))
    (tmp_path / "OLD").write_bytes(OLD)
    (tmp_path / "NEW").write_bytes(NEW)
    return tmp_path


def run(directory: Path, before: str = "") -> int:
    return subprocess.run(["/bin/sh", "-c", f"{before}{steps()}"], cwd=directory, check=False, timeout=60).returncode


def opened(directory: Path, passphrase: bytes) -> PrivateKey | None:
    try:
        return load_key(directory / "issuing-ca.key", passphrase)
    except KeyFileError:
        return None


def test_the_key_opens_with_the_new_one_only_and_is_private(directory: Path) -> None:
    before = opened(directory, OLD)
    assert before is not None
    (directory / "issuing-ca.new").write_bytes(b"-----BEGIN ENC")  # Of an attempt that was killed.
    (directory / "issuing-ca.new").chmod(0o600)
    assert run(directory) == 0
    after = opened(directory, NEW)
    assert after is not None
    assert after.public_key() == before.public_key()
    assert opened(directory, OLD) is None
    assert (directory / "issuing-ca.key").stat().st_mode & 0o777 == 0o600
    assert sorted(each.name for each in directory.iterdir()) == ["NEW", "OLD", "issuing-ca.key"]


def test_a_disk_that_takes_nothing_more_leaves_the_key(directory: Path) -> None:
    """openssl leaves an empty file then, and says nothing."""
    assert run(directory, "trap '' XFSZ; ulimit -f 0; ") != 0
    assert opened(directory, OLD) is not None


def test_a_wrong_old_one_leaves_the_key(directory: Path) -> None:
    (directory / "OLD").write_bytes(b"neither of the two")
    assert run(directory) != 0
    assert opened(directory, OLD) is not None
