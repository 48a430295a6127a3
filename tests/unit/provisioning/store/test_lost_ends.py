"""What this process holds, and what of it several threads decide while the store loses more."""

from __future__ import annotations

import concurrent.futures
import threading

import pytest
from sqlalchemy import update
from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.store import devices
from provisioning.store.lost_ends import LostEnd, LostEnds
from provisioning.store.tables import devices as devices_table
from tests.support.fleet import Fleet
from tests.support.requests import NOON

END = LostEnd("aa", "1f", "meter", RevocationReason.KEY_COMPROMISE, NOON)


def lose(lost_ends: LostEnds, *ends: LostEnd) -> None:
    """As the feed does when it has found another history."""
    lost_ends.doubt()
    lost_ends.hold(ends)
    lost_ends.compared(lost_ends.doubts)


def test_a_decision_that_was_read_before_more_was_lost_lets_nothing_go() -> None:
    """Its word came after the new loss had taken back what was decided, and stayed: the name was free for good."""
    lost_ends = LostEnds()
    lose(lost_ends, END)
    doubts = lost_ends.doubts
    lose(lost_ends, END)
    with pytest.raises(Refused, match="of meter was ended"):
        lost_ends.check_device("meter", decided=True, doubts=doubts)
    with pytest.raises(Refused, match="of meter was ended"):
        lost_ends.check_device("meter")
    assert lost_ends.decided == []
    lost_ends.check_device("meter", decided=True, doubts=lost_ends.doubts)
    assert lost_ends.decided == ["meter"]
    lost_ends.check_device("meter")


async def test_a_device_that_was_ended_in_the_history_that_is_lost_is_held(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is found while a thread decides about its enrolment."""
    await fleet.enrol("meter")
    await fleet.revocation.revoke_device("meter", RevocationReason.KEY_COMPROMISE, by="admin")
    lost_ends, find = fleet.database.lost_ends, devices.find
    lose(lost_ends, END)
    read, lost = threading.Event(), threading.Event()

    def found(connection: Connection, name: str, *, for_update: bool = False) -> devices.Device | None:
        device = find(connection, name, for_update=for_update)
        if for_update:
            read.set()
            assert lost.wait(60)
        return device

    def loses() -> None:
        assert read.wait(60)
        lose(lost_ends, END)
        lost.set()

    monkeypatch.setattr(devices, "find", found)
    with concurrent.futures.ThreadPoolExecutor(1) as other:
        losing = other.submit(loses)
        with pytest.raises(Refused) as refused:
            await fleet.enrol("meter")
        losing.result()
    assert refused.value.code is Code.UNAVAILABLE
    monkeypatch.undo()
    await fleet.database.write(lambda each: each.execute(update(devices_table).values(revoked_at=None)))
    with pytest.raises(Refused, match="of meter was ended"):
        await fleet.enrol("meter")
