"""The socket of an accepted connection: the library's, without the Python layer that `socket.socket` puts around it.

That layer counts the files made of a socket before it closes it, and turns numbers into enumerations. Nobody makes
files of these; so each connection saves three calls of interpreted functions (docs/decisions/0322).
"""

from __future__ import annotations

import socket


class AcceptedSocket(socket.SocketType):
    """A connected socket. `ssl` holds it by a weak reference."""

    __slots__ = ("__weakref__",)
