"""Cases 3, 7 and 19, continued: what was good at the first connection is not at a resumed one, or no longer.

OpenSSL checks a certificate at a full handshake only, not when a TLS session is resumed or a connection stays open.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import replace
from datetime import timedelta

from device_sim.attack import broker_clock
from device_sim.attack.asking import desk_of
from device_sim.attack.capabilities import Feature
from device_sim.attack.case import IN, Chapter
from device_sim.attack.issuer import Paper
from device_sim.attack.raw_client import RawClient
from device_sim.attack.scene import Scene
from device_sim.attack.target import Impossible, Starved, TurnedAway
from device_sim.attack.verdict import Seen
from provisioning.pki.serial_number import serial_text

_LIFE = timedelta(seconds=8)
"""Enough for a first connection on a slow machine; nothing else waits for its end, since these cases are idle."""
_MOMENT = 1.2
"""Seconds after which what has expired by the broker's clock has expired for everybody: some are valid for the whole of
their last second."""
_PATIENCE = 30
"""Seconds by which a broker's clock may be behind in a case that waits for an expiry there."""

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
    """Return the seconds for which the certificate of *paper* is still valid by our clock."""
    return (paper.certificate.not_valid_after_utc - broker_clock.now()).total_seconds()


async def _there(scene: Scene, paper: Paper) -> float:
    """Return the seconds for which the certificate of *paper* is valid by the broker's clock, at most.

    Raises `Impossible` if that is longer than anybody waits here.
    """
    clock = await broker_clock.read_clock(scene, broker_clock.now().replace(microsecond=0))
    if clock.behind > _PATIENCE:
        raise Impossible(f"{clock}: nobody waits here so long for an expiry")
    return max(0.0, _left(paper) + clock.behind)


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
    await asyncio.sleep(await _there(scene, paper) + _MOMENT)
    return await scene.present(context, paper.name, session=session)


async def _left_behind(scene: Scene, paper: Paper) -> tuple[ssl.SSLContext, ssl.SSLSession]:
    """Return a context, and a TLS session of *paper* to resume in it; raise `Impossible` if the broker gives none."""
    context = scene.context(paper.pem)
    client = await scene.admitted(paper, context=context)
    session = client.socket.session
    client.close()
    if session is None:
        raise Impossible("the broker gives no TLS session to resume")
    return context, session


@case("7-resumed-suspended", "is suspended, and resumes its TLS session", "mqtt CONNACK 0x8a", "mqtt CONNACK 0x87",
      needs=(Feature.SUSPENSION,))  # fmt: skip
async def _resumed_suspended(scene: Scene) -> Seen:
    desk, paper = desk_of(scene), await scene.device()
    context, session = await _left_behind(scene, paper)
    await desk.operator.suspend(serial=serial_text(paper.certificate.serial_number))
    known = await scene.until_refused(paper)
    return known if known.got_in else await scene.present(context, paper.name, session=session)


@case("21-resumed", "is suspended, and its suspension is ended: it is admitted again", IN,
      needs=(Feature.SUSPENSION,))  # fmt: skip
async def _released(scene: Scene) -> Seen:
    desk, paper = desk_of(scene), await scene.device()
    serial = serial_text(paper.certificate.serial_number)
    await desk.operator.suspend(serial=serial)
    known = await scene.until_refused(paper)
    if known.got_in:
        raise Impossible("it was let in while it was suspended (21-suspended)")
    await desk.operator.resume(serial=serial)
    return await scene.until_released(paper)


@case("19-resumed-other-client-id", "resumes its TLS session, and uses another device's client identifier",
      "mqtt CONNACK 0x85", "mqtt CONNACK 0x87", needs=(Feature.CLIENT_ID_BINDING,))  # fmt: skip
async def _resumed_as_other(scene: Scene) -> Seen:
    context, session = await _left_behind(scene, await scene.device())
    return await scene.present(context, scene.fresh("victim"), session=session)


@case(
    "3-expires-live", "is connected when its certificate expires", "mqtt DISCONNECT 0x87", "mqtt DISCONNECT 0x98",
    needs=(Feature.LIVE_EXPIRY,), limit=lambda limits: limits.revocation, idle=True,
)  # fmt: skip
async def _live(scene: Scene) -> Seen:
    paper = _short_lived(scene)
    client = await _admitted(scene, paper, scene.context(paper.pem))
    try:
        left = await _there(scene, paper)
        ends = time.monotonic() + left
        seen = await scene.with_grace(client.end, left + scene.target.capabilities.limits.revocation)
    finally:
        client.close()
    return replace(seen, seconds=max(0.0, time.monotonic() - ends))
