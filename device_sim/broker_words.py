"""How a user names a running broker: the same options in every command that connects to one.

``--broker HOST:PORT`` combines ``--host`` and ``--port``, which people know from other tools.

Rules
-----
1. Both at once are refused, even if they agree: a user might later change one of them and forget the other.
2. No import that ``--help`` does not need (`device_sim.cli`, rule 1).
"""

from __future__ import annotations

import contextlib
import ipaddress
from typing import Annotated, Final
from urllib.parse import urlsplit

import typer

HOST: Final = "localhost"
PORT: Final = 8883
_SCHEME: Final = "mqtts"
_WEBSOCKET_SCHEMES: Final = ("ws", "wss")
_WORDS: Final = "HOST or HOST:PORT, as in localhost:8883 or [::1]:8883"

BrokerOption = Annotated[
    str | None,
    typer.Option("--broker", help="The broker: HOST, HOST:PORT or mqtts://HOST:PORT.", show_default=False),
]
HostOption = Annotated[
    str | None, typer.Option("--host", help=f"The same in two words (default: {HOST}).", show_default=False)
]
PortOption = Annotated[
    int | None,
    typer.Option("--port", min=1, max=65535, help=f"With --host: its port (default: {PORT}).", show_default=False),
]
WebsocketOption = Annotated[
    bool,
    typer.Option("--websocket", "--ws", help="MQTT over WebSocket: the port is that listener's."),
]
PathOption = Annotated[
    str | None,
    typer.Option("--path", help="With --websocket: what it is asked for (default: /mqtt).", show_default=False),
]


def named(broker: str | None, host: str | None, port: int | None) -> tuple[str, int] | None:
    """Return host and port of the broker in the options, None if there are none. Raises `typer.BadParameter`."""
    if broker is None:
        if host is None and port is None:
            return None
        if host is not None and (not host or set(host) & set("[]/ ")):
            raise typer.BadParameter(f"--host {host}: give a name or an address alone; --broker takes {_WORDS}")
        return host or HOST, port or PORT
    if host is not None or port is not None:
        raise typer.BadParameter("--broker says what --host and --port say: give it or them")
    try:
        return address_in(broker)
    except ValueError as error:
        raise typer.BadParameter(f"--broker {broker}: {error}") from None


def address_in(text: str) -> tuple[str, int]:
    """Return host and port from ``HOST``, ``HOST:PORT`` or ``mqtts://HOST:PORT``, the form that our broker prints.

    Raises `ValueError` with what to write.
    """
    with contextlib.suppress(ValueError):  # Its colons do not separate a port.
        return str(ipaddress.IPv6Address(text)), PORT
    what = f"write {_WORDS}; it is spoken to by TLS"
    try:
        parts = urlsplit(text if "://" in text else f"{_SCHEME}://{text}")
        port = PORT if parts.port is None else parts.port
    except ValueError as error:  # The port is not a number.
        raise ValueError(what) from error
    if parts.scheme in _WEBSOCKET_SCHEMES:
        raise ValueError(f"{what}. For MQTT over WebSocket, add --websocket, and --path if it is not /mqtt")
    rest = (parts.username, parts.path.strip("/"), parts.query, parts.fragment)
    if parts.scheme != _SCHEME or not parts.hostname or any(rest) or port == 0:
        raise ValueError(what)
    return parts.hostname, port
