"""Where manufacturers' lists are fetched from: each by one process, and what it found belongs to that URL."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy.engine import Connection

from provisioning.store import manufacturer_list_urls, manufacturers
from tests.support.fleet import Fleet
from tests.support.requests import NOON

HOUR = timedelta(hours=1)


async def test_what_was_found_at_a_url_that_was_replaced_meanwhile_is_not_said_of_the_new_one(fleet: Fleet) -> None:
    """SQLite gives the new one the number of the old one."""

    def change(connection: Connection) -> None:
        facts = {"group": "line", "name_prefix": "", "subject": b"", "der": b"", "by": "admin", "now": NOON}
        manufacturers.add(connection, name="acme", fingerprint_sha256="aa", **facts)  # type: ignore[arg-type]
        (acme,) = manufacturers.every(connection)
        assert manufacturer_list_urls.put(connection, acme.id, ["http://a"], NOON)
        (fetched,) = manufacturer_list_urls.in_force(connection)
        assert manufacturer_list_urls.take(connection, fetched, NOON + HOUR)
        assert not manufacturer_list_urls.take(connection, fetched, NOON + HOUR), "another process has"
        assert not manufacturer_list_urls.put(connection, acme.id, ["http://a"], NOON)
        assert manufacturer_list_urls.put(connection, acme.id, ["http://b"], NOON)
        manufacturer_list_urls.record(connection, fetched, {"problem": "gone", "failures": 1, "due_at": NOON + HOUR})
        (now,) = manufacturer_list_urls.in_force(connection)
        assert (now.url, now.problem, now.failures, now.due_at) == ("http://b", "", 0, NOON)
        manufacturer_list_urls.record(connection, now, {"problem": "gone", "failures": 1, "due_at": NOON + HOUR})
        (now,) = manufacturer_list_urls.in_force(connection)
        assert (now.problem, now.failures, now.due_at) == ("gone", 1, NOON + HOUR)

    await fleet.database.write(change)
