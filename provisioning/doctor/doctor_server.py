"""The doctor's findings about a PostgreSQL server, or the database there: what makes it slow, forgetful or useless."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sqlalchemy.engine import Connection

from provisioning.doctor.doctor_finding import Finding, failed, warning
from provisioning.store import schema, server_faults, subscribed
from provisioning.store.lanes import RIGHTS_REMEDY

_LOCK_SECONDS: Final = 2.0
_STANDBY_SECONDS: Final = 5.0
"""A standby that is there confirms in milliseconds."""
_FORMER_ROWS: Final = 10_000
"""Former versions of the busiest rows; each thousand costs a change about 25 µs of the server."""


def filled_finding(connection: Connection, where: str) -> Finding | None:
    """Report a store that another server still fills: the service does not start on it."""
    if (filled := subscribed.found(connection)) is None:
        return None
    what, remedy = filled
    return failed("database", f"{where} must not be used: {what}", f"{remedy}: docs/postgresql.md")


def lock_finding(connection: Connection, check: str, where: str) -> Finding | None:
    """Report, as the result of *check*, a table that another program keeps locked: whatever reads it waits in vain."""
    if (locked := server_faults.locker(connection, _LOCK_SECONDS)) is None:
        return None
    what, remedy = locked
    return failed(check, f"{where}: {what}", f"{remedy}: docs/postgresql.md")


def rights_finding(connection: Connection, where: str) -> Finding | None:
    """Report rights that the service lacks, or will."""
    if (lacking := server_faults.missing_rights(connection)) is None:
        return None
    what, works = lacking
    return (warning if works else failed)("database", f"{where}: {what}", RIGHTS_REMEDY)


def server_findings(connection: Connection) -> Iterator[Finding]:
    """Yield what is wrong, nothing on SQLite."""
    if waiting := schema.waiting_for_standby(connection, _STANDBY_SECONDS):
        yield _held_up(waiting)
    if (fault := server_faults.other_collation(connection)) is not None:
        yield failed("database", fault, server_faults.COLLATION_REMEDY)
    if (former := schema.former_rows(connection)) > _FORMER_ROWS:
        yield _slowed(former)
    if schema.may_be_forgotten(connection):
        what = "PostgreSQL does not wait for its disk (fsync = off): if its machine fails, revocations are lost"
        yield warning("database", what, "set fsync = on in postgresql.conf")


def _slowed(former: int) -> Finding:
    return warning(
        "database",
        f"PostgreSQL keeps {former} dead versions of the busiest rows, which each change reads: requests become slow",
        "end transactions that have been open for long: SELECT pid, xact_start, state, application_name FROM "
        "pg_stat_activity ORDER BY xact_start; drop unused replication slots (pg_replication_slots); "
        "check that autovacuum is on",
    )


def _held_up(waiting: int) -> Finding:
    return failed(
        "database",
        f"commits wait for a synchronous standby that does not confirm them ({waiting} for more than "
        f"{_STANDBY_SECONDS:g} seconds): nothing can be changed, and no service can start",
        "connect a standby that synchronous_standby_names names, or go on without one: ALTER SYSTEM SET "
        "synchronous_standby_names = ''; SELECT pg_reload_conf()",
    )
