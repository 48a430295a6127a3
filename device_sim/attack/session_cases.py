"""Cases 5 to 7, 18 to 20 and 35 to 43: a genuine device wants what is not its own, or does not behave.

A case that is about a message says whether it was delivered, with the order argument of `scene`.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from broker.mqtt.codes import ProtocolVersion, QoS
from broker.mqtt.connect import Will
from broker.mqtt.packets import Pingreq, Pingresp, Puback, Publish, Pubrec, Pubrel
from device_sim.attack.capabilities import Feature, TimeLimits
from device_sim.attack.case import Chapter
from device_sim.attack.issuer import Paper
from device_sim.attack.raw_client import RawClient
from device_sim.attack.scene import PATIENCE, Scene
from device_sim.attack.target import Impossible
from device_sim.attack.verdict import CLOSED, OPEN, ClosedBy, Layer, Seen
from device_sim.tls_dial import NotAdmitted

IN = "mqtt CONNACK 0x00"
NOWHERE = "mqtt not-delivered"
REVOKED = ("mqtt CONNACK 0x87", "mqtt CONNACK 0x8a", "tls certificate_revoked")
_V311 = ProtocolVersion.V311
_ANSWER = 10.0
_FLOOD = 30_000
_SERVINGS = 10
_PACKET = 7
_FEED = 16 * 1024
_SLOW_BYTES = 48 * 1024 * 1024
_MEMORY = 40 * 1024 * 1024

chapter = Chapter()
case = chapter.case


def _revocation(limits: TimeLimits) -> float:
    return limits.revocation


def _patience(_: TimeLimits) -> float:
    return PATIENCE


@case(
    "6-revoked-live", "is revoked while connected", "mqtt DISCONNECT 0x98", "mqtt DISCONNECT 0x87",
    needs=(Feature.REVOCATION,), limit=_revocation,
)  # fmt: skip
async def _revoked_live(scene: Scene) -> Seen:
    paper = await scene.device()
    return await cut(scene, paper, await scene.admitted(paper))


@case(
    "6-revoked-live-311", "is revoked while connected with MQTT 3.1.1", CLOSED,
    needs=(Feature.REVOCATION,), limit=_revocation,
)  # fmt: skip
async def _revoked_live_311(scene: Scene) -> Seen:
    paper = await scene.device()
    name = paper.name
    connect = scene.connect(name, version=_V311, keep_alive=600)
    return await cut(scene, paper, await scene.admitted(paper, connect))


async def cut(scene: Scene, paper: Paper, client: RawClient) -> Seen:
    """Revoke *paper* and return how the connection of *client* ends, timed from the call."""
    started = time.monotonic()
    try:
        await scene.target.registrar.revoke(paper)
        seen = await client.end(scene.target.capabilities.limits.revocation)
    finally:
        client.close()
    return _timed(seen, time.monotonic() - started)


def _timed(seen: Seen, seconds: float) -> Seen:
    return Seen(seen.layer, seen.code, seen.reason, seen.closed_by, seen.got_in, seconds)


async def resumed_after_revocation(scene: Scene, paper: Paper, context: ssl.SSLContext, *, clean: bool) -> Seen:
    """Connect as *paper* with *context*, end that, revoke it, and return what the resumed TLS session is answered."""
    try:
        client = await scene.dial(context)
    except NotAdmitted as error:
        raise Impossible(f"a good device is not let in: {error.closure}") from error
    await client.connect(scene.connect(paper.name, keep_alive=60))
    session = client.socket.session
    if clean:
        client.close()
    else:
        client.abort()
    if session is None:
        raise Impossible("the broker gives no TLS session to resume")
    await scene.target.registrar.revoke(paper)
    await scene.until_refused(paper)  # From here on the revocation is known; only the session is left.
    return await scene.present(context, paper.name, session=session)


def _resumed(name: str, description: str, *, clean: bool) -> None:
    async def attempt(scene: Scene) -> Seen:
        paper = await scene.device()
        return await resumed_after_revocation(scene, paper, scene.context(paper.pem), clean=clean)

    chapter.add(name, description, REVOKED, attempt, needs=(Feature.REVOCATION,))


_resumed("7-resumed", "is revoked, and resumes its TLS session", clean=True)
_resumed("7-resumed-abrupt", "the same, after an abrupt end", clean=False)


@case("18-clone", "two devices with one credential: the older is put out", "mqtt DISCONNECT 0x8e")
async def _clone(scene: Scene) -> Seen:
    paper = await scene.device()
    older = await scene.admitted(paper)
    clone = await scene.admitted(paper)
    try:
        return await older.end(_ANSWER)
    finally:
        older.close()
        clone.close()


@case("18-flapping", "two clones put each other out again and again", "mqtt CONNACK 0x8a",
      needs=(Feature.FLAPPING_ALERT,))  # fmt: skip
async def _flapping(scene: Scene) -> Seen:
    paper = await scene.device()
    seen = await scene.show(paper)
    for _ in range(20):
        if not seen.got_in:
            break
        seen = await scene.show(paper)
    return seen


def _other_client_id(name: str, description: str, version: ProtocolVersion | None, *expected: str) -> None:
    async def attempt(scene: Scene) -> Seen:
        paper = await scene.device()
        return await scene.present(scene.context(paper.pem), scene.fresh("victim"), version=version)

    chapter.add(name, description, expected, attempt, needs=(Feature.CLIENT_ID_BINDING,))


_other_client_id("19-other-client-id", "uses another's client id", None, "mqtt CONNACK 0x85", "mqtt CONNACK 0x87")
_other_client_id("19-other-client-id-311", "the same with MQTT 3.1.1", _V311, "mqtt CONNACK 2", "mqtt CONNACK 5")


@case("19-takes-over", "uses the client id of a connected device", "mqtt served", needs=(Feature.CLIENT_ID_BINDING,))
async def _takes_over(scene: Scene) -> Seen:
    victim, thief = await scene.device(), await scene.device()
    connected = await scene.admitted(victim)
    try:
        await scene.present(scene.context(thief.pem), victim.name)
        seen = await connected.end(0.5)
        if seen.got_in:
            await scene.served(connected)
            return Seen(Layer.MQTT, "served", "the victim stays connected", ClosedBy.NOBODY)
    finally:
        connected.close()
    return Seen(Layer.MQTT, "taken-over", f"the victim was put out: {seen.text}", got_in=True)


# The certificate authenticates; a user name beside it proves nothing and takes nothing away.
@case("20-other-user-name", "sends another's user name and a password (ignored or refused)",
      IN, "mqtt CONNACK 0x86", "mqtt CONNACK 0x87")  # fmt: skip
async def _other_user_name(scene: Scene) -> Seen:
    paper = await scene.device()
    name = paper.name
    client = await scene.dial(scene.context(paper.pem))
    try:
        return await client.connect(scene.connect(name, keep_alive=60, username="admin", password=b"admin"))
    finally:
        client.close()


def _publishes(
    name: str, description: str, *expected: str, qos: QoS, own: str = "", retain: bool = False,
    version: ProtocolVersion | None = None, needs: tuple[Feature, ...] = (),
) -> None:  # fmt: skip
    """Add a case that publishes to another's topic, or to its *own* one that is not for it to write."""

    async def attempt(scene: Scene) -> Seen:
        await scene.watcher()
        paper = await scene.device()
        device = paper.name
        connect = scene.connect(device, version=version, keep_alive=600)
        client = await scene.admitted(paper, connect)
        try:
            topic = scene.topic(device, own) if own else scene.topic(scene.fresh("victim"))
            payload = f"forged by {device}".encode()
            packet = Publish(topic, payload, qos, retain, packet_id=_PACKET if qos else None)
            await client.send(packet.encode(client.version))
            answer = await client.answer(Puback, Pubrec, deadline=_ANSWER) if qos else None
            if answer is not None and not answer.code.startswith(("PUBACK", "PUBREC")):
                return answer  # Closed for it.
            if qos is QoS.EXACTLY_ONCE and answer is not None and answer.got_in:
                # A broker may deliver it only when it is released (MQTT 5 §4.3.3): a forger releases it.
                await client.send(Pubrel(_PACKET).encode(client.version))
            fate = await scene.fate(client, device, payload)
            # Delivered is what counts; else the code in the acknowledgement, where there is one that says no.
            return fate if answer is None or fate.got_in or answer.got_in else answer
        finally:
            client.close()

    chapter.add(name, description, expected, attempt, needs=(Feature.TOPIC_POLICY, *needs))


_publishes("35-other-topic-qos1", "publishes to another's topic (QoS 1)", "mqtt PUBACK 0x87", qos=QoS.AT_LEAST_ONCE)
_publishes("35-other-topic-qos2", "publishes to another's topic (QoS 2)", "mqtt PUBREC 0x87",
           qos=QoS.EXACTLY_ONCE, needs=(Feature.QOS2,))  # fmt: skip
_publishes("35-other-topic-qos0", "publishes to another's topic (QoS 0)", NOWHERE, "mqtt DISCONNECT 0x87",
           qos=QoS.AT_MOST_ONCE)  # fmt: skip
_publishes("35-other-topic-311", "publishes to another's topic (MQTT 3.1.1)", NOWHERE, CLOSED,
           qos=QoS.AT_LEAST_ONCE, version=_V311)  # fmt: skip
_publishes("35-own-command", "sends itself a command", "mqtt PUBACK 0x87", qos=QoS.AT_LEAST_ONCE, own="cmd/reboot")
_publishes("37-retained", "retains a message on another's topic", "mqtt PUBACK 0x87",
           qos=QoS.AT_LEAST_ONCE, retain=True)  # fmt: skip


def _subscribes(
    name: str, description: str, topic_filter: str, *expected: str, version: ProtocolVersion | None = None
) -> None:
    async def attempt(scene: Scene) -> Seen:
        paper = await scene.device()
        connect = scene.connect(paper.name, version=version, keep_alive=600)
        client = await scene.admitted(paper, connect)
        try:
            victim = await scene.device()
            seen = await scene.subscribe(client, topic_filter.format(victim=scene.topic(victim.name)))
            return await _overheard(scene, client, victim) if seen.got_in else seen
        finally:
            client.close()

    chapter.add(name, description, expected, attempt, needs=(Feature.TOPIC_POLICY, Feature.SUBSCRIPTION_POLICY))


async def _overheard(scene: Scene, spy: RawClient, victim: Paper) -> Seen:
    """Tell whether *spy*, whose subscription was granted, hears what *victim* says, what it is told, or $SYS.

    When one who may has heard both, the broker has routed them; what it sends to the spy of them comes before the
    answer to a PINGREQ that is sent then.
    """
    watcher = await scene.watcher()
    secrets = {f"{what} {victim.name}".encode() for what in ("secret of", "command for")}
    said, told = secrets
    await _say(scene, victim, scene.topic(victim.name), said)
    service = await scene.target.registrar.certify(scene.target.service(scene.fresh("sender")))
    await _say(scene, service, scene.topic(victim.name, "cmd/identify"), told)
    for secret in secrets:
        if not await watcher.got(secret, scene.patience):
            raise Impossible(f"nobody hears {secret.decode()!r} here, not even who may")
    await spy.send(Pingreq().encode(spy.version))
    while True:
        packet = await spy.receive(scene.patience)
        if isinstance(packet, Publish) and (packet.payload in secrets or packet.topic.startswith("$SYS/")):
            return Seen(Layer.MQTT, "delivered", packet.topic, ClosedBy.NOBODY, got_in=True)
        if isinstance(packet, Pingresp):
            return Seen(Layer.MQTT, "SUBACK granted, not-delivered", "", ClosedBy.NOBODY)
        if isinstance(packet, Seen):
            return packet


async def _say(scene: Scene, who: Paper, topic: str, payload: bytes) -> None:
    """Let *who* publish, and wait until the broker has read it."""
    client = await scene.admitted(who)
    try:
        await client.send(Publish(topic, payload).encode(client.version))
        await scene.served(client)
    finally:
        client.close()


_NO = "mqtt SUBACK 0x87"
_subscribes("36-everything", "subscribes to #", "#", _NO)
_subscribes("36-everything-311", "subscribes to # with MQTT 3.1.1", "#", "mqtt SUBACK 0x80", version=_V311)
_subscribes("36-other-device", "subscribes to another's telemetry", "{victim}", _NO)
_subscribes("36-all-commands", "subscribes to everybody's commands", "fleet/+/+/cmd/#", _NO)
_subscribes("36-sys", "subscribes to $SYS/#", "$SYS/#", _NO)
_subscribes("36-shared", "subscribes to everything by a shared subscription", "$share/g/#", _NO, "mqtt SUBACK 0x9e")


@case("37-will", "leaves a will on another's topic", "mqtt CONNACK 0x87", NOWHERE, needs=(Feature.TOPIC_POLICY,),
      limit=_patience)  # fmt: skip
async def _will(scene: Scene) -> Seen:
    await scene.watcher()
    paper = await scene.device()
    name = paper.name
    payload = f"will of {name}".encode()
    client = await scene.dial(scene.context(paper.pem))
    will = Will(scene.topic(scene.fresh("victim")), payload)
    seen = await client.connect(scene.connect(name, keep_alive=60, will=will))
    client.abort()
    if not seen.got_in:
        return seen
    # Who is let in again under this name finds the old connection ended, and its will sent (MQTT 5 §3.1.2.5, §3.1.4).
    again = await scene.admitted(paper)
    try:
        return await scene.fate(again, name, payload)
    finally:
        again.close()


# It was permitted when the device was let in, and those who wait for its end should learn of it.
@case("38-will-of-revoked", "is revoked while connected, with a will on its own topic (policy)",
      "mqtt delivered", NOWHERE, needs=(Feature.REVOCATION,), limit=_patience)  # fmt: skip
async def will_of_revoked(scene: Scene) -> Seen:
    """Tell whether the will of a device that is revoked while connected is sent."""
    await scene.watcher()
    paper = await scene.device()
    name = paper.name
    payload = f"last will of {name}".encode()
    will = Will(scene.topic(name, "state"), payload)
    client = await scene.admitted(paper, scene.connect(name, keep_alive=600, will=will))
    try:
        await scene.target.registrar.revoke(paper)
        ended = await client.end(scene.target.capabilities.limits.revocation)
        if ended.code == OPEN:
            raise Impossible("the session of a revoked device is not closed here: there is no will to send")
        # What comes of a closed session was sent before this.
        other = await scene.device()
        witness = await scene.admitted(other)
        try:
            return await scene.fate(witness, other.name, payload)
        finally:
            witness.close()
    finally:
        client.close()


@case("39-flood", "publishes 30,000 messages at once; others are served", "mqtt served",
      "mqtt DISCONNECT 0x96", "mqtt DISCONNECT 0x97", limit=_patience)  # fmt: skip
async def _flood(scene: Scene) -> Seen:
    paper, innocent = await scene.device(), await scene.device()
    name = paper.name
    client, other = await scene.admitted(paper), await scene.admitted(innocent)
    packet = Publish(scene.topic(name, "flood"), bytes(100)).encode(client.version)

    enough = asyncio.Event()

    async def flood() -> Seen:
        while True:  # Until the other has been served: who is served only afterwards is starved, at whatever speed.
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
        return _timed(seen, worst)
    figures = f"the slowest PINGRESP of another took {worst * 1000:.0f} ms"
    return Seen(Layer.MQTT, "served", figures, ClosedBy.NOBODY, seconds=worst)


def _keep_alive(limits: TimeLimits) -> float:
    return limits.keep_alive


@case("41-freezes", "freezes, with a keep alive of one second", "mqtt DISCONNECT 0x8d", limit=_keep_alive, idle=True)
async def _freezes(scene: Scene) -> Seen:
    paper = await scene.device()
    name = paper.name
    client = await scene.admitted(paper, scene.connect(name, keep_alive=1))
    started = time.monotonic()
    try:
        seen = await client.end(scene.target.capabilities.limits.keep_alive)
    finally:
        client.close()
    return _timed(seen, time.monotonic() - started)


@case("41-will-of-frozen", "freezes, and has a will that must be sent", "mqtt delivered", limit=_keep_alive, idle=True)
async def _will_of_frozen(scene: Scene) -> Seen:
    watcher = await scene.watcher()
    paper = await scene.device()
    name = paper.name
    payload = f"froze: {name}".encode()
    will = Will(scene.topic(name, "state"), payload)
    client = await scene.admitted(paper, scene.connect(name, keep_alive=1, will=will))
    try:
        if await watcher.got(payload, scene.target.capabilities.limits.keep_alive):
            return Seen(Layer.MQTT, "delivered", "", ClosedBy.NOBODY, got_in=True)
        return Seen(Layer.MQTT, "not-delivered", "", ClosedBy.NOBODY)
    finally:
        client.close()


@case("42-never-reads", "is sent 48 MB and never reads; others are served", "mqtt served", "mqtt DISCONNECT 0x97",
      limit=_patience)  # fmt: skip
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
        before = scene.broker_memory()
        packet = Publish(topic, bytes(_FEED)).encode(sender.version)
        worst = 0.0
        for _ in range(_SLOW_BYTES // _FEED // 16):
            await sender.send(packet * 16, scene.patience)
            worst = max(worst, await scene.served(other))
        await scene.served(sender)  # By now the broker has taken all of it.
        after = scene.broker_memory()
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


# No broker is at fault: what is shown is that a device that checks dates by a wrong clock says so, and goes nowhere.
@case("43-clock-ahead", "its clock is two years ahead: it must refuse the broker itself", "device server_certificate")
async def _clock_ahead(scene: Scene) -> Seen:
    paper = await scene.device()
    client = await scene.dial(scene.context(paper.pem))
    der = client.socket.getpeercert(binary_form=True)
    client.close()
    anchors = x509.load_pem_x509_certificates(scene.target.anchors.read_bytes())
    leaf = x509.load_der_x509_certificate(der or b"")
    policy = PolicyBuilder().store(Store(anchors))
    name = x509.DNSName(scene.target.endpoint.server_name)
    try:
        policy.time(datetime.now(UTC)).build_server_verifier(name).verify(leaf, anchors)
    except VerificationError as error:
        raise Impossible(f"by the right clock the strict verifier refuses it too: {error}") from error
    try:
        policy.time(datetime.now(UTC) + timedelta(days=730)).build_server_verifier(name).verify(leaf, anchors)
    except VerificationError as error:
        return Seen(Layer.DEVICE, "server_certificate", f"by the device's clock: {error}", ClosedBy.US)
    return Seen(Layer.DEVICE, "agreed", "the certificate is good by that clock too", ClosedBy.NOBODY, got_in=True)
