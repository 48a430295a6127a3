"""Whose web pages may open a WebSocket here: the Origin of an upgrade request (RFC 6454, RFC 6455 §10.2).

Theory
------
A browser opens a WebSocket for any page that asks, with the certificate that its user has for this server, and the page
gets the answers. Only the Origin header says whose page it is: a browser always sends it, and a page cannot choose it.
So a request with an Origin is treated as one from a web page, and its origin must be named in the settings.

Two kinds of request do not come from a foreign page. One *without an Origin* does not come from a browser. One *with
the origin of this very listener*, ``https://`` and the value of Host, is not foreign: libraries that are not browsers
send that (paho for Python and C, netty), and a page loaded from here would be ours; the listener serves none. A name
that an attacker owns and points here (DNS rebinding) is of no use: the browser first requires a certificate for that
name. A page without TLS, ``http://`` and the same host, is another origin: anybody on the network may have written it.

Rules
-----
1. Compared as RFC 6454 §5 says: scheme, host and port, each in full, ignoring case and default ports. No patterns.
2. No I/O.

Does not handle: a client that lies about its origin, which is not a browser: its certificate says who it is.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator
from pydantic_settings import NoDecode

from broker.settings.setting_types import several

_ORIGIN: Final = re.compile(r"([a-z][a-z0-9+.-]*)://([a-z0-9._~-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_PAGES: Final = {"ws": "http", "wss": "https", "mqtt": "http", "mqtts": "https"}
_MOST_PORT: Final = 65_535
_ANY: Final = "unsafe_any_websocket_origin admits any page"

MOST_SHOWN: Final = 300
"""Characters of an origin in the log: the sender chooses its length."""

_NOBODYS: Final = {
    "*": "no origin: name each",
    "null": "the origin of every page that has none: serve it from somewhere",
}


@dataclass(frozen=True, slots=True)
class Origins:
    """The origins whose pages may connect."""

    named: frozenset[str] = frozenset()
    """Each in the form of `origin_of`."""
    unsafe_any: bool = False

    def admit(self, origin: str, host: str) -> bool:
        """Return whether a request with the header *origin*, and *host* as its Host, may be granted."""
        if self.unsafe_any:
            return True
        own = f"https://{host}"
        if origin.lower() == own.lower():  # Also if neither is well-formed, as with paho's IPv6 addresses.
            return True
        try:
            canonical = origin_of(origin)
        except ValueError:
            return False
        return canonical in self.named or canonical == _canonical(own)


NO_PAGES: Final = Origins()


def origin_of(text: str) -> str:
    """Return the origin in *text*, as browsers write it. Raises ValueError, which says what to write instead."""
    if (why := _NOBODYS.get(text.lower())) is not None:
        raise ValueError(f"{text!r} is {why}; or {_ANY}")
    scheme, found, rest = text.partition("://")
    if not found:
        raise ValueError(f"{text!r} is not an origin: write the scheme too, as in https://{text or 'example.com'}")
    if len(text.split()) > 1:
        raise ValueError(f"{text!r}: name one origin an entry")
    if not text.isascii():
        raise ValueError(f"{text!r}: write the host as browsers send it, in ASCII (xn--…)")
    if "*" in rest:
        raise ValueError(f"{text!r}: an origin is named in full, without wildcards: name each; or {_ANY}")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if not authority:
        raise ValueError(f"{text!r} names no host, as in https://example.com")
    if authority != rest:
        raise ValueError(f"{text!r}: an origin has no path: write {scheme}://{authority}")
    if scheme.lower() in _PAGES:
        raise ValueError(
            f"{text!r} is where a page connects to; write where it is from, as in {_PAGES[scheme.lower()]}://{rest}"
        )
    canonical = _canonical(text)
    if canonical is None:
        raise ValueError(f"{text!r} is not an origin: write scheme://host or scheme://host:port")
    return canonical


def _canonical(text: str) -> str | None:
    """Return *text* with case, address and port as browsers write them; None: it is not an origin."""
    found = _ORIGIN.fullmatch(text.lower())
    if found is None:
        return None
    scheme, host, port = found.groups()
    if host.startswith("["):
        try:
            host = f"[{ipaddress.IPv6Address(host[1:-1]).compressed}]"
        except ValueError:
            return None
    number = int(port) if port else 0
    if number > _MOST_PORT or port == "0":
        return None
    return f"{scheme}://{host}" + (f":{number}" if number and number != _DEFAULT_PORTS.get(scheme) else "")


OriginNames = Annotated[tuple[Annotated[str, AfterValidator(origin_of)], ...], BeforeValidator(several), NoDecode]
"""Origins in the settings. As text: comma-separated."""
