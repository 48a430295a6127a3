"""Measure the processor time that one message costs between the transports: without plugins, and with some.

    .venv/bin/python benchmarks/receive_loop.py                  plain Python
    PYTHONPATH=.build/compiled … receive_loop.py                 the compiled hot path, after make compiled

One device publishes to one topic, one service subscribes at QoS 0. The connections are the real ones, on streams that
take everything and give nothing; TLS and the kernel are not in it. What counts is processor time, so other work on the
machine disturbs little. Each figure is the least of several rounds, the rounds of all subjects interleaved.

Run from another version's directory, with ``--only none``, it measures that version: it needs nothing that is new.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import Sequence
from typing import Any

import structlog

from broker.admission.admission import Admission
from broker.admission.freshness import Freshness
from broker.admission.peer import Peer
from broker.admission.policy_file import load_policy
from broker.admission.status import RevocationStatus
from broker.build import is_compiled
from broker.connection.connection import ClientConnection
from broker.engine.engine import Engine
from broker.mqtt.codes import QoS
from broker.mqtt.connect import Connect
from broker.mqtt.packets import Publish, Subscribe, SubscriptionRequest
from broker.settings.limits import Limits
from provisioning.pki.identity import Identity, parse_uri
from provisioning.pki.revocation import RevocationIndex

_A_READ = 100
_PLUGINS: dict[str, dict[str, dict[str, Any]]] = {
    "none": {},
    "authentication": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {}},
    "topic filter": {"amqtt.plugins.topic_checking.TopicTabooPlugin": {}},
    "message events": {"amqtt.plugins.logging_amqtt.EventLoggerPlugin": {}},
}


class _Void:
    """A stream whose peer accepts everything."""

    address = "192.0.2.1:1883"
    unsent = False
    untaken = 0

    def write(self, packets: list[bytes]) -> None:
        pass

    def forget_tls_session(self, *, at_any_price: bool) -> None:
        """There is none."""

    def presented(self) -> tuple[bytes | None, Sequence[bytes]]:
        return None, ()

    def close(self, last: Sequence[bytes] = ()) -> None:
        pass

    def reset(self) -> None:
        pass

    def hold(self) -> None:
        pass

    def release(self) -> None:
        pass

    def rest(self, seconds: float) -> None:
        pass

    def settle(self, *, dozes: bool = False) -> None:
        pass

    def probe(self, silence: int) -> None:
        pass


class Subject:
    """One broker in memory, with one publisher and one subscriber."""

    def __init__(self, qos: int) -> None:
        loop = asyncio.get_running_loop()
        freshness = Freshness(0.0, always_acceptable=True)
        admission = Admission(RevocationStatus(RevocationIndex(), freshness), load_policy(None), None)
        self.engine = Engine(admission, Limits(), loop.call_soon, loop.time())
        self.read = b""
        self.qos = qos
        self.publisher: ClientConnection
        self.plugins: Any = None

    async def fill(self) -> None:
        """Connect the two."""
        service = await self._client(parse_uri("spiffe://fleet.internal/service/backend"))
        service.receive(Subscribe(1, (SubscriptionRequest("fleet/#"),)).encode(service.version), 0.0)
        self.publisher = await self._client(parse_uri("spiffe://fleet.internal/device/meters/meter-1"))
        message = Publish("fleet/meters/meter-1/telemetry", b"x" * 64, QoS(self.qos), packet_id=7 if self.qos else None)
        self.read = message.encode(self.publisher.version) * _A_READ
        await asyncio.sleep(0.05)

    async def _client(self, identity: Identity) -> ClientConnection:
        now = asyncio.get_running_loop().time()
        connection = ClientConnection(self.engine, _Void(), now)
        connection.identified(Peer(identity, (b"", len(identity.name)), 1e9), now)
        packet = Connect(client_id=identity.name)
        connection.receive(packet.encode(), now)
        await asyncio.sleep(0.05)
        if connection.session is None:
            raise RuntimeError(f"{identity.uri} was not let in")
        return connection

    async def measure(self, reads: int) -> float:
        """Return the processor time per message, in microseconds."""
        loop = asyncio.get_running_loop()
        before, received = time.process_time(), self.engine.metrics.messages_received
        for _ in range(reads):
            self.publisher.receive(self.read, loop.time())
            await asyncio.sleep(0)
        wanted = received + reads * _A_READ
        while self.engine.metrics.messages_received < wanted:  # noqa: ASYNC110 - the plugins' turn, as often as it takes
            await asyncio.sleep(0)
        return (time.process_time() - before) / (reads * _A_READ) * 1e6


async def subject(name: str, qos: int) -> Subject:
    """Return the subject *name*."""
    made = Subject(qos)
    if _PLUGINS[name]:
        from broker.plugins.program import Plugins
        from broker.settings.config import BrokerConfig

        config = BrokerConfig.model_construct(
            plugins=_PLUGINS[name],
            log_level="warning",
            plugin_timeout=3.0,
            plugin_verdict_seconds=10.0,
            plugin_username="certificate",
            plugin_sees_password=False,
        )
        made.plugins = plugins = Plugins.attached(config, made.engine)
        await plugins.begin()
    await made.fill()
    return made


async def run(names: Sequence[str], rounds: int, reads: int) -> None:
    """Measure and print."""
    print("compiled" if is_compiled() else "plain Python")
    for qos in (0, 1):
        subjects = {name: await subject(name, qos) for name in names}
        least = dict.fromkeys(names, float("inf"))
        for _ in range(rounds):
            for name, each in subjects.items():
                least[name] = min(least[name], await each.measure(reads))
        for name, microseconds in least.items():
            print(f"QoS {qos}  {name:<15} {microseconds:7.3f} µs a message")
        for each in subjects.values():
            if each.plugins is not None:
                await each.plugins.close()


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(_PLUGINS), help="one subject")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--reads", type=int, default=20, help=f"of {_A_READ} messages, each round")
    arguments = parser.parse_args()
    if "amqtt" in sys.modules:
        raise AssertionError("amqtt is imported by a broker without plugins")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    names = [arguments.only] if arguments.only else list(_PLUGINS)
    asyncio.run(run(names, arguments.rounds, arguments.reads))


if __name__ == "__main__":
    main()
