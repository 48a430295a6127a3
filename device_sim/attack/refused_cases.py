"""Cases 19 and 37, continued: what a CONNECT that is refused must not leave behind.

A broker may open the session, or note the will, before it has decided whom it admits.

Rules
-----
1. Everything in the refused CONNECT is the device's own, but for the client identifier: it is refused for that alone.
"""

from __future__ import annotations

import time

from broker.mqtt.codes import ProtocolVersion, QoS
from broker.mqtt.connect import Connect, Will
from broker.mqtt.properties import Properties
from device_sim.attack.capabilities import Feature
from device_sim.attack.case import NOWHERE, Chapter, patience
from device_sim.attack.scene import Scene
from device_sim.attack.target import Impossible
from device_sim.attack.verdict import OPEN, ClosedBy, Layer, Said, Seen

_EXPIRY = 600
_TO_CLOSE = 5.0

chapter = Chapter()
case = chapter.case


@case("37-will-of-refused", "is refused for its client identifier, with a will for its own topic: that is never sent",
      NOWHERE, needs=(Feature.CLIENT_ID_BINDING, Feature.TOPIC_POLICY), limit=patience)  # fmt: skip
async def _will_of_refused(scene: Scene) -> Seen:
    await scene.watcher()
    paper, victim = await scene.device(), await scene.device()
    payload = f"will of the refused {paper.name}".encode()
    client = await scene.dialled(paper)
    try:
        will = Will(scene.topic(paper.name), payload)
        seen = await client.connect(scene.connect(victim.name, keep_alive=60, will=will))
        if seen.got_in:
            raise Impossible(f"it was let in under another's client identifier: {seen.text}; see 19-other-client-id")
        await client.end(_TO_CLOSE)
    finally:
        client.abort()
    again = await scene.admitted(paper)
    try:
        return await scene.fate(again, paper.name, Said(payload))
    finally:
        again.close()


def _keeping(scene: Scene, name: str, *, clean: bool = False) -> Connect:
    kept = Properties(session_expiry_interval=_EXPIRY) if scene.version is ProtocolVersion.V5 else Properties()
    return scene.connect(name, clean_start=clean, keep_alive=600, properties=kept)


@case("19-clean-start-of-refused", "asks for a clean start under another device's client identifier: its session stays",
      "mqtt served", needs=(Feature.CLIENT_ID_BINDING,), limit=patience)  # fmt: skip
async def _clean_start_of_refused(scene: Scene) -> Seen:
    victim, thief = await scene.device(), await scene.device()
    for _ in range(2):  # The second time the broker must know its session: it keeps sessions.
        client = await scene.admitted(victim, _keeping(scene, victim.name))
        await scene.subscribe(client, scene.topic(victim.name, "cmd/#"), qos=QoS.AT_LEAST_ONCE)
        client.close()
    if client.connack is None or not client.connack.session_present:
        raise Impossible("the broker keeps no sessions")
    started = time.monotonic()
    client = await scene.dialled(thief)
    try:
        seen = await client.connect(_keeping(scene, victim.name, clean=True))
        if seen.got_in and seen.code != OPEN:
            raise Impossible(f"it was let in under another's client identifier: {seen.text}; see 19-other-client-id")
    finally:
        client.close()
    client = await scene.admitted(victim, _keeping(scene, victim.name))
    client.close()
    if client.connack is None or not client.connack.session_present:
        gone = "the session of its victim is gone, with whatever was queued in it"
        return Seen(Layer.MQTT, "session-gone", gone, ClosedBy.NOBODY, got_in=True).since(started)
    return Seen(Layer.MQTT, "served", "the session is there", ClosedBy.NOBODY).since(started)
