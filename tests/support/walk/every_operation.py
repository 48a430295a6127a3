"""All operations, registered, and a walk that takes any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from tests.support.walk import (  # noqa: F401 - each registers its operations
    approval_operations,
    authority_operations,
    broker_operations,
    clock_operations,
    database_operations,
    evidence_operations,
    exactly_once,
    fleet_operations,
    moving_operations,
    operator_operations,
    races,
    request_races,
    return_operations,
    sharing,
    withdrawn_operations,
)
from tests.support.walk.comparison import compare
from tests.support.walk.process_operations import compare_all_heard
from tests.support.walk.reality import Ground
from tests.support.walk.walk import Step, Way, walk


def take(
    directory: Path,
    steps: Iterable[Step],
    tell: Callable[[str], None] = lambda _: None,
    *,
    ground: Ground | None = None,
    insists: bool = False,
) -> list[str]:
    """Take *steps* in a new world; return what was not possible. Raises `WalkFailed`."""
    return walk(directory, steps, Way(compare, compare_all_heard, tell, ground or Ground(), insists))
