"""Host names that a profile builds by pattern, so that no two devices are ever given one.

Theory
------
A host name says who a server is, so it has to lead back to one device. A name belongs to one device in all of the
fleet; it is enough that the name can be read back from the host name. Names and groups may hold ``.`` and ``-``, so
``{name}.{group}`` does not say where the name ends: ``a.b`` in group ``c`` and ``a`` in group ``b.c`` are both
``a.b.c``.

Rules
-----
1. Between two placeholders of a pattern there is a ``.``, and whatever fills one that another follows holds none: so
   each ends at the first ``.`` that it could end at.
2. Two patterns of a service are the same, or begin or end differently: no host name is made by both.
3. No host name is made by a pattern that lies below a domain whose names devices may ask for.

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
    """Raise `AmbiguousHostName` if *pattern* does not show where a name ends, whatever the name."""
    for one, other in pairwise(PLACEHOLDER.finditer(pattern)):
        if "." not in pattern[one.end() : other.start()]:
            raise AmbiguousHostName(
                f"{pattern!r} does not show where {one.group()} ends, so that two devices could have one host name: "
                f"put a '.' between {one.group()} and {other.group()}, or leave {{group}} out"
            )


def may_clash(one: str, other: str) -> bool:
    """Whether two patterns could give different devices one host name."""
    if one == other:
        return False
    begin, other_begin = _literals(one)[0], _literals(other)[0]
    end, other_end = _literals(one)[-1], _literals(other)[-1]
    same_begin = begin.startswith(other_begin) or other_begin.startswith(begin)
    return same_begin and (end.endswith(other_end) or other_end.endswith(end))


def may_be_below(domain: str, pattern: str) -> bool:
    """Whether *pattern* could give a device a host name below *domain*: names and groups may hold ``.``, too."""
    end, below = _literals(pattern)[-1], f".{domain}"
    return end.endswith(below) or below.endswith(end)


def filled(pattern: str, identity: Identity) -> str:
    """Return *pattern* filled in for *identity*; raise `AmbiguousHostName` where another device could have the same."""
    # Not turned into lower case: names that differ in case only would share a host name.
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
    """Return what stands before, between and after the placeholders."""
    return PLACEHOLDER.split(pattern)[::2]
