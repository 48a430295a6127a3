"""Lines of issuing CAs: the names of a line and its CAs, and which root signs a line's next one.

A line is a succession of CAs, each of which issues until the next one does. `DEFAULT_LINE` is the one that the fleet
was founded with; an operator begins another with its first CA, say for a product with its own CA or root.

Rules
-----
1. A CA's name contains its line and its number there: ``issuing-2``, ``issuing-meters-1``. The very first is called
   ``issuing-ca``.
2. A line's name is lower-case letters and digits, so that a CA never has the name of another one's CRL shard.
3. A line stays under its root's succession unless an operator names another root.
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from typing import Final

from provisioning.errors import ConfigurationError
from provisioning.store.authorities import DEFAULT_LINE, AuthorityKind, StoredAuthority, described, trusted_roots

_LINE: Final = re.compile(r"[a-z][a-z0-9]{0,23}")
_RESERVED: Final = "ca"  # "issuing-ca-1" is a shard of the first CA.
_CA: Final = re.compile(rf"issuing-(?:({_LINE.pattern})-)?([1-9][0-9]*)")


def check_line(line: str) -> str:
    """Return *line* if it is a valid name of a line; raise `ConfigurationError` otherwise."""
    if _LINE.fullmatch(line) is None or line == _RESERVED:
        raise ConfigurationError(
            f"line {line[:40]!r}: use a lower-case letter and up to 23 lower-case letters and digits, and not 'ca'"
        )
    return line


def next_name(line: str, taken: Container[str]) -> tuple[str, int]:
    """Return the name of the next CA of *line*, and its number."""
    number = 2 if line == DEFAULT_LINE else 1
    while _ca_name(line, number) in taken:
        number += 1
    return _ca_name(line, number), number


def line_of(name: str) -> str:
    """Return the line of the CA called *name*."""
    match = _CA.fullmatch(name)
    return match[1] if match is not None and match[1] else DEFAULT_LINE


def shown_line(line: str) -> str | None:
    """Return the line as it appears in a CA's subject: not at all for the default one."""
    return None if line == DEFAULT_LINE else line


def known_roots(found: Sequence[StoredAuthority]) -> list[StoredAuthority]:
    """Return the trusted roots, the oldest first; raise `ConfigurationError` if there is none."""
    roots = trusted_roots(found)
    if not roots:
        raise ConfigurationError("the store knows no root: start the service once, so that it records its CAs")
    return roots


def root_for(line: str, found: Sequence[StoredAuthority], wanted: str | None) -> StoredAuthority:
    """Return the root that signs the next CA of *line*: the one called *wanted*, if given.

    Otherwise it is the newest one that succeeds the root of the line's newest CA, or for a new line the newest of all.
    """
    roots = known_roots(found)
    if wanted is not None:
        chosen = next((each for each in roots if each.name == wanted), None)
        if chosen is None:
            raise ConfigurationError(f"--root: there is no root {wanted!r}; there are {described(roots)}")
        return chosen
    members = [each for each in found if each.kind is AuthorityKind.ISSUING and each.line == line]
    if not members:
        return roots[-1]
    newest = members[-1].certificate
    # Roots that succeed one another share their name.
    related = [each for each in roots if each.certificate.subject == newest.issuer]
    return related[-1] if related else roots[-1]


def _ca_name(line: str, number: int) -> str:
    return f"issuing-{number}" if line == DEFAULT_LINE else f"issuing-{line}-{number}"
