"""A device that is ended while our clock is ahead: what the clock calls expired is good for everybody else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest
from cryptography.x509 import ocsp

from provisioning.pki.revocation import RevocationReason
from provisioning.store import revocations
from tests.support.fleet import Fleet
from tests.support.many_certificates import make_portions_small, many_of, serials_of
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
