"""``$SYS``: the broker's own figures under mosquitto's names, for dashboards that know them.

Rules
-----
1. Retained, at QoS 0, every few seconds, and only what has changed. Never stored on disk.
2. Who may read them is the policy's to say: services and operators.
"""

from __future__ import annotations

from broker.engine import Engine
from broker.mqtt.message import Message
from provisioning.version import product_version

INTERVAL = 10.0


class SysTopics:
    """Publishes the figures of one engine."""

    def __init__(self, engine: Engine, started: float) -> None:
        self._engine = engine
        self._started = started
        self._published: dict[str, str] = {}
        self._version = f"fleetgate version {product_version()}"

    def publish(self, now: float) -> None:
        """Publish what has changed since the last time."""
        for name, value in self._figures(now).items():
            if self._published.get(name) != value:
                self._published[name] = value
                self._engine.publish_own(Message(f"$SYS/broker/{name}".encode(), value.encode(), retain=True), now)

    def _figures(self, now: float) -> dict[str, str]:
        engine, metrics = self._engine, self._engine.metrics
        connected, total = engine.connected, len(engine.registry)
        dropped = (
            metrics.dropped_slow_consumer
            + metrics.dropped_queue_full
            + metrics.dropped_too_large
            + metrics.dropped_expired
        )
        figures = {
            "clients/connected": connected,
            "clients/active": connected,
            "clients/disconnected": total - connected,
            "clients/inactive": total - connected,
            "clients/total": total,
            "messages/received": metrics.messages_received,
            "publish/messages/received": metrics.messages_received,
            "publish/messages/dropped": dropped,
            "messages/sent": metrics.packets_sent,
            "bytes/received": metrics.bytes_received,
            "bytes/sent": metrics.bytes_sent,
            "retained messages/count": len(engine.retained),
            "subscriptions/count": engine.routes.subscription_count,
            "fleet/admitted": metrics.admitted,
            "fleet/refused": metrics.refused.total(),
            "fleet/revocations": metrics.revocations,
            "fleet/revoked certificates": len(engine.admission.index),
        }
        return {
            "version": self._version,
            "uptime": f"{now - self._started:.0f} seconds",
            **{name: str(value) for name, value in figures.items()},
        }
