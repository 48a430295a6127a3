"""What may be the MQTT client identifier of a party of a fleet, whoever has written it into a list or an index.

A longer one fits into no CONNECT (MQTT 5 §1.5.4), and control characters are left to a broker to refuse.
"""

from __future__ import annotations

from typing import Final

ALLOWED: Final = "1 to 65,535 bytes, and no control characters"
_LONGEST: Final = 65_535


def may_be_client_id(text: str) -> bool:
    """Whether *text* may be a client identifier (`ALLOWED`)."""
    return text.isprintable() and 0 < len(text.encode()) <= _LONGEST
