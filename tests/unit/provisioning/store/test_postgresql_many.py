"""Arrays as this store writes them are read by PostgreSQL as those that the driver writes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from provisioning.store.postgresql_many import array_of
from tests.support.examples import examples
from tests.support.postgresql import PostgresqlServer

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
MOMENTS = st.datetimes(
    datetime(1950, 1, 1),  # noqa: DTZ001 - The time zones come from beside it.
    datetime(9999, 12, 30),  # noqa: DTZ001
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=45))]),
)
COLUMNS = st.one_of(
    *(
        st.tuples(st.just(kind), st.lists(st.none() | values, max_size=8))
        for kind, values in {
            "text": TEXTS | st.sampled_from(["", "NULL", "null", '"', "\\", "{}", ",", " a ", "'", "\\x00", "é"]),
            "bigint": st.integers(-(2**63), 2**63 - 1),
            "boolean": st.booleans(),
            "bytea": st.binary(),
            "timestamptz": MOMENTS,
        }.items()
    )
)


@pytest.fixture(scope="module")
def connection(postgresql: PostgresqlServer) -> Iterator[psycopg.Connection[Any]]:
    with postgresql.database() as url:
        text = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(text, autocommit=True) as opened:
            yield opened


@examples(100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(COLUMNS)
def test_what_is_written_is_what_the_driver_writes(
    connection: psycopg.Connection[Any], column: tuple[str, list[Any]]
) -> None:
    kind, values = column
    ours = array_of(values)
    assert isinstance(ours, str)
    statement = f"SELECT %(ours)s::{kind}[], %(theirs)s::{kind}[]".encode()
    (read,) = connection.execute(statement, {"ours": ours, "theirs": values}).fetchall()
    assert read == (values, values)


def test_what_has_no_form_here_is_left_to_the_driver() -> None:
    assert array_of([1, Decimal(2)]) == [1, Decimal(2)]


def test_a_character_that_postgresql_has_not_is_refused_as_ever(connection: psycopg.Connection[Any]) -> None:
    with pytest.raises(psycopg.DataError):
        connection.execute("SELECT %(ours)s::text[]", {"ours": array_of(["a\0b"])})
