"""The end of a CA, while services still run that have not noticed that it retires."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete, update
from sqlalchemy.engine import Connection

from provisioning.errors import ConfigurationError
from provisioning.pki.identity import Role
from provisioning.store import certificates, devices, tables
from provisioning.store.certificates import IssuedCertificate
from tests.support.ceremonies import ceremonies


@pytest.mark.parametrize("numbered_before", [False, True], ids=["later", "numbered before, committed later"])
async def test_what_a_service_still_issued_while_the_certificates_were_looked_at_keeps_the_ca(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, numbered_before: bool
) -> None:
    """They are looked at before the transaction, for which others would have to wait.

    PostgreSQL numbers a row when it is inserted, so one that was seen may have a higher number than one that was not.
    """
    async with ceremonies(tmp_path / "fleet") as fleet_cas:
        life = fleet_cas.life
        await fleet_cas.successor()
        fleet_cas.clock.advance(fleet_cas.settings.operator_life)
        ca, *_ = [each for each in await life.every() if each.name == "issuing-ca"]
        survey, now = fleet_cas.database.survey, fleet_cas.clock()
        until = now + timedelta(days=3)

        def add(connection: Connection, name: str, key_id: bytes, serial: int) -> int:
            device = devices.add(connection, name, Role.DEVICE, None, now)
            return certificates.add(connection, IssuedCertificate(b"", key_id, serial, now, until, b""), device.id, now)

        def leave_a_gap(connection: Connection) -> int:
            gap = add(connection, "meter-2", b"", 5)
            add(connection, "meter-3", b"", 6)
            connection.execute(delete(tables.certificates).where(tables.certificates.c.id == gap))
            return gap

        gap = await fleet_cas.database.write(leave_a_gap) if numbered_before else None

        def issued(connection: Connection) -> None:
            number = add(connection, "meter-1", ca.key_id, 7)
            if gap is not None:
                rows = tables.certificates
                connection.execute(update(rows).where(rows.c.id == number).values(id=gap))

        async def look_and_be_late(work: Callable[[Connection], object]) -> object:
            looked_at = await survey(work)
            await fleet_cas.database.write(issued)
            return looked_at

        monkeypatch.setattr(fleet_cas.database, "survey", look_and_be_late)
        with pytest.raises(ConfigurationError, match=f"certificates of issuing-ca are good until {until:%Y-%m-%d}"):
            await life.retire()
