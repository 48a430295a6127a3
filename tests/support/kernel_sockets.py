"""The kernel's list of TCP connections, also of those that no process holds any more."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_STATES: Final = {
    "01": "ESTABLISHED",
    "04": "FIN_WAIT1",
    "05": "FIN_WAIT2",
    "06": "TIME_WAIT",
    "07": "CLOSE",
    "08": "CLOSE_WAIT",
    "09": "LAST_ACK",
    "0B": "CLOSING",
}


def state_of(port: int, peer: int) -> str | None:
    """Return the state of the loopback connection from *port* to *peer* at the end *port*; None: there is none."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, remote, state = line.split()[1:4]
        if (int(local.rpartition(":")[2], 16), int(remote.rpartition(":")[2], 16)) == (port, peer):
            return _STATES.get(state, state)
    return None
