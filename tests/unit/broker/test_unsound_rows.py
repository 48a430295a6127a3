"""Rows that a start cannot restore, or need not: what it says of them, and what becomes of them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from broker.process.recovery import _REMOVED_AT_ONCE, recover
from broker.store.database_files import StoreError
from broker.store.sqlite import SqliteStore
from tests.support.stored import StoredBroker
from tests.support.wire import KEPT, MemoryBroker

TOPIC = "fleet/meters/meter-1/state"


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("UPDATE sessions SET owner = 'nobody'", "a row of sessions: "),
        ("UPDATE sessions SET certificate = 'none'", "a row of sessions: "),
        ("UPDATE sessions SET authorities = 'none'", "a row of sessions: "),
        ("DELETE FROM messages", "a row of deliveries refers to row 1 of another table, which is not there"),
        ("UPDATE deliveries SET sessions = x'6300000000000000'", "a row of deliveries refers to row 99 of another"),
        ("UPDATE deliveries SET places = 3", "a row of deliveries: a delivery to other sessions than it lists"),
        ("UPDATE subscriptions SET topic_filter = '$share/+/t'", "a row of subscriptions: "),
        (
            "PRAGMA foreign_keys=OFF; INSERT INTO incoming VALUES (99, 1)",
            "a row of incoming refers to none of sessions",
        ),
        ("DROP TABLE retained", "no such table: retained"),
    ],
)
def test_a_database_that_is_damaged_is_named_with_the_remedy(tmp_path: Path, damage: str, told: str) -> None:
    broker = StoredBroker(tmp_path)
    backend = broker.service(**KEPT)
    backend.subscribe("fleet/#", qos=1)
    broker.device("meter-1").publish(TOPIC, b"x", qos=1)
    broker.store._database.executescript(damage)
    broker.store.close()
    with (
        pytest.raises(StoreError) as refused,
        contextlib.closing(SqliteStore(broker.directory / "broker.db")) as store,
    ):
        recover(MemoryBroker().engine, store, 0.0, 0.0)
    assert "broker.db cannot be used as the broker's database: " in str(refused.value)
    assert told in str(refused.value)
    assert "; move it away, with broker.db-wal and -shm, or put back a backup" in str(refused.value)


@pytest.mark.parametrize("unneeded", [3, _REMOVED_AT_ONCE + 2])
def test_messages_that_no_delivery_names_are_removed_and_told(tmp_path: Path, unneeded: int) -> None:
    """They were read at every start, and stayed."""
    with contextlib.closing(StoredBroker(tmp_path)) as broker:
        broker.service(**KEPT).subscribe("fleet/#", qos=1)
        broker.service(**KEPT).vanish()
        broker.device("meter-1").publish(TOPIC, b"needed", qos=1)
        row = "INSERT INTO messages SELECT 100 + value, x'74', x'78', 1, 0, x'', NULL FROM numbers"
        numbers = (
            f"WITH numbers (value) AS (VALUES (1) UNION ALL SELECT value + 1 FROM numbers WHERE value < {unneeded})"
        )
        broker.store._database.execute(f"{numbers} {row}")
        with capture_logs() as logs:
            after = broker.killed()
        (told,) = [each for each in logs if each.get("code") == "STORE_UNNEEDED_MESSAGES"]
        assert (told["removed"], told["left"]) == (min(unneeded, _REMOVED_AT_ONCE), max(0, unneeded - _REMOVED_AT_ONCE))
        after.settle()
        assert after.store.rows("SELECT count(*) FROM messages") == [(1 + told["left"],)]
        assert after.service(**KEPT).payloads() == [b"needed"]
        again = after.killed()
        again.settle()
        assert again.store.rows("SELECT count(*) FROM messages") == [(1,)]
