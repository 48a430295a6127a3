"""Operators find devices over the API: a filter finds those it names, and each is shown as it is."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from provisioning.ca.crl import CrlIssuer
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.program.build import build_identity
from provisioning.program.moments import rfc3339
from provisioning.program.version import product_version
from provisioning.revocation.feed import RevocationFeed
from provisioning.revocation.publisher import CrlPlan, CrlPublisher
from provisioning.store.counters import crl_counter
from tests.support.fleet import Fleet
from tests.unit.provisioning.api.test_claims import Api
from tests.unit.provisioning.api.test_still_operator import caller

NAMES = ["meter-1", "meter-2", "meter-3", "meter-4"]


async def api(fleet: Fleet) -> Api:
    """Return the API of a fleet with devices that are active, suspended, revoked and decommissioned, a minute apart."""
    ask = Api(fleet, await caller(fleet))
    for name in NAMES:
        await fleet.enrol(name)
    fleet.clock.advance(timedelta(minutes=1))
    await fleet.suspension.suspend_device("meter-2", by="boss")
    fleet.clock.advance(timedelta(minutes=1))
    await fleet.revocation.revoke_device("meter-3", RevocationReason.SUPERSEDED, by="boss")
    fleet.clock.advance(timedelta(minutes=1))
    await fleet.revocation.decommission("meter-4", by="boss")
    return ask


async def test_a_device_is_shown_as_it_is(fleet: Fleet) -> None:
    ask = await api(fleet)
    as_enrolled: dict[str, Any] = {
        "role": "device",
        "group": "north",
        "created_at": "2027-03-01T12:00:00Z",
        "suspended_at": None,
        "revoked_at": None,
        "decommissioned_at": None,
        "certificate_not_after": "2027-03-31T12:00:00Z",
        "certificates": 1,
        "claims": [],
        "manufacturer": None,
    }
    states = {
        "meter-1": {"state": "active", "certificate": "valid"},
        "meter-2": {"state": "suspended", "certificate": "suspended", "suspended_at": "2027-03-01T12:01:00Z"},
        "meter-3": {"state": "revoked", "certificate": "revoked", "revoked_at": "2027-03-01T12:02:00Z"},
        "meter-4": {"state": "decommissioned", "certificate": "revoked", "decommissioned_at": "2027-03-01T12:03:00Z"},
    }
    for name, facts in states.items():
        assert await ask("GET", f"/v1/devices/{name}") == (200, {"name": name} | as_enrolled | facts)
    status, anna = await ask("GET", "/v1/devices/anna")
    assert (status, anna["role"], anna["group"]) == (200, "operator", None)
    status, refused = await ask("GET", "/v1/devices/meter-5")
    assert (status, refused["code"]) == (404, "DEVICE_UNKNOWN")
    assert "meter-5" in refused["detail"]


async def test_the_state_of_the_whole_is_counted(fleet: Fleet) -> None:
    for name in NAMES:
        await fleet.enrol(name)
    await fleet.revocation.revoke_device("meter-2", RevocationReason.SUPERSEDED, by="boss")
    await fleet.suspension.suspend_device("meter-3", by="boss")
    await fleet.token("meter-5")
    fleet.clock.advance(timedelta(days=31))  # All of them have ended.
    issuing = fleet.authority.issuing_ca
    publisher = CrlPublisher(
        fleet.database,
        CrlPlan(
            name="issuing-ca",
            counter=crl_counter("issuing-ca"),
            life=timedelta(hours=1),
            debounce_seconds=0.01,
            open_issuer=lambda: CrlIssuer(issuing.certificate, issuing.key),
        ),
        fleet.clock,
    )
    feed = RevocationFeed(fleet.database, 15)

    async def followers() -> int:
        return 5

    services: dict[str, Any] = {"followers": followers, "feed": feed, "publishers": {"issuing-ca": publisher}}
    ask = Api(fleet, await caller(fleet), **services)
    assert (await ask("GET", "/v1/status"))[1]["crls"] == {}
    certificate = await fleet.enrol("meter-6")
    await fleet.revocation.revoke_serial(f"{certificate.serial_number:x}", RevocationReason.SUPERSEDED, by="boss")
    await fleet.token("meter-7")
    await publisher.start()
    current = await publisher.publish()
    await feed.start()
    assert await ask("GET", "/v1/status") == (
        200,
        {
            "version": product_version(),
            "build": build_identity(),
            "checks": {},
            "devices": {"active": 5, "suspended": 1, "revoked": 1, "decommissioned": 0},
            "active_devices_without_certificate": 3,
            "certificates": {"active": 2, "expired": 2, "revoked": 2, "suspended": 1},
            "tokens": {"open": 1},
            "feed": {"sequence": 3, "subscribers": 5},
            "unknown_authorities": [],
            "crls": {
                "issuing-ca": {
                    "number": current.number,
                    "entries": 1,
                    "this_update": rfc3339(current.this_update),
                    "next_update": rfc3339(current.next_update),
                }
            },
        },
    )


async def test_they_are_found_by_group_state_certificate_and_part_of_the_name_and_told_in_pages(fleet: Fleet) -> None:
    ask = await api(fleet)

    async def page(query: str) -> tuple[list[str], str | None]:
        _, found = await ask("GET", "/v1/devices", query=query)
        return [each["name"] for each in found["items"]], found["next"]

    assert await page("group=north") == (NAMES, None)
    assert await page("group=south") == ([], None)
    assert await page("group=north&state=suspended") == (["meter-2"], None)
    assert await page("group=north&certificate=revoked") == (["meter-3", "meter-4"], None)
    assert await page("name_part=R-2") == (["meter-2"], None)
    assert await page("name_part=meter&limit=2&state=active") == (["meter-1"], None)
    assert await page("name_part=pump") == ([], None)
    for query, code in (("claim=x", "CLAIM_UNKNOWN"), ("manufacturer=x", "MANUFACTURER_UNKNOWN")):
        status, refused = await ask("GET", "/v1/devices", query=query)
        assert (status, refused["code"]) == (404, code)
    assert await page("group=north&limit=2") == (NAMES[:2], "meter-2")
    assert await page("group=north&limit=2&after=meter-2") == (NAMES[2:], None)
