"""The second at which a list is made: no list of one name has another's, and a clock that is set back is followed."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy.engine import Connection

from provisioning.store import crls
from tests.support.fleet import Fleet
from tests.support.requests import NOON

SECOND = timedelta(seconds=1)


async def test_a_list_is_of_its_own_second_and_of_none_that_is_further_ahead_than_many_could_be(fleet: Fleet) -> None:
    def taken(connection: Connection) -> None:
        def take(now: datetime, name: str = "batch") -> int:
            return (crls.take_second(connection, name, now) - NOON) // SECOND

        assert [take(NOON + SECOND / 2) for _ in range(3)] == [0, 1, 2]
        assert take(NOON, "another") == 0
        assert take(NOON + 60 * SECOND) == 60
        assert take(NOON + SECOND) == 61, "sixty were published before"
        assert take(NOON) == 0, "the clock was set back"
        assert take(NOON) == 1
        assert take(NOON + 3600 * SECOND) == 3600
        assert take(NOON + 100 * SECOND) == 100

    await fleet.database.write(taken)
