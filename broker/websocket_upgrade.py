"""The HTTP request that becomes a WebSocket: what RFC 6455 §4.2.1 asks of it, and MQTT (MQTT 5 §6).

`wsproto` looks at method, Host, Connection, Upgrade and version; here is the rest. No I/O.
"""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from typing import Final

from wsproto.events import Request

SUBPROTOCOL: Final = "mqtt"
_KEY: Final = b"sec-websocket-key"
_ONCE: Final = (_KEY, b"sec-websocket-version")
_NONCE_BYTES: Final = 16


def refuse_upgrade(request: Request, http_version: bytes) -> str | None:
    """Return why *request*, made in *http_version*, is no WebSocket for MQTT, in words for its client; None: it is."""
    major, _, minor = http_version.partition(b".")
    if (int(major), int(minor)) < (1, 1):
        return "HTTP/1.1 is needed"
    headers = [(name.lower(), value) for name, value in request.extra_headers]
    times = Counter(name for name, _ in headers)
    if any(times[name] != 1 for name in _ONCE):  # RFC 6455 §11.3.1, §11.3.5
        return "Sec-WebSocket-Key and Sec-WebSocket-Version are needed, once each"
    if not _is_nonce(dict(headers)[_KEY]):
        return "Sec-WebSocket-Key is not 16 bytes in base64"
    if SUBPROTOCOL not in request.subprotocols:  # [MQTT-6.0.0-3]
        return "the WebSocket subprotocol 'mqtt' is needed"
    return None


def _is_nonce(key: bytes) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == _NONCE_BYTES
    except binascii.Error:
        return False
