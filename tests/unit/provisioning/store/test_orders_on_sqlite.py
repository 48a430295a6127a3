"""A service and commands on one SQLite file, in every order of their statements: nothing twice, nothing lost.

What `make test` tries are all orders with one switch, where a writer's transaction is two steps; `make test-thorough`
tries each statement, with two switches, and all scenes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from provisioning.store import sqlite_group
from provisioning.store.sqlite_writer import SqliteWriter
from tests.support import scenes_with_ceremonies
from tests.support.examples import IS_THOROUGH
from tests.support.interleavings import Choices, every_choice, some_orders
from tests.support.many_certificates import make_portions_small
from tests.support.process_scenes import (
    SMALL,
    World,
    last_place_of_a_claim,
    one_token_twice,
    renew_and_revoke,
    two_batches,
)
from tests.support.scenes_with_ceremonies import Directory
from tests.support.scenes_with_readers import AGAIN, WITH_READERS, enrol_again, issue_and_retire, issue_and_revoke_ca
from tests.support.stepped_processes import CUT, KILL
from tests.support.stepped_sqlite import SqliteOutsider, stepped_on_sqlite

PROCESSES = ("first", "second", "third")
thorough = pytest.mark.skipif(not IS_THOROUGH, reason="`make test-thorough` has the time")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with stepped_on_sqlite(tmp_path_factory.mktemp("stepped"), PROCESSES) as stage:
        yield World(stage, SqliteOutsider(stage.outside))


@pytest.fixture
def own_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One that is broken."""
    with stepped_on_sqlite(tmp_path_factory.mktemp("stepped"), PROCESSES) as stage:
        yield World(stage, SqliteOutsider(stage.outside))


@pytest.fixture
def directory(world: World, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Directory:
    return Directory(tmp_path_factory.mktemp("fleet"), world.first, monkeypatch)


def every(world: World, scene: Any, **how: Any) -> int:
    """Play a scene in every order; return how many there were."""
    world.seen.clear()

    def run(choices: Choices) -> None:
        world.play(scene, choices, **how)

    with capture_logs():
        return every_choice(run)


@pytest.mark.parametrize(
    "scene",
    [renew_and_revoke, one_token_twice, last_place_of_a_claim, two_batches, issue_and_retire, issue_and_revoke_ca],
)
def test_whatever_two_do_at_once_every_order_is_right(world: World, scene: Any) -> None:
    assert every(world, scene, switches=1, coarse=True) >= 2


@pytest.mark.parametrize("how", [CUT, KILL])
def test_whoever_is_lost_or_meets_a_full_disk_another_goes_on(world: World, how: str) -> None:
    assert every(world, enrol_again, switches=0, coarse=True, lost=[f"first{how}"]) >= 3
    assert {dict(each)["first"] for each in world.seen} == {"issued", "UNAVAILABLE" if how == CUT else "Killed"}


def test_a_root_that_is_recorded_has_its_key_whatever_becomes_of_another_ceremony(
    world: World, directory: Directory
) -> None:
    """Who failed deleted the key that both had, as without the lock of the directory."""
    assert every(world, directory.two_new_roots, switches=1, coarse=True, lost=[f"first{CUT}"]) > 5


def test_a_writer_that_takes_its_lock_late_is_found(own_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has read is of before then, and SQLite refuses it (SQLITE_BUSY_SNAPSHOT)."""
    say = SqliteWriter._say
    monkeypatch.setattr(sqlite_group, "PATIENCE_MILLISECONDS", 1)
    monkeypatch.setattr(
        SqliteWriter, "_say", lambda writer, on, text: say(writer, on, text.replace("IMMEDIATE", "DEFERRED"))
    )
    with pytest.raises(AssertionError, match="is refused with 503"):
        every(own_world, renew_and_revoke, switches=1)


@thorough
@pytest.mark.hypothesis
def test_without_the_lock_of_the_directory_a_key_is_lost(
    own_world: World, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenes_with_ceremonies, "ceremony_on", lambda _directory: contextlib.nullcontext())
    directory = Directory(tmp_path_factory.mktemp("fleet"), own_world.first, monkeypatch)
    with pytest.raises(AssertionError, match="the key of root-2 is gone"):
        every(own_world, directory.two_new_roots, switches=1, coarse=True, lost=[f"first{CUT}"])


@thorough
@pytest.mark.hypothesis
def test_a_bundle_is_of_the_last_change_whoever_writes_it(world: World, directory: Directory) -> None:
    assert every(world, directory.root_and_issuing_ca, switches=1, coarse=True) > 10


@thorough
@pytest.mark.hypothesis
@pytest.mark.parametrize("scene", SMALL)
def test_each_statement_in_every_order_with_two_switches(own_world: World, scene: Any) -> None:
    assert every(own_world, scene, switches=2) > 1


@thorough
@pytest.mark.hypothesis
@pytest.mark.parametrize("scene", WITH_READERS)
def test_each_transaction_in_every_order_with_one_switch(own_world: World, scene: Any) -> None:
    assert every(own_world, scene, switches=1, coarse=True) > 1


@thorough
@pytest.mark.hypothesis
@pytest.mark.parametrize("scene", [*SMALL, *WITH_READERS])
def test_each_statement_in_orders_that_nobody_has_tried(world: World, scene: Any) -> None:
    def run(choices: Choices) -> None:
        world.play(scene, choices)

    with capture_logs():
        some_orders(run, 0, 50)


@thorough
@pytest.mark.hypothesis
@pytest.mark.parametrize("scene", AGAIN)
def test_whoever_is_lost_before_any_statement_another_goes_on(
    own_world: World, monkeypatch: pytest.MonkeyPatch, scene: Any
) -> None:
    make_portions_small(monkeypatch)
    assert every(own_world, scene, switches=0, lost=[f"first{CUT}", f"first{KILL}"]) > 10
