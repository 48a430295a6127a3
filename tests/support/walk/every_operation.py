"""All operations, registered, and a walk that takes any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from tests.support.walk import (  # noqa: F401 - each registers its operations
    authority_operations,
    broker_operations,
    fleet_operations,
    races,
    request_races,
    return_operations,
)
from tests.support.walk.comparison import compare
from tests.support.walk.process_operations import compare_all_heard
from tests.support.walk.walk import Step, walk


def take(directory: Path, steps: Iterable[Step], tell: Callable[[str], None] = lambda _: None) -> int:
    """Take *steps* in a new world; return how many were possible. Raises `WalkFailed`."""
    return walk(directory, steps, compare, compare_all_heard, tell)
