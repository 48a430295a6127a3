"""Cases 39 and 41 to 43: a genuine device, within its rights, floods, freezes, never reads, or has a wrong clock.

The harm to others is measured on a well-behaved device.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from broker.mqtt.connect import Will
from broker.mqtt.packets import Pingreq, Pingresp, Publish
from device_sim.attack.capabilities import TimeLimits
from device_sim.attack.case import Chapter, patience
from device_sim.attack.raw_client import RawClient
from device_sim.attack.scene import SOON, Scene
from device_sim.attack.target import Impossible, TurnedAway
from device_sim.attack.verdict import DELIVERED, DELIVERED_AGAIN, NOT_DELIVERED, ClosedBy, Layer, Seen
from device_sim.link.distance import distance_of

_FLOOD = 30_000
_SERVINGS = 10
_FEED = 16 * 1024
_SLOW_BYTES = 96 * 1024 * 1024
_MEMORY = 40 * 1024 * 1024
"""A broker that keeps all of that grows by more than this; one that keeps nothing, by up to 17 MB."""
_KEEP_ALIVE = 1
_LONGEST_KEEP_ALIVE = 20.0
_ONE_AND_A_HALF = 1.5
_GRACE = 1.4
"""A silent client has one and a half times its keep alive [MQTT-3.1.2-22]; slightly less, for a coarse clock."""

_TWO_YEARS, _DAY = timedelta(days=730), timedelta(days=1)

chapter = Chapter()
case = chapter.case


@case("39-flood", "publishes 30,000 messages at once: others are served", "mqtt served",
      "mqtt DISCONNECT 0x96", "mqtt DISCONNECT 0x97", limit=patience)  # fmt: skip
async def _flood(scene: Scene) -> Seen:
    paper, innocent = await scene.device(), await scene.device()
    name = paper.name
    await scene.stop_watching()  # An earlier case's watcher would read it all in this process, which measures.
    client, other = await scene.admitted(paper), await scene.admitted(innocent)
    packet = Publish(scene.topic(name, "flood"), bytes(100)).encode(client.version)

    enough = asyncio.Event()

    async def flood() -> Seen:
        while True:  # Until the other has been served: being served only afterwards is starvation, at any speed.
            await client.send(packet * _FLOOD + Pingreq().encode(client.version), scene.patience)
            seen = await client.answer(Pingresp, deadline=scene.patience)
            if enough.is_set() or not seen.got_in or client.ended is not None:
                return seen

    task = asyncio.create_task(flood())
    worst = 0.0
    try:
        for _ in range(_SERVINGS):
            worst = max(worst, await scene.served(other))
            await asyncio.sleep(0.01)
        enough.set()
        seen = await task
    finally:
        task.cancel()
        await asyncio.wait([task])
        client.close()
        other.close()
    if not seen.got_in:
        return replace(seen, seconds=worst)
    figures = f"the slowest PINGRESP of another took {worst * 1000:.0f} ms"
    return Seen(Layer.MQTT, "served", figures, ClosedBy.NOBODY, seconds=worst)


def _keep_alive(limits: TimeLimits) -> float:
    return limits.keep_alive


# Nor earlier: a client that pings once per keep alive would be disconnected by the first late packet.
@case(
    "41-freezes",
    "sends nothing any more, with a keep alive of one second",
    "mqtt DISCONNECT 0x8d",
    limit=_keep_alive,
    idle=True,
)
async def _freezes(scene: Scene) -> Seen:
    paper = await scene.device()
    client = await scene.dialled(paper)
    before = time.monotonic()
    await scene.let_in(client, paper, scene.connect(paper.name, keep_alive=_KEEP_ALIVE))
    started = time.monotonic()
    # Its CONNECT has come later than it was sent, and so has the end been seen.
    before += distance_of(client.socket).round_trip
    try:
        alive, more = _in_force(client)
        seen = await scene.with_grace(client.end, scene.target.capabilities.limits.keep_alive + more)
    finally:
        client.close()
    ended = time.monotonic()
    if not seen.got_in and ended - before < alive:
        raise TurnedAway(f"put out after {ended - before:.2f} s, with a keep alive of {alive:g} s: {seen.text}")
    if not seen.got_in and ended - before < _GRACE * alive:
        seen = replace(seen, code=f"{seen.code} too early")
    return replace(seen, seconds=max(0.0, ended - started - more))


def _in_force(client: RawClient) -> tuple[float, float]:
    """Return the keep alive in force, and how much more time it gives the broker than one of a second."""
    alive = client.keep_alive
    if alive > _LONGEST_KEEP_ALIVE:
        told = "none" if math.isinf(alive) else f"one of {alive:g} s"
        raise Impossible(
            f"asked for a keep alive of {_KEEP_ALIVE} s, the broker sets {told}: too long to wait for here"
        )
    return alive, _ONE_AND_A_HALF * (alive - _KEEP_ALIVE)


@case(
    "41-will-of-frozen",
    "sends nothing any more, and has a will: the will is sent",
    "mqtt delivered",
    limit=_keep_alive,
    idle=True,
)
async def _will_of_frozen(scene: Scene) -> Seen:
    watcher = await scene.watcher()
    paper = await scene.device()
    name = paper.name
    payload = f"froze: {name}".encode()
    will = Will(scene.topic(name, "state"), payload)
    client = await scene.admitted(paper, scene.connect(name, keep_alive=_KEEP_ALIVE, will=will))
    started = time.monotonic()
    try:
        _, more = _in_force(client)

        async def sent(within: float) -> Seen:
            came = await watcher.got(payload, within)
            return Seen(Layer.MQTT, DELIVERED if came else NOT_DELIVERED, "", ClosedBy.NOBODY, got_in=not came)

        seen = await scene.with_grace(sent, scene.target.capabilities.limits.keep_alive + more)
    finally:
        client.close()
    seconds = max(0.0, time.monotonic() - started - more)
    if seen.code == DELIVERED:
        await asyncio.sleep(SOON)
        again = scene.heard[payload] > 1
        seen = replace(seen, code=DELIVERED_AGAIN if again else DELIVERED)
    return replace(seen, got_in=False, seconds=seconds)


@case("42-never-reads", "is sent 96 MB and never reads: others are served", "mqtt served", "mqtt DISCONNECT 0x97",
      limit=patience)  # fmt: skip
async def _never_reads(scene: Scene) -> Seen:
    paper, innocent = await scene.device(), await scene.device()
    name = paper.name
    slow, other = await scene.admitted(paper), await scene.admitted(innocent)
    sender_name = scene.fresh("sender")
    sender_paper = await scene.target.registrar.certify(scene.target.service(sender_name))
    sender = await scene.admitted(sender_paper, scene.connect(sender_name, keep_alive=600))
    topic = scene.topic(name, "cmd/firmware")
    try:
        if not (await scene.subscribe(slow, scene.topic(name, "cmd/#"))).got_in:
            raise Impossible("a device may not subscribe to its commands here")
        before = scene.target.broker_memory()
        packet = Publish(topic, bytes(_FEED)).encode(sender.version)
        worst = 0.0
        for _ in range(_SLOW_BYTES // _FEED // 16):
            await sender.send(packet * 16, scene.patience)
            worst = max(worst, await scene.served(other))
        await scene.served(sender)  # By now the broker has received all of it.
        after = scene.target.broker_memory()
        if not isinstance(await slow.receive(scene.patience), Publish):
            raise Impossible("not even the first message came: nothing was fed")
    finally:
        for client in (slow, other, sender):
            client.abort()
    grown = after - before if before is not None and after is not None else None
    memory = "its memory cannot be seen from here" if grown is None else f"the broker grew by {grown / 1e6:.0f} MB"
    figures = f"{memory}, the slowest PINGRESP of another took {worst * 1000:.0f} ms"
    if grown is not None and grown > _MEMORY:
        return Seen(Layer.MQTT, "grown", figures, ClosedBy.NOBODY, got_in=True)
    return Seen(Layer.MQTT, "served", figures, ClosedBy.NOBODY, seconds=worst)


# No broker is at fault: these show that a device that checks dates by a wrong clock says so, and does not connect. A
# certificate may be good for long: then the clock is wrong by more.
@case("43-clock-ahead", "has a clock two years ahead, or more: it must refuse the broker itself",
      "device server_certificate")  # fmt: skip
async def _clock_ahead(scene: Scene) -> Seen:
    return await _by_clock(scene, lambda now, broker: max(now + _TWO_YEARS, broker.not_valid_after_utc + _DAY))


@case("43-clock-behind", "has a clock two years behind, or more: it must refuse the broker itself",
      "device server_certificate")  # fmt: skip
async def _clock_behind(scene: Scene) -> Seen:
    return await _by_clock(scene, lambda now, broker: min(now - _TWO_YEARS, broker.not_valid_before_utc - _DAY))


async def _by_clock(scene: Scene, clock: Callable[[datetime, x509.Certificate], datetime]) -> Seen:
    """Return what becomes of the broker's certificate where it is looked at by *clock*, given the time and it."""
    paper = await scene.device()
    client = await scene.dialled(paper)
    der = client.socket.getpeercert(binary_form=True)
    client.close()
    anchors = x509.load_pem_x509_certificates(scene.target.anchors.read_bytes())
    presented = x509.load_der_x509_certificate(der or b"")
    policy = PolicyBuilder().store(Store(anchors))
    name, now = x509.DNSName(scene.target.endpoint.server_name), datetime.now(UTC)
    try:
        policy.time(now).build_server_verifier(name).verify(presented, anchors)
    except VerificationError as error:
        raise Impossible(f"by the right clock the strict verifier refuses it too: {error}") from error
    try:
        policy.time(clock(now, presented)).build_server_verifier(name).verify(presented, anchors)
    except VerificationError as error:
        return Seen(Layer.DEVICE, "server_certificate", f"by the device's clock: {error}", ClosedBy.US)
    except OverflowError:
        raise Impossible("the broker's certificate is good as long as a date can be written") from None
    return Seen(Layer.DEVICE, "agreed", "the certificate is good by that clock too", ClosedBy.NOBODY, got_in=True)
