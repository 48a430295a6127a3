"""The end of a CA, while services still run that have not noticed that it retires."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete
from sqlalchemy.engine import Connection

from provisioning.errors import ConfigurationError
from provisioning.pki.role import Role
from provisioning.store import certificates, devices, tables
from provisioning.store.authorities import AuthorityState
from provisioning.store.certificates import IssuedCertificate
from tests.support.ceremonies import Ceremonies, ceremonies

KEPT = timedelta(days=3)


def add(connection: Connection, name: str, key_id: bytes, serial: int, now: datetime) -> int:
    device = devices.add(connection, name, Role.DEVICE, None, now)
    return certificates.add(connection, IssuedCertificate(b"", key_id, serial, now, now + KEPT, b""), device.id, now)


@contextlib.asynccontextmanager
async def retiring(
    directory: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[Connection, bytes, datetime], object]
) -> AsyncIterator[Ceremonies]:
    """Open a store whose first CA retires; *meanwhile* runs after its certificates are looked at."""
    async with ceremonies(directory) as fleet_cas:
        await fleet_cas.successor()
        fleet_cas.clock.advance(fleet_cas.settings.operator_life)
        ca, *_ = [each for each in await fleet_cas.life.every() if each.name == "issuing-ca"]
        survey = fleet_cas.database.survey

        async def look_and_be_late(work: Callable[[Connection], object]) -> object:
            looked_at = await survey(work)
            await fleet_cas.database.write(lambda connection: meanwhile(connection, ca.key_id, fleet_cas.clock()))
            return looked_at

        monkeypatch.setattr(fleet_cas.database, "survey", look_and_be_late)
        yield fleet_cas


async def test_what_a_service_still_issued_while_the_certificates_were_looked_at_keeps_the_ca(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are looked at before the transaction, for which others would have to wait."""

    def issue(connection: Connection, key_id: bytes, now: datetime) -> None:
        add(connection, "meter-1", key_id, 7, now)

    async with retiring(tmp_path / "fleet", monkeypatch, issue) as fleet_cas:
        until = fleet_cas.clock() + KEPT
        with pytest.raises(ConfigurationError, match=f"certificates of issuing-ca are good until {until:%Y-%m-%d}"):
            await fleet_cas.life.retire()


@pytest.mark.parametrize("again", [False, True], ids=["lost", "its number was given again"])
async def test_a_ca_is_not_retired_by_what_a_fail_over_has_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, again: bool
) -> None:
    """Below a number that was given again there may be certificates that were not seen."""

    def lose(connection: Connection, key_id: bytes, now: datetime) -> None:
        newest = certificates.newest(connection)
        assert newest is not None
        connection.execute(delete(tables.certificates).where(tables.certificates.c.id == newest.id))
        if again:
            assert add(connection, "meter-1", key_id, 7, now) == newest.id

    async with retiring(tmp_path / "fleet", monkeypatch, lose) as fleet_cas:

        def issue(connection: Connection) -> None:
            add(connection, "meter-9", b"another", 9, fleet_cas.clock())

        await fleet_cas.database.write(issue)
        with pytest.raises(ConfigurationError, match="the store has lost certificates while they were looked at"):
            await fleet_cas.life.retire()
        monkeypatch.undo()
        states = {each.name: each.state for each in await fleet_cas.life.every()}
        assert states["issuing-ca"] is AuthorityState.RETIRING
        if again:
            with pytest.raises(ConfigurationError, match="certificates of issuing-ca are good until"):
                await fleet_cas.life.retire()
        else:
            assert await fleet_cas.life.retire() == "issuing-ca"


async def test_the_ca_of_a_store_without_certificates_can_be_retired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with retiring(tmp_path / "fleet", monkeypatch, lambda *_: None) as fleet_cas:

        def forget(connection: Connection) -> None:
            connection.execute(delete(tables.certificates))
            assert certificates.newest(connection) is None

        await fleet_cas.database.write(forget)
        assert await fleet_cas.life.retire() == "issuing-ca"
