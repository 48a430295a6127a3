"""Revoke a connected device and observe it: how fast its connection is closed, and whether it stays out.

Rules
-----
1. All times are read from one clock in one process: when the call is sent, when its answer arrives, when the device's
   socket is closed. The socket may well close before the answer arrives.
2. A revoked device tries twice: with a full handshake, and by resuming the TLS session from before the revocation.
   OpenSSL checks no certificate on resumption, so only the broker's own check can refuse it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from device_sim.device import Event, State
from device_sim.fleet.live_device import LiveDevice
from device_sim.link.closure import Closure, Verdict
from device_sim.link.tls_dial import NotAdmitted
from provisioning.client.operator import OperatorClient
from provisioning.pki.revocation_reason import RevocationReason


@dataclass(frozen=True, slots=True)
class Cut:
    """One revocation of a connected device. *closure* is None if it was not closed in time."""

    device: str
    since_sent: float
    since_answer: float
    closure: Closure | None

    @property
    def told_why(self) -> bool:
        """Whether the session was closed, with the true reason."""
        return self.closure is not None and self.closure.verdict is Verdict.REVOKED


@dataclass(frozen=True, slots=True)
class Retry:
    """A revoked device's attempt to connect. *closure* is None if it was admitted."""

    device: str
    closure: Closure | None
    tls_resumed: bool = False
    seconds: float = 0.0

    @property
    def told_why(self) -> bool:
        """Whether it was refused, with the true reason."""
        return self.closure is not None and self.closure.verdict is Verdict.REVOKED


async def cut_off(
    operator: OperatorClient,
    device: LiveDevice,
    deadline: float,
    reason: RevocationReason = RevocationReason.KEY_COMPROMISE,
) -> Cut:
    """Revoke *device*, which is connected, and wait at most *deadline* seconds for its connection to end."""
    connection = device.connection
    if connection is None:
        raise RuntimeError(f"{device.name} was never connected")
    device.keep_tls_session()
    sent = time.monotonic()
    await operator.revoke(device=device.name, reason=reason)
    answered = time.monotonic()
    done, _ = await asyncio.wait([connection.closed], timeout=deadline)
    if not done:
        return Cut(device.name, deadline, deadline, None)
    closure = connection.closed.result()
    return Cut(device.name, closure.at - sent, closure.at - answered, closure)


async def try_again(device: LiveDevice) -> list[Retry]:
    """Let *device*, which has no connection, try to connect in both ways; stop at the first that is admitted."""
    before = device.connection.tls_session if device.connection is not None else None
    retries = []
    for session in (None, before) if before is not None else (None,):
        if device.machine.state is not State.ENROLLED:
            device.machine.happened(Event.RETRIED)
        started = time.monotonic()
        try:
            connection = await device.connect(session)
        except NotAdmitted as error:
            closure = None if error.closure.was_let_in else error.closure
            retries.append(Retry(device.name, closure, error.tls_resumed, time.monotonic() - started))
            if closure is None:
                break
        else:
            retries.append(Retry(device.name, None, connection.tls_resumed, time.monotonic() - started))
            await device.close()
            break
    return retries
