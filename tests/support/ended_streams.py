"""Whether `ssl` takes an end without close_notify for a proper one, as it does in the Python of Debian 12."""

from __future__ import annotations

import ssl
from typing import Final

IGNORES_ENDS: Final = bool(
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).options & getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
)
