"""What an operator takes from a device stays taken until he gives a new token, whatever reason he names."""

from __future__ import annotations

import contextlib
import random
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from sqlalchemy.engine import Connection

from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.manufacturers import ManufacturerService
from provisioning.errors import Code, Refused
from provisioning.pki.keys import PrivateKey, generate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation.grounds import Grounds
from provisioning.revocation.of_authority import revoke_authority
from provisioning.revocation.reasons import AUTHORITY_REASONS, OPERATOR_REASONS
from provisioning.store import certificates_of_device, claims, devices
from provisioning.store.certificates import StoredCertificate
from provisioning.store.certificates_of_device import Withdrawal
from provisioning.store.groups import NewKey
from tests.support.fleet import Fleet, successor_csr
from tests.support.manufacturer import Manufacturer
from tests.support.requests import NOON
from tests.support.ways import HOUR, claim, enrol, group, is_good, nothing, refusal


async def identifying(fleet: Fleet, *ways: str) -> x509.Certificate:
    """Return the manufacturer's certificate of SN17, whose group takes new keys on its word."""
    await group(fleet, "manufacturer", *ways, new_key=NewKey.REPLACE)
    acme = Manufacturer(begin=NOON)
    service = ManufacturerService(fleet.database, fleet.clock, nothing)
    await service.add(name="acme", group="line", name_prefix="", pem=acme.pem, by="admin")
    return acme.idevid("SN17")[0]


@pytest.mark.parametrize("reason", sorted(OPERATOR_REASONS))
async def test_a_certificate_that_was_revoked_needs_a_new_token(fleet: Fleet, reason: RevocationReason) -> None:
    mine = await identifying(fleet, "token")
    certificate = await enrol(fleet, "SN17", certificate=mine)
    fleet.clock.advance(HOUR)
    await fleet.revocation.revoke_serial(f"{certificate.serial_number:x}", reason, by="admin")
    assert await refusal(fleet, "SN17", certificate=mine) is Code.CERTIFICATE_REVOKED
    token = TokenCredential("SN17", await fleet.token("SN17", "line"))
    assert await is_good(fleet, await enrol(fleet, "SN17", token=token))


async def test_a_device_whose_certificate_is_suspended_is_told_that_it_can_be_resumed(fleet: Fleet) -> None:
    mine = await identifying(fleet, "token")
    certificate = await enrol(fleet, "SN17", certificate=mine)
    serial = f"{certificate.serial_number:x}"
    await fleet.suspension.suspend_serial(serial, by="admin")
    with pytest.raises(Refused, match=r"CERTIFICATE_SUSPENDED: .* is suspended: an operator has to resume it, or make"):
        await enrol(fleet, "SN17", certificate=mine)
    await fleet.suspension.resume_serial(serial, by="admin")
    await enrol(fleet, "SN17", certificate=mine)


@pytest.mark.parametrize("is_held", [False, True])
@pytest.mark.parametrize("reason", AUTHORITY_REASONS)
async def test_what_a_revoked_ca_has_certified_needs_a_new_token(
    fleet: Fleet, reason: RevocationReason, *, is_held: bool
) -> None:
    mine = await identifying(fleet)
    certificate = await enrol(fleet, "SN17", certificate=mine)
    if is_held:  # Nobody can resume it any more.
        await fleet.suspension.suspend_serial(f"{certificate.serial_number:x}", by="admin")

    def revoke(connection: Connection) -> None:
        revoke_authority(connection, "issuing-ca", Grounds(reason), by="admin", now=fleet.clock())

    await fleet.database.write(revoke)
    assert await refusal(fleet, "SN17", certificate=mine) is Code.CERTIFICATE_REVOKED


async def test_what_was_replaced_is_not_withdrawn_though_what_replaced_it_was_a_trial_that_was_lost(
    fleet: Fleet,
) -> None:
    mine = await identifying(fleet)
    first = await enrol(fleet, "SN17", certificate=mine)
    second = await enrol(fleet, "SN17", certificate=mine)
    assert (await is_good(fleet, first), await is_good(fleet, second)) == (False, True)

    def lose(connection: Connection) -> Withdrawal | None:
        device = devices.find(connection, "SN17")
        assert device is not None
        of_second = certificates_of_device.every(connection, device.id)[-1]
        _held(connection, fleet, of_second)
        return certificates_of_device.withdrawn(connection, device)

    await claim(fleet)
    assert await fleet.database.write(lose) is None


@pytest.mark.parametrize("reason", [RevocationReason.SUPERSEDED, RevocationReason.UNSPECIFIED])
async def test_what_was_taken_is_not_given_back_by_a_trial_that_waits(fleet: Fleet, reason: RevocationReason) -> None:
    """It replaces nothing that is revoked after it, and of what was revoked before it only what it has replaced."""
    mine = await identifying(fleet, "token")
    first = await enrol(fleet, "SN17", certificate=mine)
    serial = f"{first.serial_number:x}"
    await claim(fleet)
    if reason is RevocationReason.UNSPECIFIED:
        await fleet.revocation.revoke_serial(serial, reason, by="admin")
        await enrol(fleet, "SN17", token=TokenCredential("SN17", await fleet.token("SN17", "line")))
    else:
        await fleet.reenrol(first, successor_csr(first))

    def put_on_trial(connection: Connection) -> None:
        device = devices.find(connection, "SN17")
        assert device is not None
        _held(connection, fleet, certificates_of_device.every(connection, device.id)[-1])

    await fleet.database.write(put_on_trial)
    fleet.clock.advance(HOUR / 2)
    if reason is RevocationReason.SUPERSEDED:
        await fleet.revocation.revoke_serial(serial, reason, by="admin")

    def look(connection: Connection) -> Withdrawal | None:
        device = devices.find(connection, "SN17")
        assert device is not None
        return certificates_of_device.withdrawn(connection, device)

    assert await fleet.database.read(look) == Withdrawal(serial, reason)


def _held(connection: Connection, fleet: Fleet, certificate: StoredCertificate) -> None:
    """Make a certificate of the first claim's trial of it."""
    from provisioning.store import revocations

    hold = RevocationReason.CERTIFICATE_HOLD
    revocations.add(connection, [certificate.id], reason=hold, revoked_at=fleet.clock(), revoked_by="admin")
    claims.begin_trial(connection, 1, certificate.device.id, certificate.id, fleet.clock() + HOUR)


async def test_of_trials_alone_one_look_tells_whether_any_was_withdrawn(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many were lost or replaced; what became of each is not looked at."""
    await group(fleet, "token+claim", new_key=NewKey.REPLACE)
    shared = await claim(fleet)
    walks: list[int] = []
    walk = certificates_of_device._decided

    def noted(*each: Any) -> Any:
        walks.append(1)
        return walk(*each)

    monkeypatch.setattr(certificates_of_device, "_decided", noted)

    async def tried() -> x509.Certificate:
        token = TokenCredential("SN17", await fleet.token("SN17", "line"))
        return await enrol(fleet, "SN17", token=token, certificate=shared)

    def look(connection: Connection) -> Withdrawal | None:
        device = devices.find(connection, "SN17")
        assert device is not None
        states = [
            each.revocation and each.revocation.reason for each in certificates_of_device.every(connection, device.id)
        ]
        seen.append([str(each) for each in states])
        return certificates_of_device.withdrawn(connection, device)

    seen: list[list[str]] = []
    await tried()
    await tried()
    fleet.clock.advance(2 * HOUR)
    trial = await tried()
    assert await fleet.database.read(look) is None
    assert seen.pop() == ["superseded", "certificateHold", "certificateHold"]
    assert walks == []
    serial = f"{trial.serial_number:x}"
    await fleet.revocation.revoke_serial(serial, RevocationReason.UNSPECIFIED, by="admin")
    assert await fleet.database.read(look) == Withdrawal(serial, RevocationReason.UNSPECIFIED)
    assert walks == [1]


def by_the_book(connection: Connection, device_id: int) -> Withdrawal | None:
    """Decide by everything that the device ever had: the slow twin."""
    trials = claims.trials_of(connection, device_id)
    every = certificates_of_device.every(connection, device_id)
    for each in reversed(every):
        if each.revocation is None:
            return None
        if each.on_hold and each.id in trials:
            continue
        later = [other for other in every if other.id > each.id and other.issued_at >= each.revocation.revoked_at]
        if each.revocation.reason is RevocationReason.SUPERSEDED and later:
            continue
        return Withdrawal(each.serial, each.revocation.reason)
    return None


@pytest.mark.parametrize("seed", range(3))
async def test_it_is_what_a_look_at_every_certificate_gives(
    fleet: Fleet, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates_of_device, "_PAGE", 1)
    choose = random.Random(seed)
    mine = await identifying(fleet, "claim", "token")
    shared = await claim(fleet, devices=100)
    newest: x509.Certificate | None = None
    seen = set()
    for _ in range(40):
        with contextlib.suppress(Refused):
            match choose.randrange(7):
                case 0 | 1:
                    newest = await enrol(fleet, "SN17", certificate=choose.choice([mine, shared]))
                case 2 if newest is not None:
                    newest = await fleet.reenrol(newest, successor_csr(newest))
                case 3:
                    token = TokenCredential("SN17", await fleet.token("SN17", "line"))
                    newest = await enrol(fleet, "SN17", token=token)
                case 4 if newest is not None:
                    reason = choose.choice([RevocationReason.SUPERSEDED, RevocationReason.UNSPECIFIED])
                    await fleet.revocation.revoke_serial(f"{newest.serial_number:x}", reason, by="admin")
                case 5 if newest is not None:
                    doing = choose.choice([fleet.suspension.suspend_serial, fleet.suspension.resume_serial])
                    await doing(f"{newest.serial_number:x}", by="admin")
                case _:
                    fleet.clock.advance(choose.choice([HOUR, 20 * timedelta(days=1)]))

        def both(connection: Connection) -> tuple[object, object]:
            device = devices.find(connection, "SN17")
            if device is None:
                return None, None
            now, grace = fleet.clock(), timedelta(days=50)
            trials = claims.trials_of(connection, device.id)
            used = [
                each.id
                for each in certificates_of_device.every(connection, device.id)
                if now < each.not_after + grace
                and (each.revocation is None or not each.revocation.reason.final)
                and (each.id not in trials or now <= each.not_after)
            ]
            in_use = certificates_of_device.in_use(connection, device.id, now, grace)
            assert [each.id for each in in_use] == used
            last = certificates_of_device.newest(connection, device.id)
            assert last == certificates_of_device.every(connection, device.id)[-1]
            return certificates_of_device.withdrawn(connection, device), by_the_book(connection, device.id)

        found, expected = await fleet.database.read(both)
        assert found == expected
        seen.add(found is None)
    assert seen == {True, False}


@pytest.mark.parametrize("reason", [*sorted(OPERATOR_REASONS), RevocationReason.CERTIFICATE_HOLD])
async def test_what_was_taken_is_not_given_back_by_the_trial_that_has_activated_the_device(
    fleet: Fleet, reason: RevocationReason
) -> None:
    """That lasts for up to seven days, and is good for nothing as far as an operator sees."""
    await group(fleet, "claim", same_key_window=timedelta())
    trial = await enrol(fleet, "meter-1", certificate=await claim(fleet))
    lost = await fleet.reenrol(trial, successor_csr(trial, generate_key()))
    activated = await fleet.reenrol(trial, successor_csr(trial, generate_key()))
    fleet.clock.advance(HOUR / 4)
    await fleet.revocation.revoke_serial(f"{lost.serial_number:x}", RevocationReason.SUPERSEDED, by="admin")
    newest = await fleet.reenrol(trial, successor_csr(trial))
    for each in (activated, newest):
        serial = f"{each.serial_number:x}"
        if reason is RevocationReason.CERTIFICATE_HOLD:
            await fleet.suspension.suspend_serial(serial, by="admin")
        else:
            await fleet.revocation.revoke_serial(serial, reason, by="admin")
    with pytest.raises(Refused) as caught:
        await fleet.reenrol(trial, successor_csr(trial))
    is_held = reason is RevocationReason.CERTIFICATE_HOLD
    assert caught.value.code is (Code.CERTIFICATE_SUSPENDED if is_held else Code.CERTIFICATE_REVOKED)
    if is_held:
        await fleet.suspension.resume_serial(serial, by="admin")
        await fleet.reenrol(trial, successor_csr(trial))


async def readmitted(fleet: Fleet, shared: x509.Certificate, key: PrivateKey) -> x509.Certificate:
    token = TokenCredential("meter-1", await fleet.token("meter-1", "line"))
    return await enrol(fleet, "meter-1", key=key, token=token, certificate=shared)


@pytest.mark.parametrize("whole", [False, True])
async def test_a_trial_that_a_newer_decision_of_an_operator_has_bought_activates_the_device_again(
    fleet: Fleet, *, whole: bool
) -> None:
    """And not once something was taken from the device after that."""
    await group(fleet, "claim+token")
    shared, key = await claim(fleet), generate_key()
    trial = await readmitted(fleet, shared, key)
    first = await fleet.reenrol(trial, successor_csr(trial, key))
    if whole:
        await fleet.revocation.revoke_device("meter-1", RevocationReason.PRIVILEGE_WITHDRAWN, by="admin")
    else:
        serial = f"{first.serial_number:x}"
        await fleet.revocation.revoke_serial(serial, RevocationReason.PRIVILEGE_WITHDRAWN, by="admin")
    key = generate_key()
    trial = await readmitted(fleet, shared, key)
    second = await fleet.reenrol(trial, successor_csr(trial, key))
    assert await is_good(fleet, second)
    trial = await readmitted(fleet, shared, generate_key())
    await fleet.revocation.revoke_serial(f"{second.serial_number:x}", RevocationReason.PRIVILEGE_WITHDRAWN, by="admin")
    with pytest.raises(Refused, match="CERTIFICATE_REVOKED"):
        await fleet.reenrol(trial, successor_csr(trial))
