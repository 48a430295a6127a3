"""A name that an operator has promised to one party is not chosen by another, who was promised any new name.

Otherwise the two would be one device: whoever is bound to the name gets a certificate of it whatever was there before.
"""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509

from provisioning.enrolment.approvals import ApprovalService
from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.device_list import DeviceListService
from provisioning.enrolment.manufacturers import ManufacturerService
from provisioning.enrolment.tokens import IssuedToken, TokenOrder
from provisioning.errors import Code, Refused
from provisioning.pki.keys import PrivateKey, generate_key, spki_fingerprint
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from tests.support.fleet import Fleet
from tests.support.manufacturer import Manufacturer
from tests.support.operators import operator
from tests.support.requests import NOON
from tests.support.ways import HOUR, claim, enrol, group, nothing, pending, refusal, register

NAME = "meter-17"


async def promise(fleet: Fleet, name: str = NAME, role: Role = Role.DEVICE, by: str = "boss") -> IssuedToken:
    where = "line" if role is Role.DEVICE else None
    (token,) = await fleet.token_service.create(TokenOrder([name], where, role), by=by)
    return token


async def any_name(fleet: Fleet) -> TokenCredential:
    (token,) = await fleet.token_service.create(TokenOrder(group="line", ttl=timedelta(days=9)), by="boss")
    return TokenCredential(NAME, token.token)


async def test_a_name_that_a_token_is_bound_to_is_not_chosen_by_who_may_choose_any(fleet: Fleet) -> None:
    await group(fleet, "token", "claim")
    chosen, shared = await any_name(fleet), await claim(fleet)
    bound = await promise(fleet)
    assert await refusal(fleet, NAME, token=chosen) is Code.NAME_TAKEN
    assert await refusal(fleet, NAME, certificate=shared) is Code.NAME_TAKEN
    key = generate_key()
    mine = await enrol(fleet, NAME, key=key, token=TokenCredential(NAME, bound.token))
    assert await refusal(fleet, NAME, token=chosen) is Code.NAME_TAKEN
    assert await enrol(fleet, NAME, key=key, token=TokenCredential(NAME, bound.token)) == mine
    await enrol(fleet, "meter-18", token=chosen)


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.BROKER, Role.SERVICE])
async def test_nor_that_of_who_is_to_be_no_device(fleet: Fleet, role: Role) -> None:
    await group(fleet, "claim")
    bound = await promise(fleet, "anna", role)
    assert await refusal(fleet, "anna", certificate=await claim(fleet)) is Code.NAME_TAKEN
    await enrol(fleet, "anna", token=TokenCredential("anna", bound.token))


@pytest.mark.parametrize("end", ["void", "expired", "maker", "device"])
async def test_once_the_promise_has_ended_the_name_is_anybody_s(fleet: Fleet, end: str) -> None:
    await group(fleet, "token")
    await operator(fleet, "anna")
    await operator(fleet, "boss")
    chosen, bound = await any_name(fleet), await promise(fleet, by="anna")
    match end:
        case "void":
            await fleet.token_service.void(bound.number, lambda _: None, by="boss")
        case "expired":
            fleet.clock.advance(bound.expires_at - fleet.clock())
        case "maker":
            await fleet.revocation.revoke_device("anna", RevocationReason.KEY_COMPROMISE, by="boss")
        case _:
            await enrol(fleet, NAME, token=TokenCredential(NAME, bound.token))
            again = await promise(fleet)
            await fleet.revocation.revoke_device(NAME, RevocationReason.UNSPECIFIED, by="boss")
            assert await refusal(fleet, NAME, token=TokenCredential(NAME, again.token)) is Code.TOKEN_VOID
            return
    await enrol(fleet, NAME, token=chosen)


async def test_who_proves_to_be_that_very_device_needs_no_other_promise(fleet: Fleet) -> None:
    await group(fleet, "manufacturer", "listed", "approval", "token")
    acme, key = Manufacturer(begin=NOON), generate_key()
    await register(fleet, acme)
    await DeviceListService(fleet.database, fleet.clock).add("line", [("listed-1", fingerprint(key))], by="boss")
    for name in ("SN17", "listed-1", "approved-1"):
        await promise(fleet, name)
    await enrol(fleet, "SN17", certificate=acme.idevid("SN17")[0])
    await enrol(fleet, "listed-1", key=key, label="line")
    number = await pending(fleet, "approved-1", key=key_of_approved, label="line")
    await ApprovalService(fleet.database, fleet.clock).decide(number, approve=True, by="boss")
    await enrol(fleet, "approved-1", key=key_of_approved, label="line")


key_of_approved = generate_key()


def fingerprint(key: PrivateKey) -> str:
    return spki_fingerprint(key.public_key()).hex()


async def test_nor_a_name_whose_key_is_on_the_group_s_list(fleet: Fleet) -> None:
    await group(fleet, "listed", "token", "claim")
    key = generate_key()
    lists = DeviceListService(fleet.database, fleet.clock)
    await lists.add("line", [(NAME, fingerprint(key)), ("meter-18", None)], by="boss")
    chosen, shared = await any_name(fleet), await claim(fleet)
    assert await refusal(fleet, NAME, token=chosen) is Code.NAME_TAKEN
    assert await refusal(fleet, NAME, certificate=shared) is Code.NAME_TAKEN
    await enrol(fleet, "meter-18", token=chosen)
    assert isinstance(await enrol(fleet, NAME, key=key, certificate=shared), x509.Certificate), "it is that very key"
    await enrol(fleet, NAME, token=TokenCredential(NAME, (await promise(fleet)).token))


async def test_a_list_that_the_group_does_not_ask_promises_nothing(fleet: Fleet) -> None:
    await group(fleet, "token")
    lists = DeviceListService(fleet.database, fleet.clock)
    await lists.add("line", [(NAME, fingerprint(generate_key()))], by="boss")
    await enrol(fleet, NAME, token=await any_name(fleet))


async def test_nor_one_that_is_free_again_because_its_trial_was_lost(fleet: Fleet) -> None:
    await group(fleet, "token", "claim")
    chosen, shared = await any_name(fleet), await claim(fleet)
    await enrol(fleet, NAME, certificate=shared)
    fleet.clock.advance(2 * HOUR)
    await promise(fleet)
    assert await refusal(fleet, NAME, token=chosen) is Code.NAME_TAKEN
    assert await refusal(fleet, NAME, certificate=shared) is Code.NAME_TAKEN
    fleet.clock.advance(2 * HOUR)
    await enrol(fleet, NAME, certificate=shared)


async def test_nor_one_that_a_manufacturer_s_devices_have(fleet: Fleet) -> None:
    """Else the true device, which has no other name, is refused its own for ever."""
    await group(fleet, "token", "claim")
    await group(fleet, "manufacturer", "claim+manufacturer", name="acme")
    chosen, shared, acme = await any_name(fleet), await claim(fleet), Manufacturer(begin=NOON)
    registered = ManufacturerService(fleet.database, fleet.clock, nothing)
    await registered.add(name="acme", group="acme", name_prefix="meter-", pem=acme.pem, by="boss")
    assert await refusal(fleet, NAME, token=chosen) is Code.NAME_TAKEN
    assert await refusal(fleet, NAME, certificate=shared) is Code.NAME_TAKEN
    await enrol(fleet, NAME, certificate=acme.idevid("17")[0])
    bound = await promise(fleet, "meter-18")
    await enrol(fleet, "meter-18", token=TokenCredential("meter-18", bound.token))
    await enrol(fleet, "Meter-19", certificate=shared)
    await registered.end("acme", by="boss")
    await enrol(fleet, "meter-19", token=chosen)


async def test_a_manufacturer_without_a_prefix_has_no_name_to_itself(fleet: Fleet) -> None:
    await group(fleet, "token", "manufacturer")
    await register(fleet, Manufacturer(begin=NOON))
    await enrol(fleet, NAME, token=await any_name(fleet))


async def test_no_name_is_promised_as_a_device_s_and_as_that_of_who_is_none(fleet: Fleet) -> None:
    """An enroller, who may make tokens for devices only, would take a broker's name before the broker comes."""
    await group(fleet, "token")
    of_broker = await promise(fleet, "broker-2", Role.BROKER)
    of_device = await promise(fleet)
    for name, role in (("broker-2", Role.DEVICE), (NAME, Role.SERVICE)):
        with pytest.raises(Refused, match=f"NAME_TAKEN: .* is bound to {name}"):
            await promise(fleet, name, role)
    await promise(fleet, "broker-2", Role.BROKER)
    await fleet.token_service.void(of_device.number, lambda _: None, by="boss")
    await promise(fleet, NAME, Role.SERVICE)
    await enrol(fleet, "broker-2", token=TokenCredential("broker-2", of_broker.token))


async def test_no_manufacturer_s_device_has_another_s_name_nor_that_of_who_is_no_device(fleet: Fleet) -> None:
    """A manufacturer chooses the numbers of its certificates, and without a prefix they are names."""
    await group(fleet, "manufacturer", "listed")
    rogue, acme, key = Manufacturer("Rogue", begin=NOON), Manufacturer("Acme", begin=NOON), generate_key()
    await register(fleet, rogue, "rogue")
    await register(fleet, acme, "acme", "meter-")
    bound = await promise(fleet, "broker-2", Role.BROKER)
    await DeviceListService(fleet.database, fleet.clock).add("line", [("broker-2", fingerprint(key))], by="enroller")
    assert await refusal(fleet, NAME, certificate=rogue.idevid(NAME)[0]) is Code.NAME_TAKEN
    assert await refusal(fleet, "broker-2", certificate=rogue.idevid("broker-2")[0]) is Code.NAME_TAKEN
    assert await refusal(fleet, "broker-2", key=key, label="line") is Code.NAME_TAKEN
    await enrol(fleet, NAME, certificate=acme.idevid("17")[0])
    await enrol(fleet, "broker-2", token=TokenCredential("broker-2", bound.token))
    await enrol(fleet, "other-1", certificate=rogue.idevid("other-1")[0])
