"""Random walks through the whole product: service, broker, devices, operators, beside an oracle, kill -9 included.

A failure tells what was done, step by step, and the seed: `tests.support.walk.explore` takes such a walk again, and
`tests.support.walk.shorten` leaves out of it what does not matter.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from provisioning.client.est import WrongCertificate
from tests.support.examples import IS_THOROUGH
from tests.support.pki import Pki
from tests.support.walk.every_operation import take
from tests.support.walk.reality import Ground, answer_of
from tests.support.walk.shorten import shortened
from tests.support.walk.walk import OPERATIONS, Step, steps_of, walk_of_all

_SEED = 1002
"""Of the walk in `make test`, which is always the same: what it finds has been done by whoever changed something."""
_LONG = 250
"""Steps of a new walk."""
_PROCESSES = (0, 2, 0, 1)
"""Of the service, on PostgreSQL; 0: one on SQLite."""


@pytest.mark.timeout(600)  # A broker that starts without its feed lets its clients wait for ten seconds.
def test_whatever_is_done_oracle_and_product_agree(tmp_path: Path) -> None:
    """Each operation once: one that is not possible when its turn comes, later."""
    assert take(tmp_path, walk_of_all(_SEED), print, insists=True) == []


@pytest.mark.hypothesis
@pytest.mark.skipif(not IS_THOROUGH, reason="`make test-thorough` has walks that nobody has taken before")
@pytest.mark.parametrize("number", range(20 if IS_THOROUGH else 1))
def test_another_walk_each_time_agrees_too(tmp_path: Path, number: int, request: pytest.FixtureRequest) -> None:
    seed = random.randrange(10**6)
    workers, has_clock = _PROCESSES[number % len(_PROCESSES)], number % 3 == 0
    clock = " --clock" * has_clock
    print(f"walk {number}: --seed {seed} --steps {_LONG} --workers {workers}{clock}")  # noqa: T201 - shown with a failure
    ground = Ground(has_clock=has_clock)
    if workers:
        ground = Ground(request.getfixturevalue("postgresql"), workers, has_clock)
    assert len(take(tmp_path, steps_of(seed, _LONG), ground=ground)) < _LONG * 3 / 4, "hardly anything was possible"


@pytest.mark.parametrize(
    ("life", "says", "takes"),
    [(1, "it has ended on", True), (1, "it is that of", False), (600, "it has ended on", False)],
)
def test_a_brief_certificate_may_be_over_when_it_comes(life: int, says: str, *, takes: bool) -> None:
    pki = Pki()
    ended = pki.device("brief", not_before=pki.now - timedelta(seconds=life), not_after=pki.now).certificate

    async def ask() -> x509.Certificate:
        raise WrongCertificate(f"{says} whatever", ended)

    if takes:
        assert answer_of(ask()) == ended
        return
    with pytest.raises(WrongCertificate):
        answer_of(ask())


def test_a_walk_is_shortened_to_what_matters() -> None:
    def failure_of(steps: Sequence[Step]) -> str:
        names = [step.operation for step in steps]
        return "lost" if "revoke" in names and "connect" in names[names.index("revoke") :] else ""

    walk = [Step(name, seed) for seed, name in enumerate(sorted(OPERATIONS))] * 3
    assert [step.operation for step in shortened(walk, failure_of)] == ["revoke", "connect"]
