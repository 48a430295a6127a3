"""Enrolments and revocations side by side on PostgreSQL: in the journeys of one, and each as if by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from cryptography import x509
from sqlalchemy.engine import Connection

from provisioning.enrolment import service
from provisioning.enrolment.tokens import TokenOrder
from provisioning.errors import Code, Refused
from provisioning.pki.keys import generate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.store import certificates, revocations, tokens
from provisioning.store.audit import Action
from provisioning.store.groups import Group
from tests.support.fleet import Fleet, open_fleet
from tests.support.postgresql import PostgresqlServer
from tests.support.requests import csr_der
from tests.support.together import Together, enrolment, log_of


@pytest.fixture
async def fleet(postgresql: PostgresqlServer) -> AsyncIterator[Fleet]:
    with postgresql.database() as url:
        async with open_fleet(url) as opened:
            yield opened


async def test_enrolments_that_wait_together_make_the_journeys_of_one(
    fleet: Fleet, companies: list[int], journeys: list[str], together: Together
) -> None:
    alone = await enrolment(fleet, "alone")
    calls = [await enrolment(fleet, f"meter-{number}") for number in range(8)]
    journeys.clear()
    await alone()
    of_one = len(journeys)
    journeys.clear()
    issued = await together(fleet, *calls)
    assert len(journeys) <= of_one
    assert companies == [8]
    assert len({certificate.serial_number for certificate in issued}) == 8
    for number, certificate in enumerate(issued):
        (name,) = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        assert name.value == f"meter-{number}"
        key = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        stored = await fleet.database.read(
            lambda connection, certificate=certificate, key=key: certificates.find(  # type: ignore[misc]
                connection, key, certificate.serial_number
            )
        )
        assert stored is not None
        assert stored.device.name == name.value
    used = await fleet.database.read(lambda connection: tokens.count_open(connection, fleet.clock()))
    assert used == 0


async def test_every_entry_before_a_signature_is_written_before_the_first_signature(
    fleet: Fleet, companies: list[int], monkeypatch: pytest.MonkeyPatch, together: Together
) -> None:
    calls = [await enrolment(fleet, f"meter-{number}") for number in range(3)]
    written: list[int] = []
    sign = type(fleet.issuer).sign
    connections: list[Connection] = []
    transaction = service.EnrolmentService._transaction

    def remembered(self: Any, connection: Connection, **rest: Any) -> Any:
        connections.append(connection)
        return transaction(self, connection, **rest)

    def counted(self: Any, prepared: Any) -> Any:
        driver: Any = connections[0].connection.driver_connection
        sql = "SELECT count(*) FROM audit_entries WHERE action = %s"
        written.append(driver.execute(sql, [Action.SIGNING_CERTIFICATE.value]).fetchone()[0])
        return sign(self, prepared)

    monkeypatch.setattr(service.EnrolmentService, "_transaction", remembered)
    monkeypatch.setattr(type(fleet.issuer), "sign", counted)
    await together(fleet, *calls)
    assert companies == [3]
    assert written == [3, 3, 3]


async def test_who_is_refused_before_a_change_disturbs_nobody(
    fleet: Fleet, companies: list[int], together: Together
) -> None:
    calls = [
        await enrolment(fleet, "meter-1"),
        await enrolment(fleet, "meter-2", token=(await fleet.token("meter-2"))[:-4] + "ABCD"),
        await enrolment(fleet, "meter-3"),
    ]
    first, refused, last = await together(fleet, *calls)
    assert isinstance(first, x509.Certificate)
    assert isinstance(last, x509.Certificate)
    assert isinstance(refused, Refused)
    assert refused.code is Code.TOKEN_UNKNOWN
    assert companies == [3]


async def test_one_token_one_name_and_one_key_admit_one_device_of_those_who_come_together(
    fleet: Fleet, companies: list[int], together: Together
) -> None:
    token = await fleet.token("meter-1")
    key = generate_key()
    calls = [
        await enrolment(fleet, "meter-1", token),
        await enrolment(fleet, "meter-1", token),
        await enrolment(fleet, "meter-2", csr=csr_der(key, ["meter-2"])),
        await enrolment(fleet, "meter-3", csr=csr_der(key, ["meter-3"])),
    ]
    first, second, third, fourth = await together(fleet, *calls)
    assert isinstance(first, x509.Certificate)
    assert isinstance(third, x509.Certificate)
    assert (second.code, fourth.code) == (Code.TOKEN_USED, Code.KEY_REUSED)
    assert companies == [2]
    await log_of(fleet)


async def test_a_group_with_a_limit_is_counted_one_by_one(
    fleet: Fleet, companies: list[int], together: Together
) -> None:
    await fleet.groups.create(Group("small", maximum_devices=2), by="admin")
    calls = [await enrolment(fleet, f"meter-{number}", group="small") for number in range(4)]
    outcomes = await together(fleet, *calls)
    assert sum(isinstance(each, x509.Certificate) for each in outcomes) == 2
    assert [each.code for each in outcomes if isinstance(each, Refused)] == [Code.GROUP_FULL] * 2
    assert companies == [4]


async def test_a_company_that_fails_after_signatures_signs_nothing_twice_under_one_number(
    fleet: Fleet, companies: list[int], monkeypatch: pytest.MonkeyPatch, together: Together
) -> None:
    signed: list[int] = []
    sign = type(fleet.issuer).sign

    def noted(self: Any, prepared: Any) -> bytes:
        certificate: bytes = sign(self, prepared)
        signed.append(x509.load_der_x509_certificate(certificate).serial_number)
        return certificate

    def failing(*_: Any, **__: Any) -> bool:
        raise ZeroDivisionError

    calls = [await enrolment(fleet, f"meter-{number}") for number in range(3)]
    monkeypatch.setattr(type(fleet.issuer), "sign", noted)
    spend = tokens.spend
    monkeypatch.setattr(tokens, "spend", failing)
    outcomes = await together(fleet, *calls)
    monkeypatch.setattr(tokens, "spend", spend)
    assert [each.code for each in outcomes] == [Code.UNAVAILABLE] * 3
    assert companies == [3]
    assert len(signed) == 3
    again = await together(fleet, *calls)  # Nothing was spent.
    assert all(isinstance(each, x509.Certificate) for each in again)
    assert len(set(signed)) == 6
    assert [action for action, _ in await log_of(fleet)].count(Action.SIGNING_CERTIFICATE) == 3


async def test_revocations_that_wait_together_are_each_in_the_feed_once(
    fleet: Fleet, companies: list[int], journeys: list[str], together: Together
) -> None:
    names = [f"meter-{number}" for number in range(6)]
    for name in names:
        await fleet.enrol(name)
        await fleet.token(name)  # Void, with the device.
    reason = RevocationReason.KEY_COMPROMISE
    journeys.clear()
    await fleet.revocation.revoke_device(names[0], reason, by="admin")
    of_one = len(journeys)
    journeys.clear()
    unknown = [lambda: fleet.revocation.revoke_device("nobody", reason, by="admin")]
    calls = [lambda name=name: fleet.revocation.revoke_device(name, reason, by="admin") for name in names[1:]]
    *done, refused = await together(fleet, *calls, *unknown)
    assert companies == [6]
    assert len(journeys) <= of_one + 3  # What one inserts in a list is not counted above, and is here.
    assert refused.code is Code.DEVICE_UNKNOWN
    events = await fleet.database.read(lambda connection: revocations.after(connection, 0, 100))
    assert [event.sequence for event in events] == list(range(1, 7))
    assert [event.device for event in events] == names
    assert [outcome.revoked[0].sequence for outcome in done] == list(range(2, 7))
    assert await fleet.database.read(lambda connection: tokens.count_open(connection, fleet.clock())) == 0
    assert [subject for action, subject in await log_of(fleet) if action == Action.REVOKED] == names


async def test_a_device_that_is_enrolled_again_and_revoked_at_once_is_one_after_the_other(
    fleet: Fleet, companies: list[int], together: Together
) -> None:
    await fleet.enrol("meter-1")
    calls = [
        await enrolment(fleet, "meter-2"),
        await enrolment(fleet, "meter-1"),
        lambda: fleet.revocation.revoke_device("meter-1", RevocationReason.KEY_COMPROMISE, by="admin"),
    ]
    fresh, again, revoked = await together(fleet, *calls)
    assert isinstance(fresh, x509.Certificate)
    assert isinstance(again, x509.Certificate)
    assert len(revoked.revoked) == 2
    assert companies == [2]


async def test_who_may_choose_a_name_asks_together_with_others_whether_it_is_promised(
    fleet: Fleet, companies: list[int], journeys: list[str], together: Together
) -> None:
    tokens_of_group = await fleet.token_service.create(TokenOrder(group="north", count=7), by="admin")
    await fleet.token("meter-3")
    alone, *calls = [
        await enrolment(fleet, f"meter-{number}", each.token) for number, each in enumerate(tokens_of_group)
    ]
    journeys.clear()
    await alone()
    of_one = len(journeys)
    journeys.clear()
    outcomes = await together(fleet, *calls)
    assert len(journeys) <= of_one
    assert companies == [6]
    taken = [each.code if isinstance(each, Refused) else None for each in outcomes]
    assert taken == [None, None, Code.NAME_TAKEN, None, None, None]
