"""A device that is ended while our clock is ahead: what the clock calls expired is good for everybody else."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial

import pytest
from cryptography.x509 import ocsp

from provisioning.enrolment.authentication import authenticate
from provisioning.errors import Refused
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation.grounds import Grounds
from provisioning.revocation.of_authority import device_name, revoke_authority
from provisioning.store import audit, revocations
from provisioning.store.audit import Action
from tests.support.fleet import Fleet
from tests.support.many_certificates import (
    Died,
    dying_after,
    events,
    make_portions_small,
    many_of,
    said_by_ocsp,
    serials_of,
)
from tests.support.responding import Responding

DAY = timedelta(days=1)
End = Callable[[Fleet], Awaitable[object]]
ENDS: dict[str, End] = {
    "revoked": lambda fleet: fleet.revocation.revoke_device("meter-1", RevocationReason.UNSPECIFIED, by="anna"),
    "revoked in a batch": lambda fleet: fleet.revocation.revoke_batch(
        ["meter-1"], [], RevocationReason.UNSPECIFIED, by="anna"
    ),
    "decommissioned": lambda fleet: fleet.revocation.decommission("meter-1", by="anna"),
    "suspended": lambda fleet: fleet.suspension.suspend_device("meter-1", by="anna"),
    "suspended in a batch": lambda fleet: fleet.suspension.suspend_batch(["meter-1"], [], by="anna"),
}


@pytest.mark.parametrize("portions", [False, True], ids=["at once", "in portions"])
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
async def test_a_clock_that_was_ahead_leaves_nothing_good_of_who_was_ended(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, end: End, *, portions: bool
) -> None:
    if portions:
        make_portions_small(monkeypatch)
    good = await many_of(fleet, "meter-1", more=4)
    fleet.clock.advance(31 * DAY)
    await end(fleet)
    fleet.clock.advance(-31 * DAY)
    assert all(each.not_valid_before_utc <= fleet.clock() < each.not_valid_after_utc for each in good)
    told = await fleet.database.read(lambda connection: revocations.after(connection, 0, 99))
    assert sorted(each.serial for each in told) == sorted(serials_of(good)), "brokers hear of each"
    responding = await Responding.on(fleet)
    for each in good:
        assert (await responding.ask(each)).certificate_status is ocsp.OCSPCertStatus.REVOKED


@pytest.mark.parametrize("portions", [False, True], ids=["at once", "in portions"])
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
async def test_what_that_clock_had_replaced_is_ended_by_asking_again_when_it_is_right(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, end: End, *, portions: bool
) -> None:
    """A later certificate, of a wrong date, says that the earlier one has ended: nothing here contradicts it."""
    if portions:
        make_portions_small(monkeypatch)
    replaced = await fleet.enrol("meter-1")
    fleet.clock.advance(31 * DAY)
    later = await many_of(fleet, "meter-1", more=3)
    await end(fleet)
    fleet.clock.advance(-31 * DAY)
    assert sorted(each.serial for each in await events(fleet)) == sorted(serials_of(later))
    await end(fleet)
    assert sorted(each.serial for each in await events(fleet)) == sorted(serials_of([replaced, *later]))
    assert await said_by_ocsp(fleet, replaced) is not None


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
async def test_what_is_left_of_who_was_ended_by_a_clock_that_was_ahead_is_not_good(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, end: End
) -> None:
    make_portions_small(monkeypatch)
    await many_of(fleet, "meter-1")
    fleet.clock.advance(31 * DAY)
    every = await many_of(fleet, "meter-1", more=4)
    fleet.clock.advance(31 * DAY)
    await fleet.enrol("meter-2")  # Another device's says nothing about this one.
    with dying_after(0), pytest.raises(Died):
        await end(fleet)
    fleet.clock.advance(-31 * DAY)
    assert not await events(fleet), "none is revoked itself"
    for each in every:
        assert await said_by_ocsp(fleet, each) is not None


@pytest.mark.parametrize("portions", [False, True], ids=["at once", "in portions"])
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
async def test_what_had_ended_when_a_later_one_was_issued_is_left_alone(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, end: End, *, portions: bool
) -> None:
    if portions:
        make_portions_small(monkeypatch)
    await many_of(fleet, "meter-1", more=2)
    fleet.clock.advance(31 * DAY)
    newer = await many_of(fleet, "meter-1", more=2)
    fleet.clock.advance(31 * DAY)
    await end(fleet)
    told = await fleet.database.read(lambda connection: revocations.after(connection, 0, 99))
    assert sorted(each.serial for each in told) == sorted(serials_of(newer))


async def revoke_the_ca(fleet: Fleet) -> None:
    grounds = Grounds(RevocationReason.CA_COMPROMISE, fleet.clock() - DAY)
    await fleet.database.write(
        lambda connection: revoke_authority(connection, "issuing-ca", grounds, by="boss", now=fleet.clock())
    )


async def told_of_the_ca(fleet: Fleet) -> list[tuple[str, dict[str, object]]]:
    """Return who has said what of the CA, in the audit log."""
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 99))
    return [(each.actor, json.loads(each.details)) for each in entries if each.action == Action.CA_CHANGED]


@pytest.mark.parametrize("died", [False, True], ids=["finished while ahead", "not finished while ahead"])
async def test_of_a_ca_revoked_by_a_clock_that_was_ahead_nothing_is_good_when_it_is_right(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, *, died: bool
) -> None:
    """What it had issued, and this clock called expired, was not revoked with it."""
    make_portions_small(monkeypatch)
    every = await many_of(fleet, "meter-1", more=4)
    fleet.clock.advance(31 * DAY)
    later = await fleet.enrol("meter-2")
    await revoke_the_ca(fleet)
    portions = fleet.revocation.portions
    if died:
        with dying_after(0), pytest.raises(Died):
            await portions.finish_left()
    else:
        await portions.finish_left()
        assert [each.device for each in await events(fleet)] == [device_name("issuing-ca"), "meter-2"]
    fleet.clock.advance(-31 * DAY)
    await portions.finish_left()
    ended = [each.serial for each in await events(fleet)][1:]
    assert sorted(ended) == sorted(serials_of([*every, later])), "brokers hear of each"
    for each in every:
        assert await said_by_ocsp(fleet, each) is RevocationReason.UNSPECIFIED
        with pytest.raises(Refused, match="CERTIFICATE_REVOKED"):
            await fleet.database.read(partial(authenticate, certificate=each, now=fleet.clock()))
    told = await told_of_the_ca(fleet)
    assert [(who, facts["certificates"], "instead_of" in facts) for who, facts in told] == [
        ("boss", "in the entries that follow", False),
        ("provisioning", "in the entries that follow", True),
    ]
    before = await events(fleet)
    await portions.finish_left()
    assert await events(fleet) == before, "that is done once"
    assert await told_of_the_ca(fleet) == told


@pytest.mark.parametrize(
    ("lived", "back"),
    [(DAY, timedelta(seconds=20)), (1000 * DAY, 400 * DAY), (DAY, 3 * DAY)],
    ids=["by seconds", "by years", "to before it was made"],
)
async def test_a_ca_revoked_by_a_clock_that_was_right_is_left_as_it_is(
    fleet: Fleet, lived: timedelta, back: timedelta
) -> None:
    """Another process's clock is some seconds ahead, or this machine does not know the time yet."""
    fleet.clock.advance(lived)
    await revoke_the_ca(fleet)
    await fleet.revocation.portions.finish_left()
    fleet.clock.advance(-back)
    await fleet.revocation.portions.finish_left()
    assert [who for who, _ in await told_of_the_ca(fleet)] == ["boss"]
