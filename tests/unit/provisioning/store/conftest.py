"""What the tests of works that wait together, or go side by side, have in common."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from provisioning.store import executor, lanes, postgresql_lane, prepared
from provisioning.store.company import Company
from provisioning.store.database import Database
from provisioning.store.outage import Outage
from tests.support.fleet import Fleet
from tests.support.notes import PATIENCE, with_notes
from tests.support.postgresql import PostgresqlServer
from tests.support.together import Together, all_at_once


@pytest.fixture(autouse=True)
def of_each_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test be told again why the store cannot be used: a process has one store, and these have many."""
    monkeypatch.setattr(lanes, "_outage", Outage())


@pytest.fixture
def companies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many went together, each time; a group stays open as long as somebody waits."""
    for name in ("_ALONE_SECONDS", "_GROUP_SECONDS"):
        monkeypatch.setattr(postgresql_lane, name, 60)
    seen: list[int] = []
    run = Company.run

    def counted(company: Company) -> Any:
        seen.append(len(company._members))
        return run(company)

    monkeypatch.setattr(Company, "run", counted)
    return seen


@pytest.fixture
def journeys(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The text of each statement that was handed to the driver."""
    seen: list[str] = []
    ways = (
        (prepared, "execute", "text"),
        (prepared, "execute_at_once", "at_once"),
        (executor, "execute_at_once", "at_once"),
    )
    for module, name, text in ways:
        execute = getattr(module, name)

        def noted(connection: Any, compiled: Any, values: Any, execute: Any = execute, text: str = text) -> Any:
            seen.append(getattr(compiled, text))
            return execute(connection, compiled, values)

        monkeypatch.setattr(module, name, noted)
    return seen


@pytest.fixture(params=[False, True], ids=["in a thread", "on the event loop"])
def together(request: pytest.FixtureRequest) -> Together:
    """Where a group runs that begins with a work that is not short, or is; all others here are."""
    here: bool = request.param

    async def run(fleet: Fleet, *calls: Callable[[], Any]) -> list[Any]:
        return await all_at_once(fleet, *calls, here=here)

    return run


@pytest.fixture
async def database(postgresql: PostgresqlServer) -> AsyncIterator[Database]:
    """A store on PostgreSQL with a table for notes; some of the files here have a store of their own in its place."""
    async with with_notes(postgresql) as opened:
        yield opened


@pytest.fixture(params=[False, True], ids=["in a thread", "on the event loop"])
def short(request: pytest.FixtureRequest) -> bool:
    """Where the works run."""
    chosen: bool = request.param
    return chosen


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group ends when all have had their turn, and by no clock."""
    for name in ("_ALONE_SECONDS", "_GROUP_SECONDS"):
        monkeypatch.setattr(postgresql_lane, name, PATIENCE)
