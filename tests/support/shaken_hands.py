"""A TLS handshake in memory: two contexts, and no socket."""

from __future__ import annotations

import ssl


def shaken(client: ssl.SSLContext, server: ssl.SSLContext) -> ssl.SSLObject:
    """Return the server's end of a connection with localhost; raise what either end has against the other."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    caller = client.wrap_bio(back, there, server_hostname="localhost")
    called = server.wrap_bio(there, back, server_side=True)
    for side in (caller, called) * 4:
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return called
