"""``$SYS``: the broker's own figures under mosquitto's names, for dashboards that know them.

Theory
------
The figures are the existing counters (`broker.metrics`), read every few seconds. ``load/…`` are computed as mosquitto
does: events per minute, as moving averages over one, five and fifteen minutes.

Rules
-----
1. Retained, at QoS 0, every few seconds, and only those that have changed. Never stored on disk.
2. The policy decides who may read them: services and operators.
3. A plugin may publish under the same names (amqtt's ``$SYS`` plugin does): its figure then replaces ours.
4. The data path counts for them only what it has read, once a read. Mosquitto's names that would need more are in
   `NOT_OFFERED`.
5. What has mosquitto's name means what mosquitto 2.0 shows under it, be that what its manual says or not:
   ``clients/maximum`` is the most of ``clients/total``, sessions without a connection too; ``load/connections`` counts
   CONNECT packets, those of refused clients too; ``messages/…`` counts packets of all kinds.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from broker.engine.engine import Engine
from broker.mqtt.message import Message
from provisioning.program.version import product_version

INTERVAL = 10.0
FIGURES: Final = "$SYS/broker/"
VERSION: Final = "version"
NOT_OFFERED: Final = frozenset(
    {
        "messages/stored",
        "store/messages/count",
        "store/messages/bytes",
        "publish/messages/sent",
        "publish/bytes/received",
        "publish/bytes/sent",
        *(f"load/publish/sent/{minutes}min" for minutes in (1, 5, 15)),
        # From mosquitto 2.1 on:
        "packet/out/bytes",
        "packet/out/count",
    }
)
"""Figures of mosquitto that are not counted here; those of stored messages are Prometheus' (`broker.admin.survey`)."""
_MINUTE = 60.0
_PAGE_BYTES = resource.getpagesize()


class _Load:
    """Events per minute, smoothed over one, five and fifteen minutes, as in mosquitto."""

    def __init__(self) -> None:
        self._averages = dict.fromkeys((1, 5, 15), 0.0)
        self._last = 0

    def add(self, total: int, seconds: float) -> dict[str, str]:
        """Take note of the counter's *total* after *seconds*; return the averages by name."""
        rate = (total - self._last) * _MINUTE / seconds
        self._last = total
        for minutes, average in self._averages.items():
            self._averages[minutes] = rate + math.exp(-seconds / (minutes * _MINUTE)) * (average - rate)
        return {f"{minutes}min": f"{average:.2f}" for minutes, average in self._averages.items()}


class SysTopics:
    """Publishes the figures of one engine; *sockets* says how many connections there are, admitted or not."""

    def __init__(self, engine: Engine, sockets: Callable[[], int], started: float) -> None:
        self._engine = engine
        self._sockets = sockets
        self._started = started
        self._published: dict[str, str] = {}
        self._version = f"fleetgate version {product_version()}"
        self._most_clients = 0
        self._loads: dict[str, _Load] = {}
        self._last = started

    def publish(self, now: float) -> Iterator[None]:
        """Publish what has changed since the last time: one figure a step, since thousands may want each."""
        figures = self._figures(now)
        if now > self._last:
            figures |= self._load(now - self._last)
            self._last = now
        theirs = self._engine.extension.figures if self._engine.extension is not None else frozenset()
        for name, value in figures.items():
            topic = FIGURES + name
            if self._published.get(name) != value and topic not in theirs:
                self._published[name] = value
                self._engine.publish_own(Message(topic.encode(), value.encode(), retain=True), now)
                yield

    def _figures(self, now: float) -> dict[str, str]:
        engine, metrics = self._engine, self._engine.metrics
        connected, total = engine.connected, len(engine.registry)
        self._most_clients = max(self._most_clients, total)
        resident, most_resident = _memory()
        figures = {
            "clients/connected": connected,
            "clients/active": connected,
            "clients/disconnected": total - connected,
            "clients/inactive": total - connected,
            "clients/expired": metrics.sessions_expired,
            "clients/maximum": self._most_clients,
            "clients/total": total,
            "connections/socket/count": self._sockets(),
            "messages/received": metrics.packets_received,
            "publish/messages/received": metrics.messages_received,
            "publish/messages/dropped": metrics.dropped,
            "messages/sent": metrics.packets_sent,
            "bytes/received": metrics.bytes_received,
            "bytes/sent": metrics.bytes_sent,
            "heap/current": resident,
            "heap/maximum": most_resident,
            "retained messages/count": len(engine.retained),
            "subscriptions/count": engine.routes.subscription_count,
            "shared_subscriptions/count": engine.routes.shared_subscription_count,
            "fleet/admitted": metrics.admitted,
            "fleet/refused": metrics.refused.total(),
            "fleet/revocations": metrics.revocations,
            "fleet/revoked certificates": len(engine.admission.status.index),
        }
        return {
            "version": self._version,
            "uptime": f"{now - self._started:.0f} seconds",
            **{name: str(value) for name, value in figures.items()},
        }

    def _load(self, seconds: float) -> dict[str, str]:
        metrics = self._engine.metrics
        totals = {
            "messages/received": metrics.packets_received,
            "messages/sent": metrics.packets_sent,
            "publish/received": metrics.messages_received,
            "publish/dropped": metrics.dropped,
            "bytes/received": metrics.bytes_received,
            "bytes/sent": metrics.bytes_sent,
            "connections": metrics.connects_received,
            "sockets": metrics.connections_accepted,
        }
        return {
            f"load/{name}/{span}": value
            for name, total in totals.items()
            for span, value in self._loads.setdefault(name, _Load()).add(total, seconds).items()
        }


def _memory() -> tuple[int, int]:
    """Return how many bytes the process holds now, and the most it has held."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    try:
        held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES
        return held, max(held, most)  # The kernel adds a thread's newest pages late to one or the other.
    except (OSError, IndexError, ValueError):  # Not Linux.
        return most, most
