"""Measure the processor time of single calls on the way of a message that `receive_loop` does not have in it.

    .venv/bin/python benchmarks/hot_calls.py                     plain Python
    PYTHONPATH=.build/compiled … hot_calls.py                    the compiled hot path, after make compiled

Each figure is the least of several rounds of many calls, with what the loop around them costs. The journal is real, but
nobody writes its batches: what is acknowledged at once is never written, so they stay empty.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable

from receive_loop import Subject

from broker.admission.admission import Admitted
from broker.admission.peer import Peer
from broker.build import is_compiled
from broker.connection.answers import pinged
from broker.connection.welcome import _encode, welcome
from broker.metrics import Metrics
from broker.mqtt.codes import ProtocolVersion
from broker.mqtt.connect import Connect
from broker.mqtt.message import Message
from broker.mqtt.publish import PINGREQ
from broker.session.framing import PLAIN_V5, framing
from broker.session.queue import QueueLimits
from broker.session.session import Session
from broker.settings.limits import Limits
from broker.store.journal import Journal
from provisioning.pki.identity import parse_uri

_OWNER = parse_uri("spiffe://fleet.internal/device/meters/meter-1")
_TOPIC = b"fleet/meters/meter-1/command"


class _Taker:
    """A connection that takes everything."""

    session: Session | None = None

    def send(self, packets: list[bytes]) -> None:
        pass

    def release(self) -> None:
        pass


def delivered(journal: Journal | None) -> Callable[[], object]:
    """Return what delivers one message at QoS 1 to a connected client, which acknowledges it at once."""
    session = Session("meter-1", _OWNER, QueueLimits(1000, 1_000_000), Metrics())
    session.connect(_Taker(), PLAIN_V5, receive_maximum=100)  # type: ignore[arg-type]
    session.resume(0.0)
    if journal is not None:
        session.journal, session.row = journal, 1
    number = 0

    def deliver() -> None:
        nonlocal number
        number = number % 65535 + 1
        session.deliver_reliably(Message(_TOPIC, b"x" * 64, 1), 0.0)
        session.acknowledged(number, 0.0)
        session.outbox.clear()

    return deliver


async def calls() -> dict[str, Callable[[], object]]:
    """Return what is measured."""
    subject = Subject(0)
    await subject.fill()
    session, engine = subject.publisher.session, subject.engine
    message, aliases = Message(_TOPIC, b"x" * 64, 1), framing(v5=True, topic_alias_maximum=8)
    aliases.encode(message, b"\0\1", 0.0, introduces=True)
    packet = Connect(client_id="meter-1", protocol_version=ProtocolVersion.V5)
    admitted = Admitted(Peer(_OWNER, (b"", 1), 1e9), "meter-1", assigned=False)
    limits, idle = Limits(), Journal(0.0)

    def ping() -> None:
        pinged(engine, session, PINGREQ)
        if session is not None:
            session.outbox.clear()

    return {
        "deliver at QoS 1, acknowledged": delivered(None),
        "the same with a journal": delivered(Journal(0.0, last_session=1)),
        "encode, plain": lambda: PLAIN_V5.encode(message, b"\0\1", 0.0),
        "encode, known alias": lambda: aliases.encode(message, b"\0\1", 0.0),
        "end of a turn without changes": idle.turn_ended,
        "PINGREQ": ping,
        "CONNACK, remembered": lambda: welcome(packet, limits, admitted, 60, None),
        "CONNACK, encoded": lambda: _encode(False, None, 60, 100, 1 << 20, 8, None, None),
    }


async def run(rounds: int, number: int) -> None:
    """Measure and print."""
    print("compiled" if is_compiled() else "plain Python")
    subjects = await calls()
    least = dict.fromkeys(subjects, float("inf"))
    for _ in range(rounds):
        for name, call in subjects.items():
            before = time.process_time()
            for _ in range(number):
                call()
            least[name] = min(least[name], (time.process_time() - before) / number * 1e6)
    for name, microseconds in least.items():
        print(f"{name:<32} {microseconds:7.3f} µs")


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--calls", type=int, default=5000, help="in each round (5000)")
    options = parser.parse_args()
    asyncio.run(run(options.rounds, options.calls))


if __name__ == "__main__":
    main()
