"""Two processes on one PostgreSQL, in every order of their statements: no let-in, nothing twice, nothing lost.

What `make test` tries are all orders with one switch, where a writer's transaction is two steps; `make test-thorough`
tries each statement, with more switches, and without the lock of all writers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from provisioning.revocation.ocsp import OcspResponder
from provisioning.revocation.publisher import CrlPublisher
from provisioning.store import counters, postgresql_group
from tests.support.examples import IS_THOROUGH
from tests.support.interleavings import Choices, every_choice, some_orders
from tests.support.many_certificates import make_portions_small
from tests.support.postgresql import PostgresqlServer
from tests.support.process_scenes import (
    SMALL,
    Scene,
    World,
    one_token_twice,
    pace_of_a_group,
    renew_and_revoke,
    two_revocations,
)
from tests.support.scenes_with_readers import (
    AGAIN,
    WITH_READERS,
    enrol_again,
    issue_and_retire,
    issue_and_revoke_ca,
    ocsp_and_revocation,
    one_idempotency_key,
    two_publishers_and_revocation,
)
from tests.support.seen_from_outside import Outsider
from tests.support.stepped_processes import CUT, DEAF, KILL, stepped

PROCESSES = ("first", "second", "third")
LOSSES = tuple(f"first{how}" for how in (CUT, DEAF, KILL))
FEW_ORDERS = (one_idempotency_key, issue_and_retire, issue_and_revoke_ca)
"""Of those with readers, whose orders of transactions are all in `make test`."""
_STATE_IS_READ = "an issuance reads its CA's state without a lock on the row, and the end passes between"
BY_THE_LOCK_ALONE = {
    pace_of_a_group: "two insert its first row, which is not there to be locked, and one of them fails",
    issue_and_retire: _STATE_IS_READ,
    issue_and_revoke_ca: _STATE_IS_READ,
}
"""Scenes of which row locks alone do not keep the rules."""
thorough = pytest.mark.skipif(not IS_THOROUGH, reason="`make test-thorough` has the time")
Prepare = Callable[[World], Scene]


@pytest.fixture(scope="module")
def world(postgresql: PostgresqlServer) -> Iterator[World]:
    with postgresql.database() as url, stepped(url, PROCESSES) as stage:
        yield World(stage, Outsider(stage.outside))


@pytest.fixture
def own_world(postgresql: PostgresqlServer) -> Iterator[World]:
    """One that is broken."""
    with postgresql.database() as url, stepped(url, PROCESSES) as stage:
        yield World(stage, Outsider(stage.outside))


def every(world: World, scene: Prepare, **how: Any) -> int:
    """Play a scene in every order; return how many there were."""
    with capture_logs():
        world.seen.clear()

        def run(choices: Choices) -> None:
            world.play(scene, choices, **how)

        return every_choice(run)


@pytest.mark.parametrize("scene", [*SMALL, *FEW_ORDERS])
def test_whatever_two_are_asked_at_once_every_order_is_right(world: World, scene: Prepare) -> None:
    assert every(world, scene, switches=1, coarse=True) >= 4


@pytest.mark.parametrize("scene", [enrol_again])
def test_whoever_is_lost_another_process_goes_on(world: World, scene: Prepare) -> None:
    """Its session is lost, the answer to its COMMIT, or itself, before any of its statements."""
    assert every(world, scene, switches=0, coarse=True, lost=LOSSES) >= 5
    assert {dict(each)["first"] for each in world.seen} == {"issued", "UNAVAILABLE", "Killed"}


def unlocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away the lock of all writers."""
    begin = re.sub(r"pg_try_advisory_xact_lock\(\d+\)", "true", postgresql_group._BEGIN)
    assert begin != postgresql_group._BEGIN
    monkeypatch.setattr(postgresql_group, "_BEGIN", begin)


def altered(monkeypatch: pytest.MonkeyPatch, alterations: Mapping[str, str]) -> set[str]:
    """Send other statements than the service does: what matches is replaced. Return what has matched so far."""
    seen: set[str] = set()
    execute = psycopg.Cursor.execute

    def alter(cursor: Any, query: Any, *values: Any, **how: Any) -> Any:
        text = query.decode() if isinstance(query, bytes) else str(query)
        for pattern, instead in alterations.items():
            if re.search(pattern, text):
                seen.add(pattern)
                text = re.sub(pattern, instead, text)
        return execute(cursor, text.encode(), *values, **how)

    monkeypatch.setattr(psycopg.Cursor, "execute", alter)
    return seen


_ROW_LOCKS = {r"(?s)^(?!.*audit_head)(.*) FOR UPDATE.*$": r"\1"}
_NUMBERS_OF_A_SEQUENCE = {
    r"(?s)^UPDATE counters SET value=\(counters.value \+.*$": "SELECT nextval('planted') + 0 * %(taken)s::bigint "
    "WHERE %(wanted)s::text <> ''",
    r"^NOTIFY": "UPDATE counters SET value = (SELECT max(sequence) FROM revocation_events) WHERE name = 'revocation'; "
    "NOTIFY",
}


@pytest.mark.parametrize(
    ("scene", "found"), [(renew_and_revoke, "let in"), (one_token_twice, "'second': 'NAME_TAKEN'")]
)
def test_without_locks_it_is_found(
    own_world: World, monkeypatch: pytest.MonkeyPatch, scene: Prepare, found: str
) -> None:
    unlocked(monkeypatch)
    seen = altered(monkeypatch, _ROW_LOCKS)
    with pytest.raises(AssertionError, match=found):
        every(own_world, scene, switches=1, coarse=True)
    assert seen == set(_ROW_LOCKS)


def test_numbers_that_are_not_in_the_order_of_commits_are_found(
    own_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlocked(monkeypatch)
    own_world.outsider.session.execute("CREATE SEQUENCE planted")
    seen = altered(monkeypatch, _NUMBERS_OF_A_SEQUENCE)
    with pytest.raises(AssertionError, match=r"event \d+ is not there, and \d+ is"):
        every(own_world, two_revocations, switches=1)
    assert seen == set(_NUMBERS_OF_A_SEQUENCE)


def test_an_answer_that_is_remembered_from_before_a_revocation_is_found(
    own_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remember_always(responder: Any, name: Any) -> bool:
        responder._pending.pop(name, None)
        return True

    monkeypatch.setattr(OcspResponder, "_finish", remember_always)
    with pytest.raises(AssertionError, match="an answer from before is remembered"):
        every(own_world, ocsp_and_revocation, switches=1, coarse=True)


@thorough
@pytest.mark.hypothesis
@pytest.mark.parametrize("locked", [True, False], ids=["", "without the lock of all writers"])
@pytest.mark.parametrize("scene", [*SMALL, *FEW_ORDERS])
def test_each_statement_in_every_order_with_two_switches(
    own_world: World, monkeypatch: pytest.MonkeyPatch, scene: Prepare, *, locked: bool
) -> None:
    """Row locks alone keep the rules, too, but a few."""
    if not locked:
        if scene in BY_THE_LOCK_ALONE:
            pytest.skip(BY_THE_LOCK_ALONE[scene])
        unlocked(monkeypatch)
    assert every(own_world, scene, switches=2) > 20


@thorough
@pytest.mark.hypothesis
@pytest.mark.parametrize("scene", [scene for scene in WITH_READERS if scene not in FEW_ORDERS])
def test_each_transaction_in_every_order_with_one_switch(own_world: World, scene: Prepare) -> None:
    assert every(own_world, scene, switches=1, coarse=True) > 10


@thorough
@pytest.mark.hypothesis
@pytest.mark.parametrize("scene", [*SMALL, *WITH_READERS])
def test_each_statement_in_orders_that_nobody_has_tried(world: World, scene: Prepare) -> None:
    def run(choices: Choices) -> None:
        world.play(scene, choices)

    with capture_logs():
        some_orders(run, 0, 50)


@thorough
@pytest.mark.hypothesis
@pytest.mark.parametrize("scene", AGAIN)
def test_whoever_is_lost_before_any_statement_another_process_goes_on(
    own_world: World, monkeypatch: pytest.MonkeyPatch, scene: Prepare
) -> None:
    make_portions_small(monkeypatch)
    assert every(own_world, scene, switches=0, lost=LOSSES) > 50


@thorough
@pytest.mark.hypothesis
def test_a_number_that_is_taken_before_the_list_is_read_is_found(
    own_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = CrlPublisher._read

    async def take_first(publisher: Any, issuer: Any, contents: Any) -> Any:
        name = publisher._plan.counter
        number = await publisher._database.write(lambda connection: take_above(connection, name, 0))
        return replace(await read(publisher, issuer, contents), number=number)

    take_above = counters.take_above
    monkeypatch.setattr(CrlPublisher, "_read", take_first)
    with pytest.raises(AssertionError, match=r"tells less|does not rise with the number"):
        every(own_world, two_publishers_and_revocation, switches=1, coarse=True)
