"""Claims: what a batch's certificate buys, on trial, and what it never does."""

from __future__ import annotations

import asyncio
import hashlib
import json
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from provisioning.client.est import renewal_identifier
from provisioning.enrolment import pace
from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.authentication import authenticate
from provisioning.enrolment.claims import ClaimOrder, ClaimService
from provisioning.enrolment.groups import parse_ways
from provisioning.enrolment.renewal_info import RenewalService
from provisioning.errors import Code, Refused
from provisioning.pki.identity import identity_of
from provisioning.pki.keys import PrivateKey, generate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.program.moments import rfc3339
from provisioning.store import audit, audit_findings, claims, devices
from provisioning.store.audit import Action
from provisioning.store.groups import NewKey
from tests.support.fleet import Fleet, successor_csr
from tests.support.operators import operator
from tests.support.ways import HOUR, claim, enrol, group, is_good, nothing, refusal


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
    assert await fleet.database.read(lambda connection: list(audit_findings.findings(connection))) == []


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
    anna = await fleet.database.read(lambda connection: devices.find(connection, "anna"))
    assert anna is not None
    assert (anna.role, anna.group) == (Role.OPERATOR, None), "whoever comes after does not move others"
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


async def test_no_token_is_made_for_a_name_that_was_revoked_or_retired_on_trial_but_its_own(fleet: Fleet) -> None:
    """The name of a lost trial is everybody's; what an operator has ended is not, however the trial ended."""
    await group(fleet, "claim", "token")
    await group(fleet, "token", name="north")
    shared = await claim(fleet, devices=2)
    for name in ("meter-1", "meter-2"):
        await enrol(fleet, name, certificate=shared)
    await fleet.revocation.revoke_device("meter-1", RevocationReason.UNSPECIFIED, by="admin")
    await fleet.revocation.decommission("meter-2", by="admin")
    for moment in (timedelta(), HOUR):
        fleet.clock.advance(moment)
        with pytest.raises(Refused, match="NAME_TAKEN: a token could not be used: meter-1 keeps the role device of"):
            await fleet.token("meter-1", "north")
        for own in ("line", "north", None):
            with pytest.raises(Refused, match="DEVICE_DECOMMISSIONED: a token could not be used"):
                await fleet.token("meter-2", own)
    token = TokenCredential("meter-1", await fleet.token("meter-1", None))
    assert identity_of(await enrol(fleet, "meter-1", token=token)).group == "line"


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


async def test_trials_end_with_the_key_that_may_have_made_their_claim(fleet: Fleet) -> None:
    """Also those of a claim that has ended before: whoever stole the key may have named devices for a week."""
    await group(fleet, "claim", "token")
    _, anna = [await operator(fleet, each) for each in ("boss", "anna")]
    made = {name: await claim(fleet, name=name, by=by) for name, by in (("a", "anna"), ("b", "anna"), ("c", "boss"))}
    key = generate_key()
    lost = await enrol(fleet, "meter-1", key=key, certificate=made["a"])
    activated, ended, other = [await enrol(fleet, f"meter-{each}", certificate=made[each]) for each in "abc"]
    await fleet.reenrol(activated, successor_csr(activated))
    await ClaimService(fleet.database, fleet.clock, nothing).end("b", by="boss")
    serial, reason = f"{anna.serial_number:x}", RevocationReason.KEY_COMPROMISE
    (departed,) = (await fleet.revocation.revoke_serial(serial, reason, by="boss")).departed
    assert (departed.claims_ended, departed.trials_ended) == (1, 2)
    for name, trial in (("a", lost), ("b", ended)):
        told = (
            rf"CLAIM_ENDED: claim {name} and its trials ended on .*: ask an operator for an enrolment token for meter-"
        )
        with pytest.raises(Refused, match=told):
            await fleet.reenrol(trial, successor_csr(trial))
    assert await is_good(fleet, await fleet.reenrol(activated, successor_csr(activated))), "its answer may be lost"
    assert await is_good(fleet, await fleet.reenrol(other, successor_csr(other)))
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 99))
    assert [
        (each.actor, each.subject, json.loads(each.details)) for each in entries if each.action == Action.CLAIM_ENDED
    ] == [("boss", "b", {}), ("boss", "a", {"created_by": "anna", "reason": reason.value})]
    again = await fleet.revocation.revoke_batch([], [serial], reason, by="boss")
    assert (again.changed, again.departed[0].trials_ended) == (False, 0)
    token = TokenCredential("meter-1", await fleet.token("meter-1", "line"))
    assert await is_good(fleet, await enrol(fleet, "meter-1", key=key, token=token))
    assert await fleet.database.read(lambda connection: list(audit_findings.findings(connection))) == []


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
    with pytest.raises(Refused, match="CERTIFICATE_REVOKED"):
        await fleet.database.read(lambda connection: authenticate(connection, other, fleet.clock()))
    assert await refusal(fleet, "meter-2", certificate=shared) is Code.CERTIFICATE_REVOKED


async def test_while_a_group_is_closed_nobody_is_activated_who_was_not_before(fleet: Fleet) -> None:
    await group(fleet, "claim")
    shared = await claim(fleet)
    trial, activated = [await enrol(fleet, name, certificate=shared) for name in ("meter-1", "meter-2")]
    real = await fleet.reenrol(activated, successor_csr(activated))
    await fleet.groups.change("line", {"ways": ()}, by="admin")
    with pytest.raises(Refused, match=r"group line is closed: .*meter-1 was not activated before") as caught:
        await fleet.reenrol(trial, successor_csr(trial))
    assert caught.value.code is Code.WAY_REFUSED
    assert await is_good(fleet, await fleet.reenrol(activated, successor_csr(activated)))  # Its answer was lost.
    assert await is_good(fleet, await fleet.reenrol(real, successor_csr(real)))
    await fleet.groups.change("line", {"ways": parse_ways(["token"])}, by="admin")
    assert await is_good(fleet, await fleet.reenrol(trial, successor_csr(trial)))


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


async def test_without_a_window_the_key_that_a_device_has_lets_nobody_come_back(fleet: Fleet) -> None:
    await group(fleet, "claim", "token", same_key_window=timedelta())
    key = generate_key()
    token = TokenCredential("meter-1", await fleet.token("meter-1", "line"))
    await enrol(fleet, "meter-1", key=key, token=token)
    assert await refusal(fleet, "meter-1", key=key, certificate=await claim(fleet)) is Code.NAME_TAKEN


async def test_one_trial_is_activated_so_often_and_trials_keep_nobody_from_his_activation(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "MOST_OF_DEVICE", 2)
    await group(fleet, "claim")
    shared = await claim(fleet, devices=5)
    for _ in range(3):
        await enrol(fleet, "meter-1", certificate=shared)
        fleet.clock.advance(HOUR + timedelta(seconds=1))
    trial = await enrol(fleet, "meter-1", certificate=shared)
    for _ in range(2):
        await fleet.reenrol(trial, successor_csr(trial))
    with pytest.raises(Refused, match="RATE_LIMITED"):
        await fleet.reenrol(trial, successor_csr(trial))


async def test_a_device_on_trial_is_told_to_renew_at_once(fleet: Fleet) -> None:
    """An agent that is started again meanwhile would wait for half of the trial."""
    await group(fleet, "claim")
    trial = await enrol(fleet, "meter-1", certificate=await claim(fleet))
    service = RenewalService(fleet.database, fleet.clock)
    assert (await service.info(renewal_identifier(trial))).end < fleet.clock()
    successor = await fleet.reenrol(trial, successor_csr(trial))
    assert (await service.info(renewal_identifier(trial))).end < fleet.clock()
    assert (await service.info(renewal_identifier(successor))).start > fleet.clock()


async def test_a_claim_is_ended_once_and_by_its_name(fleet: Fleet) -> None:
    service = ClaimService(fleet.database, fleet.clock, nothing)
    for name in "bca":
        await claim(fleet, name=name)
    first = await service.end("b", by="anna")
    fleet.clock.advance(HOUR)
    again = await service.end("b", by="berta")
    assert first.ended_at == again.ended_at == fleet.clock() - HOUR
    assert [(each.name, each.ended_at is None) for each in await service.page(limit=2, after=None)] == [
        ("a", True),
        ("b", False),
    ]
    assert [each.name for each in await service.page(limit=2, after="b")] == ["c"]
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 99))
    assert [(each.actor, each.subject) for each in entries if each.action == Action.CLAIM_ENDED] == [("anna", "b")]
    made = [each for each in entries if each.action == Action.CLAIM_CREATED]
    assert [(each.actor, each.subject) for each in made] == [("admin", name) for name in "bca"]
    assert json.loads(made[0].details) == {
        "group": "line",
        "maximum_devices": 2,
        "expires_at": rfc3339(first.expires_at),
        "fingerprint_sha256": hashlib.sha256(first.der).hexdigest(),
    }


async def test_tls_believes_claims_that_can_still_be_used_and_no_others(fleet: Fleet) -> None:
    async def anchors() -> list[x509.Certificate]:
        found = await fleet.database.read(lambda connection: claims.anchors(connection, fleet.clock()))
        return [x509.load_der_x509_certificate(each) for each in found]

    ended, lasting = await claim(fleet, name="b"), await claim(fleet, name="a")
    assert await anchors() == [ended, lasting]
    await ClaimService(fleet.database, fleet.clock, nothing).end("b", by="admin")
    assert await anchors() == [lasting]
    fleet.clock.now = lasting.not_valid_after_utc - timedelta(seconds=1)
    assert await anchors() == [lasting]
    fleet.clock.now = lasting.not_valid_after_utc
    assert await anchors() == []


async def test_a_name_that_another_clock_has_given_away_is_not_two_devices(fleet: Fleet) -> None:
    """Its trial had ended by a clock that was ahead, or by another process's; by the right one it may be activated."""
    await group(fleet, "claim")
    shared = await claim(fleet)
    key = generate_key()
    first = await enrol(fleet, "meter-1", key=key, certificate=shared)
    fleet.clock.advance(HOUR)
    other = await enrol(fleet, "meter-1", certificate=shared)
    fleet.clock.advance(-timedelta(seconds=30))
    for late in (key, generate_key()):
        with pytest.raises(Refused, match="NAME_TAKEN: meter-1 was given to another key after the trial"):
            await fleet.reenrol(first, successor_csr(first, late))
    assert await is_good(fleet, await fleet.reenrol(other, successor_csr(other)))
    with pytest.raises(Refused, match="NAME_TAKEN"):
        await fleet.reenrol(first, successor_csr(first))
    assert await is_good(fleet, await fleet.reenrol(other, successor_csr(other))), "that answer may be lost"


async def test_a_trial_activates_nobody_once_a_token_has_bought_its_name_another_key(fleet: Fleet) -> None:
    await group(fleet, "claim", "token")
    trial = await enrol(fleet, "meter-1", certificate=await claim(fleet))
    token = TokenCredential("meter-1", await fleet.token("meter-1", "line"))
    assert await is_good(fleet, await enrol(fleet, "meter-1", token=token))
    with pytest.raises(Refused, match="NAME_TAKEN"):
        await fleet.reenrol(trial, successor_csr(trial))
