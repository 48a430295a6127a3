"""The end of a CA, while services still run that have not noticed that it retires."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.engine import Connection

from provisioning.errors import ConfigurationError
from provisioning.pki.identity import Role
from provisioning.store import certificates, devices
from provisioning.store.certificates import IssuedCertificate
from tests.support.ceremonies import ceremonies


async def test_what_a_service_still_issued_while_the_certificates_were_looked_at_keeps_the_ca(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are looked at before the transaction, for which others would have to wait."""
    async with ceremonies(tmp_path / "fleet") as fleet_cas:
        life = fleet_cas.life
        await fleet_cas.successor()
        fleet_cas.clock.advance(fleet_cas.settings.operator_life)
        ca, *_ = [each for each in await life.every() if each.name == "issuing-ca"]
        survey, now = fleet_cas.database.survey, fleet_cas.clock()

        def issued(connection: Connection) -> None:
            meter = devices.add(connection, "meter-1", Role.DEVICE, None, now)
            until = now + timedelta(days=3)
            certificates.add(connection, IssuedCertificate(b"", ca.key_id, 7, now, until, b""), meter.id, now)

        async def look_and_be_late(work: Callable[[Connection], object]) -> object:
            looked_at = await survey(work)
            await fleet_cas.database.write(issued)
            return looked_at

        monkeypatch.setattr(fleet_cas.database, "survey", look_and_be_late)
        until = now + timedelta(days=3)
        with pytest.raises(ConfigurationError, match=f"certificates of issuing-ca are good until {until:%Y-%m-%d}"):
            await life.retire()
