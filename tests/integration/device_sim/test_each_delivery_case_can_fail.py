"""A case that nothing breaks proves nothing: each of `fleet-sim delivery` is broken by a planted fault or mosquitto."""

from __future__ import annotations

from types import ModuleType

from device_sim.attack.delivery_list import OWED
from device_sim.attack.owed import OLDER
from tests.integration.device_sim import (
    test_delivery_after_a_kill,
    test_delivery_of_sessions_on_one_fault,
    test_delivery_of_subscriptions_on_one_fault,
    test_delivery_on_one_fault,
    test_planted_faults,
)
from tests.support.judged_delivery import OF_MOSQUITTO


def expected_in(module: ModuleType) -> set[str]:
    """Return the cases that fail in the tests of *module*."""
    (mark,) = [each for each in module.test_faults_are_found_where_they_are.pytestmark if each.name == "parametrize"]
    return {name for trials in mark.args[1] for _, _, expected in trials for name in expected}


def test_each_case_of_mqtt_5_is_broken_by_something() -> None:
    modules = (
        test_delivery_on_one_fault,
        test_delivery_of_sessions_on_one_fault,
        test_delivery_of_subscriptions_on_one_fault,
    )
    broken = set.union(*map(expected_in, modules)) | test_delivery_after_a_kill.FORGOTTEN.keys()
    broken |= test_planted_faults.DELIVERED_WRONGLY.keys() | OF_MOSQUITTO.keys()
    assert {case.name for case in OWED if not case.name.endswith(OLDER)} == broken
