from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from sqlalchemy import event
from sqlalchemy.engine import Connection

from provisioning.enrolment import token_retention
from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.token_retention import TokenRetention
from provisioning.enrolment.tokens import TokenOrder
from provisioning.errors import Code, Refused
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.store import (
    audit,
    authorities,
    certificates_of_device,
    devices,
    inventory,
    token_inventory,
    unfinished_authority_ends,
    unfinished_key_ends,
)
from provisioning.store.authorities import AuthorityState
from provisioning.store.certificates import CertificateState
from provisioning.store.certificates_of_key import DeviceKey
from provisioning.store.devices import DeviceState
from provisioning.store.inventory import CertificateSearch
from provisioning.store.token_inventory import TokenFilter
from provisioning.store.unfinished_authority_ends import EndedIssuer, UnfinishedAuthorityEnd
from tests.support.fleet import Fleet
from tests.support.requests import csr_der

DAY = timedelta(days=1)


async def found(fleet: Fleet, search: CertificateSearch) -> set[str]:
    now = fleet.clock()
    page, following = await fleet.database.read(
        lambda connection: inventory.page(connection, search, limit=100, after=None, now=now)
    )
    assert following is None
    counts = await fleet.database.read(lambda connection: inventory.count(connection, now, search))
    assert sum(counts.values()) == len(page)
    for state in CertificateState:
        assert counts[state] == sum(each.state(now) is state for each in page)
    return {each.device.name for each in page}


async def test_certificates_are_found_by_everything_that_names_them(fleet: Fleet) -> None:
    for name in ("meter-1", "meter-2", "meter-3"):
        await fleet.enrol(name)
    fleet.clock.advance(20 * DAY)
    last = await fleet.enrol("meter-4")
    await fleet.revocation.revoke_device("meter-1", RevocationReason.SUPERSEDED, by="admin")
    await fleet.suspension.suspend_device("meter-2", by="admin")
    now = fleet.clock()
    everyone = {"meter-1", "meter-2", "meter-3", "meter-4"}
    for search, expected in (
        (CertificateSearch(), everyone),
        (CertificateSearch(device="meter-3"), {"meter-3"}),
        (CertificateSearch(group="north"), everyone),
        (CertificateSearch(group="south"), set()),
        (CertificateSearch(serial=f"{last.serial_number:x}"), {"meter-4"}),
        (CertificateSearch(fingerprint=last.fingerprint(hashes.SHA256()).hex()), {"meter-4"}),
        (CertificateSearch(issuer=fleet.issuer.key_id.hex()), everyone),
        (CertificateSearch(issuer="00"), set()),
        (CertificateSearch(state=CertificateState.REVOKED), {"meter-1"}),
        (CertificateSearch(state=CertificateState.SUSPENDED), {"meter-2"}),
        (CertificateSearch(state=CertificateState.ACTIVE), {"meter-3", "meter-4"}),
        (CertificateSearch(state=CertificateState.ACTIVE, expires_before=now + 14 * DAY), {"meter-3"}),
        (CertificateSearch(expires_from=now + 14 * DAY), {"meter-4"}),
    ):
        assert await found(fleet, search) == expected, search
    fleet.clock.advance(11 * DAY)
    assert await found(fleet, CertificateSearch(state=CertificateState.EXPIRED)) == {"meter-3"}


@pytest.mark.parametrize(("of_key", "of_issuer"), [(-1, -1), (1, -1), (-2, -1), (0, -1), (0, None), (1, 0), (-1, None)])
async def test_what_ended_with_its_key_or_its_ca_before_it_expired_is_revoked_and_nothing_else(
    fleet: Fleet, of_key: int, of_issuer: int | None
) -> None:
    """Whichever came first: a key may be reported when the certificate has long ended, which was its CA's by then."""
    certificate = await fleet.enrol("meter-1")
    expiry = certificate.not_valid_after_utc

    def end(connection: Connection) -> None:
        device = devices.find(connection, "meter-1")
        assert device is not None
        (stored,) = certificates_of_device.every(connection, device.id)
        key = DeviceKey(device.id, stored.spki_sha256)
        unfinished_key_ends.begin(
            connection, [key], invalidity_date=None, ended_at=expiry + of_key * DAY, ended_by="admin"
        )
        if of_issuer is not None:
            authorities.set_state(connection, "issuing-ca", AuthorityState.REVOKED, expiry + of_issuer * DAY)
            end = UnfinishedAuthorityEnd(RevocationReason.CA_COMPROMISE, None, expiry + of_issuer * DAY, "admin")
            unfinished_authority_ends.begin(connection, EndedIssuer(stored.issuer_key_id), end)

    await fleet.database.write(end)
    fleet.clock.advance(expiry + 2 * DAY - fleet.clock())
    revoked = min(of_key, of_issuer or 0) < 0
    for state in (CertificateState.REVOKED, CertificateState.EXPIRED):
        expected = {"meter-1"} if revoked is (state is CertificateState.REVOKED) else set()
        assert await found(fleet, CertificateSearch(state=state)) == expected, state


async def test_an_active_device_that_has_nothing_good_to_show_is_counted(fleet: Fleet) -> None:
    async def bare() -> int:
        now = fleet.clock()
        active = (await fleet.database.read(devices.count))[DeviceState.ACTIVE]
        return active - await fleet.database.read(lambda connection: devices.count_certified(connection, now))

    for name in ("meter-1", "meter-2", "meter-3"):
        last = await fleet.enrol(name)
    assert await bare() == 0
    await fleet.revocation.revoke_device("meter-1", RevocationReason.SUPERSEDED, by="admin")
    await fleet.suspension.suspend_device("meter-2", by="admin")
    assert await bare() == 0, "they are not active, and counted as what they are"
    await fleet.revocation.revoke_serial(f"{last.serial_number:x}", RevocationReason.SUPERSEDED, by="admin")
    assert await bare() == 1
    await fleet.enrol("meter-4")
    fleet.clock.advance(31 * DAY)
    assert await bare() == 2, "what has expired is good for nothing either"


async def test_ended_tokens_are_removed_after_the_retention_and_usable_ones_never(fleet: Fleet) -> None:
    retention = TokenRetention(fleet.database, fleet.clock, 90 * DAY, "provisioning")
    await fleet.enrol("meter-1")
    voided = await fleet.token("meter-2")
    await fleet.enrol("meter-2")
    await fleet.revocation.revoke_device("meter-2", RevocationReason.SUPERSEDED, by="admin")
    expired = await fleet.token("meter-3")
    assert await retention.remove() == 0
    fleet.clock.advance(90 * DAY + timedelta(hours=2))
    usable = await fleet.token("meter-4")
    assert await retention.remove() == 4
    assert await retention.remove() == 0
    for name, token in (("meter-2", voided), ("meter-3", expired)):
        with pytest.raises(Refused) as caught:
            await fleet.enrolment.enrol(csr_der(names=[name]), TokenCredential(name, token))
        assert caught.value.code is Code.TOKEN_UNKNOWN
    await fleet.enrolment.enrol(csr_der(names=["meter-4"]), TokenCredential("meter-4", usable))
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 1000))
    assert [each.subject for each in entries if each.action == "spent tokens removed"] == ["4 tokens"]


async def test_no_number_is_given_to_a_second_token_though_all_are_ended_and_removed(fleet: Fleet) -> None:
    """Whoever lists what is new since the last number that he knows would never see it; or void another's token."""
    known = []
    for _ in range(3):
        order = TokenOrder(group="north", count=2, ttl=timedelta(days=1))
        known += [each.number for each in await fleet.token_service.create(order, by="admin")]
        fleet.clock.advance(60 * DAY)
        await TokenRetention(fleet.database, fleet.clock, 30 * DAY, "provisioning").remove()
    assert known == sorted(set(known))


async def test_many_ended_tokens_are_removed_in_portions_and_usable_ones_among_them_stay(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One transaction for a hundred thousand kept others waiting for seconds."""
    monkeypatch.setattr(token_retention, "PORTION", 2)
    order = TokenOrder(devices=["meter-1"], ttl=timedelta(days=1))
    for name in ("meter-1", "meter-2"):
        await fleet.token_service.create(replace(order, devices=[name]), by="admin")
    (kept,) = await fleet.token_service.create(TokenOrder(devices=["meter-3"], ttl=90 * DAY), by="admin")
    for name in ("meter-4", "meter-5", "meter-6"):
        await fleet.token_service.create(replace(order, devices=[name]), by="admin")
    (newest,) = await fleet.token_service.create(TokenOrder(devices=["meter-7"], ttl=90 * DAY), by="admin")
    fleet.clock.advance(60 * DAY)
    assert await TokenRetention(fleet.database, fleet.clock, 30 * DAY, "provisioning").remove() == 5
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 1000))
    removed = [each.subject for each in entries if each.action == "spent tokens removed"]
    assert removed == ["2 tokens", "2 tokens", "1 token"]
    left, _ = await fleet.database.read(
        lambda connection: token_inventory.page(connection, TokenFilter(), limit=9, after=0, now=fleet.clock())
    )
    assert [each.id for each in left] == [kept.number, newest.number]


async def test_the_tokens_of_one_group_are_found_without_reading_all_others(fleet: Fleet) -> None:
    await fleet.token_service.create(TokenOrder(group="many", count=2000), by="admin")
    await fleet.token_service.create(TokenOrder(group="few", count=3), by="admin")
    asked: list[tuple[str, Any]] = []

    def explained(connection: Connection) -> list[str]:
        connection.exec_driver_sql("ANALYZE")
        event.listen(connection, "before_cursor_execute", lambda *each: asked.append((each[2], each[3])))
        wanted = TokenFilter(group="few")
        found, _ = token_inventory.page(connection, wanted, limit=100, after=1, now=fleet.clock())
        assert [each.group for each in found] == ["few"] * 3
        explain = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
        return [
            "\n".join(str(row[-1]) for row in connection.exec_driver_sql(f"{explain} {statement}", parameters).all())
            for statement, parameters in list(asked)
        ]

    plans = await fleet.database.write(explained)
    plans = [plan for plan in plans if "tokens" in plan]
    assert len(plans) == 2
    assert all("ix_tokens_group_name" in plan for plan in plans), plans
