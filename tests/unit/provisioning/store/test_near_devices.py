"""A name that no device has: whom the operator may have meant, at a cost that does not grow with the fleet."""

from __future__ import annotations

import pytest
from sqlalchemy import insert
from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.store import near_devices
from provisioning.store.near_devices import no_such_device
from provisioning.store.tables import devices
from tests.support.fleet import Fleet

NAMES = ["gate-1", "meter-0017", "meter-17b", "meter-99", "pump-3"]


async def refused(fleet: Fleet, name: str) -> str:
    return (await fleet.database.read(lambda connection: no_such_device(connection, name))).detail


async def named(fleet: Fleet, names: list[str]) -> None:
    def add(connection: Connection) -> None:
        rows = [{"name": name, "role": "device", "created_at": fleet.clock()} for name in names]
        connection.execute(insert(devices), rows)

    await fleet.database.write(add)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("meter-17", ": did you mean meter-0017?"),  # Zeros are no difference, and that is nearer than a letter.
        ("metre-0017", ": did you mean meter-0017?"),
        ("pumpe-3", ": did you mean pump-3?"),
        ("somebody-else", ""),
        ("x" * 500, ""),
    ],
)
async def test_a_slip_is_recognised(fleet: Fleet, name: str, meant: str) -> None:
    await named(fleet, NAMES)
    assert await refused(fleet, name) == f"no device is called {name[:80]!r}{meant}"


async def test_in_a_large_fleet_only_what_is_beside_it_is_read(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_devices, "_EACH_WAY", 2)
    await named(fleet, [f"meter-{number}" for number in range(10, 60)])
    assert await refused(fleet, "meter-4x") == "no device is called 'meter-4x': did you mean meter-48 or meter-49?"
    assert await refused(fleet, "mtere-12") == "no device is called 'mtere-12'"  # Too far away: not read.


async def test_who_suspends_revokes_or_looks_for_a_name_is_asked(fleet: Fleet) -> None:
    await fleet.enrol("meter-17")
    for attempt in (
        fleet.suspension.suspend_device("metre-17", by="admin"),
        fleet.suspension.resume_device("metre-17", by="admin"),
        fleet.revocation.revoke_device("metre-17", reason=RevocationReason.UNSPECIFIED, by="admin"),
    ):
        with pytest.raises(Refused, match=r"did you mean meter-17\?") as caught:
            await attempt
        assert caught.value.code is Code.DEVICE_UNKNOWN
