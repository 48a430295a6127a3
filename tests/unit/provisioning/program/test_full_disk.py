"""A full disk is told with its name and the remedy: the kernel's own error, SQLite's, and real small file systems."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from provisioning.authorities.authority import found
from provisioning.config import Settings
from provisioning.errors import Code, ConfigurationError, Refused
from provisioning.program import full_disk
from provisioning.store.database import Database
from provisioning.store.usable import usable
from tests.support.small_volume import small_volume


class SmallDisk:
    """A file system of so many kilobytes, which can be given another size."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def resize(self, options: str) -> None:
        """Have it *options*, of mount for a tmpfs: ``size=404k``."""
        subprocess.run(["mount", "-o", f"remount,{options}", self.place], check=True)


@pytest.fixture
def small() -> Iterator[SmallDisk]:
    """A file system that is smaller than an authority."""
    with small_volume("size=2m") as place:
        yield SmallDisk(place)


def fill(ballast: Path) -> None:
    """Take what room there is."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)


def clock() -> datetime:
    return datetime.now(UTC)


def of_the_kernel() -> OSError:
    with pytest.raises(OSError, match="No space left") as full, Path("/dev/full").open("wb", buffering=0) as file:
        file.write(b"x")
    return full.value


def of_sqlite() -> OperationalError:
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        connection.execute(text("PRAGMA max_page_count = 2"))
        connection.execute(text("CREATE TABLE big (content BLOB)"))
        with pytest.raises(OperationalError, match="database or disk is full") as full:
            connection.execute(text("INSERT INTO big VALUES (zeroblob(100000))"))
    engine.dispose()  # The error would keep its connection open.
    return full.value


def told_by(error: Exception) -> Refused:
    refusal = Refused(Code.UNAVAILABLE, "the store cannot be used now; try again")
    refusal.__cause__ = error
    return refusal


@pytest.mark.parametrize(
    "error", [of_the_kernel(), of_sqlite(), told_by(of_sqlite())], ids=["kernel", "SQLite", "both"]
)
def test_where_a_look_finds_room_a_quota_is_thought_of(error: Exception, tmp_path: Path) -> None:
    said = full_disk.told(error, tmp_path)
    assert said == f"the disk of {tmp_path}, or what its user may have of it (quota), is full; make room there"


def test_what_says_nothing_of_room_is_left_as_it_is(tmp_path: Path) -> None:
    damaged = sqlite3.OperationalError("disk I/O error")
    damaged.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHMSIZE
    for other in (
        damaged,
        told_by(damaged),
        PermissionError(13, "Permission denied"),
        ValueError("full"),
        told_by(damaged),
    ):
        assert full_disk.told(other, tmp_path) is None
    looped = ValueError("its own cause")
    looped.__cause__ = looped
    assert full_disk.told(looped, tmp_path) is None


@pytest.mark.parametrize("size", ["8k", "20k", "100k", "404k", "500k"])
async def test_founding_says_which_disk_has_no_room_and_leaves_nothing(small: SmallDisk, size: str) -> None:
    small.resize(f"size={size}")
    directory = small.place / "new" / "fleet"
    with pytest.raises(ConfigurationError) as refused:
        await found(Settings(directory=directory, passphrase=SecretStr("a passphrase")), ["localhost"], clock)
    said = str(refused.value)
    assert said.startswith(
        f"{directory} cannot be made: the disk of {directory.parent}, mounted at {small.place}, has too little room: "
    )
    assert said.endswith(f" kB of {size[:-1]} kB are free; make room there, or choose another --dir")
    assert list(directory.parent.iterdir()) == []


async def test_a_disk_without_room_for_another_file_is_told_so(small: SmallDisk) -> None:
    small.resize("size=8m,nr_inodes=6")
    directory = small.place / "fleet"
    with pytest.raises(
        ConfigurationError, match=rf"the disk at {small.place} has .*, and \d more files \(inodes\) fit"
    ):
        await found(Settings(directory=directory, passphrase=SecretStr("a passphrase")), ["localhost"], clock)


async def test_a_store_that_cannot_make_what_its_readers_share_says_which_disk_is_full(small: SmallDisk) -> None:
    directory = small.place / "fleet"
    await found(Settings(directory=directory, passphrase=SecretStr("a passphrase")), ["localhost"], clock)
    fill(small.place / "ballast")
    database = Database(f"sqlite:///{directory}/fleet.db")
    said = rf"cannot be used: the disk of {directory}, mounted at {small.place}, has too little room: 0 kB of"
    with pytest.raises(ConfigurationError, match=said), usable(database):
        await database.read(lambda connection: connection.execute(text("SELECT count(*) FROM devices")))
    await database.close()
