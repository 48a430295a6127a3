from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import threading
from datetime import timedelta

import pytest
from cryptography import x509
from sqlalchemy import select, text
from structlog.testing import capture_logs

from provisioning.ca.issuer import IssuanceRefused, PreparedIssuance
from provisioning.ca.profile import Profile
from provisioning.enrolment import service
from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.device_list import DeviceListService
from provisioning.enrolment.server_keys import make_key
from provisioning.enrolment.tokens import IssuedToken, TokenOrder
from provisioning.errors import Code, Pending, Refused
from provisioning.pki.keys import PrivateKey, generate_key, spki_fingerprint
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.revocation.grounds import Grounds
from provisioning.revocation.of_authority import revoke_authority
from provisioning.store import audit, tables
from provisioning.store.audit import Action
from provisioning.store.groups import Group, WayName
from tests.support.fleet import Fleet, successor_csr
from tests.support.requests import csr_der

SIGNATURES = (Action.SIGNING_CERTIFICATE, Action.CERTIFICATE_SIGNED)


async def rows(fleet: Fleet, table: str) -> int:
    statement = text(f"SELECT count(*) FROM {table}")
    return int(await fleet.database.read(lambda connection: connection.execute(statement).scalar_one()))


async def test_fifty_concurrent_requests_on_one_token_give_one_certificate(fleet: Fleet) -> None:
    token = await fleet.token()

    async def attempt() -> x509.Certificate | Code:
        try:
            return await fleet.enrolment.enrol(csr_der(), TokenCredential("meter-17", token))
        except Refused as refusal:
            return refusal.code

    outcomes = await asyncio.gather(*(attempt() for _ in range(50)))
    assert [each for each in outcomes if isinstance(each, x509.Certificate)] != []
    assert outcomes.count(Code.TOKEN_USED) == 49
    assert await rows(fleet, "certificates") == 1


async def test_concurrent_enrolments_all_have_serial_numbers_of_their_own(fleet: Fleet) -> None:
    certificates = await asyncio.gather(*(fleet.enrol(f"meter-{number}") for number in range(100)))
    assert len({certificate.serial_number for certificate in certificates}) == 100
    assert all(certificate.serial_number.bit_length() == 127 for certificate in certificates)


async def test_a_token_is_not_shown_where_it_was_sent_as_the_name(fleet: Fleet) -> None:
    token = await fleet.token()
    with capture_logs() as logs, pytest.raises(Refused, match=r"TOKEN_DEVICE: .*user name \('fgt_…'\)") as refused:
        await fleet.enrolment.enrol(csr_der(), TokenCredential(token, token))
    assert token not in f"{refused.value} {logs}", "it buys a certificate still"


async def test_a_refusal_changes_nothing(fleet: Fleet) -> None:
    token = await fleet.token()
    for csr, user in ((csr_der(names=["other"]), "meter-17"), (csr_der(), "other")):
        with pytest.raises(Refused, match="TOKEN_DEVICE"):
            await fleet.enrolment.enrol(csr, TokenCredential(user, token))
    assert [await rows(fleet, table) for table in ("devices", "certificates")] == [0, 0]
    await fleet.enrolment.enrol(csr_der(), TokenCredential("meter-17", token))


async def test_who_may_have_no_key_made_is_told_why(fleet: Fleet) -> None:
    await fleet.groups.create(Group("line", ways=((WayName.LISTED,), (WayName.TOKEN,)), server_keys=True), by="admin")
    own = generate_key()
    entry = ("meter-1", spki_fingerprint(own.public_key()).hex())
    await DeviceListService(fleet.database, fleet.clock).add("line", [entry], by="admin")
    group_token, operators_token = [
        (await fleet.token_service.create(order, by="admin"))[0].token
        for order in (TokenOrder([], "line"), TokenOrder(["anna"], role=Role.OPERATOR))
    ]
    request = csr_der(own, names=["meter-1"])
    with capture_logs() as logs, pytest.raises(Refused):
        await fleet.enrolment.enrol_with_server_key(request, None, "line")
    assert "the service would make another: use /simpleenroll with that key" in logs[-1]["detail"]
    with pytest.raises(Refused, match="SERVER_KEYS_REFUSED: only groups of devices may allow keys made"):
        await fleet.enrolment.enrol_with_server_key(
            csr_der(own, names=["anna"]), TokenCredential("anna", operators_token), None
        )
    await fleet.enrolment.enrol_with_server_key(
        csr_der(own, names=["meter-2"]), TokenCredential("meter-2", group_token), "line"
    )


async def test_no_key_is_made_for_who_is_refused(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    def counted(profile: Profile, wished: object) -> PrivateKey:
        made.append(wished)
        return make_key(profile, wished)

    monkeypatch.setattr(service, "make_key", counted)
    token = await fleet.token()
    for credential in (None, TokenCredential("meter-17", token), TokenCredential("meter-17", "x" * 47)):
        with pytest.raises(Refused):
            await fleet.enrolment.enrol_with_server_key(csr_der(), credential, "north")
    assert not made
    await fleet.groups.create(Group("north", server_keys=True), by="admin")
    answer = await fleet.enrolment.enrol_with_server_key(csr_der(), TokenCredential("meter-17", token), "north")
    assert answer.certificate.public_key() == answer.key.public_key()
    assert len(made) == 1
    await fleet.groups.change("north", {"ways": ((WayName.APPROVAL,),)}, by="admin")
    with pytest.raises(Pending):
        await fleet.enrolment.enrol_with_server_key(csr_der(generate_key(), names=["meter-18"]), None, "north")
    assert len(made) == 1, "nor for who waits"
    await fleet.groups.change("north", {"ways": ((WayName.TOKEN,),), "certificates_per_minute": 1}, by="admin")
    for name, code in (("meter-19", None), ("meter-20", Code.RATE_LIMITED), ("meter-20", Code.RATE_LIMITED)):
        token = await fleet.token(name)
        with contextlib.nullcontext() if code is None else pytest.raises(Refused, match=code):
            await fleet.enrolment.enrol_with_server_key(csr_der(names=[name]), TokenCredential(name, token), "north")
    assert len(made) == 2, "nor for who is too fast, as often as he asks"


async def test_no_more_keys_are_made_for_a_token_than_it_is_worth(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each costs a tenth of a second, and as many were made as requests came with it at once."""
    made: list[object] = []

    def counted(profile: Profile, wished: object) -> PrivateKey:
        made.append(wished)
        return make_key(profile, wished)

    monkeypatch.setattr(service, "make_key", counted)
    await fleet.groups.create(Group("north", server_keys=True), by="admin")
    credential = TokenCredential("meter-17", await fleet.token())
    asked = [fleet.enrolment.enrol_with_server_key(csr_der(), credential, "north") for _ in range(8)]
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert sorted(type(each).__name__ for each in outcomes) == ["MadeKey"] + ["Refused"] * 7
    assert len(made) == 1


async def test_a_failure_after_the_signature_spends_no_token_and_burns_the_serial_number(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await fleet.token()
    signed: list[int] = []

    def sign_and_fail(prepared: PreparedIssuance) -> bytes:
        signed.append(x509.load_der_x509_certificate(original(prepared)).serial_number)
        raise IssuanceRefused("the token of the key was pulled out")

    original = fleet.issuer.sign
    monkeypatch.setattr(fleet.issuer, "sign", sign_and_fail)
    with pytest.raises(IssuanceRefused):
        await fleet.enrolment.enrol(csr_der(), TokenCredential("meter-17", token))
    monkeypatch.undo()
    certificate = await fleet.enrolment.enrol(csr_der(), TokenCredential("meter-17", token))
    assert certificate.serial_number not in signed
    left = await fleet.database.read(
        lambda connection: connection.execute(select(tables.serial_reservations.c.serial)).scalars().all()
    )
    assert f"{signed[0]:x}" in left, "what may have been signed stays reserved for ever"


@pytest.mark.parametrize("in_memory", [True, False])
async def test_only_a_key_in_memory_signs_on_the_event_loop(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    signed_in: list[threading.Thread] = []

    def noted(prepared: PreparedIssuance) -> bytes:
        signed_in.append(threading.current_thread())
        return original(prepared)

    original = fleet.issuer.sign
    monkeypatch.setattr(fleet.issuer, "sign", noted)
    monkeypatch.setattr(fleet.enrolment.service, "_signs_at_once", lambda: in_memory)
    await fleet.enrol()
    assert (signed_in[0] is threading.current_thread()) is in_memory


async def test_a_revocation_is_seen_by_the_next_re_enrolment(fleet: Fleet) -> None:
    certificate = await fleet.enrol()
    successor = await fleet.reenrol(certificate, successor_csr(certificate))
    assert successor.subject == certificate.subject
    await fleet.revocation.revoke_serial(f"{certificate.serial_number:x}", RevocationReason.SUPERSEDED, by="admin")
    with pytest.raises(Refused, match="CERTIFICATE_REVOKED"):
        await fleet.reenrol(certificate, successor_csr(certificate))
    # The successor is another certificate, and still good.
    await fleet.reenrol(successor, successor_csr(successor))


async def test_validity_is_judged_by_the_service_s_clock(fleet: Fleet) -> None:
    certificate = await fleet.enrol()
    fleet.clock.advance(timedelta(days=30))
    await fleet.reenrol(certificate, successor_csr(certificate))
    fleet.clock.advance(timedelta(seconds=1))
    with pytest.raises(Refused, match=r"CERTIFICATE_EXPIRED: certificate .* expired on 2027-03-31 12:00:00 UTC"):
        await fleet.reenrol(certificate, successor_csr(certificate))
    fleet.clock.advance(timedelta(days=-31))
    with pytest.raises(Refused, match="not valid yet"):
        await fleet.reenrol(certificate, successor_csr(certificate))


async def test_a_certificate_of_the_same_name_from_elsewhere_is_unknown(fleet: Fleet) -> None:
    certificate = await fleet.enrol()
    other = tables.certificates.update().values(fingerprint_sha256="0" * 64)
    await fleet.database.write(lambda connection: connection.execute(other))
    with pytest.raises(Refused, match="CERTIFICATE_UNKNOWN"):
        await fleet.reenrol(certificate, successor_csr(certificate))


@pytest.mark.parametrize("early", [False, True], ids=["ended", "not begun"])
async def test_an_issuing_ca_that_is_not_valid_now_signs_nothing_says_so_and_spends_nothing(
    fleet: Fleet, *, early: bool
) -> None:
    now, ca = fleet.clock(), fleet.authority.issuing_ca.certificate
    fleet.clock.now = ca.not_valid_before_utc - timedelta(seconds=1) if early else ca.not_valid_after_utc
    token = await fleet.token()
    why = (
        "the service's clock says 2027-03-01 11:58 UTC, and the issuing CA is valid from 2027-03-01 11:59 UTC: "
        "an operator has to set the clock"
        if early
        else "the issuing CA expired on"
    )
    with pytest.raises(Refused, match=f"UNAVAILABLE: .*{why}"):
        await fleet.enrolment.enrol(csr_der(), TokenCredential("meter-17", token))
    fleet.clock.now = now
    await fleet.enrolment.enrol(csr_der(), TokenCredential("meter-17", token))


async def test_a_ca_that_is_revoked_in_the_store_signs_nothing_though_it_is_at_hand(fleet: Fleet) -> None:
    token = await fleet.token()
    await fleet.database.write(
        lambda connection: revoke_authority(
            connection, "issuing-ca", Grounds(RevocationReason.CA_COMPROMISE), by="admin", now=fleet.clock()
        )
    )
    before = [await rows(fleet, table) for table in ("devices", "certificates")]
    with pytest.raises(Refused, match="UNAVAILABLE: the issuing CA was retired or revoked"):
        await fleet.enrolment.enrol(csr_der(), TokenCredential("meter-17", token))
    assert [await rows(fleet, table) for table in ("devices", "certificates")] == before


async def test_the_audit_log_says_before_what_is_signed_and_after_it_what_was(fleet: Fleet) -> None:
    await fleet.groups.create(Group("north", server_keys=True), by="admin")
    own = await fleet.enrol()
    token = TokenCredential("meter-18", await fleet.token("meter-18"))
    made = (await fleet.enrolment.enrol_with_server_key(csr_der(names=["meter-18"]), token)).certificate
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 9))
    facts = [json.loads(each.details) for each in entries if each.action in SIGNATURES]
    for certificate, more, signing, signed in (
        (own, {}, *facts[:2]),
        (made, {"key": "made by the service"}, *facts[2:]),
    ):
        serial = {"serial": f"{certificate.serial_number:x}"}
        assert signing == serial | {"role": "device", "group": "north", "paid_with": "token"} | more
        assert signed == serial | {"not_after": f"{certificate.not_valid_after_utc:%FT%T}Z"}


async def test_a_token_expires_on_the_second(fleet: Fleet) -> None:
    token = await fleet.token()
    fleet.clock.advance(timedelta(hours=1))
    with pytest.raises(Refused, match="TOKEN_EXPIRED"):
        await fleet.enrolment.enrol(csr_der(), TokenCredential("meter-17", token))
    fleet.clock.advance(timedelta(seconds=-1))
    await fleet.enrolment.enrol(csr_der(), TokenCredential("meter-17", token))


async def test_a_revoked_device_comes_back_with_a_token_made_afterwards(fleet: Fleet) -> None:
    key = generate_key()
    await fleet.enrol(csr=csr_der(key))
    before = await fleet.token()
    await fleet.revocation.revoke_device("meter-17", RevocationReason.CESSATION_OF_OPERATION, by="admin")
    with pytest.raises(Refused, match="TOKEN_VOID"):
        await fleet.enrolment.enrol(csr_der(), TokenCredential("meter-17", before))
    await fleet.enrol(csr=csr_der(key))  # Its key was not compromised.
    revoked = await fleet.database.read(
        lambda connection: connection.execute(select(tables.devices.c.revoked_at)).scalar_one()
    )
    assert revoked is None


async def test_nothing_secret_is_in_a_representation_or_in_the_store(fleet: Fleet) -> None:
    (issued,) = await fleet.token_service.create(TokenOrder(["meter-17"]), by="admin")
    assert isinstance(issued, IssuedToken)
    assert issued.token not in repr(issued)
    assert issued.token not in repr(TokenCredential("meter-17", issued.token))
    (row,) = await fleet.database.read(lambda connection: connection.execute(select(tables.tokens)).all())
    assert issued.token.encode() not in b"".join(str(value).encode() for value in row)


async def test_a_broker_s_names_are_kept_by_its_successor(fleet: Fleet) -> None:
    order = TokenOrder(["broker-1"], role=Role.BROKER, dns_names=["localhost"], ip_addresses=["::1"])
    (issued,) = await fleet.token_service.create(order, by="admin")
    first = await fleet.enrolment.enrol(csr_der(names=["broker-1"]), TokenCredential("broker-1", issued.token))
    second = await fleet.reenrol(first, successor_csr(first))
    names = [each.extensions.get_extension_for_class(x509.SubjectAlternativeName).value for each in (first, second)]
    assert names[0] == names[1]
    assert names[0].get_values_for_type(x509.DNSName) == ["localhost"]
    assert names[0].get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("::1")]


async def test_unused_serial_numbers_are_given_back(fleet: Fleet) -> None:
    await fleet.enrol()
    assert await rows(fleet, "serial_reservations") == 63
    await fleet.serial_numbers.release()
    assert await rows(fleet, "serial_reservations") == 0
