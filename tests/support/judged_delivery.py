"""`fleet-sim delivery` on mosquitto behind a proxy with one fault: what it finds, and that it blames nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from device_sim.attack import entry, run
from device_sim.attack.catalogue import pick
from device_sim.attack.delivery_list import OWED
from device_sim.attack.mosquitto_target import mosquitto
from device_sim.attack.owed import OLDER
from device_sim.attack.scene import Scene
from device_sim.attack.verdict import Outcome, Verdict
from tests.support.one_fault import OneFault, with_fault
from tests.support.open_mosquitto import target_with_fault

_IMPATIENT, _PATIENT = 6.0, 30.0
"""Seconds to wait for what may never come: at first, and once more where a broker is blamed for what it has not done.

On a machine that others hold 6 may be too few; 30 for each thing that a fault has swallowed would take a day.
"""
OF_MOSQUITTO = {
    "3-delay-no-session": "its will was never sent",
    "6-packet-size-queued": "what fits of what was queued: not all came",
    "6-packet-size-retained": "what fits: not all came",
    "13-share-ends-qos1": "went to nobody else of the group",
    "15-no-local-retained": "what others said: b'own' came too",
    "15-replaced-no-local": "what it said itself, with No Local: b'not to itself' came too",
    "15-replaced-as-published": "RETAIN was 0 0 0, and should have been 0 1 0",
    "18-taken-over-will-at-once": "its will was never sent",
    "18-taken-over-will-clean": "its will was never sent",
}
"""What mosquitto 2.0.21 itself gets wrong (docs/delivery.md)."""


COSTLY = frozenset({"15-many-listeners", "15-many-listeners-311"})
"""It takes forty connections. It is tried where it is named, and without a fault, and not with all of its chapter."""
Trial = tuple[Callable[[], OneFault], str, dict[str, str]]
"""What makes a fault, the cases that are tried, and the text of each that must be against the broker."""
_AT_ONCE = 4
"""Trials that run at the same time: each waits, most of the time, for what a fault has swallowed."""


def together(trials: Sequence[Trial]) -> list[Sequence[Trial]]:
    """Return *trials* in groups, for `assert_each_found`."""
    return [trials[first : first + _AT_ONCE] for first in range(0, len(trials), _AT_ONCE)]


async def assert_each_found(directory: Path, trials: Sequence[Trial], *, older: bool = False) -> None:
    """Check that each of *trials*, at a broker of its own, finds what it must, and nothing else."""
    found = await _found(directory / "at first", [(fault, only) for fault, only, _ in trials], _IMPATIENT, older=older)
    blamed = [
        [name for name, words in each.items() if name not in expected or expected[name] not in words]
        for each, (_, _, expected) in zip(found, trials, strict=True)
    ]
    doubtful = [number for number, names in enumerate(blamed) if names]
    again = await _found(
        directory / "once more", [(trials[each][0], ",".join(blamed[each])) for each in doubtful], _PATIENT, older=older
    )
    for number, judged in zip(doubtful, again, strict=True):
        found[number] = {name: words for name, words in found[number].items() if name not in blamed[number]} | judged
    for each, (_, _, expected) in zip(found, trials, strict=True):
        assert_found(each, expected)


async def _found(
    directory: Path, trials: Sequence[tuple[Callable[[], OneFault], str]], patience: float, *, older: bool
) -> list[dict[str, str]]:
    """Return what each of *trials* finds, all at the same time."""
    places = [directory / str(number) for number in range(len(trials))]
    for place in places:
        place.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run, "MOST_WAITING", 10.0)  # Whatever else this machine does, it is the broker that is judged.
        patched.setattr(entry, "_ANSWER", 60.0)  # Those who connect at the same time wait for each other.
        patched.setattr(run, "Scene", partial(Scene, patience=patience))
        async with asyncio.TaskGroup() as group:  # One that cannot be held ends the others: none outlives the test.
            tasks = [
                group.create_task(_found_in(place, fault(), only, older=older))
                for place, (fault, only) in zip(places, trials, strict=True)
            ]
    return [task.result() for task in tasks]


async def _found_in(directory: Path, fault: OneFault, only: str, *, older: bool) -> dict[str, str]:
    """Return the text of each case of *only* that did not pass: with MQTT 5, or with the *older* version."""
    cases = [case for case in pick(OWED, [only]) if case.name.endswith(OLDER) is older]
    if type(fault) is OneFault:  # Without a fault it is the target of `fleet-sim` itself: its policy admits each case.
        async with mosquitto(directory) as target, with_fault(target, fault) as sound:
            found = await run.run(sound, cases, lambda _: None)
    else:
        spared = COSTLY.difference(only.split(","))
        async with target_with_fault(directory, fault) as faulty:
            found = await run.run(faulty, [case for case in cases if case.name not in spared], lambda _: None)
    return {outcome.name: outcome.judgement.why for outcome in found if is_against(outcome)}


def is_against(outcome: Outcome) -> bool:
    return outcome.verdict is not Verdict.PASS


def assert_found(found: dict[str, str], expected: dict[str, str]) -> None:
    """Check that *found* are the *expected* cases, each with its text."""
    assert found.keys() == expected.keys(), found
    for name, words in expected.items():
        assert words in found[name], (name, found[name])
