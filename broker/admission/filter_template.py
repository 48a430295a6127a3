"""A topic filter of a policy, with placeholders: checked once, filled in per client.

``{device}``, ``{group}`` and ``{client_id}`` become the client's own names. If one is missing, an allow filter does not
apply (`FilterTemplate.fill`); a deny filter matches any level in its place (`FilterTemplate.fill_widely`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from broker.mqtt.errors import MalformedPacket
from broker.mqtt.topics import ONE_LEVEL, SEPARATOR, check_topic_filter

PLACEHOLDERS = ("device", "group", "client_id")
MOST_LEVELS: Final = 256
"""Levels of a rule: no topic has more (`max_topic_levels`), and to compare thirty thousand takes hours."""
_PLACEHOLDER = re.compile(r"\{(\w*)\}")


class InvalidFilter(ValueError):
    """A rule's topic filter is unusable; the text says why."""


@dataclass(frozen=True, slots=True)
class FilterTemplate:
    """A topic filter with placeholders. Raises `InvalidFilter`."""

    text: str
    _pattern: str = field(init=False)

    def __post_init__(self) -> None:
        """Check the text, and prepare it for `fill`."""
        names = _PLACEHOLDER.findall(self.text)
        for name in names:
            if name not in PLACEHOLDERS:
                known = ", ".join(f"{{{each}}}" for each in PLACEHOLDERS)
                raise InvalidFilter(f"{self.text!r}: {{{name}}} is not a placeholder; the placeholders are {known}")
        if re.search(r"[{}]", _PLACEHOLDER.sub("", self.text)):
            raise InvalidFilter(f"{self.text!r}: a brace that belongs to no placeholder")
        try:
            check_topic_filter(_PLACEHOLDER.sub("x", self.text))
        except MalformedPacket as error:
            raise InvalidFilter(str(error)) from None
        if self.text.count(SEPARATOR) >= MOST_LEVELS:
            raise InvalidFilter(f"{self.text[:80]!r}…: more than {MOST_LEVELS} levels, which no topic has")
        if self.text.startswith("$share/"):
            raise InvalidFilter(f"{self.text!r}: rules apply to topics; leave $share/<name>/ out")
        object.__setattr__(self, "_pattern", _PLACEHOLDER.sub(r"%(\1)s", self.text.replace("%", "%%")))

    def fill(self, names: Mapping[str, str]) -> str | None:
        """Return the filter for a client with these *names*, or None if one it needs is missing."""
        try:
            return self._pattern % names
        except KeyError:
            return None

    def fill_widely(self, names: Mapping[str, str]) -> str:
        """Return the filter with a wildcard level where a name is missing."""
        filled = self.fill(names)
        if filled is not None:
            return filled
        levels = []
        for level in self.text.split(SEPARATOR):
            known = all(name in names for name in _PLACEHOLDER.findall(level))
            levels.append(_PLACEHOLDER.sub(lambda name: names[name[1]], level) if known else ONE_LEVEL)
        return SEPARATOR.join(levels)
