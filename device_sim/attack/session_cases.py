"""Cases 5 to 7, 18 to 20 and 38: a genuine device whose certificate is revoked or copied, or that poses as another."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Sequence
from dataclasses import replace

from broker.mqtt.codes import ProtocolVersion
from broker.mqtt.connect import Will
from broker.mqtt.packets import Publish
from broker.mqtt.properties import Properties
from device_sim.attack.capabilities import Feature
from device_sim.attack.case import IN, NOWHERE, REVOKED, Chapter, patience, revocation
from device_sim.attack.issuer import Paper
from device_sim.attack.raw_client import RawClient
from device_sim.attack.scene import Scene
from device_sim.attack.target import BrokenPromise, Impossible, Starved, TurnedAway
from device_sim.attack.verdict import CLOSED, OPEN, ClosedBy, Layer, Said, Seen, came_to_the_broker
from provisioning.pki.revocation_reason import RevocationReason

_V311 = ProtocolVersion.V311
_ANSWER = 10.0
_MANY = 20
_EXPIRY = 600
_OFTEN = 100
"""How many times clones displace each other: a broker that has not noticed by then never will."""

chapter = Chapter()
case = chapter.case


@case(
    "5-revoked-before-connect",
    "completes TLS, is revoked, and then sends CONNECT",
    *REVOKED,
    CLOSED,
    needs=(Feature.REVOCATION,),
)
async def _before_connect(scene: Scene) -> Seen:
    paper, other = await scene.device(), await scene.device()
    slow = await scene.dialled(other)  # Before the device: whoever is closed for being slow, it is first.
    try:
        client = await scene.dialled(paper)
    except BaseException:
        slow.close()
        raise
    try:
        await scene.arrived(client)  # Else it is revoked before the broker has seen its certificate.
        await scene.target.registrar.revoke(paper)
        later = await scene.device()
        await scene.target.registrar.revoke(later)
        await scene.until_refused(later)  # What was revoked before is known by then.
        started = time.monotonic()
        seen = (await client.connect(scene.connect(paper.name, keep_alive=60))).since(started)
        if seen.matches(CLOSED):
            waited = await slow.connect(scene.connect(other.name, keep_alive=60), scene.at_most(_ANSWER))
            if not waited.got_in or waited.code == OPEN:
                raise Impossible(
                    f"revoking took so long here that who is not revoked is not let in either: {waited.text} "
                    f"{waited.reason}"
                )
    finally:
        client.close()
        slow.close()
    return seen if seen.got_in else scene.is_out(paper, seen)


@case(
    "5-revoked-by-name", "is revoked by its name, and uses its other certificate", *REVOKED, needs=(Feature.REVOCATION,)
)
async def _whole_device(scene: Scene) -> Seen:
    desk = scene.target.desk
    if desk is None:
        raise Impossible("there is no operator's API to revoke a device with")
    paper = await scene.device()
    successor = await desk.renewed(paper)
    await desk.operator.revoke(device=paper.name, reason=RevocationReason.KEY_COMPROMISE)
    first = await scene.until_refused(paper)
    return first if first.got_in else await scene.until_refused(successor)


@case(
    "6-revoked-live", "is revoked while connected", "mqtt DISCONNECT 0x98", "mqtt DISCONNECT 0x87",
    needs=(Feature.REVOCATION,), limit=revocation,
)  # fmt: skip
async def _revoked_live(scene: Scene) -> Seen:
    paper = await scene.device()
    return await cut(scene, paper, await scene.admitted(paper))


@case(
    "6-revoked-live-311", "is revoked while connected with MQTT 3.1.1", CLOSED,
    needs=(Feature.REVOCATION,), limit=revocation,
)  # fmt: skip
async def _revoked_live_311(scene: Scene) -> Seen:
    paper = await scene.device()
    name = paper.name
    connect = scene.connect(name, version=_V311, keep_alive=600)
    return await cut(scene, paper, await scene.admitted(paper, connect))


@case(
    "6-revoked-many",
    f"is one of {_MANY} that are revoked one after the other while connected: 19 of 20 are disconnected at once",
    "mqtt DISCONNECT 0x98", "mqtt DISCONNECT 0x87",
    needs=(Feature.REVOCATION,), limit=lambda limits: limits.revocation_p95, times=_MANY,
)  # fmt: skip
async def _revoked_many(scene: Scene) -> Seen:
    papers = [await scene.device() for _ in range(_MANY)]
    clients = await _all_admitted(scene, papers)
    ends: list[Seen] = []
    took: list[float] = []
    most = scene.at_most(scene.target.capabilities.limits.revocation_p95)
    try:
        for paper, client in zip(papers, clients, strict=True):
            ends.append(await cut(scene, paper, client))
            if ends[-1].got_in or ends[-1].matches(CLOSED):
                return ends[-1]
            took = sorted(each.seconds or 0.0 for each in ends)
            if len(took) > 1 and took[-2] > most:  # However soon the others are.
                told = f"not soon: 2 of the first {len(took)}, the slowest {took[-1] * 1000:.0f} ms after the call"
                return replace(ends[-1], seconds=took[-2], figures=told, revoked="")
    finally:
        for client in clients:
            client.close()
    usual, slowest = took[-1 - len(took) // 20], took[-1]
    told = f"19 of 20 within {usual * 1000:.0f} ms of the call, the slowest {slowest * 1000:.0f} ms"
    return replace(ends[-1], seconds=usual, figures=told, revoked="")


async def _all_admitted(scene: Scene, papers: Sequence[Paper]) -> list[RawClient]:
    """Return a connection of each of the good *papers*; raise as `Entry.admitted`.

    Across a long link they connect together: one after the other would take all the time that a case has.
    """
    places = asyncio.Semaphore(len(papers) if scene.bystander.distance.is_far else 1)

    async def one(paper: Paper) -> RawClient:
        async with places:
            return await scene.admitted(paper)

    tasks: list[asyncio.Task[RawClient]] = []
    try:
        try:
            async with asyncio.TaskGroup() as together:
                tasks += [together.create_task(one(paper), name=paper.name) for paper in papers]
        except* (Impossible, Starved, TurnedAway) as refused:
            raise refused.exceptions[0] from None
    except BaseException:  # Also when the case's time is over.
        for task in tasks:
            if not task.cancelled() and task.exception() is None:
                task.result().close()
        raise
    return [task.result() for task in tasks]


@case(
    "6-revoked-instances", "is a service with two connections, and is revoked: both are closed",
    "mqtt DISCONNECT 0x98", "mqtt DISCONNECT 0x87",
    needs=(Feature.REVOCATION,), limit=revocation,
)  # fmt: skip
async def _revoked_instances(scene: Scene) -> Seen:
    name = scene.fresh("service")
    paper = await scene.target.registrar.certify(scene.target.service(name))
    clients = [await scene.dialled(paper) for _ in range(2)]
    try:
        for number, client in enumerate(clients):
            if not (await client.connect(scene.connect(f"{name}-{number}", keep_alive=600))).got_in:
                raise Impossible("a certificate may have one connection only here")
        ends = await asyncio.gather(*(_ended(scene, client) for client in clients), _revoke(scene, paper))
    finally:
        for client in clients:
            client.close()
    seen = [each for each in ends if each is not None]
    worst = next((each for each in seen if each.got_in), seen[-1])
    return worst if worst.got_in else scene.is_out(paper, worst)


async def _ended(scene: Scene, client: RawClient) -> Seen:
    started = time.monotonic()
    return (await scene.with_grace(client.end, scene.target.capabilities.limits.revocation)).since(started)


async def _revoke(scene: Scene, paper: Paper) -> None:
    await scene.target.registrar.revoke(paper)


@case(
    "5-revoked-takes-over", "is revoked, and connects while its successor is connected: that stays connected",
    "mqtt served", needs=(Feature.REVOCATION, Feature.CERTIFICATE_REVOCATION), limit=patience,
)  # fmt: skip
async def _revoked_takes_over(scene: Scene) -> Seen:
    if scene.target.capabilities.missing((Feature.CERTIFICATE_REVOCATION,)):
        raise Impossible("a revocation concerns the device here: its successor is refused too")
    paper = await scene.device()
    desk = scene.target.desk
    successor = scene.forged(paper.name) if desk is None else await desk.renewed(paper)
    await scene.target.registrar.revoke(paper)
    await scene.refused_as_revoked(paper)
    connected = await scene.admitted(successor)
    try:
        for clean in (True, False):
            if not came_to_the_broker(answer := await scene.show(paper, clean=clean)):
                return answer
        return await _stays(scene, connected, "its successor")
    finally:
        connected.close()


@case("6-revoked-session", "is revoked while connected, and enrolled again: its old session is gone",
      IN, needs=(Feature.REVOCATION,), limit=patience)  # fmt: skip
async def _revoked_session(scene: Scene) -> Seen:
    desk = scene.target.desk
    if desk is None:
        raise Impossible("there is no enrolment service to enrol it again")
    paper = await scene.device()
    kept = Properties(session_expiry_interval=_EXPIRY) if scene.version is ProtocolVersion.V5 else Properties()
    connect = scene.connect(paper.name, clean_start=False, keep_alive=600, properties=kept)
    await cut(scene, paper, await scene.admitted(paper, connect))
    again = await desk.enrolled(paper.name, await desk.token(paper.name, scene.target.group))
    client = await scene.admitted(again, connect)
    client.close()
    if client.connack is None or client.connack.session_present:
        # Whoever had the key may have subscribed, and what was sent to him would come to the device.
        raise BrokenPromise("the session of the revoked certificate was there still (CONNACK with session present)")
    return client.seen(client.connack)


async def cut(scene: Scene, paper: Paper, client: RawClient) -> Seen:
    """Revoke *paper* and return how the connection of *client* ends, timed from the call."""
    started = time.monotonic()
    try:
        await scene.target.registrar.revoke(paper)
        seen = await scene.with_grace(client.end, scene.target.capabilities.limits.revocation)
    finally:
        client.close()
    seen = replace(seen, seconds=time.monotonic() - started)
    return seen if seen.got_in else scene.is_out(paper, seen)


async def resumed_after_revocation(scene: Scene, paper: Paper, context: ssl.SSLContext, *, clean: bool) -> Seen:
    """Connect as *paper* with *context*, disconnect, revoke it, and return the answer to the resumed TLS session."""
    client = await scene.admitted(paper, scene.connect(paper.name, keep_alive=60), context)
    session = client.socket.session
    if clean:
        client.close()
    else:
        client.abort()
    if session is None:
        raise Impossible("the broker gives no TLS session to resume")
    await scene.target.registrar.revoke(paper)
    await scene.until_refused(paper)  # From here on the revocation is known; only the TLS session is left.
    seen = await scene.present(context, paper.name, session=session)
    return seen if seen.got_in else scene.is_out(paper, seen)


def _resumed(name: str, description: str, *, clean: bool) -> None:
    async def attempt(scene: Scene) -> Seen:
        paper = await scene.device()
        return await resumed_after_revocation(scene, paper, scene.context(paper.pem), clean=clean)

    chapter.add(name, description, REVOKED, attempt, needs=(Feature.REVOCATION,))


_resumed("7-resumed", "is revoked, and resumes its TLS session", clean=True)
_resumed("7-resumed-abrupt", "is revoked, and resumes a TLS session that ended with a reset", clean=False)


@case("18-clone", "connects twice with one credential: the older connection is closed", "mqtt DISCONNECT 0x8e")
async def _clone(scene: Scene) -> Seen:
    paper = await scene.device()
    older = await scene.admitted(paper)
    clone = await scene.admitted(paper)
    try:
        return await older.end(scene.at_most(_ANSWER))
    finally:
        older.close()
        clone.close()


# Within a minute, the interval that brokers count by: EMQX bans after 15 times, ours after 60.
@case("18-flapping", "connects again and again without DISCONNECT, as two clones do", "mqtt CONNACK 0x8a",
      needs=(Feature.FLAPPING_ALERT,), limit=patience)  # fmt: skip
async def _flapping(scene: Scene) -> Seen:
    paper = await scene.device()
    context = scene.context(paper.pem)
    seen = await scene.present(context, paper.name, goodbye=False)
    for _ in range(_OFTEN):
        if not seen.got_in:
            break
        seen = await scene.present(context, paper.name, goodbye=False)
    return seen


def _other_client_id(
    name: str, description: str, version: ProtocolVersion | None, *expected: str, longer: bool = False
) -> None:
    async def attempt(scene: Scene) -> Seen:
        paper = await scene.device()
        used = f"{paper.name}-2" if longer else scene.fresh("victim")
        return await scene.present(scene.context(paper.pem), used, version=version)

    chapter.add(name, description, expected, attempt, needs=(Feature.CLIENT_ID_BINDING,))


_other_client_id(
    "19-other-client-id", "uses another device's client identifier", None, "mqtt CONNACK 0x85", "mqtt CONNACK 0x87"
)
_other_client_id(
    "19-other-client-id-311",
    "uses another device's client identifier, with MQTT 3.1.1",
    _V311,
    "mqtt CONNACK 2",
    "mqtt CONNACK 5",
)


_other_client_id("19-longer-client-id", "uses a client identifier that begins with its own name", None,
                 "mqtt CONNACK 0x85", "mqtt CONNACK 0x87", longer=True)  # fmt: skip


@case(
    "19-takes-over",
    "uses the client identifier of a connected device",
    "mqtt served",
    needs=(Feature.CLIENT_ID_BINDING,),
)
async def _takes_over(scene: Scene) -> Seen:
    victim, thief = await scene.device(), await scene.device()
    connected = await scene.admitted(victim)
    try:
        answer = await scene.present(scene.context(thief.pem), victim.name)
        return await _stays(scene, connected, "the victim") if came_to_the_broker(answer) else answer
    finally:
        connected.close()


async def _stays(scene: Scene, connected: RawClient, who: str) -> Seen:
    """Return whether *connected*, the good client of *who*, has stayed and is served."""
    seen = await connected.end(0.5)
    if not seen.got_in:
        return Seen(Layer.MQTT, "taken-over", f"{who} was put out: {seen.text}", got_in=True)
    await scene.served(connected)
    return Seen(Layer.MQTT, "served", f"{who} stays connected", ClosedBy.NOBODY)


# The certificate authenticates; an additional user name proves nothing and changes nothing.
@case("20-other-user-name", "sends another's user name and a password (ignored or refused)",
      IN, "mqtt CONNACK 0x86", "mqtt CONNACK 0x87", limit=patience)  # fmt: skip
async def _other_user_name(scene: Scene) -> Seen:
    paper = await scene.device()
    name = paper.name
    client = await scene.dialled(paper)
    try:
        seen = await client.connect(scene.connect(name, keep_alive=60, username="admin", password=b"admin"))
        if not seen.got_in or scene.target.capabilities.missing((Feature.TOPIC_POLICY,)):
            return seen
        await scene.watcher()
        said = Said(f"forged by {name} as admin".encode(), scene.topic(scene.fresh("victim")))
        await client.send(Publish(said.topic, said.payload).encode(client.version))
        fate = await scene.fate(client, name, said, offender=True)
        return fate if fate.got_in else replace(seen, withheld=said)
    finally:
        client.close()


# Whoever knows no such method must say so: the certificate alone was not what was asked for [MQTT-4.12.0-1].
@case("20-auth-method", "asks to be authenticated by a method that nobody knows", "mqtt CONNACK 0x8c",
      "mqtt CONNACK 0x87", needs=(Feature.MQTT5,))  # fmt: skip
async def _auth_method(scene: Scene) -> Seen:
    paper = await scene.device()
    client = await scene.dialled(paper)
    try:
        asks = Properties(authentication_method=f"method of {paper.name}", authentication_data=b"admin")
        started = time.monotonic()
        connect = scene.connect(paper.name, keep_alive=60, properties=asks)
        return (await client.connect(connect, scene.at_most(_ANSWER))).since(started)
    finally:
        client.close()


# It was permitted when the device was admitted, and those waiting for its end should learn of it.
@case("38-will-of-revoked", "is revoked while connected, with a will for its own topic (policy)",
      "mqtt delivered", NOWHERE, needs=(Feature.REVOCATION,), limit=patience)  # fmt: skip
async def will_of_revoked(scene: Scene) -> Seen:
    """Return whether the will of a device that is revoked while connected is sent."""
    await scene.watcher()
    paper = await scene.device()
    name = paper.name
    payload = f"last will of {name}".encode()
    will = Will(scene.topic(name, "state"), payload)
    client = await scene.admitted(paper, scene.connect(name, keep_alive=600, will=will))
    try:
        await scene.target.registrar.revoke(paper)
        ended = await scene.with_grace(client.end, scene.target.capabilities.limits.revocation)
        if ended.code == OPEN:
            raise Impossible("the session of a revoked device is not closed here: there is no will to send")
        # The results of a closed session were sent before this.
        other = await scene.device()
        witness = await scene.admitted(other)
        try:
            return await scene.fate(witness, other.name, Said(payload))
        finally:
            witness.close()
    finally:
        client.close()
