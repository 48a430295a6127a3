"""When to renew, and renewal after the end: windows, orders, grace."""

from __future__ import annotations

import base64
import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert, select
from sqlalchemy.engine import Connection

from provisioning.client.est import renewal_identifier
from provisioning.enrolment import pace
from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.authentication import authenticate
from provisioning.enrolment.renewal_info import (
    HastenedOutcome,
    RenewalInfo,
    RenewalService,
    parse_identifier,
    window,
)
from provisioning.enrolment.tokens import TokenOrder
from provisioning.errors import Code, Refused
from provisioning.pki.keys import generate_key
from provisioning.pki.revocation import certificate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.revocation.grounds import Grounds
from provisioning.revocation.of_authority import revoke_authority
from provisioning.store import audit, audit_findings, certificates, certificates_of_key
from provisioning.store.audit import Action
from provisioning.store.groups import Group, NewKey
from provisioning.store.renewals import Hastened
from provisioning.store.tables import activations, claims
from tests.support.fleet import Fleet, successor_csr
from tests.support.requests import NOON, csr_der
from tests.support.ways import claim

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)


def service(fleet: Fleet) -> RenewalService:
    return RenewalService(fleet.database, fleet.clock)


async def window_of(fleet: Fleet, certificate: x509.Certificate) -> tuple[datetime, datetime]:
    info = await service(fleet).info(renewal_identifier(certificate))
    return info.start, info.end


# How long.


async def short_lived(fleet: Fleet, name: str = "meter-17", role: Role = Role.DEVICE) -> x509.Certificate:
    """Return a first certificate for eight hours, of a profile that grants thirty days."""
    order = TokenOrder([name], role=role, lifetime=8 * HOUR)
    (issued,) = await fleet.token_service.create(order, by="admin")
    return await fleet.enrolment.enrol(csr_der(names=[name]), TokenCredential(name, issued.token))


@pytest.mark.parametrize("role", [Role.DEVICE, Role.OPERATOR, Role.SERVICE])
async def test_no_renewal_lives_longer_than_the_token_granted(fleet: Fleet, role: Role) -> None:
    certificate = await short_lived(fleet, "contractor", role)
    for _ in range(3):
        assert certificate.not_valid_after_utc == fleet.clock() + 8 * HOUR
        fleet.clock.advance(5 * HOUR)
        certificate = await fleet.reenrol(certificate, successor_csr(certificate))


async def test_a_group_may_shorten_a_renewal_and_not_lengthen_it(fleet: Fleet) -> None:
    await fleet.groups.create(Group("default", lifetime=HOUR), by="admin")
    certificate = await short_lived(fleet)
    assert certificate.not_valid_after_utc == fleet.clock() + HOUR
    certificate = await fleet.reenrol(certificate, successor_csr(certificate))
    assert certificate.not_valid_after_utc == fleet.clock() + HOUR
    await fleet.groups.change("default", {"lifetime": None}, by="admin")
    for _ in range(2):
        certificate = await fleet.reenrol(certificate, successor_csr(certificate))
        assert certificate.not_valid_after_utc == fleet.clock() + 8 * HOUR, "what the token said, without the group"


async def test_a_new_token_is_a_new_grant_and_the_old_certificate_keeps_its_own(fleet: Fleet) -> None:
    short = await short_lived(fleet)
    token = await fleet.token(group="default")
    long = await fleet.enrolment.enrol(csr_der(), TokenCredential("meter-17", token))
    assert (await fleet.reenrol(long, successor_csr(long))).not_valid_after_utc == fleet.clock() + 30 * DAY
    assert (await fleet.reenrol(short, successor_csr(short))).not_valid_after_utc == fleet.clock() + 8 * HOUR


# Windows.


@given(st.floats(0, 1, exclude_max=True), st.integers(120, 825 * 86400))
def test_a_window_is_inside_the_life_and_around_its_place(share: float, seconds: int) -> None:
    life = timedelta(seconds=seconds)
    info = window(NOON, NOON + life, share)
    middle = 1 / 2 if life < 10 * DAY else 2 / 3
    assert NOON < info.start <= info.end < NOON + life
    for moment in (info.start, info.end):
        assert abs((moment - NOON) - life * middle) <= life * (1 / 40 + 1 / 100) + 2 * SECOND
    assert timedelta(minutes=1) <= info.retry_after <= 6 * HOUR


@pytest.mark.parametrize(
    ("life", "share", "begins", "ends", "retry"),
    [
        (30 * DAY, 0.5, 20 * DAY - 0.3 * DAY, 20 * DAY + 0.3 * DAY, 6 * HOUR),
        (30 * DAY, 0.0, 20 * DAY - 1.05 * DAY, 20 * DAY - 0.45 * DAY, 6 * HOUR),
        (30 * DAY, 1.0, 20 * DAY + 0.45 * DAY, 20 * DAY + 1.05 * DAY, 6 * HOUR),
        (10 * DAY, 0.5, 10 * DAY * 2 / 3 - 0.1 * DAY, 10 * DAY * 2 / 3 + 0.1 * DAY, 6 * HOUR),
        (10 * DAY - 100 * SECOND, 0.5, 423_311 * SECOND, 440_589 * SECOND, 6 * HOUR),
        (100 * HOUR, 0.5, 49 * HOUR, 51 * HOUR, 5 * HOUR),
        (100 * SECOND, 0.5, 49 * SECOND, 51 * SECOND, 60 * SECOND),
    ],
)
def test_a_window_is_told_to_the_second(
    life: timedelta, share: float, begins: timedelta, ends: timedelta, retry: timedelta
) -> None:
    assert window(NOON, NOON + life, share) == RenewalInfo(NOON + begins, NOON + ends, retry)
    # An order that concerns it moves the window to its place in the spread, if that is before.
    order = Hastened(NOON + begins - 2 * SECOND, SECOND)
    at = (order.at + SECOND * share).replace(microsecond=0)
    if share in {0.0, 1.0}:
        assert window(NOON, NOON + life, share, order) == RenewalInfo(at - 2 * SECOND, at - SECOND, retry)
    late = Hastened(NOON + begins - SECOND * share, SECOND)
    assert window(NOON, NOON + life, share, late) == window(NOON, NOON + life, share)
    odd = window(NOON, NOON + 1001 * SECOND, 0.5)
    assert (odd.start, odd.end) == (NOON + 490 * SECOND, NOON + 510 * SECOND), "without fractions"


async def test_what_lives_shorter_than_it_is_dated_back_is_not_due_when_it_comes(fleet: Fleet) -> None:
    order = TokenOrder(["meter-17"], lifetime=timedelta(seconds=30))
    (issued,) = await fleet.token_service.create(order, by="admin")
    certificate = await fleet.enrolment.enrol(csr_der(), TokenCredential("meter-17", issued.token))
    for _ in range(2):  # Its successor is as short: it would be renewed without end.
        assert certificate.not_valid_before_utc < fleet.clock() - timedelta(seconds=30)
        start, end = await window_of(fleet, certificate)
        assert fleet.clock() < start <= end < certificate.not_valid_after_utc
        fleet.clock.advance(start - fleet.clock())
        certificate = await fleet.reenrol(certificate, successor_csr(certificate))


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 30 * 86400))
def test_an_order_moves_the_window_forward_never_back(share: float, spread: int) -> None:
    order = Hastened(NOON + DAY, timedelta(seconds=spread))
    plain, hastened = window(NOON, NOON + 30 * DAY, share), window(NOON, NOON + 30 * DAY, share, order)
    assert hastened.start <= plain.start
    assert hastened == plain or hastened.end <= order.at + order.spread * share
    if not spread:
        assert hastened.end < order.at


async def test_windows_of_a_fleet_are_spread_and_stay_where_they_are(fleet: Fleet) -> None:
    certificates = [await fleet.enrol(f"meter-{number}") for number in range(20)]
    windows = [await window_of(fleet, each) for each in certificates]
    starts = sorted(start for start, _ in windows)
    assert starts[-1] - starts[0] > 6 * HOUR, "a fortieth of thirty days, either way"
    fleet.clock.advance(3 * DAY)
    assert [await window_of(fleet, each) for each in certificates] == windows


async def test_an_operator_hastens_what_was_issued_before_and_its_successors_are_ordinary(fleet: Fleet) -> None:
    north = await fleet.enrol("meter-1")
    token = await fleet.token("meter-2", "south")
    south = await fleet.enrolment.enrol(csr_der(names=["meter-2"]), TokenCredential("meter-2", token))
    before = await window_of(fleet, south)
    fleet.clock.advance(HOUR)
    outcome = await service(fleet).hasten(group="north", spread=timedelta(), by="admin")
    assert outcome.certificates == 1
    assert (await window_of(fleet, north))[1] < fleet.clock()
    assert await window_of(fleet, south) == before
    fleet.clock.advance(SECOND)
    successor = await fleet.reenrol(north, successor_csr(north))
    assert (await window_of(fleet, successor))[0] > fleet.clock() + 10 * DAY
    assert (await service(fleet).hasten(group=None, spread=HOUR, by="admin")).certificates == 3
    start, _ = await window_of(fleet, south)
    assert fleet.clock() - 2 * SECOND <= start <= fleet.clock() + HOUR
    assert await fleet.database.read(lambda connection: list(audit_findings.findings(connection))) == []


async def test_of_several_orders_that_counts_by_which_a_certificate_is_renewed_first(fleet: Fleet) -> None:
    """First there was time, then a key leaked: whoever is to be renewed within a month is to be renewed at once."""
    certificates = [await fleet.enrol(f"meter-{number}") for number in range(4)]
    at = fleet.clock()
    for number, (group, spread) in enumerate([(None, 30 * DAY), ("north", timedelta()), (None, 30 * DAY)]):
        outcome = await service(fleet).hasten(group=group, spread=spread, by="admin")
        assert outcome.certificates == 4, "also those of this very moment"
        found = [await window_of(fleet, each) for each in certificates]
        if number == 0:
            assert len(set(found)) == 4
            fleet.clock.advance(SECOND)  # Not by more: of a month, some would have their moments in it, and keep them.
            at = fleet.clock()
        else:
            assert set(found) == {(at - 2 * SECOND, at - SECOND)}
            fleet.clock.advance(HOUR)


async def test_an_order_concerns_what_was_issued_at_its_very_moment(fleet: Fleet) -> None:
    certificate = await fleet.enrol()
    assert (await service(fleet).hasten(group="north", spread=timedelta(), by="admin")).certificates == 1
    assert await window_of(fleet, certificate) == (fleet.clock() - 2 * SECOND, fleet.clock() - SECOND)


async def test_an_order_concerns_certificates_that_are_good(fleet: Fleet) -> None:
    ended, revoked = await fleet.enrol("meter-1"), await fleet.enrol("meter-2")
    await fleet.revocation.revoke_serial(f"{revoked.serial_number:x}", RevocationReason.SUPERSEDED, by="admin")
    asks_nobody = TokenCredential("broker-1", await fleet.token("broker-1", group=None, role=Role.BROKER))
    await fleet.enrolment.enrol(csr_der(names=["broker-1"]), asks_nobody)
    assert (await service(fleet).hasten(group=None, spread=HOUR, by="admin")).certificates == 1
    fleet.clock.advance(ended.not_valid_after_utc - fleet.clock())
    assert (await service(fleet).hasten(group=None, spread=HOUR, by="admin")).certificates == 0


async def test_what_is_revoked_has_a_window_that_is_over(fleet: Fleet) -> None:
    certificate = await fleet.enrol()
    await fleet.revocation.revoke_device("meter-17", RevocationReason.KEY_COMPROMISE, by="admin")
    info = await service(fleet).info(renewal_identifier(certificate))
    assert info == RenewalInfo(fleet.clock() - 2 * SECOND, fleet.clock() - SECOND, 6 * HOUR)


async def test_who_is_suspended_has_his_ordinary_window(fleet: Fleet) -> None:
    certificate = await fleet.enrol()
    before = await window_of(fleet, certificate)
    await fleet.suspension.suspend_device("meter-17", by="admin")
    assert await window_of(fleet, certificate) == before


async def test_orders_are_audited(fleet: Fleet) -> None:
    await fleet.enrol()
    assert await service(fleet).hasten(group=None, spread=30 * DAY, by="anna") == HastenedOutcome(
        None, fleet.clock(), 30 * DAY, 1
    )
    with pytest.raises(Refused, match="GROUP_UNKNOWN: no group 'south' is configured, and no device of such a"):
        await service(fleet).hasten(group="south", spread=0 * DAY, by="bert")
    await fleet.groups.create(Group("south"), by="admin")
    await service(fleet).hasten(group="south", spread=0 * DAY, by="bert")
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 9))
    entries = [each for each in entries if each.action == Action.RENEWAL_HASTENED]
    assert [(each.actor, each.action, each.subject, json.loads(each.details)) for each in entries] == [
        ("anna", Action.RENEWAL_HASTENED, "every group", {"certificates": 1, "spread": "30d"}),
        ("bert", Action.RENEWAL_HASTENED, "south", {"certificates": 0, "spread": "0s"}),
    ]


async def test_an_identifier_is_the_standard_s_and_nothing_else(fleet: Fleet) -> None:
    certificate = await fleet.enrol()
    assert parse_identifier(renewal_identifier(certificate)) == certificate_key(certificate)
    # RFC 9773 §4.1, its own example.
    key, serial = parse_identifier("aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE")
    assert key.hex(":").upper() == "69:88:5B:6B:87:46:40:41:E1:B3:7B:84:7B:A0:AE:2C:DE:01:C8:D4"
    assert serial == 0x8765_4321
    for size in range(1, 21):
        number = bytes(range(size, 2 * size))
        text = base64.urlsafe_b64encode(number).decode().rstrip("=")
        assert parse_identifier(f"{text}.{text}") == (number, int.from_bytes(number))
    for wrong in ("", ".", "a.b", "YQ", "YQ.", "YQ==.YQ==", "YQ.YQ.YQ", "Y+.YQ", "YQ.\u00e9", "a" * 500):
        with pytest.raises(Refused, match="INVALID_REQUEST"):
            parse_identifier(wrong)
    with pytest.raises(Refused, match="SERIAL_UNKNOWN"):
        await service(fleet).info("aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE")


@pytest.mark.parametrize(("group", "spread"), [("a b", HOUR), ("north", -SECOND), ("north", 30 * DAY + SECOND)])
async def test_an_order_that_is_wrong_is_refused(fleet: Fleet, group: str, spread: timedelta) -> None:
    with pytest.raises(Refused, match="INVALID_REQUEST"):
        await service(fleet).hasten(group=group, spread=spread, by="admin")


# After the end.


async def graced(fleet: Fleet, **rules: Any) -> x509.Certificate:
    await fleet.groups.create(Group("north", renewal_grace=7 * DAY, **rules), by="admin")
    certificate = await fleet.enrol()
    fleet.clock.advance(31 * DAY)
    return certificate


async def code_of_renewal(fleet: Fleet, certificate: x509.Certificate) -> Code:
    with pytest.raises(Refused) as caught:
        await fleet.enrolment.reenrol(successor_csr(certificate), certificate)
    return caught.value.code


async def test_a_device_that_was_away_comes_back_within_the_grace_time(fleet: Fleet) -> None:
    certificate = await graced(fleet)
    with pytest.raises(Refused, match="until 2027-04-07 12:00:00 UTC it can be renewed by /simplereenroll"):
        await fleet.database.read(lambda connection: authenticate(connection, certificate, fleet.clock()))
    successor = await fleet.reenrol(certificate, successor_csr(certificate))
    assert successor.not_valid_after_utc == fleet.clock() + 30 * DAY
    fleet.clock.advance(6 * DAY + SECOND)
    assert await code_of_renewal(fleet, certificate) is Code.CERTIFICATE_EXPIRED


async def test_the_grace_time_has_a_last_second(fleet: Fleet) -> None:
    certificate = await graced(fleet)
    fleet.clock.advance(6 * DAY)
    assert (await fleet.reenrol(certificate, successor_csr(certificate))).not_valid_before_utc < fleet.clock()


async def test_without_grace_and_for_other_roles_the_end_is_the_end(fleet: Fleet) -> None:
    certificate = await fleet.enrol()
    fleet.clock.advance(30 * DAY + SECOND)
    assert await code_of_renewal(fleet, certificate) is Code.CERTIFICATE_EXPIRED


async def test_grace_is_never_for_what_was_revoked_before_or_after_its_end(fleet: Fleet) -> None:
    certificate = await graced(fleet)
    await fleet.revocation.revoke_device("meter-17", RevocationReason.UNSPECIFIED, by="admin")
    assert await code_of_renewal(fleet, certificate) is Code.CERTIFICATE_REVOKED


async def test_grace_is_never_for_a_certificate_revoked_by_its_serial_number(fleet: Fleet) -> None:
    certificate = await graced(fleet)
    await fleet.revocation.revoke_serial(f"{certificate.serial_number:x}", RevocationReason.UNSPECIFIED, by="admin")
    assert await code_of_renewal(fleet, certificate) is Code.CERTIFICATE_REVOKED


@pytest.mark.parametrize("reason", [RevocationReason.KEY_COMPROMISE, RevocationReason.UNSPECIFIED])
async def test_grace_is_never_for_what_ended_before_its_device_was_revoked_and_came_back(
    fleet: Fleet, reason: RevocationReason
) -> None:
    stolen = await graced(fleet)
    await fleet.revocation.revoke_device("meter-17", reason, by="admin")
    fleet.clock.advance(SECOND)
    current = await fleet.enrol()
    assert await code_of_renewal(fleet, stolen) is Code.CERTIFICATE_REVOKED, "who holds its key is not the device"
    fleet.clock.advance(31 * DAY)
    await fleet.reenrol(current, successor_csr(current))


async def test_grace_is_never_for_a_certificate_before_one_that_was_revoked(fleet: Fleet) -> None:
    await fleet.groups.create(Group("north", renewal_grace=7 * DAY), by="admin")
    first = await fleet.enrol()
    fleet.clock.advance(20 * DAY)
    second = await fleet.reenrol(first, successor_csr(first))
    fleet.clock.advance(11 * DAY)
    await fleet.revocation.revoke_serial(f"{second.serial_number:x}", RevocationReason.KEY_COMPROMISE, by="admin")
    assert await code_of_renewal(fleet, first) is Code.CERTIFICATE_REVOKED


async def test_grace_is_never_for_a_key_that_the_device_has_renewed_away(fleet: Fleet) -> None:
    """A copy of it may be in a backup, or in a part that was sold."""
    await fleet.groups.create(Group("north", renewal_grace=20 * DAY), by="admin")
    old, new = generate_key(), generate_key()
    first = await fleet.enrol(csr=csr_der(old))
    fleet.clock.advance(20 * DAY)
    second = await fleet.reenrol(first, successor_csr(first, new))
    fleet.clock.advance(11 * DAY)
    for key in (old, generate_key()):
        with pytest.raises(Refused, match=r"CERTIFICATE_EXPIRED: .* has another key since: renew its newest"):
            await fleet.reenrol(first, successor_csr(first, key))
    # The answer with the second one may have been lost: its key is asked for again.
    await fleet.reenrol(first, successor_csr(first, new))
    fleet.clock.advance(20 * DAY)
    await fleet.reenrol(second, successor_csr(second))  # With the key that the device has, though not the newest.


@pytest.mark.parametrize("rotates", [True, False])
async def test_a_key_that_was_renewed_away_does_not_come_back_with_each_later_renewal(
    fleet: Fleet, *, rotates: bool
) -> None:
    """Whoever has a copy of it need only wait for the device: the hour is for the answer that the device has lost."""
    await fleet.groups.create(Group("north", renewal_grace=60 * DAY), by="admin")
    first = await fleet.enrol(csr=csr_der(generate_key()))
    key = generate_key()
    current = await fleet.reenrol(first, successor_csr(first, key))
    for _ in range(2):
        fleet.clock.advance(20 * DAY)
        key = generate_key() if rotates else key
        current = await fleet.reenrol(current, successor_csr(current, key))
    assert await code_of_renewal(fleet, first) is Code.CERTIFICATE_EXPIRED


async def test_a_trial_is_no_replacement_of_a_key(fleet: Fleet) -> None:
    first = await fleet.enrol(csr=csr_der(generate_key()))
    trial = await fleet.reenrol(first, successor_csr(first, generate_key()))
    await claim(fleet)
    fleet.clock.advance(DAY)
    await fleet.reenrol(first, successor_csr(first, generate_key()))

    def replaced(connection: Connection) -> datetime | None:
        stored, other = (certificates.with_serial(connection, f"{each.serial_number:x}") for each in (first, trial))
        claim_id = connection.execute(select(claims.c.id)).scalar_one()
        connection.execute(
            insert(activations).values(
                certificate_id=other.id, claim_id=claim_id, device_id=other.device.id, expires_at=fleet.clock()
            )
        )
        return certificates_of_key.replaced_at(connection, certificates_of_key.key_of(stored))

    assert await fleet.database.write(replaced) == fleet.clock()


async def test_after_the_end_a_lost_answer_is_made_up_for_with_another_key_too(fleet: Fleet) -> None:
    certificate = await graced(fleet)
    for _ in range(3):
        await fleet.reenrol(certificate, successor_csr(certificate))
        fleet.clock.advance(DAY / 72)
    assert await code_of_renewal(fleet, certificate) is Code.CERTIFICATE_EXPIRED


async def test_grace_is_never_for_what_was_replaced(fleet: Fleet) -> None:
    stolen = await graced(fleet, new_key=NewKey.REPLACE)
    await fleet.enrol()
    assert await code_of_renewal(fleet, stolen) is Code.CERTIFICATE_REVOKED


async def test_grace_is_never_for_what_a_revoked_ca_has_issued(fleet: Fleet) -> None:
    certificate = await graced(fleet)
    await fleet.database.write(
        lambda connection: revoke_authority(
            connection, "issuing-ca", Grounds(RevocationReason.CA_COMPROMISE), by="admin", now=fleet.clock()
        )
    )
    assert await code_of_renewal(fleet, certificate) is Code.CERTIFICATE_REVOKED


async def test_grace_is_never_for_a_suspended_device_nor_for_a_certificate_that_has_not_begun(fleet: Fleet) -> None:
    certificate = await graced(fleet)
    fleet.clock.advance(-62 * DAY)
    assert await code_of_renewal(fleet, certificate) is Code.CERTIFICATE_EXPIRED, "pain of others: future dates"
    fleet.clock.advance(62 * DAY)
    await fleet.suspension.suspend_device("meter-17", by="admin")
    assert await code_of_renewal(fleet, certificate) in {Code.DEVICE_SUSPENDED, Code.CERTIFICATE_SUSPENDED}


# How many.


async def test_a_device_with_short_certificates_waits_no_longer_than_they_last(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "MOST_OF_DEVICE", 2)
    await fleet.groups.create(Group("north", lifetime=60 * SECOND), by="admin")
    first = await fleet.enrol()
    fleet.clock.advance(20 * SECOND)
    second = await fleet.reenrol(first, successor_csr(first))
    with pytest.raises(Refused, match="RATE_LIMITED") as refused:
        await fleet.reenrol(second, successor_csr(second))
    assert refused.value.retry_after == 40
    fleet.clock.advance(40 * SECOND)
    await fleet.reenrol(second, successor_csr(second))


async def test_a_device_that_renews_in_a_loop_has_to_wait_and_is_not_shut_out(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "MOST_OF_DEVICE", 3)
    newest = await fleet.enrol()
    for _ in range(2):
        newest = await fleet.reenrol(newest, successor_csr(newest))
    fleet.clock.advance(HOUR - SECOND)
    with pytest.raises(Refused, match="RATE_LIMITED: meter-17 has 3 certificates that are still valid") as refused:
        await fleet.reenrol(newest, successor_csr(newest))
    assert refused.value.retry_after == 1
    other = await fleet.enrol("meter-18")
    await fleet.reenrol(other, successor_csr(other))
    token = await fleet.token()
    by_token = await fleet.enrolment.enrol(csr_der(), TokenCredential("meter-17", token))  # An operator's word.
    with pytest.raises(Refused, match="RATE_LIMITED"):
        await fleet.reenrol(by_token, successor_csr(by_token))
    fleet.clock.advance(HOUR)
    newest = await fleet.reenrol(newest, successor_csr(newest))
    with pytest.raises(Refused, match="RATE_LIMITED"):
        await fleet.reenrol(newest, successor_csr(newest))
    fleet.clock.advance(newest.not_valid_after_utc - fleet.clock() - HOUR / 2)  # Those before have ended.
    for _ in range(2):
        newest = await fleet.reenrol(newest, successor_csr(newest))


async def test_a_device_that_has_enough_waits_no_longer_than_an_hour_or_two_whatever_the_clock_was(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "MOST_OF_DEVICE", 2)
    first = await fleet.enrol()
    fleet.clock.advance(2 * HOUR)
    await fleet.reenrol(first, successor_csr(first))
    fleet.clock.advance(-HOUR + SECOND)
    with pytest.raises(Refused, match="RATE_LIMITED"):
        await fleet.reenrol(first, successor_csr(first))
    fleet.clock.advance(-SECOND)
    await fleet.reenrol(first, successor_csr(first))
    with pytest.raises(Refused, match="RATE_LIMITED"):
        await fleet.reenrol(first, successor_csr(first))
