"""Many that one command names: in steps, none asked twice, who is refused named, and an end that says what it knows."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from provisioning.client.operator import RefusedItem, RequestRefused, ServiceUnavailable
from provisioning.commands import in_steps as module
from provisioning.commands.in_steps import check_none_refused, in_steps
from provisioning.errors import Code, ConfigurationError


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEP", 4)


def refusal(*numbers: int, code: Code = Code.TOKEN_NUMBER_UNKNOWN) -> RequestRefused:
    items = [RefusedItem(each, code.value, f"not {each}") for each in numbers]
    return RequestRefused(404, code.value, "not these", items)


async def test_each_is_asked_for_once_in_the_order_that_was_named(capfd: pytest.CaptureFixture[str]) -> None:
    asked: list[list[int]] = []
    told: list[int] = []

    async def act(step: Sequence[int]) -> list[int]:
        asked.append(list(step))
        return list(step)

    assert await in_steps(range(10), act, told.extend, "void") == 0
    assert asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert told == list(range(10))
    assert await in_steps((), act, told.extend, "void") == 0
    assert len(asked) == 3
    assert capfd.readouterr().err == ""


async def test_who_is_refused_is_named_and_the_others_go_on(capfd: pytest.CaptureFixture[str]) -> None:
    told: list[int] = []
    news = {6}  # Refused only when the others are asked for again.

    async def act(step: Sequence[int]) -> list[int]:
        if wrong := [each for each in step if each in {1, 3, 4, 5, 7}]:
            raise refusal(*wrong)
        if wrong := [each for each in step if each in news]:
            raise refusal(*wrong, code=Code.PROTECTED)
        return list(step)

    refused = await in_steps(range(10), act, told.extend, "void")
    assert told == [0, 2, 8, 9], "of the second step nobody is left"
    said = capfd.readouterr().err.splitlines()
    assert said == [
        *(f"fleet-provisioning: TOKEN_NUMBER_UNKNOWN: not {each}" for each in (1, 3, 4, 5, 7)),
        "fleet-provisioning: PROTECTED: not 6",
    ]
    with pytest.raises(ConfigurationError, match="4 of 10 are void, but for 6 named above"):
        check_none_refused(refused, 10, "void")
    with pytest.raises(ConfigurationError, match="none of 6 is void: why is said above"):
        check_none_refused(6, 6, "void")
    check_none_refused(0, 10, "void")
    check_none_refused(0, 0, "void")


@pytest.mark.parametrize("goes_on", [True, False])
@pytest.mark.parametrize("about", [(), (99,)], ids=["all", "others"])
async def test_what_concerns_all_ends_it(
    capfd: pytest.CaptureFixture[str], goes_on: bool, about: tuple[int, ...]
) -> None:
    async def act(step: Sequence[int]) -> list[int]:
        if 4 in step:
            raise refusal(*about, code=Code.OPERATOR_ROLE)
        return list(step)

    with pytest.raises(RequestRefused):
        await in_steps(range(10), act, lambda _found: None, "void", goes_on=goes_on)
    assert capfd.readouterr().err == "fleet-provisioning: the first 4 of 10 are void\n"


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "No space left on device")])
async def test_who_reads_no_further_ends_nothing(capfd: pytest.CaptureFixture[str], error: OSError) -> None:
    """Of a thousand stolen devices, whose names somebody looks at with head, half would stay admitted."""
    asked: list[int] = []
    shown: list[int] = []

    async def act(step: Sequence[int]) -> list[int]:
        if 9 in step:
            raise refusal(9)
        asked.extend(step)
        return list(step)

    def show(found: Sequence[int]) -> None:
        if 4 in found:
            raise error
        shown.extend(found)

    with pytest.raises(type(error)) as caught:
        await in_steps(range(10), act, show, "void")
    assert caught.value is error, "it is told in the end"
    assert asked == list(range(9))
    assert shown == [0, 1, 2, 3], "nothing is shown behind a gap"
    assert capfd.readouterr().err.splitlines() == [
        "fleet-provisioning: TOKEN_NUMBER_UNKNOWN: not 9",
        "fleet-provisioning: 9 of 10 are void, but for 1 named above; not all is shown",
    ]


async def test_nor_does_who_hears_no_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with ``2>&1 | head``."""
    asked: list[int] = []

    async def act(step: Sequence[int]) -> list[int]:
        if 1 in step:
            raise refusal(1)
        asked.extend(step)
        return list(step)

    def unheard(_line: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(module, "say", unheard)
    with pytest.raises(BrokenPipeError):
        await in_steps(range(10), act, lambda _found: None, "void")
    assert asked == [0, *range(2, 10)]


@pytest.mark.parametrize("number", [1, 2])
async def test_one_who_is_named_alone_and_refused_ends_it_and_is_said_there(
    capfd: pytest.CaptureFixture[str], number: int
) -> None:
    async def act(_step: Sequence[int]) -> list[int]:
        raise refusal(*range(number))

    ended = in_steps(range(number), act, lambda _found: None, "void")
    if number == 1:
        with pytest.raises(RequestRefused):
            await ended
        assert capfd.readouterr().err == ""
    else:
        assert await ended == number


async def test_of_one_it_is_not_said_how_far_it_has_come(capfd: pytest.CaptureFixture[str]) -> None:
    async def act(_step: Sequence[int]) -> list[int]:
        raise ServiceUnavailable

    with pytest.raises(ServiceUnavailable):
        await in_steps(range(1), act, lambda _found: None, "void")
    assert capfd.readouterr().err == ""


async def test_who_does_not_go_on_ends_at_the_first_that_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    async def act(_step: Sequence[int]) -> list[int]:
        raise refusal(1)

    with pytest.raises(RequestRefused):
        await in_steps(range(10), act, lambda _found: None, "revoked", goes_on=False)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("how", [ServiceUnavailable, asyncio.CancelledError])
@pytest.mark.parametrize(
    ("during", "said"),
    [
        (0, "perhaps the first 4 of 10 are void: to run it again does no harm"),
        (4, "the first 4 of 10 are void, and perhaps the 4 that follow: to run it again does no harm"),
        (8, "the first 8 of 10 are void, and perhaps the 2 that follow: to run it again does no harm"),
    ],
)
async def test_who_has_not_heard_the_answer_does_not_claim_to_know_it(
    capfd: pytest.CaptureFixture[str], how: type[BaseException], during: int, said: str
) -> None:
    async def act(step: Sequence[int]) -> list[int]:
        if during in step:
            raise how
        return list(step)

    with pytest.raises(how):
        await in_steps(range(10), act, lambda _found: None, "void")
    assert capfd.readouterr().err == f"fleet-provisioning: {said}\n"
