"""A database that was restored to before a ceremony says nothing of it; the directory has its transcript."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy.engine import Connection
from structlog.testing import capture_logs

from provisioning.authorities.ceremony_transcript import FOLDER, Transcript
from provisioning.authorities.last_ceremony import compare, last_ceremony
from provisioning.directory.files import AuthorityFiles
from provisioning.directory.one_ceremony import ceremony_on
from provisioning.store import audit, schema
from provisioning.store.audit import Action
from provisioning.store.database import Database


async def told(database: Database, directory: Path) -> list[str]:
    """Return what a service says that starts."""
    with capture_logs() as logs:
        await compare(database, directory)
    assert {each["code"] for each in logs} <= {"STORE_WENT_BACK"}
    return [each["detail"] for each in logs]


async def test_a_ceremony_that_the_audit_log_lacks_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service started on such a copy without a word, and a CA that was revoked since issued again."""
    monkeypatch.setattr(audit, "_A_PORTION", 7)
    now = datetime.now(UTC)
    AuthorityFiles(tmp_path).audit_key.write_bytes(b"")
    database = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    await schema.upgrade(database)

    async def entries(*moments: datetime) -> None:
        def append(connection: Connection) -> None:
            for each in moments:
                audit.append(connection, each, "anna", Action.TOKEN_VOIDED, "meter-1", {})

        await database.write(append)

    async def held(title: str, *, confirmed: bool) -> list[str]:
        nonlocal now
        now += timedelta(days=3)
        await entries(*(now + timedelta(hours=each) for each in range(-30, 0)))
        transcript = Transcript(title, lambda: now, lambda _: None)
        transcript.say(title)
        transcript.write(transcript.path_in(tmp_path))
        facts = {"transcript": title, "transcript_sha256": transcript.digest}
        if confirmed:
            await database.write(
                lambda connection: audit.append(connection, now, "anna", Action.CEREMONY, title, facts)
            )
        return await told(database, tmp_path)

    assert await told(database, tmp_path) == []
    assert await held("ca rollover begin", confirmed=True) == []
    await entries(*(now + timedelta(hours=each) for each in range(30)), *[now - timedelta(days=9000)] * 99)
    assert await told(database, tmp_path) == [], "the clock was wrong for a while"
    (detail,) = await held("ca revoke", confirmed=False)
    assert "ca-revoke.txt: the database is a copy from before it" in detail
    assert "; compare ca list with the transcript, and repeat what is missing" in detail
    with ceremony_on(tmp_path):
        assert last_ceremony(tmp_path) is None, "its entry follows"
    assert await held("ca revoke", confirmed=True) == []
    (tmp_path / FOLDER / "zone-plan.txt").write_text("another's", encoding="utf-8")
    assert await told(database, tmp_path) == []
    shutil.rmtree(tmp_path / FOLDER)
    assert await told(database, tmp_path) == [], "another machine"
    await database.close()


async def test_a_log_that_cannot_be_read_now_is_no_reason_not_to_start(tmp_path: Path) -> None:
    """Of a log of many gigabytes the comparison could take longer than a statement may."""
    AuthorityFiles(tmp_path).audit_key.write_bytes(b"")
    transcript = Transcript("ca revoke", lambda: datetime.now(UTC), lambda _: None)
    transcript.say("ca revoke")
    transcript.write(transcript.path_in(tmp_path))
    (tmp_path / "fleet.db").write_bytes(b"damaged" * 1000)
    database = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    with capture_logs() as logs:
        await compare(database, tmp_path)
    assert [each["event"] for each in logs if "not compared" in each["event"]] == [
        "last key ceremony not compared with the store"
    ]
    await database.close()
