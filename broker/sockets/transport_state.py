"""How far a TLS connection has come.

The states have names of their own beside the enumeration's members: a member is looked up in its class each time, and
on Python 3.11 through a function of the class.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final


class State(Enum):
    """What is done with bytes that come, and with those that are to go."""

    HANDSHAKE = auto()
    OPEN = auto()
    MUTE = auto()  # A write has failed: nothing more is written, and what the peer had sent before is read.
    CLOSING = auto()  # Nothing more is read; the backlog is still being written.
    LINGERING = auto()  # Everything is written; the peer's last bytes are thrown away.
    CLOSED = auto()


HANDSHAKE: Final = State.HANDSHAKE
OPEN: Final = State.OPEN
MUTE: Final = State.MUTE
CLOSING: Final = State.CLOSING
LINGERING: Final = State.LINGERING
CLOSED: Final = State.CLOSED
