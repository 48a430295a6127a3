"""Tokens that are voided, by number, by device or by maker: not what was spent, nor a second time what is void."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

import pytest

from provisioning.store import token_inventory, tokens
from provisioning.store.token_inventory import TokenState
from tests.support.fleet import Fleet

SPENT, VOID, OTHER = 1, 2, 3
WAYS: dict[str, Callable[..., int]] = {
    "of a device": lambda connection, now: tokens.void(connection, "meter-1", now),
    "of several": lambda connection, now: tokens.void_of_each(connection, ["meter-1", "meter-9"], now).total(),
    "of a maker": lambda connection, now: tokens.void_made_by(connection, ["admin", "anna"], now).total(),
}


@pytest.mark.parametrize("way", WAYS)
async def test_what_was_spent_is_not_void_and_what_is_void_is_so_since_the_first_time(fleet: Fleet, way: str) -> None:
    await fleet.enrol("meter-1")
    await fleet.token("meter-1")

    async def found() -> dict[int, tuple[TokenState, datetime | None]]:
        look = partial(token_inventory.find_all, numbers=[SPENT, VOID, OTHER], now=fleet.clock())
        return {number: (each.state, each.voided_at) for number, each in (await fleet.database.read(look)).items()}

    since = fleet.clock()
    assert await fleet.database.write(partial(WAYS[way], now=since)) == 1
    assert await found() == {SPENT: (TokenState.USED, None), VOID: (TokenState.VOID, since)}
    fleet.clock.advance(timedelta(minutes=1))
    await fleet.token("meter-2")
    for again in ("of a device", "of several"):
        assert await fleet.database.write(partial(WAYS[again], now=fleet.clock())) == 0
    await fleet.database.write(partial(token_inventory.void, numbers=[SPENT, VOID], now=fleet.clock()))
    assert (await found())[OTHER] == (TokenState.OPEN, None)
    assert await fleet.database.write(partial(WAYS["of a maker"], now=fleet.clock())) == 1
    assert await found() == {
        SPENT: (TokenState.USED, None), VOID: (TokenState.VOID, since), OTHER: (TokenState.VOID, fleet.clock()),
    }  # fmt: skip
