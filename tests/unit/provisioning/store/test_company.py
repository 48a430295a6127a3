"""Works that go side by side on PostgreSQL: fewer statements, and the same as if each had gone by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest
from sqlalchemy import insert, select
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from provisioning.errors import Code, Refused
from provisioning.pki.role import Role
from provisioning.store import counters, devices, host_names, postgresql_lane
from provisioning.store.counters import REVOCATION
from provisioning.store.devices import DeviceState
from provisioning.store.side_by_side import go_alone
from provisioning.store.tables import serial_reservations
from tests.support.fleet import Fleet, open_fleet
from tests.support.postgresql import PostgresqlServer
from tests.support.together import NOW, Together, add, log_of, note, work


@pytest.fixture
async def fleet(postgresql: PostgresqlServer) -> AsyncIterator[Fleet]:
    with postgresql.database() as url:
        async with open_fleet(url) as opened:
            yield opened


async def test_who_fails_after_a_change_undoes_his_own_changes_and_entries_only(
    fleet: Fleet, companies: list[int], together: Together
) -> None:
    def failing(connection: Connection) -> None:
        add(connection, "b")
        raise ZeroDivisionError

    before = len(await log_of(fleet))
    works = [lambda c: add(c, "a"), failing, lambda c: add(c, "c")]
    a, b, c = await together(fleet, *(work(fleet, each, str(place)) for place, each in enumerate(works)))
    assert (a, type(b), c) == ("a", ZeroDivisionError, "c")
    assert [subject for _, subject in (await log_of(fleet))[before:]] == ["a", "c"]
    found = await fleet.database.read(lambda connection: [devices.find(connection, name) for name in "abc"])
    assert [each is not None for each in found] == [True, False, True]
    assert companies == [3]


async def test_a_company_has_no_more_than_so_many_whoever_else_waits(
    fleet: Fleet, companies: list[int], together: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql_lane, "_LARGEST_COMPANY", 2)
    works = [work(fleet, partial(add, name=name), name) for name in "abcde"]
    assert await together(fleet, *works) == [*"abcde"]
    assert [subject for _, subject in (await log_of(fleet))[-5:]] == [*"abcde"]
    assert companies == [2, 2], "and one went alone"


@pytest.mark.parametrize("other", ["a", "b"])
async def test_who_decides_upon_what_another_does_waits_for_the_next_company(
    fleet: Fleet, companies: list[int], together: Together, other: str
) -> None:
    upon = {"a": "x", "b": "y"}
    upon |= {"c": upon[other], "d": "z"}
    works = [work(fleet, lambda c, n=name: add(c, n), name, *what) for name, what in upon.items()]  # type: ignore[misc]
    assert await together(fleet, *works) == [*upon]
    assert companies == [2, 2]


async def test_what_the_store_refuses_to_one_it_refuses_to_him_alone(
    fleet: Fleet, companies: list[int], together: Together
) -> None:
    await fleet.database.write(lambda connection: add(connection, "taken"))
    works = [lambda c, name=name: add(c, name) for name in ("a", "taken", "c", "nul\0")]
    a, taken, c, nul = await together(fleet, *(work(fleet, each, str(place)) for place, each in enumerate(works)))
    assert (a, type(taken), c) == ("a", IntegrityError, "c")
    assert isinstance(nul, Refused)
    assert nul.code is Code.INVALID_REQUEST
    assert [subject for _, subject in await log_of(fleet)][-2:] == ["a", "c"]
    assert companies == [4]


async def test_a_change_by_other_means_than_a_prepared_statement_counts_as_one(
    fleet: Fleet, companies: list[int], together: Together
) -> None:
    def failing(connection: Connection) -> None:
        connection.execute(insert(serial_reservations).values(serial="f00", reserved_at=NOW))
        raise ZeroDivisionError

    _, failed = await together(fleet, work(fleet, lambda c: add(c, "a"), "a"), work(fleet, failing, "b"))
    assert isinstance(failed, ZeroDivisionError)
    statement = select(serial_reservations).where(serial_reservations.c.serial == "f00")
    assert await fleet.database.read(lambda connection: connection.execute(statement).all()) == []
    assert companies == [2]


async def test_a_host_name_that_its_device_leaves_is_one_other_s(
    fleet: Fleet, companies: list[int], together: Together
) -> None:
    def left(connection: Connection) -> list[int]:
        gone, *others = (devices.add(connection, name, Role.DEVICE, "north", NOW) for name in ("gone", "a", "b"))
        assert host_names.claim(connection, "press.example", gone.id, NOW)
        devices.set_state(connection, [gone.id], DeviceState.REVOKED, NOW)
        return [each.id for each in others]

    def claiming(device: int) -> Callable[[], Any]:
        return work(fleet, lambda c: host_names.claim(c, "press.example", device, NOW), str(device))

    others = await fleet.database.write(left)
    assert sorted(await together(fleet, *map(claiming, others))) == [False, True]
    assert companies == [2]


async def test_works_with_something_in_common_go_one_after_the_other(
    fleet: Fleet, companies: list[int], together: Together
) -> None:
    def seen(connection: Connection) -> bool:
        known = devices.find(connection, "shared") is not None
        if not known:
            devices.add(connection, "shared", Role.DEVICE, "north", NOW)
        return known

    calls = [work(fleet, seen, "shared", f"own-{number}") for number in range(3)]
    other = work(fleet, lambda c: add(c, "other"), "other")
    assert await together(fleet, *calls, other) == [False, True, True, "other"]
    assert companies == [2]  # The last two.


async def test_whoever_has_to_goes_alone_and_the_others_go_on(
    fleet: Fleet, companies: list[int], together: Together
) -> None:
    calls: list[str] = []

    def shy(connection: Connection) -> str:
        calls.append("called")
        devices.find(connection, "shy", for_update=True)
        go_alone(connection)
        return add(connection, "shy")

    works = (work(fleet, lambda c: add(c, "a"), "a"), work(fleet, shy, "shy"), work(fleet, lambda c: add(c, "b"), "b"))
    assert await together(fleet, *works) == ["a", "shy", "b"]
    assert len(calls) == 2
    assert companies == [3]
    assert [subject for _, subject in await log_of(fleet)][-3:] == ["a", "b", "shy"]


async def test_who_is_refused_is_so_before_anybody_signs(
    fleet: Fleet, companies: list[int], together: Together
) -> None:
    """What is signed cannot be done again by itself: its serial number is spent."""
    seen: list[str] = []

    def quick(connection: Connection) -> str:
        note(connection, "quick")
        seen.append("signed")
        return "quick"

    def slow(connection: Connection) -> None:
        for name in "abc":
            devices.find(connection, name)
        seen.append("refused")
        raise Refused(Code.CSR_KEY, "no")

    signed, refused = await together(fleet, work(fleet, quick, "quick"), work(fleet, slow, "slow"))
    assert (signed, type(refused)) == ("quick", Refused)
    assert seen == ["refused", "signed"]
    assert companies == [2]


async def test_a_connection_that_is_lost_refuses_everybody(
    fleet: Fleet, companies: list[int], together: Together
) -> None:
    def cut(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        driver.close()
        devices.find(connection, "a")

    before = await log_of(fleet)
    outcomes = await together(fleet, work(fleet, lambda c: add(c, "a"), "a"), work(fleet, cut, "b"))
    assert [each.code for each in outcomes] == [Code.UNAVAILABLE] * 2
    assert companies == [2]
    assert await log_of(fleet) == before
    assert await fleet.database.write(lambda connection: add(connection, "a")) == "a"


async def test_numbers_that_are_taken_together_have_no_gap_and_one_owner(
    fleet: Fleet, companies: list[int], together: Together
) -> None:
    counts = (1, 3, 2)
    calls = [
        work(fleet, lambda c, count=count: list(counters.take(c, REVOCATION, count)), str(count))  # type: ignore[misc]
        for count in counts
    ]
    taken = await together(fleet, *calls)
    assert [len(each) for each in taken] == [1, 3, 2]
    assert [number for each in taken for number in each] == list(range(taken[0][0], taken[0][0] + 6))
    assert companies == [3]
    assert list(await fleet.database.write(lambda c: counters.take(c, REVOCATION))) == [taken[-1][-1] + 1]
