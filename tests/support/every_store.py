"""Where stores of services are that no test has named one for: SQLite, or, with ``--on-postgresql``, all on a server.

    pytest --on-postgresql tests/integration/provisioning

Every test of the service then runs on PostgreSQL, once, whether its module is for both stores or not; those about
SQLite itself are left out (`SQLITE_ALONE`).

A database is dropped when the next one is made and the directory of its service has gone: a test may start a service
again as long as it has the directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.support.postgresql import PostgresqlServer

SQLITE_ALONE: Final = {
    "test_backup.py",  # Each of these names its store where it has another one.
    "test_doctor.py",  # It finds that the tests' server does not wait for the disk.
    "test_doctor_half_truths.py",
    "test_doctor_of_stores.py",
    "test_faults.py",
    "test_hangup.py",
    "test_held_commits.py",
    "test_power_failure.py",
    "test_token_signer.py",  # It founds with one set of settings and starts with another.
    "test_unfinished_ends.py",
    "test_unwritable_audit.py",
    "test_a_ca_whose_key_could_not_be_opened_when_it_became_active_issues_when_it_can",
    "test_a_command_of_a_newer_version_leaves_the_store_of_a_running_service_alone",
    "test_init_never_overwrites_and_leaves_nothing_half_made",
    "test_the_audit_log_is_shown_and_verified_while_the_service_runs",
    "test_what_is_committed_is_told",
    "test_who_stops_reading_ends_the_command_without_a_word",
}
"""Files, and single tests, about SQLite's files, or that start programs which are told of no other store."""

server: PostgresqlServer | None = None
"""Set once, by the fixture of ``tests/conftest.py``."""

_made: dict[Path, str] = {}


def new(directory: Path, template: str) -> str:
    """Return the URL of a new database, for the service in *directory*."""
    assert server is not None
    for gone in [each for each in _made if not each.parent.exists()]:
        server.drop(_made.pop(gone))
    _made[directory] = url = server.new_database(template=template)
    return url
