"""Six devices that must be refused, what refuses each of them, and whether it did.

Theory
------
Each case states the layer that must refuse it and the alert or reason code. A refusal of another kind is a warning:
access was denied, but an operator looking for the cause is misled. No refusal is a security failure.

Rules
-----
1. Everything about an intruder is genuine except the one thing that its case is about.
2. A case needs an answer from the peer: a refused TCP connection or a timeout does not count as a refusal.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from device_sim.credentials import forgery
from device_sim.credentials.credential import HeldCredential
from device_sim.link.client import Connection
from device_sim.link.closure import Closure, Layer, from_error
from device_sim.link.keep_alive import KeepAlive
from device_sim.link.link import NotConnected
from device_sim.link.tls_dial import Endpoint, NotAdmitted
from provisioning.pki.identity import Identity
from provisioning.pki.tls import client_context

FORGED = b'{"forged":true}'
_DEADLINE = 10.0
_FAILURE = 0x80
_AT_LEAST_ONCE = 1


class Outcome(StrEnum):
    """How a case ended."""

    REFUSED = "refused"
    REFUSED_OTHERWISE = "refused, but not in the expected way"
    UNDECIDED = "nobody answered"
    ADMITTED = "admitted"


@dataclass(frozen=True, slots=True)
class Scene:
    """What the cases need: the broker, the victim device, and what the thief really holds."""

    endpoint: Endpoint
    anchors: Path | str
    keep_alive: KeepAlive
    victim: Identity
    insider: HeldCredential
    expired: HeldCredential


@dataclass(frozen=True, slots=True)
class Case:
    """One intruder: what it tries, and which *layer* must refuse it with which *code* (a prefix)."""

    name: str
    description: str
    layer: Layer
    code: str
    attempt: Callable[[Scene], Awaitable[Closure | None]]


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one case. *closure* is None when nothing refused it."""

    case: Case
    closure: Closure | None
    seconds: float

    @property
    def outcome(self) -> Outcome:
        """Judge the case."""
        if self.closure is None:
            return Outcome.ADMITTED
        if self.closure.layer is self.case.layer and self.closure.code.startswith(self.case.code):
            return Outcome.REFUSED
        # A peer that merely closes has refused, but silently; one that never answers has decided nothing.
        return Outcome.REFUSED_OTHERWISE if self.closure.is_answer else Outcome.UNDECIDED


async def _connects(
    scene: Scene, context: ssl.SSLContext, client_id: str, acknowledged: Callable[[int, int, str], None] | None = None
) -> Connection:
    return await Connection.open(
        scene.endpoint,
        context,
        client_id,
        keep_alive=scene.keep_alive,
        deadline=_DEADLINE,
        acknowledged=acknowledged,
    )


async def _is_admitted(scene: Scene, context: ssl.SSLContext, client_id: str) -> Closure | None:
    try:
        connection = await _connects(scene, context, client_id)
    except NotAdmitted as error:
        return None if error.closure.was_let_in else error.closure
    await connection.close()
    return None


async def _without_certificate(scene: Scene) -> Closure | None:
    return await _is_admitted(scene, client_context(scene.anchors), scene.victim.name)


async def _self_signed(scene: Scene) -> Closure | None:
    return await _is_admitted(scene, forgery.self_signed(scene.victim).context(scene.anchors), scene.victim.name)


async def _expired(scene: Scene) -> Closure | None:
    return await _is_admitted(scene, scene.expired.context(scene.anchors), scene.expired.identity.name)


async def _wrong_ca(scene: Scene) -> Closure | None:
    return await _is_admitted(scene, forgery.foreign(scene.victim).context(scene.anchors), scene.victim.name)


async def _other_client_id(scene: Scene) -> Closure | None:
    return await _is_admitted(scene, scene.insider.context(scene.anchors), scene.victim.name)


async def _other_topic(scene: Scene) -> Closure | None:
    answer: asyncio.Future[Closure | None] = asyncio.get_running_loop().create_future()

    def decide(closure: Closure | None) -> None:
        if not answer.done():
            answer.set_result(closure)

    def acknowledged(_packet_id: int, number: int, reason: str) -> None:
        refused = number >= _FAILURE
        decide(Closure(Layer.MQTT, f"0x{number:02x} PUBACK", reason, time.monotonic(), number) if refused else None)

    context = scene.insider.context(scene.anchors)
    connection = await _connects(scene, context, scene.insider.identity.name, acknowledged)
    connection.closed.add_done_callback(lambda closed: decide(closed.result()))
    try:
        async with asyncio.timeout(_DEADLINE):
            connection.publish(f"fleet/{scene.victim.group}/{scene.victim.name}/telemetry", FORGED, _AT_LEAST_ONCE)
            return await answer
    except TimeoutError as error:
        return from_error(error, time.monotonic())
    except NotConnected:
        return connection.closed.result()
    finally:
        await connection.close()


CASES = (
    Case("no-certificate", "shows no certificate", Layer.TLS, "certificate_required", _without_certificate),
    Case("self-signed", "signed its certificate itself", Layer.TLS, "unknown_ca", _self_signed),
    Case("expired", "shows an expired certificate", Layer.TLS, "certificate_expired", _expired),
    Case("wrong-ca", "is certified by another CA", Layer.TLS, "unknown_ca", _wrong_ca),
    Case("other-client-id", "uses another's client id", Layer.MQTT, "0x85", _other_client_id),
    Case("other-topic", "publishes to another's topic", Layer.MQTT, "0x87 PUBACK", _other_topic),
)


async def try_all(scene: Scene) -> list[Finding]:
    """Run every case, one after the other, and return the findings."""
    findings = []
    for case in CASES:
        started = time.monotonic()
        try:
            closure = await case.attempt(scene)
        except NotAdmitted as error:
            # Refused before it could try: this is not what the case tests.
            closure = error.closure
        findings.append(Finding(case, closure, time.monotonic() - started))
    return findings
