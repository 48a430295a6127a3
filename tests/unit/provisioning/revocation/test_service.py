from __future__ import annotations

import asyncio

import pytest

from provisioning.errors import Refused
from provisioning.pki.revocation import RevocationReason
from provisioning.revocation.service import OPERATOR_REASONS
from provisioning.store import revocations
from tests.support.fleet import Fleet, successor_csr


async def sequences(fleet: Fleet) -> list[tuple[int, str]]:
    records = await fleet.database.read(lambda connection: revocations.after(connection, 0, 10_000))
    return [(each.sequence, each.device) for each in records]


async def test_a_device_is_revoked_with_all_its_certificates_once(fleet: Fleet) -> None:
    first = await fleet.enrol()
    await fleet.reenrol(first, successor_csr(first))
    outcome = await fleet.revocation.revoke_device("meter-17", RevocationReason.KEY_COMPROMISE, by="admin")
    assert (outcome.changed, len(outcome.revoked)) == (True, 2)
    assert fleet.told == ["feed", "crl"]
    again = await fleet.revocation.revoke_device("meter-17", RevocationReason.SUPERSEDED, by="other")
    assert (again.changed, again.revoked) == (False, outcome.revoked)
    assert fleet.told == ["feed", "crl"]


async def test_concurrent_revocations_have_consecutive_numbers(fleet: Fleet) -> None:
    names = [f"meter-{number}" for number in range(20)]
    for name in names:
        await fleet.enrol(name)
    both = [*names, *names]  # Each twice, at the same time.
    outcomes = await asyncio.gather(
        *(fleet.revocation.revoke_device(name, RevocationReason.UNSPECIFIED, by="admin") for name in both)
    )
    assert sum(outcome.changed for outcome in outcomes) == 20
    found = await sequences(fleet)
    assert [sequence for sequence, _ in found] == list(range(1, 21))
    assert {name for _, name in found} == set(names)


async def test_a_refused_revocation_takes_no_number(fleet: Fleet) -> None:
    await fleet.enrol()
    for refused in (
        fleet.revocation.revoke_device("nobody", RevocationReason.UNSPECIFIED, by="admin"),
        fleet.revocation.revoke_serial("abc", RevocationReason.UNSPECIFIED, by="admin"),
        fleet.revocation.revoke_device("meter-17", RevocationReason.CERTIFICATE_HOLD, by="admin"),
    ):
        with pytest.raises(Refused):
            await refused
    assert await sequences(fleet) == []
    await fleet.revocation.revoke_device("meter-17", RevocationReason.UNSPECIFIED, by="admin")
    assert await sequences(fleet) == [(1, "meter-17")]


@pytest.mark.parametrize("reason", RevocationReason)
async def test_an_operator_gives_reasons_that_fit_an_end_entity(fleet: Fleet, reason: RevocationReason) -> None:
    await fleet.enrol()
    if reason in OPERATOR_REASONS:
        outcome = await fleet.revocation.revoke_device("meter-17", reason, by="admin")
        assert outcome.revoked[0].reason is reason
    else:
        with pytest.raises(Refused, match=f"reason {reason} cannot be given"):
            await fleet.revocation.revoke_device("meter-17", reason, by="admin")
