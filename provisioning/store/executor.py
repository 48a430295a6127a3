"""What executes statements on a connection: the driver itself, whose errors are told as SQLAlchemy tells them.

Rules
-----
1. A connection that breaks is invalidated, so that the pool replaces it.
2. On SQLite one cursor executes all, so a result is read before anything else is executed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from provisioning.store.compiled import Compiled, Values

_EXECUTOR: Final = "executor"
"""Key in a connection's ``info``: see `executor_of`."""


def execute(connection: Connection, compiled: Compiled, values: Values) -> Any:
    """Return a cursor with the result, which must be read before anything else is executed."""
    executor = vars(connection).get(_EXECUTOR) or _noted_executor(connection)  # `executor_of`, without its call.
    bound = compiled.in_order(values) if compiled.positional else compiled.bound(values)
    try:
        return executor.execute(compiled.text, bound)
    except connection.dialect.loaded_dbapi.Error as error:
        raise told(connection, compiled.text, error) from error


def executor_of(connection: Connection) -> Any:
    """Return what executes statements: the driver's connection; on SQLite one reused cursor of it.

    Making a cursor costs half a look-up.
    """
    return vars(connection).get(_EXECUTOR) or _noted_executor(connection)


def _noted_executor(connection: Connection) -> Any:
    notes = connection.info  # Cleared when the connection breaks.
    found = notes.get(_EXECUTOR)
    if found is None:
        driver: Any = connection.connection.driver_connection
        found = notes[_EXECUTOR] = driver.cursor() if connection.dialect.name == "sqlite" else driver
    return found


def keep_executor(connection: Connection) -> None:
    """Remember it with *connection* itself, whose ``info`` costs as much as a look-up, until `leave_executor`."""
    vars(connection)[_EXECUTOR] = executor_of(connection)


def leave_executor(connection: Connection) -> None:
    """Forget it, before *connection* is returned to its pool or when it breaks: others use it then."""
    vars(connection).pop(_EXECUTOR, None)


def execute_each(connection: Connection, compiled: Compiled, bound: Iterable[Any]) -> None:
    """Execute once for each of *bound*, the values as the driver takes them."""
    driver: Any = connection.connection.driver_connection
    try:
        driver.cursor().executemany(compiled.text, bound)
    except connection.dialect.loaded_dbapi.Error as error:
        raise told(connection, compiled.text, error) from error


def execute_many(connection: Connection, compiled: Compiled, rows: Sequence[Values]) -> Any:
    """Return a cursor as `execute` does, None if there is no statement for many rows, or for these values."""
    bound = compiled.bound_at_once(rows) if compiled.at_once else None
    return None if bound is None else execute_at_once(connection, compiled, bound)


def execute_at_once(connection: Connection, compiled: Compiled, bound: Any) -> Any:
    """Return a cursor as `execute` does, with the answers to all the values in *bound*, which are arrays."""
    try:
        return executor_of(connection).execute(compiled.at_once, bound)
    except connection.dialect.loaded_dbapi.Error as error:
        raise told(connection, compiled.at_once, error) from error


def told(connection: Connection, text: str, error: Exception) -> BaseException:
    """Return the driver's *error* as SQLAlchemy would raise it."""
    dialect = connection.dialect
    broken = dialect.is_disconnect(error, connection.connection.dbapi_connection, None)  # type: ignore[arg-type] # SQLAlchemy calls it so
    if broken:
        leave_executor(connection)
        connection.invalidate(error)
    return DBAPIError.instance(
        text,
        None,
        error,
        dialect.loaded_dbapi.Error,
        hide_parameters=True,
        connection_invalidated=broken,
        dialect=dialect,
    )
