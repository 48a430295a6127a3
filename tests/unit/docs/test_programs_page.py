"""docs/programs.md gives each program what it needs of the topics, and no more: its policy is read and asked."""

from __future__ import annotations

import re

import pytest

from broker.admission.policy import TopicPolicy
from broker.admission.policy_file import parse_policy, read_policy
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from tests.support.provisioning import REPOSITORY

PAGE = (REPOSITORY / "docs" / "programs.md").read_text()


@pytest.fixture(scope="module")
def policy() -> TopicPolicy:
    """What the commands of the page make: the default one, but for services, and the page's own sections."""
    left_out = re.compile(r"^\[role\.service\].*?^$\n", re.DOTALL | re.MULTILINE)
    assert r"sed '/^\[role.service\]/,/^$/d'" in PAGE
    (added,) = re.findall(r"<<'POLICY'\n(.*?)^POLICY$", PAGE, re.DOTALL | re.MULTILINE)
    return parse_policy(left_out.sub("", read_policy(None)) + added, "policy.toml")


@pytest.mark.parametrize(
    ("name", "reads", "not_that", "publishes", "nor_that"),
    [
        ("nodered-1", "fleet/+/+/telemetry", "fleet/#", "fleet/n/m/cmd/switch", "fleet/n/m/cmd/reboot"),
        ("exporter-1", "fleet/+/+/telemetry", "$SYS/#", None, "fleet/n/m/cmd/switch"),
        ("bridge-1", "fleet/+/+/telemetry", "#", None, "fleet/n/m/telemetry"),
        ("dashboard-1", "$SYS/broker/#", "fleet/+/+/telemetry", None, "$SYS/broker/uptime"),
        ("home-1", "homeassistant/#", "fleet/#", "homeassistant/status", "homeassistant/sensor/m/p/config"),
        ("scada-1", "spBv1.0/#", "fleet/+/+/telemetry", "spBv1.0/STATE/scada-1", "spBv1.0/STATE/scada-2"),
    ],
)
def test_a_program_gets_what_it_needs(
    policy: TopicPolicy, name: str, reads: str, not_that: str, publishes: str | None, nor_that: str
) -> None:
    program = Identity("fleet.internal", Role.SERVICE, name)
    assert policy.knows(program, ours=True)
    allowed = policy.permissions(program, name, ours=True)
    assert allowed.may_subscribe(reads)
    assert not allowed.may_subscribe(not_that)
    assert publishes is None or allowed.may_publish(publishes)
    assert not allowed.may_publish(nor_that)


def test_a_service_that_is_not_named_is_not_admitted(policy: TopicPolicy) -> None:
    assert not policy.knows(Identity("fleet.internal", Role.SERVICE, "somebody"), ours=True)


@pytest.mark.parametrize(
    ("group", "own", "of_another"),
    [
        ("home", "homeassistant/sensor/m-1/power/config", "homeassistant/sensor/m-2/power/config"),
        ("cells", "spBv1.0/cells/NBIRTH/m-1", "spBv1.0/cells/NBIRTH/m-2"),
        ("cells", "spBv1.0/cells/DDATA/m-1/pump", "spBv1.0/other/DDATA/m-1/pump"),
        ("north", "fleet/north/m-1/telemetry", "homeassistant/sensor/m-1/power/config"),
    ],
)
def test_a_device_speaks_for_itself(policy: TopicPolicy, group: str, own: str, of_another: str) -> None:
    device = policy.permissions(Identity("fleet.internal", Role.DEVICE, "m-1", group), "m-1", ours=True)
    assert device.may_publish(own)
    assert not device.may_publish(of_another)
