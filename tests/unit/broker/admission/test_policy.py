"""The default policy, and that a name can never become more than one topic level."""

from __future__ import annotations

import pytest

from broker.admission.policy import DEFAULT_POLICY, RoleRules, TopicPolicy
from provisioning.pki.identity import Identity, Role

METER = DEFAULT_POLICY.compile(Identity("d", Role.DEVICE, "meter-1", "meters"))
BACKEND = DEFAULT_POLICY.compile(Identity("d", Role.SERVICE, "backend"))
OWN = "fleet/meters/meter-1"


@pytest.mark.parametrize("rest", ["", "/telemetry", "/event/x", "/state", "/ack", "/cmds", "/xcmd/a", "/telemetry/cmd"])
def test_a_device_publishes_under_its_own_name(rest: str) -> None:
    assert METER.may_publish(OWN + rest)


@pytest.mark.parametrize(
    "topic",
    [f"{OWN}/cmd", f"{OWN}/cmd/x", f"{OWN}/cmd/", "fleet/meters/meter-2/state", "fleet/x/meter-1/state", "fleet/meters",
     "fleet/meters/meter-10/state", "Fleet/meters/meter-1/state", f"/{OWN}/state", "$SYS/x", "fleet//meter-1/x"],
)  # fmt: skip
def test_a_device_publishes_nowhere_else(topic: str) -> None:
    assert not METER.may_publish(topic)


@pytest.mark.parametrize("topic_filter", [f"{OWN}/cmd/#", f"{OWN}/cmd/+", f"{OWN}/cmd", f"{OWN}/cmd/a/+/b"])
def test_a_device_subscribes_to_its_commands(topic_filter: str) -> None:
    assert METER.may_subscribe(topic_filter)


@pytest.mark.parametrize(
    "topic_filter", [f"{OWN}/#", f"{OWN}/+", OWN, "fleet/meters/+/cmd/#", "fleet/+/meter-1/cmd/#", "#", "+/#", "$SYS/#"]
)
def test_a_device_subscribes_to_nothing_else(topic_filter: str) -> None:
    assert not METER.may_subscribe(topic_filter)


def test_a_service_reads_the_fleet_and_commands_it() -> None:
    assert all(BACKEND.may_subscribe(each) for each in ("fleet/#", "fleet", "fleet/+/+/telemetry", OWN, "$SYS/#"))
    assert not any(BACKEND.may_subscribe(each) for each in ("#", "+/#", "fleets/#", "$SYSTEM/#", "$share/g/fleet/#"))
    assert all(BACKEND.may_publish(each) for each in (f"{OWN}/cmd", f"{OWN}/cmd/go"))
    assert not any(
        BACKEND.may_publish(each) for each in (f"{OWN}/state", "fleet/meters/cmd/x", "fleet/a/b/c/cmd", "$SYS/x")
    )


def test_an_operator_reads_everything_and_says_nothing() -> None:
    operator = DEFAULT_POLICY.compile(Identity("d", Role.OPERATOR, "admin"))
    assert all(operator.may_subscribe(each) for each in ("fleet/#", "$SYS/#", f"{OWN}/cmd/#"))
    assert not any(operator.may_subscribe(each) for each in ("#", "+/#"))
    assert not any(operator.may_publish(each) for each in (f"{OWN}/cmd/go", f"{OWN}/state", "$SYS/x", "x"))


def test_a_role_without_rules_may_do_nothing() -> None:
    assert not DEFAULT_POLICY.knows(Role.BROKER)
    permissions = DEFAULT_POLICY.compile(Identity("d", Role.BROKER, "x"))
    assert not permissions.may_publish("fleet/x")
    assert not permissions.may_subscribe("fleet/x")


def test_a_policy_that_says_nothing_permits_nothing() -> None:
    policy = TopicPolicy({Role.DEVICE: RoleRules()})
    assert policy.knows(Role.DEVICE)
    assert not policy.compile(Identity("d", Role.DEVICE, "x", "g")).may_publish("x")


def test_a_service_without_a_group_gets_no_level_of_its_own() -> None:
    policy = TopicPolicy({Role.SERVICE: RoleRules(publish_allow=("svc/{group}/{device}",))})
    assert policy.compile(Identity("d", Role.SERVICE, "x", "g")).may_publish("svc/g/x")
    assert policy.compile(Identity("d", Role.SERVICE, "x")).publish_allow == ("svc//x",)
