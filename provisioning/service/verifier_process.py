"""The process that verifies certificate signing requests for the service: from a socket, until that ends.

It has no settings, no key, no store and no log. What it is asked, and what its answers are worth:
`provisioning.service.verifier`.
"""

from __future__ import annotations

import hashlib
import signal
import socket
from typing import Final

from provisioning.ca.csr import is_good_as_usual

LENGTH_OCTETS: Final = 2
"""Before each request, in DER."""
ANSWER_OCTETS: Final = 32
NO: Final = bytes(ANSWER_OCTETS)
"""Instead of the request's SHA-256; the first one says that the process is ready."""
_CHUNK: Final = 65536


def answer(asked: socket.socket) -> None:
    """Answer all requests, in order, until the service closes its end."""
    asked.sendall(NO)
    unread = b""
    while chunk := asked.recv(_CHUNK):
        unread += chunk
        begin = 0
        while len(unread) >= (first := begin + LENGTH_OCTETS):
            end = first + int.from_bytes(unread[begin:first])
            if end > len(unread):
                break
            der, begin = unread[first:end], end
            asked.sendall(hashlib.sha256(der).digest() if is_good_as_usual(der) else NO)
        unread = unread[begin:]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # systemd sends it to all processes; this one ends with the service.
    with socket.socket(fileno=0) as _asked:
        answer(_asked)
