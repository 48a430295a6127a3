"""A host name that a device asks for is in no other device's certificate."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from sqlalchemy import delete, insert
from sqlalchemy.engine import Connection
from structlog.testing import capture_logs

from provisioning.authorities.issuing_policy import profiles_of
from provisioning.ca.name_policy import NameRefused
from provisioning.ca.profile import ProfileConfig
from provisioning.config import load_settings
from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.tokens import TokenOrder, TokenService
from provisioning.errors import Code, ConfigurationError, Refused
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.store import devices, host_names, tables
from tests.support.fleet import Fleet, open_fleet, successor_csr
from tests.support.requests import csr_der
from tests.support.ways import HOUR, claim, group
from tests.unit.provisioning.enrolment.test_profiles import hosts

PLANT = ProfileConfig("device", timedelta(days=7), honoured_domains=("plant.example",))
SERVING = replace(PLANT, extended_key_usages=("clientAuth", "serverAuth"), honoured_networks=("192.0.2.0/24",))
CLIENTS = replace(SERVING, extended_key_usages=("clientAuth",))
PRESS = "press.plant.example"


def asking(device: str, *names: str) -> bytes:
    extension = x509.SubjectAlternativeName([_general(name) for name in names])
    return csr_der(names=[device], extensions=[extension] if names else [])


def _general(name: str) -> x509.GeneralName:
    return x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() else x509.DNSName(name)


def addresses(certificate: x509.Certificate) -> list[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(each) for each in found.get_values_for_type(x509.IPAddress)]


async def token_for(fleet: Fleet, order: TokenOrder) -> TokenCredential:
    """Return a token that was made before the names were another's: afterwards none is."""
    (issued,) = await TokenService(fleet.database, fleet.clock, {}).create(order, by="admin")
    return TokenCredential(order.devices[0], issued.token)


async def ask(fleet: Fleet, device: str, *names: str) -> x509.Certificate:
    token = await token_for(fleet, TokenOrder([device], "north"))
    return await fleet.enrolment.enrol(asking(device, *names), token)


async def refused(fleet: Fleet, device: str, *names: str) -> None:
    with pytest.raises(Refused, match="belongs to another device") as caught:
        await ask(fleet, device, *names)
    assert caught.value.code is Code.CSR_NAME


async def test_it_is_the_first_one_s_until_that_is_revoked_or_decommissioned(store_url: str) -> None:
    async with open_fleet(store_url, configured=[PLANT]) as fleet:
        certificate = await ask(fleet, "meter-1", PRESS)
        await refused(fleet, "meter-2", "lathe.plant.example", PRESS)
        assert hosts(await fleet.reenrol(certificate, successor_csr(certificate))) == [PRESS]
        assert hosts(await ask(fleet, "meter-3", "lathe.plant.example")) == ["lathe.plant.example"], "it was not taken"
        await fleet.suspension.suspend_device("meter-1", by="admin")
        await refused(fleet, "meter-2", PRESS)
        await fleet.suspension.resume_device("meter-1", by="admin")
        await fleet.revocation.revoke_device("meter-1", RevocationReason.UNSPECIFIED, by="admin")
        assert hosts(await ask(fleet, "meter-2", PRESS)) == [PRESS]
        await refused(fleet, "meter-1", PRESS)
        await fleet.revocation.decommission("meter-2", by="admin")
        assert hosts(await ask(fleet, "meter-1", PRESS)) == [PRESS]


async def test_a_trial_that_ends_unused_gives_it_back(store_url: str) -> None:
    async with open_fleet(store_url, configured=[PLANT]) as fleet:
        await group(fleet, "claim", "token")
        shared = await claim(fleet)
        await fleet.enrolment.enrol(asking("meter-1", PRESS), None, certificate=shared)
        await refused(fleet, "meter-2", PRESS)
        fleet.clock.advance(HOUR)
        assert hosts(await ask(fleet, "meter-2", PRESS)) == [PRESS]


async def test_of_several_who_ask_at_once_one_gets_it(store_url: str) -> None:
    async with open_fleet(store_url, configured=[PLANT]) as fleet:
        names = [f"meter-{number}" for number in range(6)]
        outcomes = await asyncio.gather(*(ask(fleet, name, PRESS) for name in names), return_exceptions=True)
        assert [isinstance(each, NameRefused) for each in outcomes].count(True) == 5
        others = await asyncio.gather(*(ask(fleet, f"x-{name}", f"{name}.plant.example") for name in names))
        assert [hosts(each) for each in others] == [[f"{name}.plant.example"] for name in names]


async def test_who_had_another_s_name_renews_without_it(store_url: str) -> None:
    async with open_fleet(store_url, configured=[PLANT]) as fleet:
        first = await ask(fleet, "meter-1", PRESS, "lathe.plant.example")
        await fleet.database.write(lambda connection: connection.execute(delete(tables.host_names)))
        second = await ask(fleet, "meter-2", PRESS)  # As before names were noted.
        assert hosts(await fleet.reenrol(first, successor_csr(first))) == ["lathe.plant.example"]
        assert hosts(await fleet.reenrol(second, successor_csr(second))) == [PRESS]


@pytest.mark.parametrize(("built_first", "shared"), [(True, False), (True, True), (False, False)])
async def test_what_another_configuration_has_built_or_honoured_is_no_other_device_s(
    store_url: str, built_first: bool, shared: bool
) -> None:
    building = ProfileConfig("device", timedelta(days=7), dns_patterns=("{name}.plant.example",))
    before, after = (building, PLANT) if built_first else (PLANT, building)
    asked = () if built_first else (PRESS,)
    device, other = ("press", "meter-1") if built_first else ("meter-1", "press")
    async with open_fleet(store_url, configured=[replace(before, shared_host_names=shared)]) as fleet:
        certificate = await ask(fleet, device, *asked)
        assert hosts(certificate) == [PRESS]
        async with open_fleet(store_url, fleet.authority, configured=[after]) as later:
            await refused(later, other, *(() if asked else (PRESS,)))
            await later.revocation.revoke_device(device, RevocationReason.UNSPECIFIED, by="admin")
            assert hosts(await ask(later, other, *(() if asked else (PRESS,)))) == [PRESS]


async def test_a_profile_may_say_that_devices_share_names(store_url: str) -> None:
    async with open_fleet(store_url, configured=[replace(PLANT, shared_host_names=True)]) as fleet:
        for device in ("meter-1", "meter-2"):
            assert hosts(await ask(fleet, device, PRESS)) == [PRESS]


@pytest.mark.parametrize("domain", ["plant.example", "a.plant.example", "example"])
def test_what_one_profile_shares_is_no_other_s(tmp_path: Path, domain: str) -> None:
    text = (
        '[profiles.device]\nhonoured_domains = ["plant.example", "b.x"]\n[profiles.cell]\nrole = "device"\n'
        f'honoured_domains = ["{domain}"]\n'
    )
    (tmp_path / "provisioning.toml").write_text(text)
    assert profiles_of(load_settings(tmp_path))
    (tmp_path / "provisioning.toml").write_text(f"{text}shared_host_names = true\n")
    with pytest.raises(ConfigurationError, match="only one of them has shared_host_names"):
        profiles_of(load_settings(tmp_path))


async def granted(fleet: Fleet, broker: str, *names: str) -> x509.Certificate:
    addresses = tuple(name for name in names if name[0].isdigit())
    dns_names = tuple(name for name in names if name not in addresses)
    order = TokenOrder([broker], None, Role.BROKER, dns_names=dns_names, ip_addresses=addresses)
    return await fleet.enrolment.enrol(csr_der(names=[broker]), await token_for(fleet, order))


async def test_what_a_server_is_granted_no_device_is_given_and_other_servers_share(store_url: str) -> None:
    built = replace(PLANT, dns_patterns=("{name}.floor.example",), honoured_domains=("plant.example",))
    async with open_fleet(store_url, configured=[built]) as fleet:
        mqtt = "mqtt.floor.example"
        first = await granted(fleet, "mqtt-1", PRESS, mqtt)
        await refused(fleet, "meter-1", PRESS)
        await refused(fleet, "mqtt")  # Whoever has a token for a group's new devices chooses the name.
        assert hosts(await granted(fleet, "mqtt-2", mqtt)) == [mqtt]
        assert hosts(await fleet.reenrol(first, successor_csr(first))) == [PRESS, mqtt]
        await fleet.revocation.decommission("mqtt-1", by="admin")
        assert hosts(await ask(fleet, "meter-1", PRESS)) == [PRESS, "meter-1.floor.example"][::-1]


async def test_a_server_is_not_granted_what_a_device_has_but_keeps_what_it_has(store_url: str) -> None:
    async with open_fleet(store_url, configured=[PLANT]) as fleet:
        certificate = await granted(fleet, "mqtt-1", "mqtt.plant.example")
        # As before names of servers were kept.
        await fleet.database.write(lambda connection: connection.execute(delete(tables.host_names)))
        await ask(fleet, "meter-1", "mqtt.plant.example")
        with pytest.raises(NameRefused, match="is that of device meter-1, which could pose as the server"):
            await granted(fleet, "mqtt-2", "mqtt.plant.example")
        assert hosts(await fleet.reenrol(certificate, successor_csr(certificate))) == ["mqtt.plant.example"]
        await fleet.revocation.decommission("meter-1", by="admin")
        assert hosts(await granted(fleet, "mqtt-2", "mqtt.plant.example")) == ["mqtt.plant.example"]


async def test_what_one_of_two_servers_leaves_is_the_other_s_until_that_is_ended_too(store_url: str) -> None:
    async with open_fleet(store_url, configured=[PLANT]) as fleet:
        for broker in ("mqtt-1", "mqtt-2"):
            await granted(fleet, broker, PRESS)
        await fleet.revocation.decommission("mqtt-1", by="admin")
        await refused(fleet, "meter-1", PRESS)
        assert hosts(await granted(fleet, "mqtt-3", PRESS)) == [PRESS]
        await fleet.revocation.decommission("mqtt-2", by="admin")
        await refused(fleet, "meter-1", PRESS)
        await fleet.revocation.decommission("mqtt-3", by="admin")
        assert hosts(await ask(fleet, "meter-1", PRESS)) == [PRESS]


async def test_who_may_serve_is_called_by_no_other_s_host_name(store_url: str) -> None:
    """OpenSSL takes the Common Name for a host name where there is no other, in any case of letters."""
    async with open_fleet(store_url, configured=[SERVING]) as fleet:
        await granted(fleet, "mqtt-1", PRESS)
        await refused(fleet, "Press.plant.example")
        await refused(fleet, "press.plant.example.")  # curl takes the dot away.
        await ask(fleet, "meter-1", "lathe.plant.example")
        await refused(fleet, "lathe.plant.EXAMPLE", "other.plant.example")
        saw = await ask(fleet, "Saw.plant.example")
        await refused(fleet, "meter-2", "saw.plant.example")
        await refused(fleet, "saw.plant.example")
        with pytest.raises(NameRefused, match=r"is that of device Saw\.plant\.example, which could pose as the server"):
            await granted(fleet, "mqtt-2", "saw.plant.example")
        assert hosts(await fleet.reenrol(saw, successor_csr(saw))) == []
        await granted(fleet, "Lamp.plant.example")
        await refused(fleet, "meter-3", "lamp.plant.example")
        at_once = ask(fleet, "meter-4", "mill.plant.example"), ask(fleet, "Mill.plant.example")
        outcomes = await asyncio.gather(*at_once, return_exceptions=True)
        assert sorted(isinstance(each, NameRefused) for each in outcomes) == [False, True]
        async with open_fleet(store_url, fleet.authority, configured=[PLANT]) as clients_only:
            await ask(clients_only, "press.plant.example")


async def test_who_has_another_s_host_name_for_a_name_renews(store_url: str) -> None:
    async with open_fleet(store_url, configured=[SERVING]) as fleet:
        certificate = await ask(fleet, PRESS)
        await fleet.database.write(lambda connection: connection.execute(delete(tables.host_names)))
        await granted(fleet, "mqtt-1", PRESS)  # As before such names were noted.
        with capture_logs() as lines:
            await fleet.reenrol(certificate, successor_csr(certificate))
        assert [each["host_name"] for each in lines if each.get("code") == "HOST_NAME_TAKEN"] == [PRESS]


async def test_a_server_s_address_is_given_to_no_device_that_may_serve(store_url: str) -> None:
    async with open_fleet(store_url, configured=[SERVING]) as fleet:
        certificate = await ask(fleet, "meter-1", "192.0.2.7", "192.0.2.8")
        assert addresses(certificate) == ["192.0.2.7", "192.0.2.8"]
        assert addresses(await ask(fleet, "meter-2", "192.0.2.8")) == ["192.0.2.8"], "devices may move"
        for broker in ("mqtt-1", "mqtt-2"):
            await granted(fleet, broker, "mqtt.example", "192.0.2.7")
        await refused(fleet, "meter-3", "192.0.2.7")
        await refused(fleet, "192.0.2.7")
        await refused(fleet, "192.0.2.7.")
        assert addresses(await fleet.reenrol(certificate, successor_csr(certificate))) == ["192.0.2.8"]
        async with open_fleet(store_url, fleet.authority, configured=[CLIENTS]) as clients_only:
            assert addresses(await ask(clients_only, "meter-4", "192.0.2.7")) == ["192.0.2.7"]
        await fleet.revocation.decommission("mqtt-1", by="admin")
        await refused(fleet, "meter-3", "192.0.2.7")
        await fleet.revocation.decommission("mqtt-2", by="admin")
        assert addresses(await ask(fleet, "meter-3", "192.0.2.7")) == ["192.0.2.7"]


async def test_an_heir_is_looked_for_among_the_certificates_of_servers_only(tmp_path: Path) -> None:
    """Every certificate of the fleet was read for it, while nobody else could write: 1.4 s for a million."""
    asked: list[str] = []

    def claimed(connection: Connection) -> list[str]:
        driver: Any = connection.connection.driver_connection
        driver.set_trace_callback(asked.append)
        try:
            assert not host_names.claim(connection, PRESS, 999, fleet.clock())
        finally:
            driver.set_trace_callback(None)
        searches = [each for each in asked if each.startswith("SELECT") and "certificates" in each]
        return [str(row[-1]) for each in searches for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {each}")]

    async with open_fleet(f"sqlite:///{tmp_path / 'fleet.db'}", configured=[PLANT]) as fleet:
        for broker in ("mqtt-1", "mqtt-2"):
            await granted(fleet, broker, PRESS)
        await fleet.revocation.decommission("mqtt-1", by="admin")
        plan = await fleet.database.write(claimed)
    assert plan
    assert all("(device_id=?)" in line for line in plan), plan


async def test_the_servers_are_found_without_looking_at_the_devices(store_url: str) -> None:
    """Else a device that asks again and again for what an ended server has left to another stops whoever writes."""

    def plans(connection: Connection) -> list[str]:
        many = [{"name": f"more-{number}", "role": "device", "created_at": fleet.clock()} for number in range(5000)]
        connection.execute(insert(tables.devices), many)
        sought = host_names._OTHER_SERVERS._for(connection.dialect, values)
        explain = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
        driver: Any = connection.connection.driver_connection
        found = []
        for also in ("SELECT 1", "ANALYZE"):  # Statistics come a while after the devices, if at all.
            connection.exec_driver_sql(also)
            plan = driver.execute(f"{explain} {sought.text}", sought.bound(values)).fetchall()
            found.append("\n".join(str(row[-1]) for row in plan))
        others = {server for (server,) in host_names._OTHER_SERVERS.rows(connection, values)}
        assert {made[Role.BROKER], made[Role.SERVICE]} <= others
        assert not others & {made[Role.OPERATOR], made[Role.DEVICE]}
        return found

    async with open_fleet(store_url, configured=[PLANT]) as fleet:
        one = partial(devices.add, group="north", now=fleet.clock())
        made = {
            role: (await fleet.database.write(partial(one, name=role.value, role=role))).id
            for role in (Role.OPERATOR, Role.DEVICE, Role.BROKER, Role.SERVICE)
        }
        values = {"holder": made[Role.OPERATOR]}
        for plan in await fleet.database.write(plans):
            assert re.search(r"(SEARCH|Index Scan).*ix_devices_servers", plan), plan
            assert not re.search(r"SCAN devices|Seq Scan", plan), plan
