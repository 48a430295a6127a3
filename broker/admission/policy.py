"""Who may publish and subscribe what: rules with placeholders, compiled for one client, asked at every new topic.

Theory
------
A policy is a list of *sections*, each about a role, a group, a device or an identity, and each holding topic filters to
allow and to deny, for publishing and for subscribing. For a client all sections that name it count together, whatever
their order: what an *allow* filter matches and no *deny* filter does is permitted, everything else is not. A
subscription is granted only if the allow filters cover every topic that it can match and no deny filter touches one of
them; so what is delivered needs no check.

``{device}``, ``{group}`` and ``{client_id}`` become the client's own. What they stand for must be one safe topic level.
Where it is not (a client identifier with a slash, an identity without a group) an allow filter says nothing and a deny
filter takes any level: whatever is missing, nobody gets more.

A bare name, in a section of a device or an identity, is one of the broker's own trust domain (*ours*): what such a
section allows, it allows nobody of another domain, whose CA may call its parties what it likes. What it denies, it
denies everybody of that name. Of another domain a party is named by its whole URI.

Rules
-----
1. No I/O, no clock. One topic matcher: `broker.mqtt.topics`, through `broker.mqtt.filter_set`.
2. Receiving is decided at SUBSCRIBE, never per message; publishing once a topic, then remembered by the connection.
3. The door: a client that no section of its role, device or identity names is not admitted (`knows`). A group's
   section gives rights; it admits nobody. A bare name admits nobody of another trust domain.
4. A policy does not change; another one is another object, and what was compiled goes with the old one.

Handles: permissions and the reason for each (`explain`). Does not handle: files (`broker.admission.policy_file`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from broker.admission.filter_template import FilterTemplate
from broker.mqtt.filter_set import NO_FILTERS, FilterSet
from broker.mqtt.topics import covers, matches, overlaps
from provisioning.pki.identity import SCHEME, Identity, Role

_UNSAFE_LEVEL = re.compile(r"[/+#\x00]|^\$|^$")
_MOST_COMPILED = 256
_LONGEST_REMEMBERED = 256


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
    """What becomes of a PUBLISH without permission that has no reason code in its answer: QoS 0, and MQTT 3.1.1."""

    DROP = "drop"
    DISCONNECT = "disconnect"


@dataclass(frozen=True, slots=True)
class Rules:
    """What one section says, as it is written."""

    publish_allow: tuple[str, ...] = ()
    publish_deny: tuple[str, ...] = ()
    subscribe_allow: tuple[str, ...] = ()
    subscribe_deny: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """Rules about all clients of one role or group, about one device, or about one identity."""

    kind: Kind
    name: str
    """A role, a group, a device's name; of an identity its name, or its whole URI. No order, no precedence."""
    rules: Rules

    @property
    def has_bare_name(self) -> bool:
        """Whether it names parties by what any CA may call its own: it allows then only those of our trust domain."""
        return self.kind is Kind.DEVICE or (self.kind is Kind.IDENTITY and not self.name.startswith(SCHEME))

    def __str__(self) -> str:
        plain = re.fullmatch(r"[\w-]+", self.name, re.ASCII)
        return f"{self.kind}.{self.name}" if plain else f'{self.kind}."{self.name}"'


@dataclass(frozen=True, slots=True)
class Permissions:
    """What one client may do: the rules that concern it with its names filled in."""

    publish_allow: FilterSet
    publish_deny: FilterSet
    subscribe_allow: FilterSet
    subscribe_deny: FilterSet

    def may_publish(self, topic_name: str) -> bool:
        """Whether a message may be published to *topic_name*."""
        return self.publish_allow.matches(topic_name) and not self.publish_deny.matches(topic_name)

    def may_subscribe(self, topic_filter: str) -> bool:
        """Whether every topic that *topic_filter*, which is not a shared one, matches may be read."""
        return self.subscribe_allow.covers(topic_filter) and not self.subscribe_deny.overlaps(topic_filter)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether something is permitted, and by which rule, in words for a person."""

    allowed: bool
    because: str


@dataclass(frozen=True, slots=True)
class _Templates:
    """The rules of one section, checked."""

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
    """All sections. What it is asked of an identity goes with whether that is of our own trust domain: *ours*."""

    __slots__ = ("_compiled", "_kinds", "_sections", "denied_publish")

    def __init__(self, sections: Iterable[Section], denied_publish: DeniedPublish = DeniedPublish.DROP) -> None:
        """Raise `InvalidFilter` if a rule cannot be used."""
        self._sections = {(each.kind, each.name): _Templates.of(each) for each in sections}
        self._kinds = {kind for kind, _ in self._sections}
        self._compiled: dict[tuple[Identity, str, bool], Permissions] = {}
        self.denied_publish = denied_publish

    @property
    def for_ours_only(self) -> list[Section]:
        """The sections that can only be of use to parties of our own trust domain: all but deny filters are."""
        return [each.section for each in self._sections.values() if each.bare and not each.only_denies]

    def knows(self, identity: Identity, *, ours: bool) -> bool:
        """Whether a section names *identity* by role, device or itself: without any, it is not admitted (rule 3)."""
        return any(each.section.kind is not Kind.GROUP and (ours or not each.bare) for each in self._about(identity))

    def permissions(self, identity: Identity, client_id: str, *, ours: bool) -> Permissions:
        """Return what *identity* may do under *client_id*; remembered for those that came last."""
        compiled = self._compiled
        found = compiled.get((identity, client_id, ours))
        if found is None:
            found = self._compile(identity, client_id, ours)
            if len(client_id) <= _LONGEST_REMEMBERED:
                if len(compiled) >= _MOST_COMPILED:
                    compiled.clear()
                compiled[identity, client_id, ours] = found
        return found

    def explain(self, identity: Identity, client_id: str, action: Action, topic: str, *, ours: bool) -> Decision:
        """Return what `permissions` would say of *topic* (a name to publish to, or a plain filter), and why.

        The obvious way, rule by rule: a test compares it with the fast one.
        """
        decision = self._explain(identity, client_id, action, topic, ours)
        if not ours and not decision.allowed:
            if_ours = self._explain(identity, client_id, action, topic, True)
            if if_ours.allowed:
                because = f"{decision.because}; {if_ours.because} is for our own trust domain: name others by their URI"
                return Decision(False, because)
        return decision

    def _explain(self, identity: Identity, client_id: str, action: Action, topic: str, ours: bool) -> Decision:
        if not self.knows(identity, ours=ours):
            return Decision(False, f"no section admits {identity.uri}: it cannot connect")
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
        """Return the sections that name *identity*; those with a bare name can only deny it something if not ours."""
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
    """Return what the placeholders stand for; what is not one safe topic level is missing."""
    names = {"device": identity.name, "client_id": client_id}
    if identity.group is not None:
        names["group"] = identity.group
    if client_id != identity.name and _UNSAFE_LEVEL.search(client_id):
        del names["client_id"]
    return names
