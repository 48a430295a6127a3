"""A prepared statement is the same statement: it gives what SQLAlchemy gives, and fails as SQLAlchemy fails."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import DateTime, bindparam, delete, insert, select, update
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError, NoResultFound

from provisioning.errors import Refused
from provisioning.store import prepared, schema
from provisioning.store.database import Database
from provisioning.store.dialect_insert import insert_into
from provisioning.store.prepared import Columns, Prepared, Same
from provisioning.store.tables import tokens
from provisioning.store.utc_date_time import UtcDateTime

ABROAD = datetime(2026, 3, 1, 14, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
ROW: dict[str, Any] = {
    "digest": bytes(range(32)), "device": "meter-17", "group_name": None, "role": "device",
    "dns_names": ["a.example", "ü"], "ip_addresses": [], "lifetime_seconds": 60, "created_at": ABROAD,
    "created_by": "admin", "expires_at": ABROAD,
}  # fmt: skip
BY_DIGEST = select(tokens).where(tokens.c.digest == bindparam("wanted"))
FIND, ADD = Prepared(BY_DIGEST), Prepared(insert(tokens).returning(tokens.c.id))


@pytest.fixture
async def database(store_url: str) -> AsyncIterator[Database]:
    opened = Database(store_url)
    await schema.upgrade(opened)
    yield opened
    await opened.close()


async def test_a_row_is_what_sqlalchemy_reads_whatever_its_types(database: Database) -> None:
    def both(connection: Connection) -> tuple[object, object]:
        (identifier,) = ADD.one(connection, ROW)
        assert isinstance(identifier, int)
        wanted = {"wanted": ROW["digest"]}
        return FIND.one(connection, wanted), tuple(connection.execute(BY_DIGEST, wanted).one())

    ours, theirs = await database.write(both)
    assert ours == theirs
    assert isinstance(ours, tuple)
    assert ABROAD.astimezone(UTC) in ours
    assert ["a.example", "ü"] in ours


@pytest.mark.parametrize("moment", [ABROAD, ABROAD.astimezone(UTC), datetime(999, 1, 1, tzinfo=UTC)])
def test_sqlite_gets_the_text_that_the_library_would_write(moment: datetime) -> None:
    dialect = sqlite.dialect()
    ours, theirs = UtcDateTime().bind_processor(dialect), DateTime().dialect_impl(dialect).bind_processor(dialect)
    assert ours is not None
    assert theirs is not None
    assert ours(moment) == theirs(moment.astimezone(UTC).replace(tzinfo=None))


async def test_a_parameter_without_a_type_is_refused(database: Database) -> None:
    untyped = Prepared(select(tokens.c.id).where(bindparam("since") < tokens.c.expires_at))
    with pytest.raises(TypeError, match="parameter 'since' has no type"):
        await database.write(lambda connection: untyped.first(connection, {"since": ABROAD}))


async def test_rows_that_are_not_there_and_rows_that_are_changed_are_counted(database: Database) -> None:
    void = Prepared(update(tokens).where(tokens.c.device == bindparam("wanted")).values(voided_at=bindparam("now")))
    remove = Prepared(delete(tokens).where(tokens.c.device == bindparam("wanted")))

    def work(connection: Connection) -> None:
        assert FIND.first(connection, {"wanted": b"?"}) is None
        assert FIND.rows(connection, {"wanted": b"?"}) == []
        with pytest.raises(NoResultFound):
            FIND.one(connection, {"wanted": b"?"})
        Prepared(insert(tokens)).run_each(connection, [ROW | {"digest": bytes([n] * 32)} for n in range(3)])
        Prepared(insert(tokens)).run_each(connection, [])
        assert void.run(connection, {"wanted": "meter-17", "now": ABROAD}) == 3
        assert void.run(connection, {"wanted": "meter-18", "now": ABROAD}) == 0
        assert remove.run(connection, {"wanted": "meter-17"}) == 3

    await database.write(work)


async def test_rows_of_other_columns_are_written_by_the_same_statement(database: Database) -> None:
    add = Prepared(insert(tokens))
    voided = ROW | {"digest": b"v" * 32, "voided_at": ABROAD}

    def work(connection: Connection) -> list[Any]:
        add.run(connection, ROW)
        add.run(connection, voided)
        add.run_each(connection, [ROW | {"digest": b"w" * 32}])
        add.run_each(connection, [ROW | {"digest": bytes([n] * 32), "voided_at": ABROAD} for n in range(2)])
        return list(connection.execute(select(tokens.c.voided_at).order_by(tokens.c.id)).scalars())

    assert await database.write(work) == [None, ABROAD, None, ABROAD, ABROAD]


async def test_many_rows_are_written_once_and_all_however_many_go_in_one_statement(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "_AT_ONCE", 2)
    add = Prepared(insert(tokens), told_by="digest")
    void = Prepared(
        update(tokens).where(tokens.c.digest == bindparam("wanted")).values(voided_at=bindparam("now")), at_once=True
    )

    def work(connection: Connection) -> None:
        digests: list[bytes] = []
        for number in range(1, 6):
            fresh = [bytes([number, each] * 16) for each in range(number)]
            add.run_each(connection, [ROW | {"digest": each} for each in fresh])
            void.run_each(connection, [{"wanted": each, "now": ABROAD} for each in fresh[1:]])
            digests += fresh
            found = connection.execute(select(tokens.c.digest, tokens.c.voided_at).order_by(tokens.c.id))
            assert [digest for digest, _ in found.all()] == digests
            void_now = select(tokens.c.digest).where(tokens.c.voided_at == ABROAD).order_by(tokens.c.id)
            assert connection.execute(void_now).scalars().all() == [each for each in digests if each[1]]

    await database.write(work)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
async def test_columns_are_written_as_rows_are(database: Database, count: int) -> None:
    """Inserted, changed and deleted; with values that all share, of every type and NULL, and with values of its own."""
    add = Prepared(insert(tokens), told_by="digest")
    change = Prepared(
        update(tokens)
        .where(tokens.c.digest == bindparam("wanted"), tokens.c.role == "device")
        .values(expires_at=bindparam("ends"), group_name=bindparam("group")),
        at_once=True,
    )
    remove = Prepared(delete(tokens).where(tokens.c.digest == bindparam("wanted")), at_once=True)
    digests = [bytes([each] * 32) for each in range(count)]
    ends = [ABROAD + timedelta(days=each) for each in range(count)]
    facts = {name: value for name, value in ROW.items() if name not in {"digest", "group_name", "expires_at"}}
    columns: Columns = {
        **{name: Same(value) for name, value in facts.items()},
        "digest": digests,
        "group_name": [None if each % 2 else f"g{each}" for each in range(count)],
        "expires_at": ends,
    }
    changed: Columns = {"wanted": digests, "ends": ends[::-1], "group": Same(None)}
    removed: Columns = {"wanted": digests[1:]}

    def rows_of(given: Columns) -> list[dict[str, Any]]:
        return [
            {name: each.value if isinstance(each, Same) else each[place] for name, each in given.items()}
            for place in range(len(given["wanted"] if given is removed else digests))  # type: ignore[arg-type]
        ]

    def work(connection: Connection) -> None:
        every = select(*(column for column in tokens.c if column.name != "id")).order_by(tokens.c.digest)
        for statement, given in ((add, columns), (change, changed), (remove, removed)):
            outcomes = []
            for quickly in (False, True):
                before = connection.begin_nested()
                if quickly:
                    statement.run_columns(connection, given)
                else:
                    statement.run_each(connection, rows_of(given))
                outcomes.append([tuple(row) for row in connection.execute(every)])
                if not quickly:
                    before.rollback()
            assert outcomes[0] == outcomes[1]
        assert len(outcomes[1]) == min(count, 1)

    await database.write(work)


async def test_many_look_ups_at_once_give_each_what_it_would_have_got_alone(database: Database) -> None:
    by_moment = select(tokens).where(tokens.c.created_at == bindparam("wanted")).order_by(tokens.c.id)
    later = ABROAD + timedelta(seconds=1)
    by_device = select(tokens).where(tokens.c.device == bindparam("wanted"))
    rows = [
        ROW | {"digest": bytes([n] * 32), "created_at": later if n else ABROAD, "device": f"m-{n % 2}"}
        for n in range(3)
    ]

    def work(connection: Connection) -> None:
        Prepared(insert(tokens)).run_each(connection, rows)
        for statement, wanted in (
            (BY_DIGEST, [bytes([n] * 32) for n in (2, 7, 0, 2)]),
            (by_device, ["m-1", "m-0", "nobody", "m-1"]),
            (by_moment, [later, ABROAD.astimezone(UTC), later + timedelta(days=1), ABROAD]),
        ):
            each_alone = [[tuple(row) for row in connection.execute(statement, {"wanted": w}).all()] for w in wanted]
            found = Prepared(statement, at_once=True).answers(connection, [{"wanted": w} for w in wanted])
            assert [sorted(each.rows, key=itemgetter(0)) for each in found] == each_alone

    await database.write(work)


async def test_of_equal_rows_that_are_asked_for_together_one_is_told_that_it_was_written(database: Database) -> None:
    """As if one had come after the other: what was inserted is the right to something, to a key or to a host name."""

    def work(connection: Connection) -> list[int]:
        statement = insert_into(tokens, connection.dialect.name)
        add = Prepared(statement.on_conflict_do_nothing(index_elements=[tokens.c.digest]), told_by="digest")
        rows = [ROW | {"digest": bytes([n] * 32), "device": f"m-{place}"} for place, n in enumerate((1, 2, 1, 2, 1))]
        add.run(connection, rows[1])
        return [each.count for each in add.answers(connection, rows)]

    assert await database.write(work) == [1, 0, 0, 0, 0]


async def test_a_name_that_is_too_long_is_refused_and_not_cut_by_one_statement_for_many(database: Database) -> None:
    """What was cut off would be another device's name, or be found under one."""
    long, cut = "m" * 65, "m" * 64
    add, find = Prepared(insert(tokens), told_by="digest"), select(tokens.c.id).where(tokens.c.device == cut)
    many = Prepared(select(tokens.c.id).where(tokens.c.device == bindparam("wanted")), at_once=True)
    rows = [ROW | {"digest": bytes([n] * 32), "device": cut if n else long} for n in range(2)]

    def ask(connection: Connection) -> list[int]:
        return [each.count for each in many.answers(connection, [{"wanted": long}, {"wanted": cut}])]

    if database.url.get_backend_name() == "postgresql":
        with pytest.raises(Refused, match="cannot be stored"):
            await database.write(lambda connection: add.run_each(connection, rows))
        assert await database.read(lambda connection: connection.execute(find).all()) == []
    await database.write(lambda connection: add.run_each(connection, rows[1:]))
    assert await database.read(ask) == [0, 1]


async def test_the_first_of_many_rows_leaves_no_statement_open(sqlite_url: str, tmp_path: Path) -> None:
    """One that is open reads for ever, and no checkpoint gets to the end of the write-ahead log."""
    database = Database(sqlite_url)
    everything = Prepared(select(tokens.c.id))

    def work(connection: Connection) -> None:
        Prepared(insert(tokens)).run_each(connection, [ROW | {"digest": bytes([n] * 32)} for n in range(3)])
        assert everything.first(connection, {}) == (1,)

    await database.write(work)
    beside = sqlite3.connect(tmp_path / "fleet.db")
    assert beside.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
    beside.close()
    await database.close()


async def test_what_the_database_refuses_is_sqlalchemy_s_error_and_undone_alone(database: Database) -> None:
    await database.write(lambda connection: ADD.one(connection, ROW))
    with pytest.raises(IntegrityError):
        await database.write(lambda connection: ADD.one(connection, ROW))
    with pytest.raises(IntegrityError):
        await database.write(lambda connection: Prepared(insert(tokens)).run_each(connection, [ROW]))
    found = await database.read(lambda connection: FIND.rows(connection, {"wanted": ROW["digest"]}))
    assert len(found) == 1
