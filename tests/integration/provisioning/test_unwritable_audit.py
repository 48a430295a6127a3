"""An audit log that cannot be written, whatever keeps it from that: nothing is issued or revoked, and it is said so."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from tests.support.curl import Curl
from tests.support.openssl import OpensslDevice
from tests.support.postgresql import PostgresqlServer
from tests.support.provisioning import ProvisioningService

OBSTACLES = {
    "sqlite": {
        "a trigger": "CREATE TRIGGER no_more BEFORE INSERT ON audit_entries BEGIN SELECT RAISE(ABORT, 'no'); END",
        "no table": "ALTER TABLE audit_entries RENAME TO somewhere",
        "a head that was emptied": "DELETE FROM audit_head",
        "a head that somebody has written": "UPDATE audit_head SET mac = 'text'",
        "an entry that is there": (
            "INSERT INTO audit_entries (number, at, actor, action, subject, details, mac) "
            "SELECT number + 1, '2027-01-01', '', '', '', '', x'00' FROM audit_head"
        ),
    },
    "postgresql": {
        "a rule": "ALTER TABLE audit_entries ADD CONSTRAINT no_more CHECK (number < 0) NOT VALID",
        "no table": "ALTER TABLE audit_entries RENAME TO somewhere",
        "no column": "ALTER TABLE audit_entries RENAME COLUMN mac TO code",
        "a head that was emptied": "DELETE FROM audit_head",
    },
}


def refuses(service: ProvisioningService, tmp_path: Path, obstacle: str) -> None:
    device = OpensslDevice(tmp_path, "meter-1")
    curl = Curl(service.https, service.bundle)
    token = service.token(device="meter-1", group="north")
    answer = curl.est("simpleenroll", device.request(), "--user", f"meter-1:{token}")
    device.take(answer.body)
    other = service.token(device="meter-2", group="north")
    engine = create_engine(service.database_url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text(obstacle))
    before = service.stored("SELECT count(*) FROM certificates") + service.stored("SELECT count(*) FROM revocations")
    newcomer = OpensslDevice(tmp_path, "meter-2")
    enrolled = curl.est("simpleenroll", newcomer.request(), "--user", f"meter-2:{other}")
    assert enrolled.status == 503, enrolled.body
    assert b"UNAVAILABLE" in enrolled.body
    assert int(enrolled.headers["retry-after"]) > 0
    revoked = service.post("/v1/revocations", device="meter-1", reason="keyCompromise")
    assert (revoked.status_code, revoked.json()["code"]) == (503, "UNAVAILABLE")
    assert int(revoked.headers["Retry-After"]) > 0
    after = service.stored("SELECT count(*) FROM certificates") + service.stored("SELECT count(*) FROM revocations")
    assert after == before, "nothing is issued or revoked without an entry"


@pytest.mark.parametrize("obstacle", OBSTACLES["sqlite"])
def test_nothing_is_issued_or_revoked_on_sqlite(tmp_path: Path, obstacle: str) -> None:
    with ProvisioningService.copied(tmp_path / "fleet") as service:
        refuses(service, tmp_path, OBSTACLES["sqlite"][obstacle])


@pytest.mark.parametrize("obstacle", OBSTACLES["postgresql"])
def test_nothing_is_issued_or_revoked_on_postgresql(
    postgresql: PostgresqlServer, tmp_path: Path, obstacle: str
) -> None:
    with ProvisioningService.copied_on(postgresql, tmp_path / "fleet") as service, service:
        refuses(service, tmp_path, OBSTACLES["postgresql"][obstacle])
