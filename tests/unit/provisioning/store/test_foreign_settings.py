"""Databases whose administrator has chosen another style of dates, another encoding or another collation."""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncIterator

import psycopg
import pytest
from sqlalchemy.engine import make_url

from provisioning.enrolment.attempt import TokenCredential
from provisioning.errors import Code, Refused
from provisioning.pki.keys import generate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.store import announcements, revocations, schema
from provisioning.store.database import Database
from tests.support.fleet import Fleet, open_fleet
from tests.support.manufacturer import FOREVER, Manufacturer
from tests.support.notes import PATIENCE
from tests.support.postgresql import PostgresqlServer
from tests.support.requests import csr_der
from tests.support.ways import enrol, give_list, group, listed, refusal, register

STYLES = [
    "timezone = 'Asia/Kathmandu'",
    "DateStyle = 'SQL, DMY'",
    "client_encoding = 'LATIN1'",
    "bytea_output = 'escape'",
    "default_transaction_isolation = 'serializable'",
    "array_nulls = off",
    "transform_null_equals = on",
    "standard_conforming_strings = off",
]
LISTENERS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
PLACES = {
    "styles": "TEMPLATE template0",
    "SQL_ASCII": "TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'",
    "LATIN1": "TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'",
}


@pytest.fixture(params=PLACES)
async def fleet(request: pytest.FixtureRequest, postgresql: PostgresqlServer) -> AsyncIterator[Fleet]:
    url = make_url(postgresql.url(f"foreign_{request.param.lower()}"))
    with psycopg.connect(postgresql.url("postgres").replace("+psycopg", ""), autocommit=True) as administrator:
        administrator.execute(f"CREATE DATABASE {url.database} {PLACES[request.param]}".encode())
        for style in STYLES:
            administrator.execute(f"ALTER DATABASE {url.database} SET {style}".encode())
        shown = url.render_as_string(hide_password=False)
        founding = Database(shown)
        await schema.upgrade(founding)
        await founding.close()
        async with open_fleet(shown) as opened:
            yield opened
        administrator.execute(f"DROP DATABASE {url.database} WITH (FORCE)".encode())


async def test_a_device_is_enrolled_all_the_same(fleet: Fleet) -> None:
    await group(fleet, "token", name="north")
    token = TokenCredential("meter-1", await fleet.token("meter-1"))
    await fleet.enrolment.enrol(csr_der(generate_key(), names=["meter-1"]), token)


async def test_many_are_suspended_resumed_and_revoked_at_once_all_the_same(fleet: Fleet) -> None:
    """Their values are in arrays, among which are times and none."""
    names = [f"meter-{number}" for number in range(4)]
    for name in names:
        await fleet.enrol(name)
    await fleet.suspension.suspend_batch(names, [], by="admin")
    await fleet.suspension.resume_batch(names, [], by="admin")
    await fleet.revocation.revoke_batch(names, [], RevocationReason.SUPERSEDED, by="admin")
    told = await fleet.database.read(lambda connection: revocations.after(connection, 0, 99))
    assert [(each.device, each.kind, each.invalidity_date) for each in told] == [
        (name, kind, None) for kind in ("revoked", "released", "revoked") for name in names
    ]


async def test_a_list_that_never_ends_is_kept_wherever_the_server_thinks_it_is(fleet: Fleet) -> None:
    """RFC 5280's end of what has none is the last second of a year that is over in half of the time zones."""
    manufacturer = Manufacturer()
    await group(fleet, "manufacturer")
    await register(fleet, manufacturer)
    revoked, good = manufacturer.idevid("SN1")[0], manufacturer.idevid("SN2")[0]
    now = fleet.clock()
    taken = await give_list(fleet, listed(manufacturer, revoked, now=now, life=FOREVER - now))
    assert taken.stored.next_update == FOREVER
    assert await refusal(fleet, "SN1", certificate=revoked) is Code.MANUFACTURER_REVOKED
    await enrol(fleet, "SN2", certificate=good)


async def test_a_word_in_other_letters_is_kept_or_refused(fleet: Fleet) -> None:
    def write(connection: object) -> str:
        return str(connection.exec_driver_sql("SELECT %(word)s::text", {"word": "Zähler 計器"}).scalar_one())  # type: ignore[attr-defined]

    if "latin1" in str(fleet.database.url):
        with pytest.raises(Refused) as caught:
            await fleet.database.write(write)
        assert caught.value.code is Code.INVALID_REQUEST
    else:
        assert await fleet.database.write(write) == "Zähler 計器"


async def test_an_idle_session_that_listens_is_not_ended(postgresql: PostgresqlServer) -> None:
    with postgresql.database() as url, psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as other:
        name = make_url(url).database
        other.execute(f"ALTER DATABASE {name} SET idle_session_timeout = '500ms'".encode())
        limits = "SELECT setting FROM pg_settings WHERE name = 'idle_session_timeout'"
        heard = asyncio.Event()
        listening = asyncio.create_task(announcements.listen(make_url(url), heard.set))
        async with asyncio.timeout(PATIENCE):
            await heard.wait()
        before = other.execute(LISTENERS).fetchall()
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as another:
            assert another.execute(limits).fetchone() == ("500",), "the limit is there"
            select.select([another.pgconn.socket], [], [], PATIENCE)
            with pytest.raises(psycopg.OperationalError):
                another.execute("SELECT 1")
        assert len(before) == 1
        assert other.execute(LISTENERS).fetchall() == before, "another that was idle for as long was ended"
        listening.cancel()
