"""What a worker gets when it is forked: its number, its listening sockets, its sockets to the others.

    supervisor ── control ── worker 1          end of file: the other side has ended; a worker reports ready there
    any worker ─► inbox of worker 2            datagrams, see `provisioning.service.fellow_workers`

The inboxes belong to the places, not to the processes: a restarted worker reads the inbox of its predecessor.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from provisioning.connections.listening import Listening
from provisioning.service.living_workers import LivingWorkers

READY: Final = b"ready"


@dataclass(slots=True)
class WorkerPlace:
    """One worker among several."""

    number: int
    """From 1."""
    starts: int
    """How often a worker was started at this place, including this one."""
    listening: Listening
    control: socket.socket
    inbox: socket.socket
    fellows: Mapping[int, socket.socket]
    """Sockets that write to the others' inboxes, by their numbers."""
    living: LivingWorkers
    """At which places there is a process."""
    hung_up: bool = False
    """Whether SIGHUP arrived while this worker was starting: the settings must be read again."""

    @property
    def leads(self) -> bool:
        """Whether this worker is the leader, which does what one has to do for all."""
        return self.number == 1

    def say_ready(self) -> None:
        """Tell the supervisor that this worker accepts connections."""
        self.control.send(READY)
