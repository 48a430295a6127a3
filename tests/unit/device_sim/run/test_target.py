"""What a target can do is asked before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_sim.credentials.fleet_directory import FleetDirectory, Origin
from device_sim.link.tls_dial import Endpoint
from device_sim.run.target import Impossible, Target
from device_sim.scenario.model import parse
from tests.support.authority import Authority

_SCENARIO = 'name = "imagined"\ndevices = 3\n[[stages]]\nramp = { rate = 1 }\n'


@pytest.mark.parametrize(
    ("there", "remedy"), [(0, "use `fleet-sim enrol"), (2, "use --devices 2, or `fleet-sim enrol")]
)
def test_a_fleet_that_is_too_small_is_told_what_can_be_done(tmp_path: Path, there: int, remedy: str) -> None:
    """No device at all is no number that --devices takes."""
    authority = Authority()
    fleet = FleetDirectory.create(tmp_path / "fleet", Origin(), authority.pem, "backend")
    with fleet.changing():
        for number in range(there):
            fleet.keep(authority.issue(f"meter-{number}"))
    with pytest.raises(Impossible) as told:
        Target(Endpoint("127.0.0.1", 1, "localhost"), fleet).check(parse(_SCENARIO, "imagined"))
    assert f"has {there} usable devices" in str(told.value)
    assert remedy in str(told.value)
