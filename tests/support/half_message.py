"""A client that sends half of a KeyUpdate (RFC 8446 §4.6.3), and never the rest: no TLS library does that.

Its keys come from the log of keys that `ssl` writes for a context (`keylog_filename`). Afterwards only what the server
sends can be read: OpenSSL does not know of the record.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from device_sim.attack.tls13_keys import Protection

_HANDSHAKE = 22
_HEADER = bytes.fromhex("18000001")
"""Of a KeyUpdate, whose one byte is missing."""


def half_of_a_key_update(context: ssl.SSLContext, sent: int) -> bytes:
    """Return the record with it of the latest client of *context*, which has *sent* so many records of data."""
    lines = Path(context.keylog_filename).read_text("ascii").splitlines()
    secret = [line.split()[2] for line in lines if line.startswith("CLIENT_TRAFFIC_SECRET_0 ")][-1]
    protection = Protection(bytes.fromhex(secret))
    for _ in range(sent):
        protection.seal(_HANDSHAKE, b"")
    return protection.seal(_HANDSHAKE, _HEADER)
