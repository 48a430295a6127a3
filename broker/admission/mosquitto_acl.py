"""Turns mosquitto's ACL file into a topic policy, for ``fleet-broker policy convert``.

``user NAME`` begins a section ``[identity.NAME]``, and ``pattern`` lines become ``[role.device]``, with ``%u`` and
``%c`` as placeholders. A ``pattern deny`` also goes into ``[role.service]``: mosquitto's patterns are for everybody,
and what was denied must not become allowed.

Below ``$SYS`` mosquitto lets nobody publish, whatever the file says, except a bridge its own state: a rule is narrowed
to that.

Handles: user, topic, pattern; read, write, readwrite, deny. Does not handle: rules for anonymous clients, who are not
admitted here, and users whose name no certificate can have; they are reported and left out. Anything else that cannot
be said in a policy is an error with its line (`InvalidAcl`), so that no rule is lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from broker.admission.filter_template import FilterTemplate, InvalidFilter
from provisioning.pki.identity import InvalidIdentity, check_name
from provisioning.program.printable import printable

_ACCESS = {
    "read": ("subscribe.allow",),
    "write": ("publish.allow",),
    "readwrite": ("publish.allow", "subscribe.allow"),
    "deny": ("publish.deny", "subscribe.deny"),
}
_KEYS = ("publish.allow", "publish.deny", "subscribe.allow", "subscribe.deny")
_DEVICES, _SERVICES = "role.device", "role.service"
_PLACEHOLDERS = {"%u": "{device}", "%c": "{client_id}"}
_WORDS = frozenset({"user", "topic", "pattern"})
_BLANK = " \t\r\v\f"
"""What C takes for blank; Python's own idea of it is wider."""
_BETWEEN = re.compile(r"[ \t]+")
_SYS = "$SYS"
_STATE_OF_A_BRIDGE = ("$SYS", "broker", "connection", "+", "state")


class InvalidAcl(ValueError):
    """A line cannot be said in a topic policy; the text says which, and why."""


@dataclass(slots=True)
class Converted:
    """A topic policy in TOML, and what was left out of it, and why: a sentence for each line."""

    policy: str
    left_out: list[str] = field(default_factory=list)


def is_acl(text: str) -> bool:
    """Whether *text* looks like mosquitto's ACL file: every line begins with one of its words."""
    lines = [line for _, line in _lines(text)]
    return bool(lines) and all(_begins_rule(line) for line in lines)


def converted(text: str, name: str) -> Converted:
    """Return the policy that says what the ACL file *text*, called *name*, says. Raises `InvalidAcl`."""
    sections: dict[str, dict[str, list[str]]] = {}
    left_out: list[str] = []
    section, absent = "", "an anonymous client, and nobody is one here"
    for number, line in _lines(text):
        word, rest = _first_word(line)
        if word not in _WORDS or not rest:
            raise InvalidAcl(f"{name}: line {number}: {line!r} is no line of an ACL file: user, topic or pattern …")
        if word == "user":
            section, absent = _section(rest)
            continue
        keys, topic = _rule(rest, f"{name}: line {number}", is_pattern=word == "pattern")
        if word == "topic" and not section:
            left_out.append(f"{name}: line {number}: left out: it is for {absent}")
            continue
        may_publish = _publishable(topic) if "publish.allow" in keys else topic
        if may_publish != topic:
            what = f"only to {may_publish}" if may_publish else "so that is left out"
            left_out.append(f"{name}: line {number}: mosquitto lets nobody publish to {topic}, {what}")
        targets = [section] if word == "topic" else [_DEVICES, *([_SERVICES] if keys == _ACCESS["deny"] else ())]
        for target in targets:
            for key in keys:
                rule = may_publish if key == "publish.allow" else topic
                if rule and rule not in (filters := sections.setdefault(target, {}).setdefault(key, [])):
                    filters.append(rule)
    if not sections:
        raise InvalidAcl(f"{name}: it has no rule for anybody who can be admitted")
    return Converted(_toml(sections, name), left_out)


def _lines(text: str) -> Iterable[tuple[int, str]]:
    for number, line in enumerate(text.split("\n"), 1):  # No other character ends a line: it would begin a rule.
        stripped = line.strip(_BLANK)
        if stripped and not stripped.startswith("#"):
            yield number, stripped


def _begins_rule(line: str) -> bool:
    word, rest = _first_word(line)
    return word in _WORDS and _first_word(rest)[0] != "="


def _first_word(text: str) -> tuple[str, str]:
    """Return the first word of *text*, and what follows."""
    word, *rest = _BETWEEN.split(text, maxsplit=1)
    return word, "".join(rest)


def _section(user: str) -> tuple[str, str]:
    """Return the section of *user*; without one, empty text and who that is."""
    try:
        name = check_name("user", user)
    except InvalidIdentity as error:
        return "", f"a user whose certificate cannot be used as it is ({error}): see docs/trust-bundles.md, pattern"
    return f"identity.{json.dumps(name) if '.' in name else name}", ""


def _rule(rest: str, where: str, *, is_pattern: bool) -> tuple[tuple[str, ...], str]:
    """Return the keys of the policy and the filter that a line says after its first word."""
    access, topic = _first_word(rest)
    if not topic:
        access, topic = "readwrite", rest
    if access not in _ACCESS:
        raise InvalidAcl(f"{where}: {access!r} is no access: read, write, readwrite or deny")
    if "{" in topic or "}" in topic:
        raise InvalidAcl(f"{where}: {topic!r}: a policy has no topics with braces")
    for theirs, ours in _PLACEHOLDERS.items() if is_pattern else ():
        topic = topic.replace(theirs, ours)
    try:
        FilterTemplate(topic)
    except InvalidFilter as error:
        raise InvalidAcl(f"{where}: {error}") from None
    return _ACCESS[access], topic


def _publishable(topic: str) -> str:
    """Return what of the filter *topic* mosquitto lets a client publish to; empty: nothing."""
    if not topic.startswith(_SYS):
        return topic
    levels = topic.split("/")
    if levels[-1] == "#":
        levels[-1:] = _STATE_OF_A_BRIDGE[len(levels) - 1 :]
    if len(levels) != len(_STATE_OF_A_BRIDGE):
        return ""
    both = list(zip(levels, _STATE_OF_A_BRIDGE, strict=True))
    alike = all(level in {"+", fixed} or fixed == "+" for level, fixed in both)
    return "/".join(level if fixed == "+" else fixed for level, fixed in both) if alike else ""


def _toml(sections: dict[str, dict[str, list[str]]], name: str) -> str:
    lines = [f"# Made of mosquitto's ACL file {printable(Path(name).name)} by fleet-broker policy convert."]
    if any("subscribe.deny" in rules for rules in sections.values()):
        lines.append("# A subscription that reaches into a denied topic is refused as a whole: mosquitto grants it and")
        lines.append("# withholds messages.")
    own = [rules for each, rules in sections.items() if each not in {_DEVICES, _SERVICES}]
    if _denies(sections.get(_DEVICES, {})) and any(
        "publish.allow" in each or "subscribe.allow" in each for each in own
    ):
        lines.append(
            "# What a pattern denies is denied to every client: in mosquitto a user's own topic lines come first."
        )
    for section in sorted(sections, key=lambda each: each not in {_DEVICES, _SERVICES}):
        lines.append("")
        if section == _DEVICES:
            lines.append(
                "# The pattern lines. mosquitto's are for everybody: repeat them in [role.service] if backends need"
            )
            lines.append("# them.")
        lines.append(f"[{section}]")
        rules = sections[section]
        lines += [f"{key} = {_quoted(rules[key])}" for key in _KEYS if key in rules]
    return "\n".join(lines) + "\n"


def _denies(rules: dict[str, list[str]]) -> bool:
    return "publish.deny" in rules or "subscribe.deny" in rules


def _quoted(filters: list[str]) -> str:
    """Return *filters* as a list in TOML, which is like JSON but for one character."""
    return json.dumps(filters, ensure_ascii=False).replace("\x7f", r"\u007f")
