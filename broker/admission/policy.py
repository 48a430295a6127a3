"""Who may publish and subscribe to what: rules with placeholders, compiled per client, consulted for each new topic.

Theory
------
A policy is a list of *sections*, each about a role, a group, a device or an identity, and each with topic filters to
allow and to deny, for publishing and for subscribing. All sections that name a client apply together, in any order:
what an *allow* filter matches and no *deny* filter does is permitted, everything else is not. A subscription is granted
only if the allow filters cover every topic that it can match and no deny filter touches one of them; so deliveries need
no check.

``{device}``, ``{group}`` and ``{client_id}`` become the client's own names, each of which must be one safe topic level.
Where one is not (a client identifier with a slash, an identity without a group) an allow filter does not apply and a
deny filter matches any level there: a missing name never gives anybody more.

A bare name, in a section of a device or an identity, means the broker's own trust domain (*ours*): such a section
allows nothing to another domain, whose CA may name its parties as it likes. What it denies, it denies to every party of
that name. A party of another domain is named by its whole URI.

Rules
-----
1. No I/O, no clock. One topic matcher: `broker.mqtt.topics`, through `broker.mqtt.filter_set`.
2. Receiving is decided at SUBSCRIBE, never per message; publishing once per topic, then remembered by the connection.
3. Admission: a client that no section names by role, device or identity is not admitted (`knows`). A group's section
   gives rights but admits nobody. A bare name admits nobody of another trust domain.
4. A policy is immutable; a changed one is another object, and whatever was compiled from the old one is dropped.

Handles: permissions and the reason for each (`explain`). Does not handle: files (`broker.admission.policy_file`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import Final

from broker.admission.filter_template import FilterTemplate
from broker.mqtt.filter_set import NO_FILTERS, FilterSet
from broker.mqtt.topics import SEPARATOR, covers, matches, overlaps
from provisioning.pki.identity import SCHEME, Identity
from provisioning.pki.role import Role

_UNSAFE_LEVEL: Final = re.compile(r"[/+#\x00]|^\$|^$")
_MOST_COMPILED: Final = 256
_MOST_RULES_COMPILED: Final = 50_000
_LONGEST_REMEMBERED: Final = 256


class Kind(StrEnum):
    """What a section is about."""

    ROLE = "role"
    GROUP = "group"
    DEVICE = "device"
    IDENTITY = "identity"


class Action(StrEnum):
    """What a client wants to do with a topic."""

    PUBLISH = "publish"
    SUBSCRIBE = "subscribe"


class DeniedPublish(StrEnum):
    """What happens to a denied PUBLISH whose answer cannot carry a reason code: QoS 0, and MQTT 3.1.1."""

    DROP = "drop"
    DISCONNECT = "disconnect"


@dataclass(frozen=True, slots=True)
class Rules:
    """The contents of one section, as written."""

    publish_allow: tuple[str, ...] = ()
    publish_deny: tuple[str, ...] = ()
    subscribe_allow: tuple[str, ...] = ()
    subscribe_deny: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """Rules about all clients of one role or group, about one device, or about one identity."""

    kind: Kind
    name: str
    """A role, a group, a device's name; for an identity its name, or its whole URI. No order, no precedence."""
    rules: Rules

    @property
    def has_bare_name(self) -> bool:
        """Whether it uses names that any CA may assign: then it allows only parties of our own trust domain."""
        return self.kind is Kind.DEVICE or (self.kind is Kind.IDENTITY and not self.name.startswith(SCHEME))

    def __str__(self) -> str:
        plain = re.fullmatch(r"[\w-]+", self.name, re.ASCII)
        return f"{self.kind}.{self.name}" if plain else f'{self.kind}."{self.name}"'


@dataclass(frozen=True, slots=True)
class Permissions:
    """What one client may do: the rules that apply to it, with its names filled in."""

    publish_allow: FilterSet
    publish_deny: FilterSet
    subscribe_allow: FilterSet
    subscribe_deny: FilterSet

    @property
    def rules(self) -> int:
        """How many filters there are."""
        lists = (self.publish_allow, self.publish_deny, self.subscribe_allow, self.subscribe_deny)
        return sum(len(each.filters) for each in lists)

    def may_publish(self, topic_name: str) -> bool:
        """Whether the client may publish to *topic_name*."""
        return self.publish_allow.matches(topic_name) and not self.publish_deny.matches(topic_name)

    def may_subscribe(self, topic_filter: str) -> bool:
        """Whether the client may read every topic matched by *topic_filter*, which is not a shared one."""
        return self.subscribe_allow.covers(topic_filter) and not self.subscribe_deny.overlaps(topic_filter)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether something is permitted, and by which rule, in words."""

    allowed: bool
    because: str


@dataclass(frozen=True, slots=True)
class _Templates:
    """The checked rules of one section."""

    section: Section
    bare: bool
    """Whether it has a bare name."""
    publish_allow: tuple[FilterTemplate, ...]
    publish_deny: tuple[FilterTemplate, ...]
    subscribe_allow: tuple[FilterTemplate, ...]
    subscribe_deny: tuple[FilterTemplate, ...]

    @classmethod
    def of(cls, section: Section) -> _Templates:
        rules = section.rules
        return cls(
            section,
            section.has_bare_name,
            tuple(map(FilterTemplate, rules.publish_allow)),
            tuple(map(FilterTemplate, rules.publish_deny)),
            tuple(map(FilterTemplate, rules.subscribe_allow)),
            tuple(map(FilterTemplate, rules.subscribe_deny)),
        )

    @property
    def only_denies(self) -> bool:
        allows = self.publish_allow or self.subscribe_allow
        return not allows and bool(self.publish_deny or self.subscribe_deny)

    def rules(self, action: Action) -> tuple[tuple[FilterTemplate, ...], tuple[FilterTemplate, ...]]:
        """Return the allow and the deny filters for *action*."""
        if action is Action.PUBLISH:
            return self.publish_allow, self.publish_deny
        return self.subscribe_allow, self.subscribe_deny


class TopicPolicy:
    """All sections. Each question about an identity also says whether it is of our own trust domain: *ours*."""

    __slots__ = ("_compiled", "_kinds", "_rules_compiled", "_sections", "denied_publish")

    def __init__(self, sections: Iterable[Section], denied_publish: DeniedPublish = DeniedPublish.DROP) -> None:
        """Raise `InvalidFilter` if a rule cannot be used."""
        self._sections = {(each.kind, each.name): _Templates.of(each) for each in sections}
        self._kinds = {kind for kind, _ in self._sections}
        self._compiled: dict[tuple[Identity, str, bool], Permissions] = {}
        self._rules_compiled = 0
        self.denied_publish = denied_publish

    @property
    def for_ours_only(self) -> list[Section]:
        """The sections that only serve parties of our own trust domain; their deny filters apply to all."""
        return [each.section for each in self._sections.values() if each.bare and not each.only_denies]

    @property
    def own_names(self) -> frozenset[str] | None:
        """All levels and names that it mentions itself; None if it makes levels of a group and something else.

        It treats devices of one role and group alike if their names are none of these (`broker.reload.alike`).
        """
        names: set[str] = set()
        for templates in self._sections.values():
            if templates.section.kind in {Kind.DEVICE, Kind.IDENTITY}:
                names.add(templates.section.name.rpartition("/")[2])
            for action in Action:
                for template in chain.from_iterable(templates.rules(action)):
                    levels = template.text.split(SEPARATOR)
                    if any("{group}" in level and level != "{group}" for level in levels):
                        return None
                    names.update(levels)
        return frozenset(names)

    def knows(self, identity: Identity, *, ours: bool) -> bool:
        """Whether a section names *identity* by role, device or itself: otherwise it is not admitted (rule 3)."""
        return any(each.section.kind is not Kind.GROUP and (ours or not each.bare) for each in self._about(identity))

    def permissions(self, identity: Identity, client_id: str, *, ours: bool) -> Permissions:
        """Return what *identity* may do under *client_id*; the most recent results are cached."""
        compiled = self._compiled
        found = compiled.get((identity, client_id, ours))
        if found is None:
            found = self._compile(identity, client_id, ours)
            if len(client_id) <= _LONGEST_REMEMBERED:
                if len(compiled) >= _MOST_COMPILED or self._rules_compiled >= _MOST_RULES_COMPILED:
                    compiled.clear()
                    self._rules_compiled = 0
                compiled[identity, client_id, ours] = found
                self._rules_compiled += found.rules
        return found

    def explain(self, identity: Identity, client_id: str, action: Action, topic: str, *, ours: bool) -> Decision:
        """Return what `permissions` would say of *topic* (a name to publish to, or a plain filter), and why.

        The straightforward way, rule by rule: a test compares it with the fast one.
        """
        decision = self._explain(identity, client_id, action, topic, ours)
        if not ours and not decision.allowed:
            if_ours = self._explain(identity, client_id, action, topic, True)
            if if_ours.allowed:
                own = f"{if_ours.because} applies to our own trust domain: name others by their URI"
                because = f"{decision.because}; {own}"
                return Decision(False, because)
        return decision

    def _explain(self, identity: Identity, client_id: str, action: Action, topic: str, ours: bool) -> Decision:
        if not self.knows(identity, ours=ours):
            return Decision(False, f"no section of the policy admits {identity.uri}: it cannot connect")
        names = names_of(identity, client_id)
        publishes = action is Action.PUBLISH
        allowing: list[tuple[Section, FilterTemplate, str]] = []
        for templates in self._about(identity):
            allow, deny = templates.rules(action)
            for template in deny:
                denied = template.fill_widely(names)
                if matches(denied, topic) if publishes else overlaps(denied, topic):
                    return Decision(False, f"{templates.section} {action}.deny {template.text!r}")
            section = templates.section
            if section.has_bare_name and not ours:
                continue
            allowing += [(section, each, filled) for each in allow if (filled := each.fill(names)) is not None]
        for section, template, filled in allowing:
            if matches(filled, topic) if publishes else covers(filled, topic):
                return Decision(True, f"{section} {action}.allow {template.text!r}")
        if not publishes and FilterSet(tuple(filled for *_, filled in allowing)).covers(topic):
            together = [f"{template.text!r}" for _, template, filled in allowing if overlaps(filled, topic)]
            return Decision(True, f"{action}.allow {' and '.join(together)} together")
        return Decision(False, f"no {action}.allow filter {'matches' if publishes else 'covers'} it")

    def sections_about(self, identity: Identity) -> list[Section]:
        """Return the sections that name *identity*; if not ours, sections with a bare name only count for denials."""
        return [each.section for each in self._about(identity)]

    def _about(self, identity: Identity) -> list[_Templates]:
        kinds = self._kinds
        keys: list[tuple[Kind, str]] = [(Kind.ROLE, identity.role)]
        if Kind.GROUP in kinds and identity.group is not None:
            keys.append((Kind.GROUP, identity.group))
        if Kind.DEVICE in kinds and identity.role is Role.DEVICE:
            keys.append((Kind.DEVICE, identity.name))
        if Kind.IDENTITY in kinds:
            keys += [(Kind.IDENTITY, identity.name), (Kind.IDENTITY, identity.uri)]
        sections = self._sections
        return [sections[key] for key in keys if key in sections]

    def _compile(self, identity: Identity, client_id: str, ours: bool) -> Permissions:
        names = names_of(identity, client_id)
        publish_allow: list[str | None] = []
        publish_deny: list[str] = []
        subscribe_allow: list[str | None] = []
        subscribe_deny: list[str] = []
        for each in self._about(identity):
            publish_deny += [template.fill_widely(names) for template in each.publish_deny]
            subscribe_deny += [template.fill_widely(names) for template in each.subscribe_deny]
            if ours or not each.bare:
                publish_allow += [template.fill(names) for template in each.publish_allow]
                subscribe_allow += [template.fill(names) for template in each.subscribe_allow]
        return Permissions(
            _filters(publish_allow), _filters(publish_deny), _filters(subscribe_allow), _filters(subscribe_deny)
        )


def _filters(filled: Sequence[str | None]) -> FilterSet:
    return FilterSet(tuple(each for each in filled if each is not None)) if filled else NO_FILTERS


def names_of(identity: Identity, client_id: str) -> dict[str, str]:
    """Return the values of the placeholders; those that are not one safe topic level are missing."""
    names = {"device": identity.name, "client_id": client_id}
    if identity.group is not None:
        names["group"] = identity.group
    if client_id != identity.name and _UNSAFE_LEVEL.search(client_id):
        del names["client_id"]
    return names
