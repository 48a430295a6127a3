"""The state of a TLS connection.

The states also have module-level names: looking up an enumeration member in its class costs time on each access, on
Python 3.11 through a function of the class.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final


class State(Enum):
    """How incoming and outgoing bytes are treated."""

    HANDSHAKE = auto()
    OPEN = auto()
    MUTE = auto()  # A write has failed: nothing more is written, but what the peer had sent before is read.
    CLOSING = auto()  # Nothing more is read; the backlog is still being written.
    LINGERING = auto()  # Everything is written; the peer's last bytes are discarded.
    CLOSED = auto()


HANDSHAKE: Final = State.HANDSHAKE
OPEN: Final = State.OPEN
MUTE: Final = State.MUTE
CLOSING: Final = State.CLOSING
LINGERING: Final = State.LINGERING
CLOSED: Final = State.CLOSED
