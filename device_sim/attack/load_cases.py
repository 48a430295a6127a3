"""Cases 28, 33 and 34, continued: a device within its rights costs the broker far more than it pays.

Each is a known failure of other brokers: a packet with very many user properties (CVE-2021-41039) or topic levels
(CVE-2019-11779) holds or ends the whole broker, connections that say nothing keep it busy (CVE-2023-5632).

Rules
-----
1. What counts is how long an innocent device waits meanwhile; a refusal of the packet is as good as taking it.
2. Of a broker's processor time counts what it uses more than before: one that has just started does things of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from broker.mqtt.codes import QoS
from broker.mqtt.packets import Publish, Subscribe, SubscriptionRequest, Unsubscribe
from broker.mqtt.properties import Properties
from device_sim.attack.capabilities import Feature
from device_sim.attack.case import Chapter
from device_sim.attack.scene import Scene
from device_sim.attack.target import BrokenPromise, Impossible
from device_sim.attack.verdict import ClosedBy, Layer, Seen
from device_sim.core_wait import seconds_waited

_AT_MOST = 5.0
_LEVELS = 65_000
_PROPERTIES = 12_000
_FILTERS = 15_000
_SILENT = 20
_WATCHED = 2.0
_MOST_LOAD = 0.5
_TO_ANSWER = 0.5
_LEAST = 0.1

chapter = Chapter()
case = chapter.case

_Made = Callable[[Scene, str], bytes]


def _costs(name: str, description: str, made: _Made, needs: tuple[Feature, ...] = ()) -> None:
    """Add a case that sends what *made* returns for a device's name; another's PINGRESP tells what it costs."""

    async def attempt(scene: Scene) -> Seen:
        paper, innocent = await scene.device(), await scene.device()
        client, other = await scene.admitted(paper), await scene.admitted(innocent)
        try:
            await scene.served(other)
            await client.send(made(scene, paper.name))
            worst = await scene.served(other)
            answer = await client.end(_TO_ANSWER)
            worst = max(worst, await scene.served(other))
            told = "it was taken" if answer.got_in else f"it was answered with {answer.text}"
            return Seen(Layer.MQTT, "served", "", ClosedBy.NOBODY, seconds=worst, figures=told)
        finally:
            client.close()
            other.close()

    chapter.add(name, description, ("mqtt served",), attempt, needs=needs, limit=lambda _: _AT_MOST)


def _deep(scene: Scene, name: str) -> bytes:
    """Return what uses a filter and a topic of very many levels: each match may walk them all."""
    levels = "/".join("a" * (_LEVELS // 2))
    commands, topic = scene.topic(name, f"cmd/{levels}"), scene.topic(name, f"telemetry/{levels}")
    packets = (
        Subscribe(1, (SubscriptionRequest(commands, QoS.AT_MOST_ONCE),)),
        Publish(topic, b"deep"),
        Unsubscribe(2, (commands,)),
    )
    return b"".join(packet.encode(scene.version) for packet in packets)


def _wordy(scene: Scene, name: str) -> bytes:
    properties = Properties(user_properties=tuple((f"{number:04x}", "") for number in range(_PROPERTIES)))
    return Publish(scene.topic(name), b"wordy", properties=properties).encode(scene.version)


def _many(scene: Scene, name: str) -> bytes:
    filters = (scene.topic(name, f"cmd/{number:x}/+/#") for number in range(_FILTERS))
    return Subscribe(1, tuple(SubscriptionRequest(each, QoS.AT_MOST_ONCE) for each in filters)).encode(scene.version)


_costs("33-many-filters", "subscribes to 15,000 filters in one packet: others are served", _many)
_costs("33-user-properties", "publishes with 12,000 user properties: others are served", _wordy, (Feature.MQTT5,))
_costs("34-many-levels", "subscribes and publishes with 32,500 topic levels: others are served", _deep)


@case("28-idle-load", "opens 20 connections and sends nothing: they cost the broker no processor time", "tcp idle")
async def _idle_load(scene: Scene) -> Seen:
    process = scene.target.broker_pid
    if process is None:
        raise Impossible("the broker is not a process of this tester's: its load is not known")
    endpoint = scene.target.endpoint
    open_ones: list[asyncio.StreamWriter] = []
    anyway = await _share(process)
    if anyway > _MOST_LOAD:
        raise Impossible(f"the broker is busy for {anyway:.0%} of the time before anybody connects")
    try:
        # Together: one after the other takes long across a link.
        connecting = (asyncio.open_connection(endpoint.host, endpoint.port) for _ in range(_SILENT))
        came = await asyncio.gather(*connecting, return_exceptions=True)
        open_ones = [each[1] for each in came if not isinstance(each, BaseException)]
        for each in came:
            if isinstance(each, BaseException):
                raise each
        await asyncio.sleep(_WATCHED / 4)  # What it costs to accept them is not meant.
        share = max(await _share(process) - anyway, 0.0)
    finally:
        for writer in open_ones:
            with contextlib.suppress(OSError):
                writer.transport.abort()
    if share > _MOST_LOAD:
        raise BrokenPromise(f"{_SILENT} connections that say nothing keep the broker busy for {share:.0%} of the time")
    return Seen(Layer.TCP, "idle", "", ClosedBy.NOBODY, figures=f"{share:.0%} of a core")


async def _share(process: int) -> float:
    """Return for which share of the next moments *process* runs; raise `Impossible` if it is gone."""
    started, ran, waited = time.monotonic(), processor_time(process), seconds_waited(process)
    await asyncio.sleep(_WATCHED)
    # On a machine that others hold it cannot run for most of the time, however busy it is.
    could_run = time.monotonic() - started - (seconds_waited(process) - waited)
    return (processor_time(process) - ran) / max(could_run, _LEAST)


def processor_time(process: int) -> float:
    """Return how many seconds *process* has run; raise `Impossible` if it is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError as error:
        raise Impossible("the broker's process is gone") from error
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
