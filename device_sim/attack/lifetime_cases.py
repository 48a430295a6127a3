"""Case 3, continued: a certificate that was good at the first connection expires, and the device goes on using it.

OpenSSL checks the dates at a full handshake only, not when a TLS session is resumed, nor while a connection is open.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from device_sim.attack.capabilities import Feature
from device_sim.attack.case import Chapter
from device_sim.attack.issuer import Paper
from device_sim.attack.raw_client import RawClient
from device_sim.attack.scene import Scene
from device_sim.attack.target import Impossible, Starved, TurnedAway
from device_sim.attack.verdict import Seen

_LIFE = timedelta(seconds=8)
"""Enough for a first connection on a slow machine; nothing else waits for its end, since these cases are idle."""
_MOMENT = 0.2

chapter = Chapter()
case = chapter.case


async def _admitted(scene: Scene, paper: Paper, context: ssl.SSLContext) -> RawClient:
    """Return a connection of *paper*; raise `Impossible` if it has expired before."""
    try:
        return await scene.admitted(paper, context=context)
    except (Starved, TurnedAway) as error:
        if _left(paper) > 0:
            raise
        raise Impossible(f"a certificate for {_LIFE.seconds} s expired before its device was connected") from error


def _short_lived(scene: Scene) -> Paper:
    """Return a device whose certificate expires soon."""
    return scene.target.issuer.issue(scene.target.device(scene.fresh()), ends=_LIFE)


def _left(paper: Paper) -> float:
    """Return the seconds for which the certificate of *paper* is still valid."""
    return (paper.certificate.not_valid_after_utc - datetime.now(UTC)).total_seconds()


@case(
    "3-resumed-expired", "resumes its TLS session after its certificate has expired",
    "mqtt CONNACK 0x87", "tls certificate_expired", idle=True,
)  # fmt: skip
async def _resumed(scene: Scene) -> Seen:
    paper = _short_lived(scene)
    context = scene.context(paper.pem)
    client = await _admitted(scene, paper, context)
    session = client.socket.session
    client.close()
    if session is None:
        raise Impossible("the broker gives no TLS session to resume")
    await asyncio.sleep(max(0.0, _left(paper)) + _MOMENT)
    return await scene.present(context, paper.name, session=session)


@case(
    "3-expires-live", "is connected when its certificate expires", "mqtt DISCONNECT 0x87", "mqtt DISCONNECT 0x98",
    needs=(Feature.LIVE_EXPIRY,), limit=lambda limits: limits.revocation, idle=True,
)  # fmt: skip
async def _live(scene: Scene) -> Seen:
    paper = _short_lived(scene)
    client = await _admitted(scene, paper, scene.context(paper.pem))
    try:
        ends = time.monotonic() + _left(paper)
        seen = await scene.with_grace(client.end, max(0.0, _left(paper)) + scene.target.capabilities.limits.revocation)
    finally:
        client.close()
    return replace(seen, seconds=max(0.0, time.monotonic() - ends))
