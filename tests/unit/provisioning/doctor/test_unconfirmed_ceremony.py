"""A database that was restored to before a ceremony says nothing of it; the directory has its transcript."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from provisioning.authorities.ceremony_transcript import FOLDER, Transcript
from provisioning.doctor.doctor_authorities import unconfirmed
from provisioning.doctor.doctor_finding import Finding
from provisioning.store import audit, schema
from provisioning.store.audit import Action
from provisioning.store.database import Database


async def test_a_ceremony_that_the_audit_log_lacks_is_told_of(tmp_path: Path) -> None:
    """The service started on such a copy without a word, and a CA that was revoked since issued again."""
    now = datetime.now(UTC)
    database = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    await schema.upgrade(database)

    async def held(title: str, *, confirmed: bool) -> list[Finding]:
        transcript = Transcript(title, lambda: now, lambda _: None)
        transcript.say(title)
        transcript.write(transcript.path_in(tmp_path))
        facts = {"transcript": title, "transcript_sha256": transcript.digest}
        if confirmed:
            await database.write(
                lambda connection: audit.append(connection, now, "anna", Action.CEREMONY, title, facts)
            )
        return await found(now)

    async def found(at: datetime) -> list[Finding]:
        later = at + timedelta(minutes=2)
        return await database.read(lambda connection: list(unconfirmed(connection, tmp_path / FOLDER, later)))

    assert await found(now) == []
    assert await held("ca rollover begin", confirmed=True) == []
    now += timedelta(seconds=1)
    (finding,) = await held("ca revoke", confirmed=False)
    assert "ca-revoke.txt: the database is a copy from before it" in finding.detail
    assert await found(now - timedelta(minutes=2)) == [], "it may be under way"
    now += timedelta(seconds=1)
    assert await held("ca revoke", confirmed=True) == []
    await database.close()
