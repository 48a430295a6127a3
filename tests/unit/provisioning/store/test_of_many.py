"""What is looked up for many at once is what is found for each by itself."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import BindParameter, DateTime, bindparam, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Connection

from provisioning.pki.identity import Role
from provisioning.store import certificates, devices, of_many, tables
from provisioning.store.prepared import Answer, Prepared
from provisioning.store.utc_date_time import UtcDateTime
from tests.support.fleet import Fleet
from tests.support.requests import NOON

ODD = [
    "1",
    "01",
    "1.0",
    "1e0",
    "true",
    "null",
    '"',
    "'",
    "\\",
    "\\u0031",
    "a\tb",
    "ä",
    "\U0001f600",
    "%",
    "?",
    "  ",
    "",
]
_WANTED: BindParameter[Any] = bindparam("wanted")
_NAME = tables.devices.c.name
STATEMENTS = [
    devices._LOCK,
    certificates._IDS_WITH_SERIAL,
    Prepared(select(tables.devices.c.id).where(tables.devices.c.created_at == _WANTED), at_once=True),
    Prepared(select(_NAME).where(_NAME >= _WANTED), at_once=True),
    Prepared(
        select(_NAME).where(_NAME >= _WANTED).order_by(_NAME).limit(2),
        at_once=True,
    ),
]


@pytest.mark.parametrize("statement", STATEMENTS, ids=["name", "serial", "moment", "several", "first two"])
async def test_it_is_what_one_by_one_gives(fleet: Fleet, statement: Prepared) -> None:
    choose = random.Random(5)  # noqa: S311 - no secret

    def look(connection: Connection) -> None:
        for name in ODD:
            devices.add(connection, name, Role.DEVICE, "north", NOON)
        every = [*ODD, "absent", "meter-1"]
        plain = [each for each in every if each.isascii() and each.isprintable()]
        moments = [NOON, NOON + timedelta(seconds=1)]
        for _ in range(30):
            pool = moments if statement is STATEMENTS[2] else choose.choice([every, plain])
            rows = [{"wanted": each} for each in choose.choices(pool, k=choose.randrange(1, 9))]
            together = statement.answers(connection, rows)
            singly = [Answer(len(found), found) for found in (statement.rows(connection, row) for row in rows)]
            assert [sorted(each.rows) for each in together] == [sorted(each.rows) for each in singly]

    await fleet.database.write(look)


def test_what_json_might_change_and_what_is_not_flat_is_left_to_one_by_one() -> None:
    assert of_many.array_of(["a", 'b"', 7]) == '["a", "b\\"", 7]'
    for value in ("\0", "ä", "\ud800", b"a", 1.5, None, True, datetime.now(UTC)):
        assert of_many.array_of(["a", value]) is None
    assert of_many.text_of_many("SELECT a \nFROM t \nWHERE b = ? AND c IS NULL") == (
        "SELECT a, asked.key + 1 FROM json_each(?) AS asked CROSS JOIN t WHERE b = asked.value AND c IS NULL"
    )
    for text in (
        "SELECT a \nFROM t \nWHERE b = ? AND c = ?",
        "SELECT a \nFROM t \nWHERE b = (SELECT x \nFROM u \nWHERE y = ?)",
        "SELECT a \nFROM t \nWHERE b = ? ORDER BY a",
        "SELECT a \nFROM t \nWHERE b = ?\n LIMIT 1",
        "SELECT (SELECT 1), a \nFROM t \nWHERE b = ?",
        "SELECT a \nFROM t",
    ):
        assert of_many.text_of_many(text) == "", text


@pytest.mark.parametrize(
    "moment",
    [
        NOON,
        NOON.replace(microsecond=7),
        datetime(1, 1, 1, tzinfo=UTC),
        datetime.max.replace(tzinfo=UTC),
        datetime(2026, 7, 1, 12, tzinfo=timezone(timedelta(hours=5, minutes=30))),
        None,
    ],
)
def test_a_moment_is_read_as_the_library_reads_it(moment: datetime | None) -> None:
    dialect = sqlite.dialect()
    kind = UtcDateTime().dialect_impl(dialect)
    write, read = kind.bind_processor(dialect), kind.result_processor(dialect, None)
    assert write is not None
    assert read is not None
    text = write(moment)
    found = read(text)
    assert found == moment
    plain = DateTime().dialect_impl(dialect).result_processor(dialect, None)
    assert plain is not None
    library = plain(text)
    assert found == (None if library is None else library.replace(tzinfo=UTC))
    assert moment is None or (found is not None and found.tzinfo is UTC)
    assert read("2026-01-01 00:00:00") == datetime(2026, 1, 1, tzinfo=UTC), "as a migration may write it"
