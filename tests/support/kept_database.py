"""A PostgreSQL database reused by one test after another: emptied in between, which takes a tenth of creating one.

    kept = KeptDatabase(url)   # of a new database
    if kept.emptied(): …       # as new again, whatever was written to it; False: drop it, and create another

A new database is three hundred files, copied and removed again; a test's rows are in ten tables, and few. What a test
may leave behind is undone or detected here:

- sessions are ended, and awaited until they are gone, so that what they had begun cannot follow later;
- rows are deleted, or truncated where a table has grown; those of a new database are restored, and sequences restart;
  large objects are unlinked. Our session disables triggers: the audit log's, which forbid this, and those of foreign
  keys;
- a statement that changes anything but rows (an ``ALTER TABLE``, a migration) is recorded by an event trigger, in its
  own transaction. So are statistics, which ``ANALYZE`` leaves and plans depend on, and settings of the database. Such a
  database is not reused.

Our own objects are in a separate schema, ``kept``, which the code under test ignores. Roles, connection limits, and
other properties of the whole server are not checked: a test that changes those must restore them.
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
    """One such database, and our session in it, which is idle while a test uses the database."""

    def __init__(self, url: str, more: str = "") -> None:
        """Prepare the new database at *url* (for SQLAlchemy); *more* are statements that belong to it."""
        self.url = url
        self._session = psycopg.connect(
            url.replace("+psycopg", ""), autocommit=True, options="-c session_replication_role=replica"
        )
        self._session.execute(more.encode() + _SCHEMA)

    def emptied(self) -> bool:
        """Make it as new again; return False if that is impossible."""
        try:
            self._end_others()
            return bool(self._value(b"SELECT kept.empty()"))
        except psycopg.OperationalError:  # The server was stopped, or a test has ended all sessions.
            return False

    def close(self) -> None:
        """End our session."""
        self._session.close()

    def _end_others(self) -> None:
        """End all other sessions. A session whose client has just left exists for a moment longer."""
        deadline = time.monotonic() + _END_SECONDS
        while self._value(_OTHERS):
            assert time.monotonic() < deadline, f"sessions in {self.url} do not end"
            time.sleep(0.001)

    def _value(self, query: bytes) -> object:
        row = self._session.execute(query).fetchone()
        assert row is not None
        return row[0]
