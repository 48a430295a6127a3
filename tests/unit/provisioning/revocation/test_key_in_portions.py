"""A key of very many certificates that is compromised: worth nothing at once, and they are revoked in portions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from cryptography.x509 import ocsp
from sqlalchemy.engine import Connection

from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.authentication import authenticate
from provisioning.enrolment.renewal_info import RenewalService
from provisioning.errors import Refused
from provisioning.operator_role import OperatorRole
from provisioning.pki.keys import PrivateKey, generate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.revocation.recording import IN_WHAT_FOLLOWS, RevocationOutcome
from provisioning.revocation.service import RevocationService
from provisioning.revocation.shut_out import ShutOut
from provisioning.store import (
    audit,
    certificates,
    certificates_of_device,
    certificates_of_key,
    devices,
    operators,
)
from provisioning.store.revocations import EventKind
from tests.support.fleet import Fleet, successor_csr
from tests.support.many_certificates import (
    Between,
    Died,
    dying_after,
    events,
    identifier_of,
    many_for_key,
    said_by_ocsp,
    serials_of,
    stored,
    unfinished_keys,
)
from tests.support.requests import csr_der
from tests.support.responding import Responding
from tests.support.ways import claim, enrol, group

COMPROMISED, SUPERSEDED = RevocationReason.KEY_COMPROMISE, RevocationReason.SUPERSEDED
DAY = timedelta(days=1)
Ways = dict[str, Callable[[RevocationService, str], Coroutine[Any, Any, RevocationOutcome]]]
WAYS: Ways = {
    "alone": lambda revocation, serial: revocation.revoke_serial(serial, COMPROMISED, by="anna"),
    "in a batch": lambda revocation, serial: revocation.revoke_batch([], [serial], COMPROMISED, by="anna"),
}


pytestmark = pytest.mark.usefixtures("small_portions")


@pytest.fixture
def key() -> PrivateKey:
    return generate_key()


async def test_all_are_revoked_the_named_one_first_while_others_write(
    fleet: Fleet, key: PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = serials_of(await many_for_key(fleet, key, more=6))
    other = await fleet.enrol("meter-1")
    between = Between(fleet, monkeypatch)
    fleet.told.clear()
    invalid = fleet.clock() - DAY
    outcome = await fleet.revocation.revoke_serial(every[1], COMPROMISED, by="anna", invalidity_date=invalid)
    await asyncio.gather(*between.others)
    assert len(between.others) == 2
    assert fleet.told == ["feed", "crl"] * 3, "after each transaction"
    in_feed = [every[1], *[each for each in reversed(every) if each != every[1]]]
    told = await events(fleet)
    assert [each.sequence for each in told] == list(range(1, 8))
    assert [each.serial for each in told] == in_feed
    assert {(each.reason, each.invalidity_date) for each in told} == {(COMPROMISED, invalid)}
    assert (outcome.changed, len(outcome.revoked), outcome.revoked[0].serial) == (True, 7, every[1])
    assert {each.serial for each in outcome.revoked} == set(every)
    assert {each.invalidity_date for each in outcome.revoked} == {invalid}
    assert await unfinished_keys(fleet) == 0
    entries = await fleet.database.read(lambda connection: audit.about(connection, "anna", 99))
    facts = [json.loads(each.details) for each in entries]
    assert {(each.action, each.subject) for each in entries} == {("revoked", "meter-1")}
    assert [(each["serials"], each.get("same_key")) for each in facts] == [
        (in_feed[:1], "in the entries that follow"),
        (in_feed[1:3], None),
        (in_feed[3:5], None),
        (in_feed[5:], None),
    ]
    assert all(each["reason"] == "keyCompromise" for each in facts)

    for serial in (every[1], every[0]):
        again = await fleet.revocation.revoke_serial(serial, COMPROMISED, by="anna")
        assert (again.changed, [each.serial for each in again.revoked]) == (False, [serial])
    assert len(await events(fleet)) == 7
    assert len(await fleet.database.read(lambda connection: audit.about(connection, "anna", 99))) == 4
    await fleet.reenrol(other, successor_csr(other))  # The device has another key.


@pytest.mark.parametrize("way", WAYS)
async def test_from_the_first_moment_the_key_is_worth_nothing_and_the_next_start_ends_it(
    fleet: Fleet, key: PrivateKey, way: str
) -> None:
    every = await many_for_key(fleet, key, more=5)
    other = await fleet.enrol("meter-1")
    token = TokenCredential("meter-1", await fleet.token("meter-1"))
    with dying_after(0), pytest.raises(Died):
        await WAYS[way](fleet.revocation, serials_of(every)[1])
    done = {each.serial for each in await events(fleet)}
    assert serials_of(every)[1] in done
    assert serials_of(every)[0] not in done, "its portion has not come"
    assert await unfinished_keys(fleet) == 1

    for good in (every[0], every[1]):
        with pytest.raises(Refused, match="CERTIFICATE_REVOKED: the key of certificate"):
            await fleet.reenrol(good, successor_csr(good))
        with pytest.raises(Refused, match="CERTIFICATE_REVOKED: the key of certificate"):
            await fleet.database.read(partial(authenticate, certificate=good, now=fleet.clock()))
        assert await said_by_ocsp(fleet, good) is COMPROMISED
    with pytest.raises(Refused, match="KEY_REUSED: this key was reported as compromised"):
        await fleet.enrolment.enrol(csr_der(key, names=["meter-1"]), token)
    with pytest.raises(Refused, match="KEY_REUSED: this key was reported as compromised"):
        await fleet.reenrol(other, successor_csr(other, key))
    info = await RenewalService(fleet.database, fleet.clock).info(identifier_of(every[0]))
    assert info.end < fleet.clock(), "whoever asks when to renew it is told now"
    assert await said_by_ocsp(fleet, other) is None
    successor = await fleet.reenrol(other, successor_csr(other))

    started = RevocationService(fleet.database, fleet.clock, ())
    await started.portions.finish_left()
    assert sorted(each.serial for each in await events(fleet)) == sorted(serials_of(every))
    assert [each.sequence for each in await events(fleet)] == list(range(1, 7))
    assert {each.reason for each in await events(fleet)} == {COMPROMISED}
    assert await unfinished_keys(fleet) == 0
    await started.portions.finish_left()
    assert len(await events(fleet)) == 6, "what another process has done is not done again"
    await fleet.reenrol(successor, successor_csr(successor))


async def test_what_is_good_comes_first(fleet: Fleet, key: PrivateKey) -> None:
    """The others are admitted by nobody: they may wait, though they be newer."""
    every = await many_for_key(fleet, key, more=6)
    serials = serials_of(every)
    await fleet.revocation.revoke_serial(serials[6], SUPERSEDED, by="anna")
    await fleet.suspension.suspend_serial(serials[5], by="anna")
    before = len(await events(fleet))
    await fleet.revocation.revoke_serial(serials[3], COMPROMISED, by="anna")
    told = [each.serial for each in (await events(fleet))[before:]]
    assert told == [serials[place] for place in (3, 4, 2, 1, 0, 6, 5)]
    assert {each.revocation and each.revocation.reason for each in await stored(fleet)} == {COMPROMISED}


async def test_a_hold_is_not_ended_in_between(fleet: Fleet, key: PrivateKey) -> None:
    """Its release would let it in at the broker, until its portion."""
    held = serials_of(await many_for_key(fleet, key, more=5))[0]
    await fleet.suspension.suspend_serial(held, by="anna")
    await fleet.suspension.suspend_device("meter-1", by="anna")
    with dying_after(0), pytest.raises(Died):
        await fleet.revocation.revoke_serial(held, COMPROMISED, by="anna")
    for serial in serials_of(await many_for_key(fleet, generate_key(), "meter-2", more=1)):
        await fleet.suspension.suspend_serial(serial, by="berta")
    still = next(each for each in await stored(fleet) if each.on_hold)
    with pytest.raises(Refused, match=r"REVOCATION_FINAL: the key of certificate .* was reported as compromised"):
        await fleet.suspension.resume_serial(still.serial, by="berta")
    with pytest.raises(Refused, match=r"REVOCATION_FINAL: the key of certificate .* was reported as compromised"):
        await fleet.suspension.suspend_serial(still.serial, by="berta")
    assert (await fleet.suspension.resume_device("meter-1", by="berta")).released == []
    await fleet.revocation.portions.finish_left()
    assert {each.kind for each in await events(fleet)} == {EventKind.REVOKED}
    assert {each.revocation and each.revocation.reason for each in await stored(fleet)} == {COMPROMISED}


async def test_reported_by_several_at_once_it_is_ended_once(fleet: Fleet, key: PrivateKey) -> None:
    every = serials_of(await many_for_key(fleet, key, more=5))
    outcomes = await asyncio.gather(
        *(fleet.revocation.revoke_serial(each, COMPROMISED, by="anna") for each in every[:3]),
        fleet.revocation.revoke_batch([], every[3:], COMPROMISED, by="anna"),
    )
    assert sorted(each.serial for each in await events(fleet)) == sorted(every), "each once"
    assert [each.sequence for each in await events(fleet)] == list(range(1, 7))
    for named, outcome in zip([*([each] for each in every[:3]), every[3:]], outcomes, strict=True):
        assert set(named) <= {each.serial for each in outcome.revoked}
    assert any(each.changed for each in outcomes)
    assert await unfinished_keys(fleet) == 0


async def test_reported_again_while_it_is_half_done_it_is_finished_and_each_reporter_is_in_the_log(
    fleet: Fleet, key: PrivateKey
) -> None:
    every = serials_of(await many_for_key(fleet, key, more=5))
    with dying_after(0), pytest.raises(Died):
        await fleet.revocation.revoke_serial(every[1], COMPROMISED, by="anna")
    outcome = await fleet.revocation.revoke_serial(every[0], COMPROMISED, by="berta")
    assert (outcome.changed, [each.serial for each in outcome.revoked]) == (True, every[:1])
    assert sorted(each.serial for each in await events(fleet)) == sorted(every), "each once"
    assert await unfinished_keys(fleet) == 0
    entries = await fleet.database.read(lambda connection: audit.about(connection, "berta", 99))
    assert [(each.action, json.loads(each.details)["serials"]) for each in entries] == [("revoked", every[:1])]


async def test_a_batch_that_names_a_key_that_is_half_done_finishes_it(fleet: Fleet, key: PrivateKey) -> None:
    every = serials_of(await many_for_key(fleet, key, more=5))
    with dying_after(0), pytest.raises(Died):
        await fleet.revocation.revoke_serial(every[1], COMPROMISED, by="anna")
    assert (await fleet.revocation.revoke_batch([], every[:1], COMPROMISED, by="berta")).changed
    assert sorted(each.serial for each in await events(fleet)) == sorted(every), "each once"
    assert await unfinished_keys(fleet) == 0


async def test_the_device_s_end_and_the_key_s_do_not_come_to_harm_together(fleet: Fleet, key: PrivateKey) -> None:
    every = await many_for_key(fleet, key, more=5)
    other = await fleet.enrol("meter-1")
    with dying_after(1):
        with pytest.raises(Died):
            await fleet.revocation.revoke_device("meter-1", SUPERSEDED, by="anna")
        with pytest.raises(Died):
            await fleet.revocation.revoke_serial(serials_of(every)[0], COMPROMISED, by="anna")
    await RevocationService(fleet.database, fleet.clock, ()).portions.finish_left()
    reasons = {each.serial: each.revocation and each.revocation.reason for each in await stored(fleet)}
    assert reasons == dict.fromkeys(serials_of(every), COMPROMISED) | dict.fromkeys(serials_of([other]), SUPERSEDED)
    assert [each.sequence for each in await events(fleet)] == list(range(1, len(await events(fleet)) + 1))


async def test_a_batch_ends_keys_of_few_at_once_and_of_many_in_portions(fleet: Fleet, key: PrivateKey) -> None:
    many = serials_of(await many_for_key(fleet, key, more=5))
    few = serials_of(await many_for_key(fleet, generate_key(), "meter-2", more=1))
    fleet.told.clear()
    outcome = await fleet.revocation.revoke_batch([], [few[0], many[0]], COMPROMISED, by="anna")
    assert outcome.changed
    assert fleet.told == ["feed", "crl"] * 4, "of the batch, and of three portions"
    assert sorted(each.serial for each in await events(fleet)) == sorted(few + many)
    told = [each.serial for each in outcome.revoked]
    assert len(set(told)) == len(told)
    assert set(few) < set(told)
    assert many[0] in told
    assert len(set(told) & set(many)) == 2, "of a key in portions, as many as of a device in portions"
    entries = await fleet.database.read(lambda connection: audit.about(connection, "anna", 99))
    facts = [(each.subject, json.loads(each.details)) for each in entries]
    assert [(subject, each["serials"], each.get("same_key")) for subject, each in facts[:2]] == [
        ("meter-1", many[:1], "in the entries that follow"),
        ("meter-2", few, None),
    ]
    again = await fleet.revocation.revoke_batch([], [few[0], many[0]], COMPROMISED, by="anna")
    assert (again.changed, {each.serial for each in again.revoked}) == (False, {few[0], many[0]})
    assert len(await events(fleet)) == len(few + many)


async def test_a_batch_that_ends_keys_of_several_devices_in_portions_says_so_of_each(fleet: Fleet) -> None:
    names = ("meter-1", "meter-2")
    every = [serials_of(await many_for_key(fleet, generate_key(), name, more=4)) for name in names]
    outcome = await fleet.revocation.revoke_batch([], [each[0] for each in every], COMPROMISED, by="anna")
    assert {each.device for each in outcome.revoked} == set(names)
    assert sorted(each.serial for each in await events(fleet)) == sorted(every[0] + every[1])
    entries = await fleet.database.read(lambda connection: audit.about(connection, "anna", 99))
    said = {each.subject for each in entries if json.loads(each.details).get("same_key") == IN_WHAT_FOLLOWS}
    assert said == set(names)


async def test_an_admin_by_a_key_of_many_certificates_is_none_from_the_first_moment(
    fleet: Fleet, key: PrivateKey
) -> None:
    """His certificates are still good, by themselves: he does not count as the one who is left."""
    anna = serials_of(await many_for_key(fleet, key, "anna", more=5, role=Role.OPERATOR))
    berta = serials_of(await many_for_key(fleet, generate_key(), "berta", more=5, role=Role.OPERATOR))
    for name in ("anna", "berta"):
        await fleet.database.write(
            partial(operators.grant, name=name, role=OperatorRole.ADMIN, by="x", now=fleet.clock())
        )
    with dying_after(0), pytest.raises(Died):
        await fleet.revocation.revoke_batch([], anna[:1], COMPROMISED, by="berta")
    shown = await fleet.database.read(lambda connection: operators.every(connection, fleet.clock()))
    assert {each.grant.name: each.good_until is not None for each in shown} == {"anna": False, "berta": True}
    for ways in WAYS.values():
        with pytest.raises(Refused, match="LAST_ADMIN"):
            await ways(fleet.revocation, berta[0])
    assert {each.device for each in await events(fleet)} == {"anna"}
    assert await unfinished_keys(fleet) == 1, "what was refused is undone"


@pytest.mark.parametrize("way", WAYS)
async def test_a_remembered_answer_is_forgotten_before_its_portion(fleet: Fleet, key: PrivateKey, way: str) -> None:
    every = await many_for_key(fleet, key, more=5)
    responding = await Responding.on(fleet)
    there = ShutOut(fleet.database, lambda: heard.append("forget"))
    heard: list[str] = []
    await there.look()
    assert (await responding.ask(every[0])).certificate_status == ocsp.OCSPCertStatus.GOOD
    with dying_after(0), pytest.raises(Died):
        await WAYS[way](responding.revocation, serials_of(every)[1])
    assert serials_of(every)[0] not in {each.serial for each in await events(fleet)}
    assert (await responding.ask(every[0])).certificate_status == ocsp.OCSPCertStatus.REVOKED
    await there.look()
    assert heard == ["forget"], "another process hears of it, too"
    await there.look()
    assert heard == ["forget"]


async def test_a_new_key_is_not_certified_for_what_was_shown_before_while_the_old_one_ends(
    fleet: Fleet, key: PrivateKey
) -> None:
    """What the device had last is withdrawn, as it is when all of it is revoked."""
    every = await many_for_key(fleet, key, more=5)
    with dying_after(0), pytest.raises(Died):
        await fleet.revocation.revoke_batch([], serials_of(every)[:1], COMPROMISED, by="anna")

    def look(connection: Connection) -> tuple[object, object, object]:
        device = devices.find(connection, "meter-1")
        assert device is not None
        last = certificates_of_device.withdrawn(connection, device)
        held = certificates_of_key.newest(connection, "meter-1", (certificates.issued(every[0])).spki_sha256)
        assert last is not None
        assert held is not None
        used = certificates_of_device.in_use(connection, device.id, fleet.clock(), DAY)
        return (last.serial, last.reason), held.withdrawn, [each.serial for each in used]

    assert await fleet.database.read(look) == ((serials_of(every)[-1], COMPROMISED), True, [])


async def test_a_trial_for_the_key_activates_nobody_in_between(fleet: Fleet, key: PrivateKey) -> None:
    """It is on hold, and good for its successor alone: until its key has ended."""
    await group(fleet, "claim", same_key_window=timedelta())
    trial = await enrol(fleet, "meter-1", key=key, certificate=await claim(fleet))
    every = [await fleet.reenrol(trial, successor_csr(trial, key)) for _ in range(4)]
    with dying_after(0), pytest.raises(Died):
        await fleet.revocation.revoke_batch([], serials_of(every)[:1], COMPROMISED, by="anna")
    assert (await stored(fleet))[0].on_hold, "its portion has not come"
    with pytest.raises(Refused, match="CERTIFICATE_REVOKED: the key of certificate"):
        await fleet.reenrol(trial, successor_csr(trial))


async def test_what_somebody_has_done_since_it_was_looked_up_is_not_ended_again(
    fleet: Fleet, key: PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = serials_of(await many_for_key(fleet, key, more=5))
    await fleet.revocation.revoke_serial(every[0], COMPROMISED, by="anna")
    identifiers = [each.id for each in await stored(fleet)]
    monkeypatch.setattr(certificates_of_key, "not_compromised", lambda *_: identifiers)
    again = await fleet.revocation.revoke_serial(every[1], COMPROMISED, by="berta")
    assert (again.changed, [each.serial for each in again.revoked]) == (False, [every[1]])
    assert await fleet.database.read(lambda connection: audit.about(connection, "berta", 99)) == []
