"""Every way to be let in: what it takes, what it refuses, and that none makes anybody an existing device."""

from __future__ import annotations

from datetime import timedelta

import pytest

from provisioning.enrolment import pace
from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.device_list import DeviceListService
from provisioning.enrolment.manufacturers import ManufacturerService
from provisioning.enrolment.tokens import TokenOrder
from provisioning.errors import Code, Refused
from provisioning.pki.keys import generate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.serial_number import serial_text
from provisioning.store.groups import NewKey
from tests.support.fleet import Fleet
from tests.support.manufacturer import Manufacturer
from tests.support.requests import NOON, csr_der
from tests.support.ways import HOUR, claim, enrol, group, is_good, nothing, pending, refusal, register, who_signed_for


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


@pytest.mark.parametrize("number", ["PID:C9300-24T SN:FCW2137L0B4", "00:1B:44:11:3A:B7"])
async def test_a_serial_number_that_no_device_can_be_called_by_is_told_with_another_way(
    fleet: Fleet, number: str
) -> None:
    """As some manufacturers write it; the certificate is for ever, and its device cannot help it."""
    await group(fleet, "manufacturer")
    acme = Manufacturer(begin=NOON)
    await register(fleet, acme)
    idevid, _ = acme.idevid(number)
    with pytest.raises(Refused, match=f"name '{number}': use 1 to 64 .*another way, such as a token"):
        await enrol(fleet, "a", certificate=idevid)


async def test_only_the_registered_ca_itself_counts_while_it_lasts(fleet: Fleet) -> None:
    await group(fleet, "manufacturer")
    acme, imitator = Manufacturer(begin=NOON), Manufacturer(begin=NOON)
    await register(fleet, acme)
    forged, _ = imitator.idevid("SN17")
    assert await refusal(fleet, "SN17", certificate=forged, label="line") is Code.WAY_REFUSED
    short, _ = acme.idevid("SN17", end=NOON + HOUR)
    fleet.clock.advance(HOUR)
    await enrol(fleet, "SN17", certificate=short)
    fleet.clock.advance(HOUR)
    assert await refusal(fleet, "SN17", certificate=short) is Code.MANUFACTURER_CERTIFICATE
    fleet.clock.advance(-3 * HOUR)
    early, _ = acme.idevid("SN17")
    assert await refusal(fleet, "SN17", certificate=early) is Code.MANUFACTURER_CERTIFICATE
    fleet.clock.advance(HOUR)
    await ManufacturerService(fleet.database, fleet.clock, nothing).end("acme", by="admin")
    assert await refusal(fleet, "SN17", certificate=early, label="line") is Code.WAY_REFUSED


@pytest.mark.parametrize("way", ["manufacturer", "manufacturer+listed"])
async def test_a_device_with_a_new_key_is_recognised_by_its_own_manufacturer_s_certificate_only(
    fleet: Fleet, way: str
) -> None:
    await group(fleet, way, "token", new_key=NewKey.REPLACE)
    await DeviceListService(fleet.database, fleet.clock).add("line", [("SN17", None), ("SN18", None)], by="admin")
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


async def test_a_device_that_had_to_show_a_token_too_is_recognised_by_its_manufacturer(fleet: Fleet) -> None:
    await group(fleet, "token+manufacturer", "manufacturer", new_key=NewKey.REPLACE)
    acme = Manufacturer(begin=NOON)
    await register(fleet, acme)
    idevid, _ = acme.idevid("SN17")
    token = TokenCredential("SN17", await fleet.token("SN17", "line"))
    first = await enrol(fleet, "SN17", certificate=idevid, token=token)
    second = await enrol(fleet, "SN17", certificate=idevid)
    assert (await is_good(fleet, first), await is_good(fleet, second)) == (False, True)


async def test_a_manufacturer_s_certificate_gets_a_new_key_as_the_group_says(fleet: Fleet) -> None:
    await group(fleet, "manufacturer")
    acme = Manufacturer(begin=NOON)
    await register(fleet, acme)
    idevid, _ = acme.idevid("SN17")
    first = await enrol(fleet, "SN17", certificate=idevid, key=(own := generate_key()))
    with pytest.raises(Refused, match="group line lets no device have another key: ask for a token"):
        await enrol(fleet, "SN17", certificate=idevid)
    await fleet.groups.change("line", {"same_key_window": timedelta()}, by="admin")
    with pytest.raises(Refused, match=r"group line certifies no device again for the key that it has \(same_key_sec"):
        await enrol(fleet, "SN17", certificate=idevid, key=own)
    await fleet.groups.change("line", {"new_key": NewKey.APPROVE}, by="admin")
    await pending(fleet, "SN17", certificate=idevid)
    assert await is_good(fleet, first)


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


async def test_a_device_that_was_revoked_when_all_it_had_had_ended_does_not_come_back_by_its_manufacturer(
    fleet: Fleet,
) -> None:
    await group(fleet, "manufacturer", new_key=NewKey.REPLACE)
    acme = Manufacturer(begin=NOON)
    await register(fleet, acme)
    idevid, _ = acme.idevid("SN17")
    ended = await enrol(fleet, "SN17", certificate=idevid)
    fleet.clock.advance(timedelta(days=500))
    outcome = await fleet.revocation.revoke_device("SN17", RevocationReason.UNSPECIFIED, by="admin")
    assert [each.serial for each in outcome.revoked] == [serial_text(ended.serial_number)], "the clock may be wrong"
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


async def test_an_operator_s_token_readmits_beside_another_condition(fleet: Fleet) -> None:
    await group(fleet, "token+listed")
    await DeviceListService(fleet.database, fleet.clock).add("line", [("meter-1", None)], by="admin")
    await enrol(fleet, "meter-1", token=TokenCredential("meter-1", await fleet.token("meter-1", "line")))
    await fleet.revocation.revoke_device("meter-1", RevocationReason.UNSPECIFIED, by="admin")
    await enrol(fleet, "meter-1", token=TokenCredential("meter-1", await fleet.token("meter-1", "line")))
    assert await who_signed_for(fleet) == ["admin", "admin"], "who made the token, not whose list it is"


@pytest.mark.parametrize(
    ("ways", "told"), [(("claim", "listed"), Code.CLAIM_EXHAUSTED), (("listed", "claim"), Code.NOT_LISTED)]
)
async def test_who_is_let_in_by_no_alternative_is_told_why_not_by_the_first(
    fleet: Fleet, ways: tuple[str, str], told: Code
) -> None:
    await group(fleet, *ways)
    shared = await claim(fleet, devices=1)
    await enrol(fleet, "meter-2", certificate=shared)
    assert await refusal(fleet, "meter-1", certificate=shared) is told


async def test_a_device_that_replaces_its_certificate_in_a_loop_has_to_wait(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "MOST_OF_DEVICE", 2)
    await group(fleet, "manufacturer", new_key=NewKey.REPLACE)
    acme = Manufacturer(begin=NOON)
    await register(fleet, acme)
    idevid, _ = acme.idevid("SN17")
    for _ in range(2):
        await enrol(fleet, "SN17", certificate=idevid)
    assert await refusal(fleet, "SN17", certificate=idevid) is Code.RATE_LIMITED
    fleet.clock.advance(HOUR)
    assert await is_good(fleet, await enrol(fleet, "SN17", certificate=idevid))


@pytest.mark.parametrize("new_key", [NewKey.REFUSE, NewKey.REPLACE])
async def test_a_token_bound_to_a_device_counts_whatever_else_the_device_shows(fleet: Fleet, new_key: NewKey) -> None:
    await group(fleet, "manufacturer", "claim", "token", new_key=new_key)
    acme = Manufacturer(begin=NOON)
    await register(fleet, acme)
    idevid, _ = acme.idevid("SN17")
    await enrol(fleet, "SN17", certificate=idevid)

    async def bound(name: str) -> TokenCredential:
        return TokenCredential(name, await fleet.token(name, "line"))

    assert await is_good(fleet, await enrol(fleet, "SN17", certificate=idevid, token=await bound("SN17"))), "a new key"
    await fleet.revocation.revoke_device("SN17", RevocationReason.CESSATION_OF_OPERATION, by="admin")
    assert await refusal(fleet, "SN17", certificate=idevid) is Code.CERTIFICATE_REVOKED
    back = await bound("SN17")
    assert await is_good(fleet, await enrol(fleet, "SN17", certificate=idevid, token=back)), "an operator has decided"
    shared = await claim(fleet)
    mine = await enrol(fleet, "meter-1", certificate=shared, token=await bound("meter-1"))
    assert await is_good(fleet, mine), "it is not on trial, and its own token does not keep the name from it"


async def test_a_new_device_is_known_to_its_manufacturer_though_it_shows_a_token_too(fleet: Fleet) -> None:
    await group(fleet, "manufacturer", "token", new_key=NewKey.REPLACE)
    acme = Manufacturer(begin=NOON)
    await register(fleet, acme)
    idevid, _ = acme.idevid("SN17")
    own = TokenCredential("SN17", await fleet.token("SN17", "line"))
    first = await enrol(fleet, "SN17", certificate=idevid, token=own)
    assert await is_good(fleet, await enrol(fleet, "SN17", certificate=idevid)), "by that again, with a new key"
    assert not await is_good(fleet, first)
    assert await is_good(fleet, await enrol(fleet, "SN17", token=own)), "it was not needed, and is worth one still"


async def test_only_a_token_that_is_spent_lets_a_device_have_more_certificates(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "MOST_OF_DEVICE", 2)
    await group(fleet, "manufacturer", "token", new_key=NewKey.REPLACE)
    acme = Manufacturer(begin=NOON)
    await register(fleet, acme)
    idevid, _ = acme.idevid("SN17")
    (issued,) = await fleet.token_service.create(TokenOrder([], "line"), by="admin")
    kept = TokenCredential("SN17", issued.token)
    for _ in range(2):
        await enrol(fleet, "SN17", certificate=idevid, token=kept)
    assert await refusal(fleet, "SN17", certificate=idevid, token=kept) is Code.RATE_LIMITED
    own = TokenCredential("SN17", await fleet.token("SN17", "line"))
    assert await is_good(fleet, await enrol(fleet, "SN17", token=own))
    assert await refusal(fleet, "SN17", token=own) is Code.TOKEN_USED


async def test_a_request_that_is_repeated_because_its_answer_was_lost_spends_no_token(fleet: Fleet) -> None:
    await group(fleet, "manufacturer", "token", new_key=NewKey.REPLACE)
    acme, key = Manufacturer(begin=NOON), generate_key()
    await register(fleet, acme)
    idevid, _ = acme.idevid("SN17")
    own = TokenCredential("SN17", await fleet.token("SN17", "line"))
    first = await enrol(fleet, "SN17", key=key, certificate=idevid, token=own)
    assert await enrol(fleet, "SN17", key=key, certificate=idevid, token=own) == first
    assert await is_good(fleet, first)
    assert await is_good(fleet, await enrol(fleet, "SN17", token=own)), "it was kept for a new key"
    assert await refusal(fleet, "SN17", token=own) is Code.TOKEN_USED


async def test_where_no_request_is_answered_again_a_bound_token_counts_by_any_clock(fleet: Fleet) -> None:
    await group(fleet, "manufacturer", "token", same_key_window=timedelta())
    acme, key = Manufacturer(begin=NOON - HOUR), generate_key()
    await register(fleet, acme)
    idevid, _ = acme.idevid("SN17")
    await enrol(fleet, "SN17", key=key, certificate=idevid)
    fleet.clock.advance(-timedelta(seconds=1))
    own = TokenCredential("SN17", await fleet.token("SN17", "line"))
    assert await is_good(fleet, await enrol(fleet, "SN17", key=key, certificate=idevid, token=own))


async def test_a_name_that_only_had_trials_hides_no_device_from_its_manufacturer(fleet: Fleet) -> None:
    """Else whoever has a claim, and knows the name, keeps its manufacturer from revoking it."""
    await group(fleet, "manufacturer", "claim", "token", new_key=NewKey.REPLACE)
    acme = Manufacturer(begin=NOON)
    await register(fleet, acme)
    idevid, _ = acme.idevid("SN17")
    await enrol(fleet, "SN17", certificate=await claim(fleet))
    fleet.clock.advance(HOUR)
    own = TokenCredential("SN17", await fleet.token("SN17", "line"))
    first = await enrol(fleet, "SN17", certificate=idevid, token=own)
    second = await enrol(fleet, "SN17", certificate=idevid)
    assert (await is_good(fleet, first), await is_good(fleet, second)) == (False, True)


@pytest.mark.parametrize("taken", ["nothing", "the certificate", "the device", "the device, later"])
async def test_a_token_bound_to_a_name_on_trial_is_needed_while_that_lasts_or_if_it_was_revoked(
    fleet: Fleet, taken: str
) -> None:
    await group(fleet, "manufacturer", "claim", "token")
    acme, key = Manufacturer(begin=NOON), generate_key()
    await register(fleet, acme)
    idevid, _ = acme.idevid("SN17")
    trial = await enrol(fleet, "SN17", certificate=await claim(fleet), key=key)
    match taken:
        case "the certificate":
            serial = serial_text(trial.serial_number)
            await fleet.revocation.revoke_serial(serial, RevocationReason.UNSPECIFIED, by="admin")
        case "the device":
            await fleet.revocation.revoke_device("SN17", RevocationReason.UNSPECIFIED, by="admin")
    if taken != "nothing":
        fleet.clock.advance(HOUR)
    if taken == "the device, later":
        await fleet.revocation.revoke_device("SN17", RevocationReason.UNSPECIFIED, by="admin")
    own = TokenCredential("SN17", await fleet.token("SN17", "line"))
    assert await is_good(fleet, await enrol(fleet, "SN17", certificate=idevid, token=own, key=key))


async def test_a_token_that_is_bound_to_one_device_tells_nothing_of_another(fleet: Fleet) -> None:
    await group(fleet, "listed", "token")
    await enrol(fleet, "meter-1", token=TokenCredential("meter-1", await fleet.token("meter-1", "line")))
    own = TokenCredential("meter-2", await fleet.token("meter-2", "line"))
    assert await refusal(fleet, "meter-1", token=own) is await refusal(fleet, "meter-3", token=own)
