"""A standby and its primary in one URL: the one that takes changes is used, unless it is said otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from provisioning.errors import Code, ConfigurationError, Refused
from provisioning.store import announcements
from provisioning.store.database import Database
from tests.support.notes import PATIENCE
from tests.support.postgresql import PostgresqlServer

FORMS = {
    "a host each": ("/{database}?host=127.0.0.1:{standby}&host=127.0.0.1:{primary}", {}),
    "hosts in one": ("/{database}?host=127.0.0.1,localhost&port={standby},{primary}", {}),
    "where one stands": ("127.0.0.1,localhost/{database}", {"PGPORT": "{standby},{primary}"}),
    "addresses": ("/{database}?hostaddr=127.0.0.1,127.0.0.1", {"PGPORT": "{standby},{primary}"}),
    "environment": ("/{database}", {"PGHOST": "127.0.0.1,localhost", "PGPORT": "{standby},{primary}"}),
}


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, object]]:
    with PostgresqlServer() as primary, PostgresqlServer(standby_of=primary) as standby:
        yield {"standby": standby.port, "primary": primary.port, "database": "fleet_template"}


def written_to(form: str, ports: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> Database:
    place, variables = FORMS[form]
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format_map(ports))
    return Database(f"postgresql+psycopg://fleet@{place.format_map(ports)}")


async def counted(database: Database) -> None:
    count = text("INSERT INTO counters (name, value) VALUES ('a change', 1) ON CONFLICT DO NOTHING")
    await database.write(lambda connection: connection.execute(count).close())


@pytest.mark.parametrize("form", FORMS)
async def test_changes_reach_the_primary_also_if_the_standby_is_named_first(
    form: str, ports: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """libpq is content with the first that answers: each change was refused, for as long as the standby was one."""
    database, heard = written_to(form, ports, monkeypatch), asyncio.Event()
    listening = asyncio.create_task(announcements.listen(database.url, heard.set))
    try:
        await counted(database)
        async with asyncio.timeout(PATIENCE):
            await heard.wait()  # A standby would refuse the LISTEN.
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await database.close()


@pytest.mark.parametrize("place", ["URL", "environment"])
async def test_who_says_otherwise_gets_it(
    ports: dict[str, object], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setitem(FORMS, "any", FORMS["a host each"])
    if place == "URL":
        monkeypatch.setitem(FORMS, "any", (FORMS["a host each"][0] + "&target_session_attrs=any", {}))
    else:
        monkeypatch.setenv("PGTARGETSESSIONATTRS", "any")
    database = written_to("any", ports, monkeypatch)
    try:
        with pytest.raises(Refused) as caught:
            await counted(database)
        assert caught.value.code is Code.UNAVAILABLE
    finally:
        await database.close()


@pytest.mark.parametrize("place", ["a:5432,b:5433/fleet", "a,b/fleet?port=5432,5433", "/fleet?host=a,b&port=1,2,3"])
def test_several_servers_in_a_form_that_nobody_reads_are_refused_with_the_one_that_is(place: str) -> None:
    """The second and the third ended in SQLAlchemy's error, and a traceback."""
    with pytest.raises(ConfigurationError, match=r"several servers are \?host=A:PORT&host=B:PORT"):
        Database(f"postgresql+psycopg://fleet@{place}")
