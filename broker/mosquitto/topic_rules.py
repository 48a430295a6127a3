"""The topic policy that belongs to a mosquitto.conf: made of its ACL file, or, without one, open as mosquitto is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker.admission.mosquitto_acl import InvalidAcl, converted
from broker.admission.policy_file import PolicyError, read_policy
from broker.mosquitto.findings import Findings
from broker.mosquitto.line import Line
from provisioning.program.given_toml import toml_of

_OPEN: Final = """\
# mosquitto's configuration names no acl_file, so every client may publish and subscribe to everything. To say what each
# may do: docs/topic-policy.md.

[role.device]
publish.allow = ["#"]
subscribe.allow = ["#", "$SYS/#"]
"""


@dataclass(frozen=True, slots=True)
class TopicRules:
    """A policy in TOML, and for whom it has rules."""

    policy: str
    names: tuple[str, ...] = ()
    """Clients with rules of their own."""
    for_all: bool = True
    """Whether there are rules for all others, too: who has none is not admitted."""
    left_out: tuple[str, ...] = ()
    """Rules of the ACL file without a counterpart, a sentence for each."""


def topic_rules(acl: Line | None, findings: Findings) -> TopicRules:
    """Return the rules of the file that *acl* names; None: there is none. Take note if it cannot be converted."""
    if acl is None:
        return TopicRules(_OPEN)
    try:
        made = converted(read_policy(Path(acl.value)), acl.value)
    except (InvalidAcl, PolicyError) as error:
        findings.impossible(acl, str(error))
        return TopicRules(_OPEN)
    sections = toml_of(made.policy)
    names = tuple(sections.get("identity", {}))
    return TopicRules(made.policy, names, "role" in sections, tuple(made.left_out))
