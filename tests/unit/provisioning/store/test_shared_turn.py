"""A turn of which all who wait learn that there is no store, and none waits for a try of each."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy.exc import OperationalError

from provisioning.errors import Code, Refused
from provisioning.store.shared_turn import SharedTurn

NO_STORE = OperationalError("COMMIT", None, ConnectionError("the server is gone"))


class Tries:
    """What callers do in their turns: they wait until the test lets them, and find no store."""

    def __init__(self) -> None:
        self.turn = SharedTurn()
        self.begun = 0
        self.goes_on = asyncio.Event()

    async def make(self, code: Code = Code.UNAVAILABLE, *, error: Exception | None = NO_STORE) -> None:
        async with self.turn.taken():
            self.begun += 1
            await self.goes_on.wait()
            raise Refused(code, "no store") from error


async def started(*works: asyncio.Task[None]) -> None:
    for _ in range(3 * len(works)):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("code", "error", "tries"),
    [(Code.UNAVAILABLE, NO_STORE, 2), (Code.UNAVAILABLE, None, 5), (Code.INVALID_REQUEST, NO_STORE, 5)],
    ids=["no store", "unavailable for another reason", "a refusal of the store's"],
)
async def test_who_has_waited_since_before_the_try_that_found_no_store_makes_none(
    code: Code, error: Exception | None, tries: int
) -> None:
    made = Tries()
    first = asyncio.create_task(made.make(code, error=error))
    await started(first)
    others = [asyncio.create_task(made.make(code, error=error)) for _ in range(4)]
    await started(*others)
    assert made.begun == 1
    made.goes_on.set()
    outcomes = await asyncio.gather(first, *others, return_exceptions=True)
    assert [getattr(each, "code", None) for each in outcomes] == [code] * 5
    assert made.begun == tries, "who came during the first makes another, for all of them"


async def test_the_next_who_comes_tries_for_itself() -> None:
    made = Tries()
    made.goes_on.set()
    for number in (1, 2):
        with pytest.raises(Refused):
            await made.make()
        assert made.begun == number
