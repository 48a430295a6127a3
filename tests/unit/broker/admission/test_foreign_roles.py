"""Of rights that a CA of another trust domain can give to parties of its own, the operator is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.admission.foreign_roles import shared_rules
from broker.admission.policy import TopicPolicy
from broker.admission.policy_file import load_policy, parse_policy
from broker.settings.trust_settings import TrustSettings
from provisioning.pki.role import Role

OWN = "fleet.internal"
DEFAULT = load_policy(None)


def bundle(*roles: Role, domain: str | None = "plant.example") -> TrustSettings:
    return TrustSettings(
        name="plant",
        anchors=(Path("-"),),
        trust_domain=domain,
        roles=roles,
        groups=("plant",),
        unsafe_no_revocation=True,
    )


def test_a_partners_service_has_our_topics_by_the_default_policy() -> None:
    (said,) = shared_rules(OWN, [bundle(Role.DEVICE, Role.SERVICE)], DEFAULT)
    rights = (
        "[role.service], of our own topics too: publish 'fleet/+/+/cmd/#', subscribe 'fleet/#', subscribe '$SYS/#'. "
    )
    assert said.startswith("trust bundle plant: roles: those with role service have ")
    assert rights in said


@pytest.mark.parametrize(
    ("own", "settings", "policy"),
    [
        (OWN, bundle(Role.DEVICE), DEFAULT),
        (OWN, bundle(Role.SERVICE, domain=None), DEFAULT),
        (OWN, bundle(Role.SERVICE, domain=OWN), DEFAULT),
        (None, bundle(Role.SERVICE), DEFAULT),
        (OWN, bundle(Role.SERVICE), parse_policy('[identity.backend]\nsubscribe.allow = ["fleet/#"]\n', "policy")),
        (OWN, bundle(Role.SERVICE), parse_policy('[role.service]\nsubscribe.deny = ["fleet/#"]\n', "policy")),
        (OWN, bundle(Role.SERVICE), parse_policy('[role.service]\nsubscribe.allow = ["{group}/#"]\n', "policy")),
    ],
    ids=["devices", "ours", "ours by name", "the only one", "named services", "denied", "its own groups"],
)
def test_of_what_stays_with_its_owner_nothing_is_said(
    own: str | None, settings: TrustSettings, policy: TopicPolicy
) -> None:
    assert shared_rules(own, [settings], policy) == []


def test_a_rule_for_devices_without_a_group_reaches_others_too() -> None:
    policy = parse_policy('[role.device]\nsubscribe.allow = ["news/#", "{group}/#"]\n', "policy")
    (said,) = shared_rules(OWN, [bundle(Role.DEVICE)], policy)
    assert "of our own topics too: subscribe 'news/#'. " in said
