"""What a target can do is asked before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_sim.credentials.fleet_directory import FleetDirectory, Origin
from device_sim.link.tls_dial import Endpoint
from device_sim.run.manner import ONE_PROCESS, Manner
from device_sim.run.target import Impossible, Target
from device_sim.scenario.model import parse
from provisioning.pki.role import Role
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
        Target(Endpoint("127.0.0.1", 1, "localhost"), fleet).check(parse(_SCENARIO, "imagined"), ONE_PROCESS)
    assert f"has {there} usable devices" in str(told.value)
    assert remedy in str(told.value)


@pytest.mark.parametrize(
    ("client_id", "receivers", "workers", "option"),
    [
        ("receiver-2", 2, 1, "`receivers`"),
        ("receiver-2", 1, 1, None),
        ("receiver-3", 2, 2, None),
        ("receiver-w1", 1, 1, None),
        ("receiver-w2", 1, 2, "--workers"),
        ("receiver-w3", 1, 2, None),
    ],
)
def test_a_device_is_not_known_as_the_run_s_own_backend(
    tmp_path: Path, client_id: str, receivers: int, workers: int, option: str | None
) -> None:
    authority = Authority()
    fleet = FleetDirectory.create(tmp_path / "fleet", Origin(), authority.pem, "backend")
    with fleet.changing():
        fleet.keep(authority.issue("backend", role=Role.SERVICE, group=None), "receiver")
        fleet.keep(authority.issue("meter-1"), client_id)
    scenario = parse(f"receivers = {receivers}\n{_SCENARIO}".replace("= 3", "= 1"), "imagined")
    target = Target(Endpoint("127.0.0.1", 1, "localhost"), fleet)
    if option is None:
        target.check(scenario, Manner(workers=workers))
        return
    with pytest.raises(Impossible) as told:
        target.check(scenario, Manner(workers=workers))
    assert f"meter-1 connects as {client_id}, and so does the run's own backend with so many {option}" in str(
        told.value
    )


def test_each_run_seals_its_messages_anew() -> None:
    assert Manner().mark != Manner().mark
