"""Every way to be let in: what it takes, what it refuses, and that none makes anybody an existing device."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from provisioning.enrolment.approvals import ApprovalService
from provisioning.enrolment.attempt import Question, TokenCredential, Verdict
from provisioning.enrolment.authentication import authenticate
from provisioning.enrolment.claims import ClaimOrder, ClaimService
from provisioning.enrolment.device_list import DeviceListService
from provisioning.enrolment.groups import parse_ways
from provisioning.enrolment.manufacturers import ManufacturerService
from provisioning.errors import Code, Pending, Refused
from provisioning.pki.identity import Role, identity_of
from provisioning.pki.keys import PrivateKey, generate_key, spki_fingerprint
from provisioning.pki.revocation import RevocationReason
from provisioning.store import audit
from provisioning.store.approvals import ApprovalState
from provisioning.store.groups import Group, NewKey
from tests.support.fleet import Fleet, successor_csr
from tests.support.manufacturer import Manufacturer
from tests.support.requests import NOON, csr_der

HOUR = timedelta(hours=1)


async def nothing() -> None:
    """Nobody to tell."""


async def group(fleet: Fleet, *ways: str, name: str = "line", **rules: Any) -> None:
    rules = {"same_key_window": HOUR} | rules
    await fleet.groups.create(Group(name, ways=parse_ways(ways), **rules), by="admin")


async def claim(fleet: Fleet, devices: int = 2, name: str = "batch", group_name: str = "line") -> x509.Certificate:
    service = ClaimService(fleet.database, fleet.clock, nothing)
    issued = await service.create(ClaimOrder(name, group_name, devices, timedelta(days=30)), by="admin")
    certificate = x509.load_der_x509_certificate(issued.claim.der)
    assert load_pem_private_key(issued.key_pem, None).public_key() == certificate.public_key()
    assert "PRIVATE" not in repr(issued)
    return certificate


async def enrol(fleet: Fleet, name: str, *, key: PrivateKey | None = None, **presented: Any) -> x509.Certificate:
    return await fleet.enrolment.enrol(csr_der(key, names=[name]), presented.pop("token", None), **presented)


async def refusal(fleet: Fleet, name: str, **presented: Any) -> Code:
    with pytest.raises(Refused) as caught:
        await enrol(fleet, name, **presented)
    return caught.value.code


async def is_good(fleet: Fleet, certificate: x509.Certificate) -> bool:
    try:
        await fleet.database.read(lambda connection: authenticate(connection, certificate, fleet.clock()))
    except Refused:
        return False
    return True


# Claims.


async def test_a_claim_buys_a_certificate_on_trial_and_its_successor_is_the_activation(fleet: Fleet) -> None:
    await group(fleet, "claim")
    shared = await claim(fleet)
    key = generate_key()
    trial = await enrol(fleet, "meter-1", key=key, certificate=shared)
    assert fleet.told == ["feed", "crl"], "whoever follows the feed knows that it is on hold"
    assert trial.not_valid_after_utc == fleet.clock() + HOUR
    with pytest.raises(Refused, match=r"CERTIFICATE_SUSPENDED: .* is on trial: ask for its successor"):
        await fleet.database.read(lambda connection: authenticate(connection, trial, fleet.clock()))
    # The answer was lost: the same key gets the same certificate.
    assert await enrol(fleet, "meter-1", key=key, certificate=shared) == trial
    full = await fleet.reenrol(trial, successor_csr(trial))
    assert full.not_valid_after_utc == fleet.clock() + timedelta(days=30), "a trial is short, what it leads to is not"
    assert full.not_valid_after_utc == fleet.clock() + timedelta(days=30)
    assert await is_good(fleet, full)
    # That answer may be lost as well; and the trial is never good for anything else.
    assert await is_good(fleet, await fleet.reenrol(trial, successor_csr(trial)))
    assert not await is_good(fleet, trial)
    fleet.clock.advance(HOUR + timedelta(seconds=1))
    with pytest.raises(Refused, match="CERTIFICATE_EXPIRED"):
        await fleet.reenrol(trial, successor_csr(trial))
    assert await fleet.database.read(lambda connection: list(audit.findings(connection))) == []


async def test_a_claim_counts_devices_and_a_trial_that_ends_unused_gives_its_place_back(fleet: Fleet) -> None:
    await group(fleet, "claim")
    shared = await claim(fleet, devices=2)
    names = [f"meter-{number}" for number in range(6)]

    async def attempt(name: str) -> x509.Certificate | Code:
        try:
            return await enrol(fleet, name, certificate=shared)
        except Refused as refused:
            return refused.code

    outcomes = dict(zip(names, await asyncio.gather(*map(attempt, names)), strict=True))
    assert list(outcomes.values()).count(Code.CLAIM_EXHAUSTED) == 4
    (first, trial), (second, _) = ((name, each) for name, each in outcomes.items() if not isinstance(each, Code))
    assert isinstance(trial, x509.Certificate)
    await fleet.reenrol(trial, successor_csr(trial))
    assert await refusal(fleet, second, certificate=shared) is Code.NAME_TAKEN, "another key, while the trial lasts"
    fleet.clock.advance(HOUR)
    # The second device never came back: its place and its name are free.
    await enrol(fleet, second, certificate=shared)
    assert await refusal(fleet, "meter-9", certificate=shared) is Code.CLAIM_EXHAUSTED
    assert await refusal(fleet, first, certificate=shared) is Code.NAME_TAKEN


async def test_a_trial_that_ends_unused_gives_its_name_back_to_everybody_and_its_place_in_the_group(
    fleet: Fleet,
) -> None:
    await group(fleet, "claim", "token", maximum_devices=2)
    await group(fleet, "token", name="north")
    shared = await claim(fleet, devices=5)

    async def by_token(name: str, group_name: str | None, role: Role = Role.DEVICE) -> x509.Certificate:
        token = await fleet.token(name, group_name, role)
        return await enrol(fleet, name, token=TokenCredential(name, token))

    for name in ("anna", "meter-1"):
        await enrol(fleet, name, certificate=shared)
    assert await refusal(fleet, "meter-2", certificate=shared) is Code.GROUP_FULL
    with pytest.raises(Refused, match="NAME_TAKEN"):
        await by_token("anna", None, Role.OPERATOR)
    fleet.clock.advance(HOUR)
    # Neither was activated: whoever knew the names, or the claim, keeps nobody out.
    assert identity_of(await by_token("anna", None, Role.OPERATOR)).role is Role.OPERATOR
    assert identity_of(await by_token("meter-1", "north")).group == "north"
    assert await is_good(fleet, await by_token("meter-2", "line"))
    trial = await enrol(fleet, "meter-3", certificate=shared)
    assert await refusal(fleet, "meter-4", certificate=shared) is Code.GROUP_FULL
    fleet.clock.advance(HOUR)
    await by_token("meter-4", "line")
    assert await refusal(fleet, "meter-3", certificate=shared) is Code.GROUP_FULL, "its place was given away"
    # What an operator has revoked stays his decision.
    await fleet.revocation.revoke_serial(f"{trial.serial_number:x}", RevocationReason.UNSPECIFIED, by="admin")
    with pytest.raises(Refused, match="CERTIFICATE_REVOKED"):
        await by_token("meter-3", "north")


async def test_a_claim_never_becomes_a_device_that_exists_whatever_the_group_says(fleet: Fleet) -> None:
    await group(fleet, "claim", "token", new_key=NewKey.REPLACE)
    shared = await claim(fleet)
    victim = await enrol(fleet, "meter-1", token=TokenCredential("meter-1", await fleet.token("meter-1", "line")))
    assert await refusal(fleet, "meter-1", certificate=shared) is Code.NAME_TAKEN
    assert await is_good(fleet, victim)


async def test_a_device_of_a_batch_has_a_key_of_its_own_and_not_the_claim_s(fleet: Fleet) -> None:
    await group(fleet, "claim")
    issued = await ClaimService(fleet.database, fleet.clock, nothing).create(
        ClaimOrder("batch", "line", 2, timedelta(days=30)), by="admin"
    )
    shared, key = x509.load_der_x509_certificate(issued.claim.der), load_pem_private_key(issued.key_pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert await refusal(fleet, "meter-1", key=key, certificate=shared) is Code.KEY_REUSED
    trial = await enrol(fleet, "meter-1", certificate=shared)
    with pytest.raises(Refused, match="KEY_REUSED: the request has the key of claim batch"):
        await fleet.reenrol(trial, successor_csr(trial, key))


async def test_a_claim_that_ended_or_expired_lets_nobody_in(fleet: Fleet) -> None:
    await group(fleet, "claim")
    shared = await claim(fleet)
    trial = await enrol(fleet, "meter-1", certificate=shared)
    await ClaimService(fleet.database, fleet.clock, nothing).end("batch", by="admin")
    assert await refusal(fleet, "meter-2", certificate=shared) is Code.CLAIM_ENDED
    await fleet.reenrol(trial, successor_csr(trial))  # Who was let in before is activated.
    other = await claim(fleet, name="other")
    fleet.clock.advance(timedelta(days=30))
    assert await refusal(fleet, "meter-3", certificate=other) is Code.CLAIM_ENDED


async def test_a_claim_opens_its_own_group_and_no_other(fleet: Fleet) -> None:
    await group(fleet, "claim")
    await group(fleet, "token", name="north")
    shared = await claim(fleet)
    assert await refusal(fleet, "meter-1", certificate=shared, label="north") is Code.TOKEN_GROUP
    other = await claim(fleet, name="other", group_name="north")
    assert await refusal(fleet, "meter-1", certificate=other) is Code.WAY_REFUSED
    token = TokenCredential("meter-1", await fleet.token("meter-1", "north"))
    assert await refusal(fleet, "meter-1", certificate=shared, token=token) is Code.TOKEN_GROUP


async def test_a_device_on_trial_that_is_suspended_or_revoked_is_not_activated(fleet: Fleet) -> None:
    await group(fleet, "claim")
    shared = await claim(fleet, devices=5)
    trial = await enrol(fleet, "meter-1", certificate=shared)
    await fleet.suspension.suspend_device("meter-1", by="admin")
    with pytest.raises(Refused, match="SUSPENDED"):
        await fleet.reenrol(trial, successor_csr(trial))
    other = await enrol(fleet, "meter-2", certificate=shared)
    await fleet.revocation.revoke_serial(f"{other.serial_number:x}", RevocationReason.UNSPECIFIED, by="admin")
    with pytest.raises(Refused, match="CERTIFICATE_REVOKED"):
        await fleet.reenrol(other, successor_csr(other))
    assert await refusal(fleet, "meter-2", certificate=shared) is Code.CERTIFICATE_REVOKED


async def test_resuming_does_not_end_a_trial(fleet: Fleet) -> None:
    await group(fleet, "claim")
    shared = await claim(fleet, devices=1)
    trial = await enrol(fleet, "meter-1", certificate=shared)
    serial = f"{trial.serial_number:x}"
    await fleet.suspension.suspend_device("meter-1", by="admin")
    resumed = await fleet.suspension.resume_device("meter-1", by="admin")
    assert (resumed.changed, resumed.released) == (True, [])
    for refused in (fleet.suspension.resume_serial(serial, by="a"), fleet.suspension.suspend_serial(serial, by="a")):
        with pytest.raises(Refused, match=r"ON_TRIAL: .* meter-1 is on trial"):
            await refused
    assert not await is_good(fleet, trial)
    full = await fleet.reenrol(trial, successor_csr(trial))
    # Nor do suspension and resumption after it: the trial is good for nothing else, and its place is taken.
    assert len((await fleet.suspension.suspend_device("meter-1", by="admin")).revoked) == 1
    assert len((await fleet.suspension.resume_device("meter-1", by="admin")).released) == 1
    assert (await is_good(fleet, full), await is_good(fleet, trial)) == (True, False)
    fleet.clock.advance(2 * HOUR)
    assert await refusal(fleet, "meter-2", certificate=shared) is Code.CLAIM_EXHAUSTED


async def test_a_key_that_was_replaced_or_suspended_lets_nobody_come_back(fleet: Fleet) -> None:
    await group(fleet, "claim", "token", new_key=NewKey.REPLACE)
    shared = await claim(fleet)
    old_key, key = generate_key(), generate_key()

    async def by_token(key: PrivateKey) -> x509.Certificate:
        return await enrol(
            fleet, "meter-1", key=key, token=TokenCredential("meter-1", await fleet.token("meter-1", "line"))
        )

    await by_token(old_key)
    certificate = await by_token(key)
    assert await refusal(fleet, "meter-1", key=old_key, certificate=shared) is Code.NAME_TAKEN
    successor = await fleet.reenrol(certificate, successor_csr(certificate))
    await fleet.suspension.suspend_serial(f"{certificate.serial_number:x}", by="admin")
    assert await refusal(fleet, "meter-1", key=key, certificate=shared) is Code.NAME_TAKEN
    assert await is_good(fleet, successor)


# Manufacturers.


async def register(fleet: Fleet, manufacturer: Manufacturer, name: str = "acme", prefix: str = "") -> None:
    service = ManufacturerService(fleet.database, fleet.clock, nothing)
    await service.add(name=name, group="line", name_prefix=prefix, pem=manufacturer.pem, by="admin")


async def test_a_manufacturer_s_certificate_lets_its_device_in_just_in_time(fleet: Fleet) -> None:
    await group(fleet, "manufacturer")
    acme = Manufacturer(begin=NOON)
    await register(fleet, acme, prefix="acme-")
    idevid, _ = acme.idevid("SN17")
    certificate = await enrol(fleet, "acme-SN17", certificate=idevid)
    assert certificate.subject.rfc4514_string() == "CN=acme-SN17"
    assert await is_good(fleet, certificate)
    assert not await is_good(fleet, idevid), "for nothing but enrolment"
    assert await refusal(fleet, "acme-SN18", certificate=idevid) is Code.MANUFACTURER_CERTIFICATE
    with pytest.raises(Refused, match="CERTIFICATE_UNKNOWN"):
        await fleet.reenrol(idevid, csr_der(names=["acme-SN17"]))


@pytest.mark.parametrize("numbers", [(), ("a", "b"), ("not a name",)], ids=str)
async def test_a_manufacturer_s_certificate_names_one_device(fleet: Fleet, numbers: tuple[str, ...]) -> None:
    await group(fleet, "manufacturer")
    acme = Manufacturer(begin=NOON)
    await register(fleet, acme)
    idevid, _ = acme.idevid(*numbers)
    assert await refusal(fleet, "a", certificate=idevid) is Code.MANUFACTURER_CERTIFICATE


async def test_only_the_registered_ca_itself_counts_while_it_lasts(fleet: Fleet) -> None:
    await group(fleet, "manufacturer")
    acme, imitator = Manufacturer(begin=NOON), Manufacturer(begin=NOON)
    await register(fleet, acme)
    forged, _ = imitator.idevid("SN17")
    assert await refusal(fleet, "SN17", certificate=forged, label="line") is Code.WAY_REFUSED
    short, _ = acme.idevid("SN17", end=NOON + HOUR)
    fleet.clock.advance(2 * HOUR)
    assert await refusal(fleet, "SN17", certificate=short) is Code.MANUFACTURER_CERTIFICATE
    fleet.clock.advance(-3 * HOUR)
    early, _ = acme.idevid("SN17")
    assert await refusal(fleet, "SN17", certificate=early) is Code.MANUFACTURER_CERTIFICATE
    fleet.clock.advance(HOUR)
    await ManufacturerService(fleet.database, fleet.clock, nothing).end("acme", by="admin")
    assert await refusal(fleet, "SN17", certificate=early, label="line") is Code.WAY_REFUSED


async def test_a_device_with_a_new_key_is_recognised_by_its_own_manufacturer_s_certificate_only(fleet: Fleet) -> None:
    await group(fleet, "manufacturer", "token", new_key=NewKey.REPLACE)
    acme, other = Manufacturer("Acme", begin=NOON), Manufacturer("Other", begin=NOON)
    await register(fleet, acme)
    await register(fleet, other, name="other")
    mine, _ = acme.idevid("SN17")
    theirs, _ = other.idevid("SN17")
    first = await enrol(fleet, "SN17", certificate=mine)
    assert await refusal(fleet, "SN17", certificate=theirs) is Code.NAME_TAKEN
    second = await enrol(fleet, "SN17", certificate=mine)
    assert (await is_good(fleet, first), await is_good(fleet, second)) == (False, True)
    # A device that came in otherwise is nobody's whom a manufacturer names.
    await enrol(fleet, "SN18", token=TokenCredential("SN18", await fleet.token("SN18", "line")))
    for_18, _ = acme.idevid("SN18")
    assert await refusal(fleet, "SN18", certificate=for_18) is Code.NAME_TAKEN


async def test_who_knew_the_name_of_a_manufacturer_s_device_does_not_make_it_somebody_else_s(fleet: Fleet) -> None:
    await group(fleet, "manufacturer", "claim", new_key=NewKey.REPLACE)
    acme = Manufacturer(begin=NOON)
    await register(fleet, acme)
    idevid, _ = acme.idevid("SN17")
    await enrol(fleet, "SN17", certificate=await claim(fleet))  # A trial, never activated.
    fleet.clock.advance(HOUR)
    first = await enrol(fleet, "SN17", certificate=idevid)
    second = await enrol(fleet, "SN17", certificate=idevid)
    assert (await is_good(fleet, first), await is_good(fleet, second)) == (False, True)


async def test_a_revoked_device_does_not_come_back_by_its_manufacturer(fleet: Fleet) -> None:
    await group(fleet, "manufacturer", new_key=NewKey.REPLACE)
    acme = Manufacturer(begin=NOON)
    await register(fleet, acme)
    idevid, _ = acme.idevid("SN17")
    certificate = await enrol(fleet, "SN17", certificate=idevid)
    await fleet.revocation.revoke_serial(f"{certificate.serial_number:x}", RevocationReason.UNSPECIFIED, by="admin")
    assert await refusal(fleet, "SN17", certificate=idevid) is Code.CERTIFICATE_REVOKED
    fleet.clock.advance(timedelta(days=31))
    assert await refusal(fleet, "SN17", certificate=idevid) is Code.CERTIFICATE_REVOKED, "its end forgives nothing"
    await fleet.revocation.revoke_device("SN17", RevocationReason.UNSPECIFIED, by="admin")
    assert await refusal(fleet, "SN17", certificate=idevid) is Code.CERTIFICATE_REVOKED


async def test_an_operator_s_token_readmits_for_good(fleet: Fleet) -> None:
    await group(fleet, "manufacturer", "token", new_key=NewKey.REPLACE)
    acme = Manufacturer(begin=NOON)
    await register(fleet, acme)
    idevid, _ = acme.idevid("SN17")
    certificate = await enrol(fleet, "SN17", certificate=idevid)
    await fleet.revocation.revoke_serial(f"{certificate.serial_number:x}", RevocationReason.UNSPECIFIED, by="admin")
    token = TokenCredential("SN17", await fleet.token("SN17", "line"))
    readmitted = await enrol(fleet, "SN17", token=token)
    # From now on its manufacturer's word counts again.
    replaced = await enrol(fleet, "SN17", certificate=idevid)
    assert (await is_good(fleet, readmitted), await is_good(fleet, replaced)) == (False, True)


async def test_what_is_wrong_with_a_manufacturer_is_named(fleet: Fleet) -> None:
    acme = Manufacturer(begin=NOON)
    _, leaf = acme.idevid("SN17")
    service = ManufacturerService(fleet.database, fleet.clock, nothing)
    wrong = {"nonsense": "not one PEM", leaf.decode(): "no CA's", acme.pem * 2: "holds 2 certificates"}
    for pem, words in wrong.items():
        with pytest.raises(Refused, match=words):
            await service.add(name="acme", group="line", name_prefix="", pem=pem, by="admin")
    await register(fleet, acme)
    with pytest.raises(Refused, match="NAME_EXISTS"):
        await register(fleet, acme, name="again")


# The list.


async def listed(fleet: Fleet, *entries: tuple[str, str | None]) -> dict[int, str]:
    outcome = await DeviceListService(fleet.database, fleet.clock).add("line", entries, by="admin")
    return dict(outcome.errors)


async def test_a_listed_key_lets_its_device_in_and_a_listed_name_alone_does_not(fleet: Fleet) -> None:
    await group(fleet, "listed", "listed+token")
    key = generate_key()
    await listed(fleet, ("meter-1", spki_fingerprint(key.public_key()).hex()), ("meter-2", None))
    await enrol(fleet, "meter-1", key=key, label="line")
    assert await refusal(fleet, "meter-1", label="line") is Code.NOT_LISTED, "another key"
    assert await refusal(fleet, "meter-2", label="line") is Code.WAY_REFUSED, "a name is known to many"
    assert await refusal(fleet, "meter-3", label="line") is Code.NOT_LISTED
    token = TokenCredential("meter-2", await fleet.token("meter-2", "line"))
    await enrol(fleet, "meter-2", token=token)
    token = TokenCredential("meter-3", await fleet.token("meter-3", "line"))
    assert await refusal(fleet, "meter-3", token=token) is Code.NOT_LISTED


async def test_a_list_takes_what_is_right_and_names_what_is_wrong(fleet: Fleet) -> None:
    errors = await listed(fleet, ("meter-1", None), ("a b", None), ("meter-2", "zz"), ("meter-1", None), ("", None))
    assert list(errors) == [1, 2, 3, 4]
    service = DeviceListService(fleet.database, fleet.clock)
    assert [each.name for each in await service.page("line", limit=9, after=None)] == ["meter-1"]
    outcome = await service.add("line", [("meter-1", "00" * 32), ("meter-2", None)], by="admin")
    assert (outcome.new, outcome.replaced) == (1, 1)
    await service.remove("line", "meter-2", by="admin")
    with pytest.raises(Refused, match="DEVICE_UNKNOWN"):
        await service.remove("line", "meter-2", by="admin")


# Approval.


async def pending(fleet: Fleet, name: str, **presented: Any) -> int:
    with pytest.raises(Pending) as caught:
        await enrol(fleet, name, **presented)
    assert caught.value.retry_after > 0
    waiting = await ApprovalService(fleet.database, fleet.clock).page(
        limit=99, after=0, group=None, state=ApprovalState.PENDING
    )
    return max(each.id for each in waiting if each.request.name == name)


async def test_a_request_waits_for_an_operator_and_is_recognised_when_it_comes_again(fleet: Fleet) -> None:
    await group(fleet, "approval")
    service = ApprovalService(fleet.database, fleet.clock)
    key = generate_key()
    number = await pending(fleet, "meter-1", key=key, label="line")
    assert await pending(fleet, "meter-1", key=key, label="line") == number
    await service.decide(number, approve=True, by="boss")
    certificate = await enrol(fleet, "meter-1", key=key, label="line")
    assert await enrol(fleet, "meter-1", key=key, label="line") == certificate
    # Another key of the same name is another request, and becomes an existing device by no approval here.
    other = await pending(fleet, "meter-1", label="line")
    assert other != number
    with pytest.raises(Refused, match="APPROVAL_DECIDED"):
        await service.decide(number, approve=False, by="boss")
    # A decision is worth one certificate.
    fleet.clock.advance(HOUR)
    assert await pending(fleet, "meter-1", key=key, label="line") > other


async def test_the_same_request_several_times_at_once_is_one_request(fleet: Fleet) -> None:
    await group(fleet, "approval")
    key = generate_key()

    async def attempt() -> str:
        try:
            await enrol(fleet, "meter-1", key=key, label="line")
        except Pending:
            return "pending"
        except Refused as refused:
            return refused.code
        return "enrolled"

    outcomes = set(await asyncio.gather(*(attempt() for _ in range(8))))
    assert "pending" in outcomes
    assert outcomes <= {"pending", Code.UNAVAILABLE}, "on PostgreSQL the second may have to ask again"
    found = await ApprovalService(fleet.database, fleet.clock).page(limit=9, after=0, group="line", state=None)
    assert len(found) == 1


async def test_a_denied_request_is_refused_until_it_is_approved(fleet: Fleet) -> None:
    await group(fleet, "approval")
    service = ApprovalService(fleet.database, fleet.clock)
    key = generate_key()
    number = await pending(fleet, "meter-1", key=key, label="line")
    await service.decide(number, approve=False, by="boss")
    assert await refusal(fleet, "meter-1", key=key, label="line") is Code.APPROVAL_DENIED
    await service.decide(number, approve=True, by="boss")
    await enrol(fleet, "meter-1", key=key, label="line")
    with pytest.raises(Refused, match="APPROVAL_UNKNOWN"):
        await service.decide(999, approve=True, by="boss")


async def test_an_approval_beside_a_claim_shows_the_claim(fleet: Fleet) -> None:
    await group(fleet, "claim+approval")
    shared = await claim(fleet)
    assert await refusal(fleet, "meter-1", label="line") is Code.WAY_REFUSED
    await pending(fleet, "meter-1", certificate=shared)
    (waiting,) = await ApprovalService(fleet.database, fleet.clock).page(limit=9, after=0, group="line", state=None)
    assert waiting.request.evidence == "claim batch"


async def test_a_queue_that_is_full_takes_no_more_and_forgets_what_nobody_decides(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("provisioning.enrolment.ways.approval.MAXIMUM_PENDING", 2)
    await group(fleet, "approval")
    for number in (1, 2):
        await pending(fleet, f"meter-{number}", label="line")
    assert await refusal(fleet, "meter-3", label="line") is Code.APPROVALS_FULL
    fleet.clock.advance(timedelta(days=7, seconds=1))
    await pending(fleet, "meter-3", label="line")


async def test_an_operator_may_approve_a_new_key_of_a_device_that_exists(fleet: Fleet) -> None:
    await group(fleet, "claim", "token", new_key=NewKey.APPROVE)
    shared = await claim(fleet)
    old = await enrol(fleet, "meter-1", token=TokenCredential("meter-1", await fleet.token("meter-1", "line")))
    key = generate_key()
    number = await pending(fleet, "meter-1", key=key, certificate=shared)
    (waiting,) = await ApprovalService(fleet.database, fleet.clock).page(limit=9, after=0, group="line", state=None)
    assert waiting.request.evidence == "claim batch; the name is enrolled already"
    assert await is_good(fleet, old)
    await ApprovalService(fleet.database, fleet.clock).decide(number, approve=True, by="boss")
    trial = await enrol(fleet, "meter-1", key=key, certificate=shared)
    new = await fleet.reenrol(trial, successor_csr(trial))
    assert (await is_good(fleet, old), await is_good(fleet, new)) == (False, True)


async def test_an_approval_does_not_bring_back_a_key_that_another_approval_has_replaced(fleet: Fleet) -> None:
    await group(fleet, "approval", new_key=NewKey.APPROVE)
    service = ApprovalService(fleet.database, fleet.clock)
    keys = [generate_key(), generate_key()]
    for key in keys:
        await service.decide(await pending(fleet, "meter-1", key=key, label="line"), approve=True, by="boss")
        certificate = await enrol(fleet, "meter-1", key=key, label="line")
    number = await pending(fleet, "meter-1", key=keys[0], label="line")
    assert await is_good(fleet, certificate)
    await service.decide(number, approve=True, by="boss")
    await enrol(fleet, "meter-1", key=keys[0], label="line")
    assert not await is_good(fleet, certificate)


async def test_an_approval_of_a_newcomer_is_none_of_another_key_for_who_came_in_since(fleet: Fleet) -> None:
    await group(fleet, "approval", "token", new_key=NewKey.APPROVE)
    service = ApprovalService(fleet.database, fleet.clock)
    key = generate_key()
    number = await pending(fleet, "meter-1", key=key, label="line")
    await service.decide(number, approve=True, by="boss")
    fleet.clock.advance(timedelta(seconds=1))
    token = TokenCredential("meter-1", await fleet.token("meter-1", "line"))
    certificate = await enrol(fleet, "meter-1", token=token)
    number = await pending(fleet, "meter-1", key=key, label="line")
    assert await is_good(fleet, certificate)
    (waiting,) = await service.page(limit=9, after=0, group="line", state=ApprovalState.PENDING)
    assert waiting.request.evidence == "nothing; the name is enrolled already"
    await service.decide(number, approve=True, by="boss")
    await enrol(fleet, "meter-1", key=key, label="line")
    assert not await is_good(fleet, certificate)


# The webhook.


async def test_the_webhook_is_asked_about_exactly_what_is_decided_and_may_veto(fleet: Fleet) -> None:
    await group(fleet, "token+webhook", webhook_url="http://127.0.0.1:1/", same_key_window=timedelta())
    asked: list[Question] = []
    allowed = True

    async def ask(question: Question) -> Verdict:
        asked.append(question)
        return Verdict(question, allowed=allowed, reason="not in stock")

    fleet.enrolment.service._ask = ask
    key = generate_key()
    token = TokenCredential("meter-1", await fleet.token("meter-1", "line"))
    await enrol(fleet, "meter-1", key=key, token=token)
    (question,) = asked
    assert (question.group, question.device, question.evidence) == ("line", "meter-1", ("token",))
    assert question.key_sha256 == spki_fingerprint(key.public_key()).hex()
    assert not question.enrolled_before
    allowed = False
    token = TokenCredential("meter-2", await fleet.token("meter-2", "line"))
    with pytest.raises(Refused, match=r"WEBHOOK_VETO: .*not in stock"):
        await enrol(fleet, "meter-2", token=token)
    # Who is refused anyway is not asked about; a veto spends no token.
    assert await refusal(fleet, "meter-3", token=token) is Code.TOKEN_DEVICE
    assert len(asked) == 2
    allowed = True
    await enrol(fleet, "meter-2", token=token)


async def test_an_answer_to_another_question_counts_for_nothing(fleet: Fleet) -> None:
    await group(fleet, "token+webhook", webhook_url="http://127.0.0.1:1/")

    async def answers_another(_question: Question) -> Verdict:
        return Verdict(Question("x", HOUR, "x", "x", "x", (), enrolled_before=False), allowed=True)

    fleet.enrolment.service._ask = answers_another
    token = TokenCredential("meter-1", await fleet.token("meter-1", "line"))
    assert await refusal(fleet, "meter-1", token=token) is Code.UNAVAILABLE


def test_ways_are_put_in_order_and_a_webhook_never_stands_alone() -> None:
    (alternative,) = parse_ways(["webhook+approval+claim"])
    assert list(alternative) == ["claim", "approval", "webhook"]
    with pytest.raises(Refused, match="may veto but not let in"):
        parse_ways(["webhook"])


@pytest.mark.parametrize(
    "url", ["http://example.org/", "http://localhost/", "ftp://127.0.0.1/", "https://a:b@example.org/", "https://", "x"]
)
async def test_a_webhook_is_on_this_machine_or_behind_https(fleet: Fleet, url: str) -> None:
    with pytest.raises(Refused, match="INVALID_REQUEST: webhook_url"):
        await group(fleet, "token+webhook", webhook_url=url)


async def test_a_webhook_way_needs_a_url(fleet: Fleet) -> None:
    with pytest.raises(Refused, match="webhook_url is missing"):
        await group(fleet, "token+webhook")
