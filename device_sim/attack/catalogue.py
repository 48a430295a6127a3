"""The whole catalogue, in order, and how cases are picked from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from device_sim.attack import (
    certificate_cases,
    chain_cases,
    conduct_cases,
    enrolment_cases,
    handshake_cases,
    lifetime_cases,
    load_cases,
    operator_cases,
    packet_cases,
    pending_cases,
    published_cases,
    refused_cases,
    renewal_cases,
    request_cases,
    role_cases,
    session_cases,
    staple_cases,
    stranger_cases,
    topic_cases,
    unsendable_cases,
    websocket_cases,
)
from device_sim.attack.case import Case


class NoSuchCase(Exception):
    """The pattern selects no case."""


def _order(case: Case) -> int:
    return int(case.number)


_CHAPTERS = (
    certificate_cases,
    chain_cases,
    lifetime_cases,
    unsendable_cases,
    handshake_cases,
    stranger_cases,
    packet_cases,
    load_cases,
    session_cases,
    topic_cases,
    refused_cases,
    conduct_cases,
    enrolment_cases,
    request_cases,
    pending_cases,
    renewal_cases,
    role_cases,
    operator_cases,
    published_cases,
    staple_cases,
)

CATALOGUE: tuple[Case, ...] = tuple(
    sorted((case for chapter in _CHAPTERS for case in chapter.chapter.cases), key=_order)
)


WEBSOCKET: tuple[Case, ...] = tuple(websocket_cases.chapter.cases)
"""Those that can be tried only where MQTT over WebSocket is spoken."""


def pick(cases: Sequence[Case], patterns: Iterable[str]) -> tuple[Case, ...]:
    """Return those of *cases* whose number or name one of *patterns* is or matches; all without a pattern.

    Raises `NoSuchCase` for a pattern that matches none.
    """
    wanted = [part for pattern in patterns for part in pattern.split(",") if part]
    if not wanted:
        return tuple(cases)
    for pattern in wanted:
        if not any(_matches(case, pattern) for case in cases):
            raise NoSuchCase(f"--only {pattern}: no such case; --list shows them all")
    return tuple(case for case in cases if any(_matches(case, pattern) for pattern in wanted))


def _matches(case: Case, pattern: str) -> bool:
    return pattern == case.number or fnmatchcase(case.name, pattern)
