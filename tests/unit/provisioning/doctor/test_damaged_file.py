"""A file that was copied while it was written: it opens, its audit log is whole, and an index lacks a revocation."""

from __future__ import annotations

import contextlib
import math
import sqlite3
from pathlib import Path

import pytest

from provisioning.doctor import doctor
from provisioning.doctor.doctor_finding import Verdict
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.store import audit_findings, damage
from provisioning.store.database import Database
from tests.support.fleet import open_fleet

MANY = 10**9
INDEX = "sqlite_autoindex_revocations_1"
REVOKED = "SELECT count(*) FROM revocations INDEXED BY sqlite_autoindex_revocations_1 WHERE certificate_id = 1"


def place_of(path: Path) -> slice:
    """Return where in the file the index has its first page."""
    with contextlib.closing(sqlite3.connect(path)) as shell:
        ((page,),) = shell.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (INDEX,))
        ((size,),) = shell.execute("PRAGMA page_size")
    return slice((page - 1) * size, page * size)


class Clock:
    """Time that ends after so many looks at it."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def monotonic(self) -> float:
        self.looks -= 1
        return 0.0 if self.looks >= 0 else math.inf


async def test_a_copy_with_pages_of_two_moments_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fleet.db"
    url = f"sqlite:///{path}"
    async with open_fleet(url) as fleet:
        await fleet.enrol("meter-1")
    before = path.read_bytes()
    async with open_fleet(url, fleet.authority) as fleet:
        await fleet.revocation.revoke_device("meter-1", RevocationReason.KEY_COMPROMISE, by="admin")
    copy, index = bytearray(path.read_bytes()), place_of(path)
    copy[index] = before[index]

    database = Database(url)
    assert await database.read(lambda connection: doctor._sound(connection, database)) is None
    monkeypatch.setattr(doctor, "_READ_SECONDS", -1.0)
    monkeypatch.setattr(damage, "_STEPS", 1)
    slow = await database.read(lambda connection: doctor._sound(connection, database))
    assert slow is not None
    assert slow.verdict is Verdict.WARNING
    monkeypatch.undo()
    await database.close()

    path.write_bytes(copy)
    database = Database(url)
    assert await database.read(lambda connection: connection.exec_driver_sql(REVOKED).scalar()) == 0
    assert await database.read(lambda connection: list(audit_findings.findings(connection))) == []
    finding = await database.read(lambda connection: doctor._sound(connection, database))
    assert finding is not None
    assert finding.verdict is Verdict.FAILED
    assert f"missing from index {INDEX}" in finding.detail

    monkeypatch.setattr(damage, "_STEPS", 100)
    monkeypatch.setattr(damage, "time", clock := Clock(MANY))
    assert await database.read(lambda connection: doctor._sound(connection, database)) == finding
    clock.looks = MANY - clock.looks - 1
    in_time = await database.read(lambda connection: doctor._sound(connection, database))
    await database.close()
    assert in_time is not None
    assert in_time.verdict is Verdict.FAILED, "what was found counts, though the rest could not be read in time"
    assert f"index {INDEX}" in in_time.detail
