"""Many requests, a few at a time: told in order, none lost, and an end that leaves nothing under way."""

from __future__ import annotations

import asyncio

import pytest

from provisioning.client.operator import RequestRefused
from provisioning.errors import Code, ConfigurationError
from provisioning.one_by_one import AT_ONCE, one_by_one


def refusal(code: Code) -> RequestRefused:
    return RequestRefused(409, code.value, "nobody: for a reason")


async def test_a_few_are_under_way_and_what_comes_of_them_is_told_in_order(capfd: pytest.CaptureFixture[str]) -> None:
    under_way = most = 0
    first_may_go = asyncio.Event()
    told: list[int] = []

    async def act(number: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        if number == 0:
            await first_may_go.wait()
        elif number == AT_ONCE - 1:
            first_may_go.set()  # Those behind it have begun, and have ended, before the first.
        await asyncio.sleep(0)
        under_way -= 1
        return number

    await one_by_one(range(50), act, told.append, "void")
    assert told == list(range(50))
    assert most == AT_ONCE
    assert capfd.readouterr().err == ""


async def test_who_is_refused_for_himself_is_named_and_the_others_go_on(capfd: pytest.CaptureFixture[str]) -> None:
    told: list[int] = []

    async def act(number: int) -> int:
        if number % 10 == 3:
            raise refusal(Code.DEVICE_UNKNOWN)
        return number

    with pytest.raises(ConfigurationError, match="36 of 40 are suspended, but for 4 named above"):
        await one_by_one(range(40), act, told.append, "suspended")
    assert told == [number for number in range(40) if number % 10 != 3]
    assert capfd.readouterr().err.count("nobody: for a reason") == 4


async def test_what_concerns_all_ends_it_and_leaves_nothing_under_way(capfd: pytest.CaptureFixture[str]) -> None:
    begun: list[int] = []
    ended: list[int] = []
    told: list[int] = []

    async def act(number: int) -> int:
        begun.append(number)
        try:
            if number == 5:
                raise refusal(Code.OPERATOR_ROLE)
            if number > 5:
                await asyncio.Event().wait()
        finally:
            ended.append(number)
        return number

    with pytest.raises(RequestRefused):
        await one_by_one(range(1000), act, told.append, "suspended")
    assert told == [0, 1, 2, 3, 4]
    assert sorted(begun) == sorted(ended)
    assert len(begun) <= 5 + AT_ONCE
    assert "the first 5 of 1000 are suspended" in capfd.readouterr().err
