"""Measure what one message at QoS 1 for many kept sessions costs: in the event loop, in the store's thread, on disk.

    .venv/bin/python benchmarks/kept_sessions.py                 one message for 1, 20 and 200 sessions, plain Python
    PYTHONPATH=.build/compiled … kept_sessions.py                the compiled hot path, after make compiled

*away*: nobody is there, and each message is stored for all. *back*: then they come, one after the other, and
acknowledge what they get. *late*: all are connected, and acknowledge when the message is written; *soon*: before.
The connections are the real ones, on streams that take everything; TLS and the kernel are not in it. Ten messages are
one batch. Figures are processor time for a message in microseconds, the least of several rounds, and what SQLite's log
grows by. It runs from another version's directory, too: it needs nothing that is new.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
from receive_loop import _Void

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
from broker.mqtt.properties import Properties
from broker.process.recovery import recover
from broker.settings.limits import Limits
from broker.store.database_files import log_of
from broker.store.sqlite import SqliteStore
from provisioning.pki.identity import Identity, parse_uri
from provisioning.pki.revocation import RevocationIndex

_A_BATCH = 10
_BATCHES = 10


class _Kept(_Void):
    """A stream that keeps the packet identifiers of what it was given at QoS 1."""

    def __init__(self) -> None:
        self.identifiers: list[bytes] = []

    def write(self, packets: list[bytes]) -> None:
        for packet in packets:
            if packet[0] & 0xF6 == 0x32:
                head = 2 if packet[1] < 128 else 3
                at = head + 2 + int.from_bytes(packet[head : head + 2], "big")
                self.identifiers.append(packet[at : at + 2])


class Subject:
    """One broker in memory with a store, a publisher, and *sessions* that get what it publishes."""

    def __init__(self, directory: Path, sessions: int) -> None:
        self.soon: deque[Callable[[], None]] = deque()
        self.loop_seconds = self.store_seconds = 0.0
        freshness = Freshness(0.0, always_acceptable=True)
        admission = Admission(RevocationStatus(RevocationIndex(), freshness), load_policy(None), None)
        limits = Limits(max_instances=10_000)
        self.engine = Engine(admission, limits, self.soon.append, 0.0)
        self.store = SqliteStore(directory / "broker.db")
        self.store.rows("PRAGMA wal_autocheckpoint=0")
        self.log = log_of(self.store.path)
        self.journal = recover(self.engine, self.store, 0.0, time.time())
        self.journal.again = lambda: self.soon.append(lambda: self.engine.go_on(0.0))
        self.names = [f"backend-{number}" for number in range(sessions)]
        self.streams: list[_Kept] = []
        self.connections = [self.client(name) for name in self.names]
        for each in self.connections:
            each.receive(Subscribe(1, (SubscriptionRequest("fleet/#", QoS.AT_LEAST_ONCE),)).encode(each.version), 0.0)
        self.settle()
        self.publisher = self.client("meter-1", parse_uri("spiffe://fleet.internal/device/meters/meter-1"))
        self.settle()
        message = Publish("fleet/meters/meter-1/telemetry", b"x" * 50, QoS.AT_LEAST_ONCE, packet_id=7)
        self.packet = message.encode(self.publisher.version)

    def client(self, name: str, identity: Identity | None = None) -> ClientConnection:
        """Connect the session *name* of the service, or *identity*."""
        identity = identity or parse_uri("spiffe://fleet.internal/service/backend")
        stream = _Kept()
        connection = ClientConnection(self.engine, stream, 0.0)
        connection.identified(Peer(identity, (b"", len(name)), 1e9), 0.0)
        kept = Properties(session_expiry_interval=3600) if name != "meter-1" else Properties()
        connection.receive(Connect(client_id=name, clean_start=False, properties=kept).encode(), 0.0)
        if name != "meter-1":
            self.streams.append(stream)
        return connection

    def turn(self) -> None:
        """Do what the event loop does until nothing is left for it."""
        begun = time.thread_time()
        while self.soon:
            self.soon.popleft()()
        self.loop_seconds += time.thread_time() - begun

    def write(self) -> None:
        """Write a batch."""
        batch = self.journal.take()
        if batch is None:
            return
        begun = time.thread_time()
        if batch.changes:
            self.store._apply(batch)  # noqa: SLF001 - without the thread
        done = time.thread_time()
        self.engine.stored(0.0)
        self.store_seconds += done - begun
        self.loop_seconds += time.thread_time() - done

    def settle(self) -> None:
        """Write all that there is to write."""
        self.turn()
        while self.journal.dirty:
            self.write()
            self.turn()

    def timed(self, action: Callable[[], None]) -> None:
        """Do what the event loop would."""
        begun = time.thread_time()
        action()
        self.loop_seconds += time.thread_time() - begun

    def publish(self) -> None:
        """Publish a batch of messages, each in a turn of its own."""

        def action() -> None:
            for _ in range(_A_BATCH):
                self.engine.turn.begin()
                self.publisher.receive(self.packet, 0.0)
                self.engine.turn.end()
                while self.soon:  # A message to many waits for its portion.
                    self.soon.popleft()()

        self.timed(action)

    def acknowledge(self, places: Sequence[int]) -> None:
        """Acknowledge what these sessions have got, in a turn each."""

        def action() -> None:
            for place in places:
                identifiers, self.streams[place].identifiers = self.streams[place].identifiers, []
                packets = b"".join(b"\x40\x02" + each for each in identifiers)
                if packets:
                    self.engine.turn.begin()
                    self.connections[place].receive(packets, 0.0)
                    self.engine.turn.end()

        self.timed(action)
        self.turn()

    def lose(self) -> None:
        """End all connections of the sessions."""
        for each in self.connections:
            each.lost("", 0.0)
        self.settle()

    def come_back(self, place: int) -> None:
        """Connect one of them again."""

        def action() -> None:
            self.connections[place] = self.client(self.names[place])
            self.streams[place] = self.streams.pop()

        self.timed(action)
        self.settle()

    def figures(self, messages: int) -> tuple[float, float, float]:
        """Return what was counted since the last call: µs a message in the loop and in the store, and KB written."""
        found = self.loop_seconds / messages * 1e6, self.store_seconds / messages * 1e6
        size = self.log.stat().st_size / messages / 1e3
        self.loop_seconds = self.store_seconds = 0.0
        self.store.rows("PRAGMA wal_checkpoint(TRUNCATE)")
        return *found, size

    def round(self) -> dict[str, tuple[float, float, float]]:
        """Measure everything once."""
        messages = _A_BATCH * _BATCHES
        everybody = range(len(self.names))
        found = {}
        for how in ("soon", "late"):
            self.figures(1)
            for _ in range(_BATCHES):
                self.publish()
                if how == "soon":
                    self.acknowledge(everybody)
                self.settle()
                self.acknowledge(everybody)
                self.settle()
            found[how] = self.figures(messages)
        self.lose()
        self.figures(1)
        for _ in range(_BATCHES):
            self.publish()
            self.settle()
        found["away"] = self.figures(messages)
        for place in everybody:
            self.come_back(place)
            while self.streams[place].identifiers:
                self.acknowledge([place])
                self.settle()
        found["back"] = self.figures(messages)
        if (left := self.store.rows("SELECT count(*) FROM messages")) != [(0,)]:
            raise AssertionError(left)
        return found


def run(sessions: Sequence[int], rounds: int) -> None:
    """Measure and print."""
    sys.stdout.write("compiled\n" if is_compiled() else "plain Python\n")
    with tempfile.TemporaryDirectory() as directory:
        for count in sessions:
            (place := Path(directory) / str(count)).mkdir()
            subject = Subject(place, count)
            measured = [subject.round() for _ in range(rounds)]
            for how in measured[0]:
                loop, store, size = (min(each[how][place] for each in measured) for place in range(3))
                said = f"{loop:9.1f} µs in the loop {store:9.1f} µs in the store {size:8.1f} KB"
                sys.stdout.write(f"{count:5} sessions {how:5}{said}\n")
                sys.stdout.flush()
            subject.store.close()


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 20, 200])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))

    async def measure() -> None:
        run(arguments.sessions, arguments.rounds)

    asyncio.run(measure())


if __name__ == "__main__":
    main()
