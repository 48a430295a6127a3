from __future__ import annotations

import pytest

from device_sim.demo.demo_plan import DemoPlan


def test_the_same_seed_revokes_the_same_devices() -> None:
    assert DemoPlan(seed=1).to_revoke == DemoPlan(seed=1).to_revoke != DemoPlan(seed=2).to_revoke


@pytest.mark.parametrize(("devices", "revoked"), [(2, 1), (5, 4), (6, 5), (200, 5)])
def test_somebody_is_always_left(devices: int, revoked: int) -> None:
    plan = DemoPlan(devices=devices)
    assert len(set(plan.to_revoke) & set(plan.names)) == revoked < devices


def test_a_larger_fleet_publishes_less_often() -> None:
    assert DemoPlan(devices=200).interval == 0.2
    assert DemoPlan(devices=5000).interval == 5.0
