"""The folder in which an authority is made, on a disk that fails at the last step, and where there can be none."""

from __future__ import annotations

import asyncio
import errno
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from provisioning.authorities.authority import found
from provisioning.authorities.workshop import Workshop
from provisioning.config import Settings
from provisioning.errors import ConfigurationError


def test_a_directory_that_is_not_surely_on_disk_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise init would say that there is none, and the next one that it is not empty."""
    directory = tmp_path / "fleet"
    workshop = Workshop(directory)
    (workshop.path / "root-ca.key").write_text("a key")
    parent = tmp_path.stat()

    def of_the_parent(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), parent):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", of_the_parent)
    with pytest.raises(OSError, match="Input/output error"):
        workshop.become_the_directory()
    assert (workshop.path / "root-ca.key").exists(), "who deletes its keys finds them"
    workshop.close()
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_directory_should_be_is_named(tmp_path: Path) -> None:
    file, loop = tmp_path / "file", tmp_path / "loop"
    file.write_text("")
    loop.symlink_to(loop)
    for each in (file, loop):
        with pytest.raises(ConfigurationError, match=f"^{each}/fleet cannot be made: {each} is no directory$"):
            asyncio.run(found(Settings(directory=each / "fleet"), ["localhost"], lambda: datetime.now(UTC)))
    assert sorted(tmp_path.iterdir()) == [file, loop]
