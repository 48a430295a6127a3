"""A certificate's serial number as text: one form in the store, the APIs, every log and every message.

It is lower-case hexadecimal without leading zeros, so two texts are equal where the numbers are (RFC 5280 §4.1.2.2).
People paste other spellings: capitals, colons between octets, ``0x`` in front, the zero octet of DER.
"""

from __future__ import annotations


def serial_text(serial: int) -> str:
    """Return *serial* in that form."""
    return f"{serial:x}"


def normal_serial(text: str) -> str:
    """Return *text*, a serial number in any usual spelling, in that form; what is none stays none, perhaps empty."""
    digits = text.replace(":", "").lower().removeprefix("0x")
    return digits.lstrip("0") or digits[-1:]
