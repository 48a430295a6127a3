"""The REV list: every known way around a revocation.

`fleet-sim revocation` tries them on a broker that also accepts TLS 1.2, where the attack surface is largest.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import replace

from broker.mqtt.codes import ProtocolVersion, QoS
from broker.mqtt.connect import Connect
from broker.mqtt.packets import Publish
from broker.mqtt.properties import Properties
from device_sim.attack import session_cases
from device_sim.attack.capabilities import Feature
from device_sim.attack.case import IN, REVOKED, Chapter, revocation
from device_sim.attack.issuer import Paper
from device_sim.attack.scene import PATIENCE, Scene
from device_sim.attack.target import Impossible, Starved
from device_sim.attack.verdict import DELIVERED, NOT_DELIVERED, OPEN, ClosedBy, Layer, Seen, came_to_the_broker, seen_in
from device_sim.link.tls_dial import NotAdmitted
from provisioning.pki.serial_number import serial_text

_NEEDS = (Feature.REVOCATION,)
_QUEUE = 3
_EXPIRY = 600
_RESTART = 30.0
_LOOK_AGAIN = 0.05
_ANSWER = 10.0
_QUIET = 2.0
"""Seconds of silence after an answer: what was queued comes right behind it."""

chapter = Chapter()
case = chapter.case


@case("1-full-handshake", "connects again after its revocation", *REVOKED, needs=_NEEDS, limit=revocation)
async def _full_handshake(scene: Scene) -> Seen:
    paper = await scene.device()
    await scene.target.registrar.revoke(paper)
    return await scene.until_refused(paper)


def _resumes(name: str, description: str, *, clean: bool, version: ssl.TLSVersion, ticket: bool = True) -> None:
    async def attempt(scene: Scene) -> Seen:
        if version is ssl.TLSVersion.TLSv1_2 and Feature.TLS12 not in scene.target.capabilities.supports:
            raise Impossible("the broker does not claim TLS 1.2")
        paper = await scene.device()
        context = scene.context(paper.pem, allow_tls12=True)
        context.maximum_version = version
        if not ticket:
            context.options |= ssl.OP_NO_TICKET
        return await session_cases.resumed_after_revocation(scene, paper, context, clean=clean)

    chapter.add(name, description, REVOKED, attempt, needs=_NEEDS)


_T13, _T12 = ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2
_resumes("2-resumed-tls13", "resumes a TLS 1.3 session that it closed cleanly", clean=True, version=_T13)
_resumes("3-resumed-tls13-abrupt", "resumes a TLS 1.3 session that ended with a reset", clean=False, version=_T13)
_resumes("4-resumed-tls12-ticket", "resumes a TLS 1.2 session by its ticket", clean=True, version=_T12)
_resumes("5-resumed-tls12-id", "resumes a TLS 1.2 session by its session ID", clean=True, version=_T12, ticket=False)


@case("6-live", "is connected", "mqtt DISCONNECT 0x98", "mqtt DISCONNECT 0x87", needs=_NEEDS, limit=revocation)
async def _live(scene: Scene) -> Seen:
    paper = await scene.device()
    return await session_cases.cut(scene, paper, await scene.admitted(paper))


@case("7-live-311", "is connected with MQTT 3.1.1", "closed", needs=_NEEDS, limit=revocation)
async def _live_311(scene: Scene) -> Seen:
    paper = await scene.device()
    name = paper.name
    connect = scene.connect(name, version=ProtocolVersion.V311, keep_alive=600)
    return await session_cases.cut(scene, paper, await scene.admitted(paper, connect))


def _keeping(scene: Scene, name: str) -> Connect:
    # Before MQTT 5 no expiry can be requested.
    kept = Properties(session_expiry_interval=_EXPIRY) if scene.version is ProtocolVersion.V5 else Properties()
    return scene.connect(name, clean_start=False, keep_alive=600, properties=kept)


async def _kept(scene: Scene, messages: int) -> tuple[Paper, str]:
    """Return a device that has left a session behind, with *messages* queued in it."""
    paper = await scene.device()
    name = paper.name
    client = await scene.admitted(paper, _keeping(scene, name))
    if not (await scene.subscribe(client, scene.topic(name, "cmd/#"), qos=QoS.AT_LEAST_ONCE)).got_in:
        raise Impossible("a device may not subscribe to its commands here")
    client.abort()
    sender_name = scene.fresh("sender")
    sender = await scene.admitted(
        await scene.target.registrar.certify(scene.target.service(sender_name)),
        scene.connect(sender_name, keep_alive=600),
    )
    for number in range(1, messages + 1):
        packet = Publish(scene.topic(name, "cmd/open"), b"secret", QoS.AT_LEAST_ONCE, packet_id=number)
        await sender.send(packet.encode(sender.version))
    await scene.served(sender)
    sender.close()
    return paper, name


@case("8-kept-session", "resumes an MQTT session that the broker has kept", *REVOKED, needs=_NEEDS, limit=revocation)
async def _kept_session(scene: Scene) -> Seen:
    paper, _ = await _kept(scene, 0)
    await scene.target.registrar.revoke(paper)
    return await scene.until_refused(paper, clean=False)


@case("9-queued-messages", "reconnects to get queued messages", "mqtt not-delivered", needs=_NEEDS)
async def _queued_messages(scene: Scene) -> Seen:
    honest, honest_name = await _kept(scene, _QUEUE)
    if (await _fetched(scene, honest, honest_name)).code != DELIVERED:
        raise Impossible("not even a good device gets what was queued for it")
    paper, name = await _kept(scene, _QUEUE)
    await scene.target.registrar.revoke(paper)
    # Not by connecting: an admitted device would fetch its messages. What is revoked later is refused later.
    later = await scene.device()
    await scene.target.registrar.revoke(later)
    await scene.until_refused(later)
    return await _fetched(scene, paper, name)


async def _fetched(scene: Scene, paper: Paper, name: str) -> Seen:
    """Resume the kept session, and return whether a queued message arrives."""
    started = time.monotonic()
    try:
        client = await scene.dial(scene.context(paper.pem))
    except NotAdmitted as error:
        return _not_delivered(seen_in(error.closure), f"refused: {error.closure}").since(started)
    answers: list[Seen] = []
    try:
        await client.send(_keeping(scene, name).encode())
        while True:
            packet = await client.receive(scene.at_most(_QUIET if answers else _ANSWER))
            if isinstance(packet, Publish):
                return Seen(Layer.MQTT, DELIVERED, "a queued command", ClosedBy.NOBODY, got_in=True)
            answers.append(packet if isinstance(packet, Seen) else client.seen(packet))
            if isinstance(packet, Seen):
                told = ", then ".join(each.text for each in answers)
                let_in = next((each for each in answers if each.got_in and each.code != OPEN), answers[0])
                return _not_delivered(let_in, told).since(started)
    finally:
        client.close()


def _not_delivered(answer: Seen, told: str) -> Seen:
    """Return that nothing came to a client that got this *answer*; or the answer, if that is no refusal."""
    if answer.code == OPEN:
        raise Starved(f"neither admitted nor refused: {answer.reason}")
    if answer.got_in or not came_to_the_broker(answer):
        return answer
    return Seen(Layer.MQTT, NOT_DELIVERED, told)


@case("10-will", "has a will for its own topic (policy)", "mqtt delivered", "mqtt not-delivered", needs=_NEEDS,
      limit=lambda _: PATIENCE)  # fmt: skip
async def _will(scene: Scene) -> Seen:
    return await session_cases.will_of_revoked(scene)


@case("11-serial-of-other-issuer", "has a serial number that another CA has revoked: it is admitted", IN, needs=_NEEDS)
async def _serial_of_other_issuer(scene: Scene) -> Seen:
    other = scene.target.other_issuer
    if other is None:
        raise Impossible("the broker trusts no second CA of ours")
    paper = await scene.device()
    await scene.target.registrar.revoke(paper)
    await scene.refused_as_revoked(paper)
    namesake = other.issue(scene.target.device(scene.fresh()), serial=paper.certificate.serial_number)
    return await scene.show(namesake)


@case("12-feed-lost", "is connected, and revoked while the feed is interrupted; then the feed resumes",
      "mqtt DISCONNECT 0x98", "mqtt DISCONNECT 0x87", needs=_NEEDS)  # fmt: skip
async def _feed_lost(scene: Scene) -> Seen:
    feed = scene.target.feed
    if feed is None:
        raise Impossible("the tester does not control how this broker learns of revocations")
    paper = await scene.device()
    client = await scene.admitted(paper)
    try:
        feed.cut()
        try:
            await scene.target.registrar.revoke(paper)
        finally:
            feed.join()
        started = time.monotonic()
        return (await client.end(scene.at_most(10.0))).since(started)
    finally:
        client.close()


@case("13-broker-restarted", "connects again after the broker was restarted", *REVOKED,
      needs=_NEEDS, limit=lambda _: _RESTART)  # fmt: skip
async def _broker_restarted(scene: Scene) -> Seen:
    paper = await scene.device()
    await scene.target.registrar.revoke(paper)
    await _restart(scene)
    return await _first_known(scene, paper)


@case("14-revoked-meanwhile", "is revoked while the broker is down", *REVOKED,
      needs=_NEEDS, limit=lambda _: _RESTART)  # fmt: skip
async def _revoked_meanwhile(scene: Scene) -> Seen:
    paper = await scene.device()
    await _restart(scene, paper)
    return await _first_known(scene, paper)


async def _restart(scene: Scene, revoked_meanwhile: Paper | None = None) -> None:
    stop, start = scene.target.stop_broker, scene.target.start_broker
    if stop is None or start is None:
        raise Impossible("the tester cannot restart this broker")
    await scene.close()
    await stop()
    try:
        if revoked_meanwhile is not None:
            await scene.target.registrar.revoke(revoked_meanwhile)
    finally:
        await start()


async def _first_known(scene: Scene, paper: Paper) -> Seen:
    """Return the first answer other than "unavailable": before it has read the feed, the broker admits nobody."""
    until = time.monotonic() + _RESTART
    while True:
        seen = await scene.show(paper)
        if seen.reason_code != "0x88" or time.monotonic() > until:
            return seen
        await asyncio.sleep(_LOOK_AGAIN)


@case("15-other-certificate", "uses its other certificate, which is not revoked: it is admitted", IN,
      needs=(Feature.REVOCATION, Feature.CERTIFICATE_REVOCATION))  # fmt: skip
async def _other_certificate(scene: Scene) -> Seen:
    desk = scene.target.desk
    paper = await scene.device()
    successor = scene.forged(paper.name) if desk is None else await desk.renewed(paper)
    await scene.target.registrar.revoke(paper)
    await scene.refused_as_revoked(paper)
    return await scene.show(successor)


@case("16-suspended", "is suspended, and later resumed", "mqtt CONNACK 0x8a", needs=(*_NEEDS, Feature.SUSPENSION))
async def _suspended(scene: Scene) -> Seen:
    desk = scene.target.desk
    if desk is None:
        raise Impossible("there is no operator's API to suspend with")
    paper = await scene.device()
    serial = serial_text(paper.certificate.serial_number)
    await desk.operator.suspend(serial=serial)
    refused = await scene.until_refused(paper)
    if refused.got_in:
        return refused
    await desk.operator.resume(serial=serial)
    await scene.until_released(paper)
    return replace(refused, revoked="")  # It may come back.


@case("17-neighbour", "is not revoked, while another is: it stays connected", "mqtt served", needs=_NEEDS)
async def _neighbour(scene: Scene) -> Seen:
    paper, neighbour = await scene.device(), await scene.device()
    client = await scene.admitted(neighbour)
    try:
        await scene.target.registrar.revoke(paper)
        await scene.refused_as_revoked(paper)
        waited = await scene.served(client)
    finally:
        client.close()
    return Seen(Layer.MQTT, "served", f"PINGRESP in {waited * 1000:.0f} ms", ClosedBy.NOBODY, seconds=waited)
