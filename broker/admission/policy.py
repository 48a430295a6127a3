"""What each role may publish and subscribe: templates, compiled for one identity at admission.

Theory
------
A rule is a topic filter with placeholders: ``{group}`` and ``{device}`` become the group and name of the identity. A
name is one safe topic level (`provisioning.pki.identity`), so a placeholder can never bring a wildcard or a slash in.
Publishing is allowed where an *allow* filter matches and no *deny* filter does; a subscription is granted only if one
*allow* filter covers every topic that it can match. Nothing that is not allowed is permitted; a role without rules is
refused at the door.

Rules
-----
1. No I/O, no clock. One topic matcher: `broker.mqtt.topics`.
2. Receiving is decided at SUBSCRIBE, never per message; publishing once a topic, then cached by the connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from broker.mqtt.topics import covers, matches
from provisioning.pki.identity import Identity, Role


@dataclass(frozen=True, slots=True)
class RoleRules:
    """Topic filters with placeholders, for one role."""

    publish_allow: tuple[str, ...] = ()
    publish_deny: tuple[str, ...] = ()
    subscribe_allow: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Permissions:
    """What one identity may do: the rules of its role with its names filled in."""

    publish_allow: tuple[str, ...]
    publish_deny: tuple[str, ...]
    subscribe_allow: tuple[str, ...]

    def may_publish(self, topic_name: str) -> bool:
        """Whether a message may be published to *topic_name*."""
        return any(matches(allowed, topic_name) for allowed in self.publish_allow) and not any(
            matches(denied, topic_name) for denied in self.publish_deny
        )

    def may_subscribe(self, topic_filter: str) -> bool:
        """Whether every topic that *topic_filter* matches may be read."""
        return any(covers(allowed, topic_filter) for allowed in self.subscribe_allow)


class TopicPolicy:
    """The rules of every role."""

    __slots__ = ("_rules",)

    def __init__(self, rules: Mapping[Role, RoleRules]) -> None:
        self._rules = MappingProxyType(dict(rules))

    def knows(self, role: Role) -> bool:
        """Whether there are rules for *role*: without any, nobody of that role is admitted."""
        return role in self._rules

    def compile(self, identity: Identity) -> Permissions:
        """Return what *identity* may do."""
        rules = self._rules.get(identity.role, RoleRules())

        def fill(filters: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(f.format(group=identity.group or "", device=identity.name) for f in filters)

        return Permissions(fill(rules.publish_allow), fill(rules.publish_deny), fill(rules.subscribe_allow))


DEFAULT_POLICY = TopicPolicy(
    {
        # telemetry, event, state, ack and whatever else a device says; its commands come from elsewhere.
        Role.DEVICE: RoleRules(
            publish_allow=("fleet/{group}/{device}/#",),
            publish_deny=("fleet/{group}/{device}/cmd/#",),
            subscribe_allow=("fleet/{group}/{device}/cmd/#",),
        ),
        Role.SERVICE: RoleRules(publish_allow=("fleet/+/+/cmd/#",), subscribe_allow=("fleet/#", "$SYS/#")),
        Role.OPERATOR: RoleRules(subscribe_allow=("fleet/#", "$SYS/#")),
    }
)
