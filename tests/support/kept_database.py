"""A PostgreSQL database that serves one test after another: emptied in between, which takes a tenth of making one.

    kept = KeptDatabase(url)   # of a database that is new
    if kept.emptied(): …       # as new again, whatever was written to it; False: drop it, and make another

A new database is three hundred files, copied and removed again; the rows of a test are in ten tables, and few. What a
test may leave behind is undone here or found here:

- sessions are ended, and it is waited until they are gone: what they had begun cannot come after us;
- rows are deleted, or truncated where a table has grown; those of a new database are put back, and the sequences begin
  again; large objects are unlinked. The session of ours sets triggers aside: the audit log's, which forbid it, and
  those of foreign keys;
- a statement that changes anything but rows (an ``ALTER TABLE``, a migration) is noted by an event trigger, in the
  transaction that it belongs to. So are statistics, which ``ANALYZE`` leaves and plans depend on, and settings of the
  database. Such a database is not kept.

What is ours in it is in a schema of its own, ``kept``; nothing that is under test looks there. Roles, limits of
connections, and what else belongs to the whole server, are not looked at: who changes those puts them back.
"""

from __future__ import annotations

import time
from typing import Final

import psycopg

_END_SECONDS: Final = 60
_SCHEMA: Final = b"""
CREATE SCHEMA kept;
CREATE TABLE kept.changes (command text);
CREATE FUNCTION kept.note() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN INSERT INTO kept.changes VALUES (tg_tag); END $$;

CREATE FUNCTION kept.empty() RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    used record;
    grown text;
BEGIN
    IF EXISTS (SELECT FROM kept.changes)
        OR EXISTS (SELECT FROM pg_class
                   WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND reltuples <> -1)
        OR EXISTS (SELECT FROM pg_db_role_setting WHERE setdatabase =
                   (SELECT oid FROM pg_database WHERE datname = current_database()))
    THEN
        RETURN false;
    END IF;
    FOR used IN
        SELECT oid::regclass AS name, bytes FROM pg_class CROSS JOIN pg_relation_size(oid) AS bytes
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND bytes > 0
    LOOP
        IF used.bytes <= 65536 THEN
            EXECUTE 'DELETE FROM ' || used.name;
        ELSE
            grown := concat_ws(', ', grown, used.name);
        END IF;
    END LOOP;
    IF grown <> '' THEN
        EXECUTE 'TRUNCATE ' || grown || ' CASCADE';
    END IF;
    FOR used IN SELECT relname FROM pg_class WHERE relnamespace = 'kept'::regnamespace AND relname LIKE 'first_%' LOOP
        EXECUTE format('INSERT INTO public.%I TABLE kept.%I', substr(used.relname, 7), used.relname);
    END LOOP;
    PERFORM lo_unlink(oid) FROM pg_largeobject_metadata;
    PERFORM setval(oid, 1, false) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'S';
    RETURN true;
END $$;

DO $$
DECLARE
    each name;
    filled boolean;
BEGIN
    FOR each IN SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM public.%I)', each) INTO filled;
        IF filled THEN
            EXECUTE format('CREATE TABLE kept.%I AS TABLE public.%I', 'first_' || each, each);
        END IF;
    END LOOP;
END $$;

CREATE EVENT TRIGGER kept_note ON ddl_command_end EXECUTE FUNCTION kept.note();
"""
_OTHERS: Final = b"""
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


class KeptDatabase:
    """One of them, and our session in it, which waits while a test uses the database."""

    def __init__(self, url: str, more: str = "") -> None:
        """Prepare the new database at *url*, which is SQLAlchemy's; *more* are statements that belong to it."""
        self.url = url
        self._session = psycopg.connect(
            url.replace("+psycopg", ""), autocommit=True, options="-c session_replication_role=replica"
        )
        self._session.execute(more.encode() + _SCHEMA)

    def emptied(self) -> bool:
        """Make it as new again; return False if that cannot be done."""
        try:
            self._end_others()
            return bool(self._value(b"SELECT kept.empty()"))
        except psycopg.OperationalError:  # The server was stopped, or a test has ended all sessions.
            return False

    def close(self) -> None:
        """End our session."""
        self._session.close()

    def _end_others(self) -> None:
        """End all other sessions. One whose client has just left is there for a moment more."""
        deadline = time.monotonic() + _END_SECONDS
        while self._value(_OTHERS):
            assert time.monotonic() < deadline, f"sessions in {self.url} do not end"
            time.sleep(0.001)

    def _value(self, query: bytes) -> object:
        row = self._session.execute(query).fetchone()
        assert row is not None
        return row[0]
