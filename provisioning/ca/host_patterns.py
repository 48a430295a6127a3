"""Host names that a profile builds from patterns, such that no two devices ever get the same one.

Theory
------
A host name says who a server is, so it must identify one device. A device's name is unique in the whole fleet; so it
is enough that the name can be read back from the host name. Names and groups may contain ``.`` and ``-``, so
``{name}.{group}`` does not tell where the name ends: ``a.b`` in group ``c`` and ``a`` in group ``b.c`` are both
``a.b.c``.

Rules
-----
1. Two placeholders of a pattern are separated by a ``.``, and the value of any but the last contains none: so each
   value ends at the first ``.`` where it could end.
2. Two patterns of a service are equal, or begin or end differently: no host name results from both.
3. No pattern makes a host name below a domain whose names devices may ask for.

Handles: the text of patterns and names. Does not handle: whether the result is a host name
(`provisioning.ca.server_names`).
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Final

from provisioning.pki.identity import Identity

PLACEHOLDER: Final = re.compile(r"\{(name|group)\}")


class AmbiguousHostName(ValueError):
    """Another device could be given the same host name."""


def check_unambiguous(pattern: str) -> None:
    """Raise `AmbiguousHostName` if *pattern* does not show, for every name, where the name ends."""
    for one, other in pairwise(PLACEHOLDER.finditer(pattern)):
        if "." not in pattern[one.end() : other.start()]:
            raise AmbiguousHostName(
                f"{pattern!r} does not show where {one.group()} ends, so that two devices could have one host name: "
                f"put a '.' between {one.group()} and {other.group()}, or leave {{group}} out"
            )


def may_clash(one: str, other: str) -> bool:
    """Whether two patterns could give different devices the same host name."""
    if one == other:
        return False
    begin, other_begin = _literals(one)[0], _literals(other)[0]
    end, other_end = _literals(one)[-1], _literals(other)[-1]
    same_begin = begin.startswith(other_begin) or other_begin.startswith(begin)
    return same_begin and (end.endswith(other_end) or other_end.endswith(end))


def may_be_below(domain: str, pattern: str) -> bool:
    """Whether *pattern* could give a device a host name below *domain*: names and groups may contain ``.`` too."""
    end, below = _literals(pattern)[-1], f".{domain}"
    return end.endswith(below) or below.endswith(end)


def filled(pattern: str, identity: Identity) -> str:
    """Return *pattern* filled in for *identity*; raise `AmbiguousHostName` if another device could get the same."""
    # Not converted to lower case: names that differ only in case would share a host name.
    values = {"name": identity.name, "group": identity.group or ""}
    *followed, _last = (match[1] for match in PLACEHOLDER.finditer(pattern))
    for field in followed:
        if "." in values[field]:
            raise AmbiguousHostName(
                f"by the pattern {pattern} the {field} {values[field]!r} could give two devices one host name: "
                f"use a {field} without '.'"
            )
    return PLACEHOLDER.sub(lambda match: values[match[1]], pattern)


def _literals(pattern: str) -> list[str]:
    """Return the text before, between and after the placeholders."""
    return PLACEHOLDER.split(pattern)[::2]
