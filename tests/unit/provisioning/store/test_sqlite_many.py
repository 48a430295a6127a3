"""What is looked up for many at once is what is found for each by itself."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import BindParameter, DateTime, Integer, bindparam, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Connection

from provisioning.pki.role import Role
from provisioning.store import certificates, certificates_of_device, devices, sqlite_many, tables
from provisioning.store.prepared import Answer, Prepared
from provisioning.store.utc_date_time import UtcDateTime
from tests.support.fleet import Fleet, successor_csr
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
_FIRST_IDS = Prepared(
    select(tables.certificates.c.id)
    .where(tables.certificates.c.device_id == _WANTED)
    .order_by(tables.certificates.c.id)
    .limit(bindparam("most", type_=Integer)),
    at_once=True,
)
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
    choose = random.Random(5)

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
            different = list(dict.fromkeys(row["wanted"] for row in rows))
            placed = statement.placed(connection, different)
            slowly = [
                (*row, place)
                for place, each in enumerate(different, 1)
                for row in statement.rows(connection, {"wanted": each})
            ]
            assert sorted(placed) == sorted(slowly)

    await fleet.database.write(look)


async def test_the_first_of_each_are_those_that_it_has_alone(fleet: Fleet) -> None:
    """However few or many it has, in whatever order they are asked for."""
    for name, more in (("none", 0), ("one", 1), ("three", 3)):
        certificate = await fleet.enrol(name) if more else None
        for _ in range(more - 1):
            assert certificate is not None
            certificate = await fleet.reenrol(certificate, successor_csr(certificate))

    def look(connection: Connection) -> None:
        known = [each.id for each in devices.find_all(connection, ["three", "one"])]
        for most in (1, 2, 3, 101):
            for wanted in (known, [*known[::-1], 10**9], known[:1], [10**9], []):
                slowly = [
                    (row[0], place)
                    for place, each in enumerate(wanted, 1)
                    for row in _FIRST_IDS.rows(connection, {"wanted": each, "most": most})
                ]
                assert sorted(_FIRST_IDS.placed(connection, wanted, {"most": most})) == sorted(slowly)
                lists = [[row for row, at in slowly if at == place] for place in range(1, len(wanted) + 1)]
                assert certificates_of_device.first_ids(connection, wanted, most) == lists

    await fleet.database.write(look)


def test_what_json_might_change_and_what_is_not_flat_is_left_to_one_by_one() -> None:
    assert sqlite_many.array_of(["a", 'b"', 7]) == '["a", "b\\"", 7]'
    for value in ("\0", "ä", "\ud800", b"a", 1.5, None, True, datetime.now(UTC)):
        assert sqlite_many.array_of(["a", value]) is None
    assert sqlite_many.text_for_many("SELECT a \nFROM t \nWHERE b = ? AND c IS NULL") == (
        "SELECT a, asked.key + 1 FROM json_each(?) AS asked CROSS JOIN t WHERE b = asked.value AND c IS NULL"
    )
    assert sqlite_many.text_for_many("SELECT t.id \nFROM t \nWHERE t.b = ? ORDER BY t.id\n LIMIT ? OFFSET ?") == (
        "SELECT t.id, asked.key + 1 FROM json_each(?) AS asked CROSS JOIN t WHERE t.id IN "
        "(SELECT t.id \nFROM t \nWHERE t.b = asked.value ORDER BY t.id\n LIMIT ? OFFSET ?)"
    )
    for text in (
        "SELECT t.id \nFROM t \nWHERE t.b = ? ORDER BY t.c\n LIMIT ? OFFSET ?",
        "SELECT t.id \nFROM u \nWHERE t.b = ? ORDER BY t.id\n LIMIT ? OFFSET ?",
        "SELECT a \nFROM t \nWHERE b = ? AND c = ?",
        "SELECT a \nFROM t \nWHERE b = (SELECT x \nFROM u \nWHERE y = ?)",
        "SELECT a \nFROM t \nWHERE b = ? ORDER BY a",
        "SELECT a \nFROM t \nWHERE b = ?\n LIMIT 1",
        "SELECT (SELECT 1), a \nFROM t \nWHERE b = ?",
        "SELECT a \nFROM t",
    ):
        assert sqlite_many.text_for_many(text) == "", text


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
