"""Topic policies: the default one, and role-only ones."""

from __future__ import annotations

from collections.abc import Mapping

from broker.admission.policy import Kind, Rules, Section, TopicPolicy
from broker.admission.policy_file import load_policy
from provisioning.pki.role import Role

DEFAULT_POLICY = load_policy(None)


def of_roles(rules: Mapping[Role, Rules]) -> TopicPolicy:
    """Return a policy that only considers roles."""
    return TopicPolicy(Section(Kind.ROLE, role, each) for role, each in rules.items())
