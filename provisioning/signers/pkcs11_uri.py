"""The name of a key in a PKCS #11 token, as RFC 7512 writes it.

    pkcs11:token=fleet?module-path=/usr/lib/softhsm/libsofthsm2.so                    a token: where new keys are made
    pkcs11:token=fleet;object=issuing-ca.fleet.internal?module-path=/usr/lib/…        one key in it

Handles: token, object, module-path. Other attributes of RFC 7512 are refused, not ignored: a PIN in particular
belongs in ``pkcs11_pin_file``, not in a name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

SCHEME: Final = "pkcs11:"
_EXAMPLE: Final = "pkcs11:token=LABEL?module-path=/usr/lib/softhsm/libsofthsm2.so"


class InvalidPkcs11Uri(ValueError):
    """The text names no token; the error text says what is wrong, and the valid form."""


@dataclass(frozen=True, slots=True)
class Pkcs11Uri:
    """A token, reached through a module, and a key in it; *label* is None if only the token is meant."""

    module: Path
    token: str
    label: str | None = None

    def __str__(self) -> str:
        name = "" if self.label is None else f";object={quote(self.label, safe='')}"
        return f"{SCHEME}token={quote(self.token, safe='')}{name}?module-path={quote(str(self.module), safe='/')}"


def parse_pkcs11_uri(text: str) -> Pkcs11Uri:
    """Parse *text*; raise `InvalidPkcs11Uri`."""
    text = text.strip()
    if not text.startswith(SCHEME):
        raise InvalidPkcs11Uri(f"{text[:120]!r} does not begin with {SCHEME}: write {_EXAMPLE}")
    path, _, query = text.removeprefix(SCHEME).partition("?")
    parts = _attributes(path, ";", {"token", "object"})
    parts |= _attributes(query, "&", {"module-path"})
    for needed in ("token", "module-path"):
        if not parts.get(needed):
            raise InvalidPkcs11Uri(f"the PKCS #11 URI has no {needed}: write {_EXAMPLE}")
    return Pkcs11Uri(Path(parts["module-path"]), parts["token"], parts.get("object"))


def _attributes(text: str, separator: str, known: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, text.split(separator)):
        name, _, value = part.partition("=")
        if name not in known:
            hint = ": put the PIN in pkcs11_pin_file" if name.startswith("pin") else f": write {_EXAMPLE}"
            raise InvalidPkcs11Uri(f"{name[:40]!r} is not understood in a PKCS #11 URI{hint}")
        if name in found:
            raise InvalidPkcs11Uri(f"the PKCS #11 URI has {name} twice")
        found[name] = unquote(value)
    return found
