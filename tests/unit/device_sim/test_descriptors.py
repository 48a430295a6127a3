from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from device_sim.cli import app
from device_sim.descriptors import SPARE, TooFewDescriptors, have
from device_sim.scenario.catalogue import find
from device_sim.scenario.groups import Clone


@pytest.fixture
def hard() -> Iterator[int]:
    """Let this process have few descriptors, and more if it asks; yield the most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_the_user_may_have_is_taken(hard: int) -> None:
    have(600)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


def test_what_he_may_not_have_is_told_with_its_remedy_before_anything_begins(hard: int) -> None:
    too_many = hard + 1
    with pytest.raises(TooFewDescriptors, match=f"--nofile={too_many + SPARE}"):
        have(too_many)
    if too_many <= 1_000_000:  # The most that a scenario may have.
        done = CliRunner().invoke(app, ["run", "smoke", "--self-hosted", "--devices", str(too_many)])
        assert (done.exit_code, "prlimit" in done.stderr) == (2, True)


def test_proxies_and_copies_need_descriptors_too() -> None:
    smoke, chaos = find("smoke"), find("chaos")
    assert smoke.connections == smoke.devices + 1
    assert chaos.connections == 3 * chaos.devices + 1
    cloned = smoke.model_copy(update={"groups": [smoke.groups[0].model_copy(update={"clone": Clone(every=1.0)})]})
    assert cloned.connections == 2 * smoke.devices + 1
