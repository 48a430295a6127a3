"""Sessions that had expired when the broker began: gone from the database, too, and in nobody's way until then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import stored
from tests.support.stored import StoredBroker
from tests.support.wire import KEPT


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[StoredBroker]:
    opened = StoredBroker(tmp_path)
    yield opened
    opened.close()


def test_what_a_session_whose_time_has_passed_leaves_in_the_database_is_removed(broker: StoredBroker) -> None:
    """Else it is read at each start, for ever; its name would not be free, and no batch with a successor be written."""
    for name in ("backend", "other"):
        client = broker.service(name, clean_start=False, session_expiry_interval=60)
        client.subscribe("fleet/#", qos=1)
        client.leave()
    after = broker.killed(away=90)
    after.settle()
    assert after.store.rows("SELECT * FROM sessions") == []
    assert after.store.rows("SELECT * FROM subscriptions") == []


def test_who_is_back_before_what_it_left_is_removed_from_the_database_is_written(
    broker: StoredBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store has one session a client identifier and owner: a batch with a second one would never be written."""
    client = broker.service(clean_start=False, session_expiry_interval=60)
    client.subscribe("fleet/#", qos=1)
    client.leave()
    with monkeypatch.context() as patch:  # The first second is not over.
        patch.setattr(stored, "do_what_is_due", lambda *_: None)
        after = broker.killed(away=90)
    assert after.journal.lapsed
    after.service(**KEPT).subscribe("fleet/a", qos=1)
    assert after.store.rows("SELECT topic_filter FROM subscriptions") == [("fleet/a",)]
