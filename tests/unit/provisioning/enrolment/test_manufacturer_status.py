"""Manufacturers' CRLs: whom they keep out."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtensionOID
from sqlalchemy.engine import Connection

from provisioning.doctor.doctor_manufacturers import manufacturer_findings
from provisioning.enrolment.manufacturers import ManufacturerService
from provisioning.errors import Code, Refused
from provisioning.pki.crl import Scope
from provisioning.pki.keys import generate_key
from provisioning.store import manufacturer_lists
from provisioning.store.manufacturers import LapsedLists
from tests.support.crl import at, scope
from tests.support.fleet import Fleet, open_fleet
from tests.support.manufacturer import Manufacturer
from tests.support.requests import NOON, csr_der
from tests.support.ways import enrol, give_list, group, listed, nothing, refusal, register, set_lapsed

DAY = timedelta(days=1)
HOLD = x509.ReasonFlags.certificate_hold
SHARD = "http://pki.acme.example/{}.crl"


async def test_what_the_manufacturer_has_revoked_lets_nobody_in(
    fleet: Fleet, acme: Manufacturer, store_url: str
) -> None:
    stolen, good = acme.idevid("SN17")[0], acme.idevid("SN18")[0]
    await give_list(fleet, listed(acme, stolen))
    said = (
        rf"MANUFACTURER_REVOKED: the certificate, serial number {stolen.serial_number:x}, was revoked by acme on 2027-"
    )
    with pytest.raises(Refused, match=said):
        await enrol(fleet, "SN17", certificate=stolen)
    with pytest.raises(Refused, match=said):
        await fleet.enrolment.enrol_with_server_key(csr_der(names=["SN17"]), None, None, stolen)
    await enrol(fleet, "SN18", certificate=good)
    async with open_fleet(store_url, fleet.authority) as other:  # Another process, or this one after a restart.
        assert await refusal(other, "SN17", certificate=stolen) is Code.MANUFACTURER_REVOKED


async def test_who_was_let_in_is_not_answered_again_once_the_manufacturer_has_revoked_it(
    fleet: Fleet, acme: Manufacturer
) -> None:
    idevid, key = acme.idevid("SN17")[0], generate_key()
    first = await enrol(fleet, "SN17", certificate=idevid, key=key)
    assert await enrol(fleet, "SN17", certificate=idevid, key=key) == first
    await give_list(fleet, listed(acme, idevid, reason=None))
    with pytest.raises(Refused, match=r"MANUFACTURER_REVOKED: .*\(unspecified\)"):
        await enrol(fleet, "SN17", certificate=idevid, key=key)


async def test_a_hold_keeps_out_until_a_list_without_it(fleet: Fleet, acme: Manufacturer) -> None:
    idevid = acme.idevid("SN17")[0]
    assert (await give_list(fleet, listed(acme, idevid, 7, 8, reason=HOLD))).revoked == 3
    assert await refusal(fleet, "SN17", certificate=idevid) is Code.MANUFACTURER_REVOKED
    taken = await give_list(fleet, listed(acme, 7, 9, number=2))
    assert (taken.revoked, taken.released, taken.stored.entries) == (1, 2, 2)
    await enrol(fleet, "SN17", certificate=idevid)


async def test_a_lapsed_list_lets_nobody_in_until_the_next_or_an_operator_s_word(
    fleet: Fleet, acme: Manufacturer
) -> None:
    async def let_in(name: str) -> Code | None:
        try:
            await enrol(fleet, name, certificate=acme.idevid(name)[0])
        except Refused as refused:
            return refused.code
        return None

    revoked = acme.idevid("SN17")[0]
    await give_list(fleet, listed(acme, revoked))
    fleet.clock.advance(DAY)
    assert await let_in("SN18") is None, "until nextUpdate, that second too"
    fleet.clock.advance(timedelta(seconds=1))
    with pytest.raises(Refused, match=r"expired on 2027-03-02 12:00 UTC.*manufacturer crl acme FILE") as lapsed:
        await enrol(fleet, "SN19", certificate=acme.idevid("SN19")[0])
    assert (lapsed.value.code, lapsed.value.retry_after) == (Code.MANUFACTURER_LIST_LAPSED, 600)
    assert await refusal(fleet, "SN17", certificate=revoked) is Code.MANUFACTURER_REVOKED, "it names it all the same"
    await set_lapsed(fleet, LapsedLists.ACCEPT)
    assert await let_in("SN19") is None
    assert await refusal(fleet, "SN17", certificate=revoked) is Code.MANUFACTURER_REVOKED
    await set_lapsed(fleet, LapsedLists.REFUSE)
    assert await let_in("SN20") is Code.MANUFACTURER_LIST_LAPSED
    await give_list(fleet, listed(acme, revoked, number=2, now=fleet.clock()))
    assert await let_in("SN20") is None


async def test_a_list_in_parts_is_about_those_certificates_that_name_it(fleet: Fleet, acme: Manufacturer) -> None:
    def part(shard: int, *revoked: x509.Certificate, **facts: Any) -> bytes:
        return listed(acme, *revoked, point=scope(SHARD.format(shard), users_only=True), **facts)

    first, second = (
        acme.idevid(f"SN{number}", extensions=[(x509.CRLDistributionPoints(at(SHARD.format(number))), False)])[0]
        for number in (1, 2)
    )
    await give_list(fleet, part(1, first))
    assert await refusal(fleet, "SN1", certificate=first) is Code.MANUFACTURER_REVOKED
    with pytest.raises(Refused, match=r"MANUFACTURER_LIST_LAPSED: no list of acme covers .* at http://.*/2\.crl:"):
        await enrol(fleet, "SN2", certificate=second)
    with pytest.raises(Refused, match=r"MANUFACTURER_LIST_LAPSED: .* on that about all certificates:"):
        await enrol(fleet, "SN3", certificate=acme.idevid("SN3")[0])
    taken = await give_list(fleet, part(2))
    assert (taken.stored.scope.names, taken.stored.scope.users_only) == (frozenset({SHARD.format(2)}), True)
    await enrol(fleet, "SN2", certificate=second)
    assert await refusal(fleet, "SN1", certificate=first) is Code.MANUFACTURER_REVOKED, "the other part says nothing"
    assert (await give_list(fleet, part(1, number=2))).released == 1
    await enrol(fleet, "SN1", certificate=first)


async def test_one_certificate_is_looked_up_whatever_else_was_revoked(fleet: Fleet, acme: Manufacturer) -> None:
    """A join of the tables would read all of them, on SQLite always and on PostgreSQL without statistics."""
    idevid = acme.idevid("SN17")[0]
    taken = await give_list(fleet, listed(acme, idevid))
    many = [{"list_id": taken.stored.id, "serial": f"{serial:x}", "entry": 0} for serial in range(1, 20_000)]
    identifier = (await ManufacturerService(fleet.database, fleet.clock, nothing).find("acme")).id

    def read(connection: Connection) -> str:
        assert manufacturer_lists.entry_of(connection, identifier, idevid.serial_number) is not None
        assert manufacturer_lists.entry_of(connection, identifier, 20_000) is None
        asked = {"of": identifier, "wanted": "1"}
        if connection.dialect.name == "sqlite":
            compiled = manufacturer_lists._NAMING._for(connection.dialect, asked)
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled.text}", tuple(compiled.bound(asked))).all()
            return " ".join(str(row[-1]) for row in plan if "SCAN manufacturer_revocations" in row[-1])
        read = "SELECT seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'manufacturer_revocations'"
        return str(connection.exec_driver_sql(read).scalar_one() or "")

    await fleet.database.write(lambda connection: manufacturer_lists._ADD.run_each(connection, many))
    assert await fleet.database.write(read) == ""


async def test_who_is_registered_again_under_another_name_has_revoked_what_it_had(
    fleet: Fleet, acme: Manufacturer
) -> None:
    idevid = acme.idevid("SN17")[0]
    await give_list(fleet, listed(acme, idevid))
    await ManufacturerService(fleet.database, fleet.clock, nothing).end("acme", by="admin")
    await register(fleet, Manufacturer(begin=NOON - DAY, key=acme.key), name="acme-2")
    assert await refusal(fleet, "SN17", certificate=idevid) is Code.MANUFACTURER_REVOKED
    await enrol(fleet, "SN18", certificate=acme.idevid("SN18")[0])


@pytest.mark.parametrize("authorities_only", [False, True])
async def test_a_ca_that_the_ca_above_it_has_revoked_lets_nobody_in(fleet: Fleet, authorities_only: bool) -> None:
    root = Manufacturer(begin=NOON - DAY)
    acme = Manufacturer("Acme east", begin=NOON - DAY, above=root)
    await group(fleet, "manufacturer")
    await register(fleet, acme)
    await group(fleet, name="nobody")
    service = ManufacturerService(fleet.database, fleet.clock, nothing)
    await service.add(name="root", group="nobody", name_prefix="", pem=root.pem, by="admin")
    await enrol(fleet, "SN17", certificate=acme.idevid("SN17")[0])
    assert await refusal(fleet, "SN18", certificate=root.idevid("SN18")[0]) is Code.WAY_REFUSED
    point = scope(authorities_only=True) if authorities_only else None
    await give_list(fleet, listed(root, acme.certificate, point=point), "root")
    with pytest.raises(Refused, match=r"MANUFACTURER_REVOKED: the CA of acme, serial number .* revoked by root"):
        await enrol(fleet, "SN18", certificate=acme.idevid("SN18")[0])
    said = await fleet.database.read(lambda connection: list(manufacturer_findings(connection, fleet.clock())))
    (failed,) = [each.detail for each in said if each.verdict == "failed"]
    assert re.fullmatch(
        r"the CA of acme, serial .* by root on 2027.* \(keyCompromise\): its devices are refused", failed
    )
    await service.end("acme", by="admin")
    said = await fleet.database.read(lambda connection: list(manufacturer_findings(connection, fleet.clock())))
    assert [each for each in said if each.verdict == "failed"] == []


async def test_for_a_list_about_cas_only_no_device_waits(fleet: Fleet, acme: Manufacturer) -> None:
    taken = await give_list(fleet, listed(acme, 7, point=scope(authorities_only=True)))
    assert taken.stored.scope == Scope(authorities_only=True)
    fleet.clock.advance(2 * DAY)
    await enrol(fleet, "SN17", certificate=acme.idevid("SN17")[0])
    assert await fleet.database.read(manufacturer_lists.awaited) == {}
    await give_list(fleet, listed(acme, now=fleet.clock()))
    await enrol(fleet, "SN18", certificate=acme.idevid("SN18")[0])
    fleet.clock.advance(2 * DAY)
    assert await refusal(fleet, "SN19", certificate=acme.idevid("SN19")[0]) is Code.MANUFACTURER_LIST_LAPSED


async def test_a_ca_of_the_same_name_revokes_its_own_only(fleet: Fleet, acme: Manufacturer) -> None:
    namesake = Manufacturer(begin=NOON - DAY)
    await register(fleet, namesake, name="namesake", prefix="n-")
    idevid = acme.idevid("SN17")[0]
    await give_list(fleet, listed(namesake, idevid), "namesake")
    await enrol(fleet, "SN17", certificate=idevid)


async def test_a_certificate_that_does_not_say_readably_where_its_list_is_waits_for_none(
    fleet: Fleet, acme: Manufacturer
) -> None:
    points = x509.UnrecognizedExtension(ExtensionOID.CRL_DISTRIBUTION_POINTS, b"\x05\x00")
    idevid = acme.idevid("SN17", extensions=[(points, False)])[0]
    await give_list(fleet, listed(acme))
    with pytest.raises(Refused, match="MANUFACTURER_CERTIFICATE: the certificate cannot be read"):
        await enrol(fleet, "SN17", certificate=idevid)
