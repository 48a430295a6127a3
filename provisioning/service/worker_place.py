"""What one of several workers is given when it is forked: who it is, where it listens, its sockets to the others.

    supervisor ── control ── worker 1          its end says that the other side has ended; a worker says ready there
    anybody ─► inbox of worker 2               datagrams, see `provisioning.service.fellow_workers`

The inboxes belong to the places, not to the processes: a worker that was started again reads where the one before it
did.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from provisioning.connections.listening import Listening

READY: Final = b"ready"


@dataclass(slots=True)
class WorkerPlace:
    """One worker among several."""

    number: int
    """From 1."""
    starts: int
    """How often a worker was started at this place, this one included."""
    listening: Listening
    control: socket.socket
    inbox: socket.socket
    fellows: Mapping[int, socket.socket]
    """Where the others' inboxes are written to, by their numbers."""
    hung_up: bool = False
    """Whether SIGHUP has come while this worker was starting: the settings are to be read anew."""

    @property
    def leads(self) -> bool:
        """Whether this worker does what one of them has to do for all."""
        return self.number == 1

    def say_ready(self) -> None:
        """Tell the supervisor that this worker accepts connections."""
        self.control.send(READY)
