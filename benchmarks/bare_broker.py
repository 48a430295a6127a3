"""The broker without its admission checks, as a baseline for `admission_cost`: it admits all that TLS accepts.

This is not a mode of the broker, and never will be: this program replaces the checks at start, in its own process, on
loopback. Each client is taken for the device named by its client identifier; its certificate is not checked.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from datetime import datetime

from broker.__main__ import main
from broker.admission.admission import Admission, Admitted
from broker.admission.guard import Guard
from broker.admission.peer import Peer
from broker.mqtt.connect import Connect
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role

_A_DAY = 86_400.0


def _examine(
    _admission: Admission,
    _certificate: bytes | None,
    _now: datetime,
    _path: Callable[[], Sequence[bytes]] = tuple,
    *,
    status: bool = True,
) -> Peer:
    del status
    return Peer(Identity("bench.internal", Role.DEVICE, "nobody", "bench"), (b"", 0), _A_DAY)


def _admit(_admission: Admission, peer: Peer, connect: Connect, _now: float) -> Admitted:
    identity = Identity("bench.internal", Role.DEVICE, connect.client_id, "bench")
    return Admitted(Peer(identity, (b"", 0), peer.seconds_left), connect.client_id, assigned=False)


def _judge(_guard: Guard, _peer: Peer, _client_id: str, _now: float) -> None:
    return None


if __name__ == "__main__":
    if os.environ.get("FLEETGATE_BENCHMARK") != "bare":
        sys.exit("this is the part of a benchmark that admits everybody: see admission_cost.py")
    Admission.examine = _examine  # type: ignore[method-assign,assignment]
    Admission.admit = _admit  # type: ignore[method-assign,assignment]
    Guard.judge = _judge  # type: ignore[method-assign,assignment]
    main()
