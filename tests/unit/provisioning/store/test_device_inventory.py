"""What an operator is shown of devices: what their certificates are worth, by the page, at a bounded cost."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from sqlalchemy import update
from sqlalchemy.engine import Connection

from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.tokens import TokenOrder
from provisioning.errors import Code, Refused
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.store import device_inventory, devices
from provisioning.store.admissions import Admission
from provisioning.store.device_inventory import DeviceSearch, Standing
from provisioning.store.devices import DeviceState
from provisioning.store.groups import NewKey
from provisioning.store.tables import activations
from tests.support.fleet import Fleet, successor_csr
from tests.support.manufacturer import Manufacturer
from tests.support.many import fill
from tests.support.requests import csr_der
from tests.support.searched import noted, rows_read, scanned
from tests.support.ways import HOUR, claim, enrol, group, register

LIFE = timedelta(days=30)


async def shown(fleet: Fleet, **search: object) -> dict[str, Standing]:
    """Return what is shown of every device that is found, page by page of two."""
    found: dict[str, Standing] = {}
    after: str | None = None
    while True:
        wanted, start = DeviceSearch(**search), after  # type: ignore[arg-type]
        page, after = await fleet.database.read(
            lambda connection: device_inventory.page(connection, wanted, limit=2, after=start, now=fleet.clock())
        )
        assert len(page) <= 2
        found |= {each.device.name: each.certificate for each in page}
        if after is None:
            return found


async def test_a_device_that_is_active_and_has_nothing_to_show_is_seen_and_found(fleet: Fleet) -> None:
    kept, replaced = await fleet.enrol("a-expired"), await fleet.enrol("b-replaced")
    fleet.clock.advance(LIFE / 2)
    newest = {name: await fleet.enrol(name) for name in ("c-revoked", "d-held", "e-renewed", "f-suspended", "g-gone")}
    successor = await fleet.reenrol(replaced, successor_csr(replaced))
    renewed = await fleet.reenrol(newest["e-renewed"], successor_csr(newest["e-renewed"]))
    reason = RevocationReason.CESSATION_OF_OPERATION
    for certificate in (newest["c-revoked"], renewed, successor):
        await fleet.revocation.revoke_serial(f"{certificate.serial_number:x}", reason, by="admin")
    await fleet.suspension.suspend_serial(f"{newest['d-held'].serial_number:x}", by="admin")
    await fleet.suspension.suspend_device("f-suspended", by="admin")
    await fleet.revocation.revoke_device("g-gone", reason, by="admin")
    await fleet.database.write(lambda c: devices.add(c, "h-none", Role.SERVICE, None, fleet.clock()))
    fleet.clock.advance(LIFE / 2)
    expected = {
        "a-expired": Standing.EXPIRED,
        "b-replaced": Standing.REVOKED,
        "c-revoked": Standing.REVOKED,
        "d-held": Standing.SUSPENDED,
        "e-renewed": Standing.VALID,  # By the one before, which nobody has revoked.
        "f-suspended": Standing.SUSPENDED,
        "g-gone": Standing.REVOKED,
        "h-none": Standing.NONE,
    }
    assert await shown(fleet) == expected
    for standing in Standing:
        assert await shown(fleet, certificate=standing) == {k: v for k, v in expected.items() if v is standing}
    active = {"a-expired", "b-replaced", "c-revoked", "d-held", "e-renewed", "h-none"}
    assert set(await shown(fleet, state=DeviceState.ACTIVE)) == active
    assert await shown(fleet, group="south") == {}
    assert set(await shown(fleet, group="north", certificate=Standing.NONE)) == set()
    for name, end in (("a-expired", kept), ("e-renewed", newest["e-renewed"])):
        found = await fleet.database.read(lambda c: device_inventory.find(c, name, fleet.clock()))
        assert found is not None
        assert found.not_after == end.not_valid_after_utc


async def test_a_device_on_trial_is_not_taken_for_one_that_was_suspended(fleet: Fleet) -> None:
    await group(fleet, "claim")
    shared = await claim(fleet, devices=9)
    await enrol(fleet, "a-ended", certificate=shared)
    fleet.clock.advance(2 * HOUR)
    trials = [await enrol(fleet, name, certificate=shared) for name in ("b-on-trial", "c-activated", "d-held")]
    held = await fleet.reenrol(trials[2], successor_csr(trials[2]))
    await fleet.suspension.suspend_serial(f"{held.serial_number:x}", by="admin")
    await fleet.reenrol(trials[1], successor_csr(trials[1]))
    expected = {
        "a-ended": Standing.EXPIRED,
        "b-on-trial": Standing.TRIAL,
        "c-activated": Standing.VALID,
        "d-held": Standing.SUSPENDED,
    }
    assert await shown(fleet) == expected
    # Whoever has made the claim has lost the key.
    await fleet.database.write(lambda connection: connection.execute(
        update(activations).where(activations.c.activated_at.is_(None)).values(withdrawn_at=fleet.clock())
    ))  # fmt: skip
    assert await shown(fleet) == expected | {"b-on-trial": Standing.EXPIRED}


async def test_those_that_a_claim_or_a_manufacturer_let_in_are_found_by_it(fleet: Fleet) -> None:
    await group(fleet, "claim", "manufacturer", "token", new_key=NewKey.REPLACE)
    acme, copied = Manufacturer(), await claim(fleet, devices=9, name="copied")
    await register(fleet, acme)
    other = await claim(fleet, devices=9, name="other")
    await enrol(fleet, "a-lost", certificate=copied)
    fleet.clock.advance(2 * HOUR)
    trial = await enrol(fleet, "b-activated", certificate=copied)
    await fleet.reenrol(trial, successor_csr(trial))
    await enrol(fleet, "c-on-trial", certificate=copied)
    await enrol(fleet, "d-other", certificate=other)
    for name in ("e-acme", "f-acme"):
        await enrol(fleet, name, certificate=acme.idevid(name)[0])
    await fleet.enrol("g-token")
    grant = await fleet.token("f-acme", group="line")
    await enrol(fleet, "f-acme", token=TokenCredential("f-acme", grant))  # Another key, on an operator's word.
    await enrol(fleet, "h-expected", certificate=copied)  # Whoever has copied it has guessed the name.
    grant = await fleet.token("h-expected", group="line")
    await enrol(fleet, "h-expected", token=TokenCredential("h-expected", grant))
    assert set(await shown(fleet, claim="copied")) == {"b-activated", "c-on-trial"}
    assert set(await shown(fleet, claim="copied", certificate=Standing.TRIAL)) == {"c-on-trial"}
    assert set(await shown(fleet, claim="other", group="line")) == {"d-other"}
    assert set(await shown(fleet, claim="other", group="south")) == set()
    assert set(await shown(fleet, manufacturer="acme")) == {"e-acme"}
    for unknown, code in (({"claim": "acme"}, Code.CLAIM_UNKNOWN), ({"manufacturer": "x"}, Code.MANUFACTURER_UNKNOWN)):
        with pytest.raises(Refused) as caught:
            await shown(fleet, **unknown)
        assert caught.value.code is code
    for name, admission in (
        ("a-lost", Admission()),
        ("b-activated", Admission(("copied",))),
        ("e-acme", Admission((), "acme")),
        ("g-token", Admission()),
        ("h-expected", Admission()),
    ):
        found = await fleet.database.read(lambda c: device_inventory.find(c, name, fleet.clock()))
        assert found is not None
        assert found.admission == admission


async def test_a_search_looks_at_so_many_devices_and_goes_on_behind_them(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_inventory, "_AT_ONCE", 5)
    monkeypatch.setattr(device_inventory, "LOOKED_AT", 10)
    await fleet.database.write(lambda connection: fill(connection, fleet.issuer.key_id, 25, fleet.clock()))
    await fleet.enrol("z-last")
    search = DeviceSearch(certificate=Standing.VALID)
    pages: list[list[str]] = []
    after: str | None = None
    while True:
        page, after = await fleet.database.read(
            lambda connection: device_inventory.page(connection, search, limit=3, after=after, now=fleet.clock())
        )
        pages.append([each.device.name for each in page])
        if after is None:
            break
    assert pages == [[], [], ["z-last"]]


async def test_a_device_is_found_by_a_part_of_its_name(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_inventory, "_AT_ONCE", 3)
    monkeypatch.setattr(device_inventory, "LOOKED_AT_ALONE", 3)
    for name in ("Cellar-Pump-7", "attic-fan-7", "meter_7", "pump-8", "x-pump", "z.100"):
        await fleet.enrol(name)
    await fleet.suspension.suspend_device("x-pump", by="admin")
    assert list(await shown(fleet, part="pump")) == ["Cellar-Pump-7", "pump-8", "x-pump"]
    assert list(await shown(fleet, part="PUMP-")) == ["Cellar-Pump-7", "pump-8"]
    assert list(await shown(fleet, part="pump", certificate=Standing.VALID)) == ["Cellar-Pump-7", "pump-8"]
    assert list(await shown(fleet, part="pump", state=DeviceState.SUSPENDED)) == ["x-pump"]
    assert list(await shown(fleet, part="7", group="north")) == ["Cellar-Pump-7", "attic-fan-7", "meter_7"]
    assert await shown(fleet, part="7", group="south") == {}
    for wildcard, has_it in (("%", []), ("_", ["meter_7"]), (".", ["z.100"]), ("*", []), ("\\", [])):
        assert list(await shown(fleet, part=wildcard)) == has_it, wildcard


async def test_a_search_by_state_looks_up_the_certificates_of_those_in_it_only(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_inventory, "_AT_ONCE", 10)
    monkeypatch.setattr(device_inventory, "LOOKED_AT_ALONE", 20)
    await fleet.database.write(lambda connection: fill(connection, fleet.issuer.key_id, 25, fleet.clock()))
    for name in ("gone-11-a", "x", "y", "z"):
        await fleet.enrol(name)
    looked_up: list[str] = []
    read = devices.device_from

    def noted_device(row: object) -> devices.Device:
        device = read(row)  # type: ignore[arg-type]
        looked_up.append(device.name)
        return device

    monkeypatch.setattr(device_inventory, "device_from", noted_device)
    active = DeviceSearch(state=DeviceState.ACTIVE)
    found: list[list[str]] = []
    after: str | None = None
    while True:
        page, after = await fleet.database.read(
            lambda connection: device_inventory.page(connection, active, limit=2, after=after, now=fleet.clock())
        )
        found.append([each.device.name for each in page])
        if after is None:
            break
    assert found == [["gone-11-a"], ["x", "y"], ["z"]]
    assert set(looked_up) == {"gone-11-a", "x", "y", "z"}


@pytest.mark.timeout(300)
async def test_a_page_is_looked_up_and_not_searched_for(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while PostgreSQL has no statistics."""
    await group(fleet, "claim", "manufacturer")
    await claim(fleet)
    await register(fleet, Manufacturer())
    await fleet.database.write(lambda connection: fill(connection, fleet.issuer.key_id, 20_000, fleet.clock()))

    def look(connection: Connection, search: DeviceSearch) -> int:
        before = rows_read(connection)
        device_inventory.page(connection, search, limit=100, after="gone-15", now=fleet.clock())
        return rows_read(connection) - before

    for search in (
        DeviceSearch(),
        DeviceSearch("north"),
        DeviceSearch(certificate=Standing.EXPIRED),
        DeviceSearch("north", DeviceState.ACTIVE, Standing.REVOKED),
        DeviceSearch(state=DeviceState.REVOKED),
        DeviceSearch("north", DeviceState.REVOKED, Standing.EXPIRED),
        DeviceSearch(part="one-1"),
        DeviceSearch(claim="batch"),
        DeviceSearch(manufacturer="acme"),
    ):
        if search.narrows:  # Without statistics it would read a table that is hardly larger than a part.
            monkeypatch.setattr(device_inventory, "_AT_ONCE", 20)
        asked, read = await noted(fleet.database.read(lambda connection: look(connection, search)))
        assert read == 0, search
        assert await fleet.database.read(lambda connection: scanned(connection, asked)) == set(), search


async def test_the_service_ends_with_its_last_certificate_and_not_with_its_newest(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its newest is an OCSP signer's, of a few days: listed by when they end, it was always among the first."""
    monkeypatch.setattr(device_inventory, "PROVISIONING", "service")
    ends = [(await fleet.enrol(name)).not_valid_after_utc for name in ("meter-1", "service")]
    for name in ("meter-1", "service"):
        order = TokenOrder([name], "north", lifetime=LIFE / 2)
        (token,) = await fleet.token_service.create(order, by="admin")
        await fleet.enrolment.enrol(csr_der(names=[name]), TokenCredential(name, token.token))

    async def until(name: str) -> datetime | None:
        found = await fleet.database.read(lambda c: device_inventory.find(c, name, fleet.clock()))
        assert found is not None
        return found.not_after

    assert [await until("meter-1"), await until("service")] == [ends[0] - LIFE / 2, ends[1]]
