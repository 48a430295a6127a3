"""When the store can be used again, the log says so: once, with how long it could not be."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from provisioning.errors import Refused
from provisioning.store import lanes
from provisioning.store.outage import Outage
from tests.support.fleet import Fleet

READER, WRITER = "reader", "writer"


def test_it_is_over_when_nothing_has_failed_for_a_moment() -> None:
    outage = Outage()
    assert outage.failed("gone", 100.0) == 1
    outage.stops(WRITER)
    assert outage.works(WRITER, 102.0) is None, "it may fail again at once"
    assert outage.works(WRITER, 106.0) == 2.0
    assert not outage.lasts
    assert outage.works(WRITER, 107.0) is None


def test_what_can_be_read_does_not_end_that_nothing_can_be_written() -> None:
    outage = Outage()
    outage.failed("full", 0.0)
    outage.stops(WRITER)
    for second in range(100):
        assert outage.works(READER, float(second)) is None
    assert outage.works(WRITER, 100.0) == 100.0
    assert outage.works(READER, 101.0) is None, "it is said once"


def test_a_failure_in_between_begins_the_wait_anew() -> None:
    outage = Outage()
    for second in range(0, 40, 4):
        outage.failed("locked", float(second))
        outage.stops(WRITER)
        assert outage.works(WRITER, second + 1.0) is None
        assert outage.works(WRITER, second + 3.0) is None
    assert outage.works(WRITER, 50.0) == 37.0


def test_an_end_is_said_only_of_what_was_said() -> None:
    """Else a lock that is in the way every ten seconds would have six ends a minute, and one beginning."""
    outage, lines, ends = Outage(), [], []
    for second in range(0, 120, 10):
        lines.append(outage.failed("locked", float(second)))
        outage.stops(WRITER)
        ends.append(outage.works(WRITER, second + 6.0))
    assert [each > 0 for each in lines] == [each is not None for each in ends]
    assert sum(each is not None for each in ends) == 2


async def test_the_log_has_the_end_of_an_outage(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("provisioning.store.outage._QUIET_SECONDS", 0.0)
    with capture_logs() as said:
        with pytest.raises(Refused):
            await fleet.database.write(lambda connection: connection.execute(text("SELECT x FROM nowhere")))
        await fleet.database.read(lambda connection: connection.execute(text("SELECT 1")).all())
        assert [each.get("code") for each in said] == ["STORE_FAILED"], "who only reads knows nothing of it"
        for _ in range(2):
            await fleet.database.write(lambda connection: connection.execute(text("SELECT 1")).all())
    assert [each.get("code") for each in said] == ["STORE_FAILED", "STORE_BACK"]
    assert 0 <= said[-1]["seconds"] < 20
    assert not lanes._outage.lasts
