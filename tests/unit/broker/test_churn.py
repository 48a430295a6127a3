"""What comes and goes leaves nothing behind: clients, sessions, filters, topics, shares and strangers, ever new ones.

Everything that can be reached from the engine is counted by type, after as many rounds as fill what is bounded, and
again after as many more. What grows is named by its types.
"""

from __future__ import annotations

import gc
from collections import Counter
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType

from broker.mqtt.codes import QoS
from broker.mqtt.connect import Will
from broker.mqtt.properties import Properties
from tests.support.pki import shared_device, shared_service
from tests.support.wire import V5, V311, MemoryBroker, publication

DEVICES = 5
INSTANCES = 40
"""Names that are used again: permissions are remembered for a few hundred."""
WEEK = 7 * 24 * 3600
_NOT_STATE = (type, ModuleType, FunctionType, BuiltinFunctionType)
_ROUNDS = 60


def census(root: object) -> Counter[str]:
    """Count the objects that can be reached from *root*, by type, and what dictionaries, lists and sets hold."""
    gc.collect()
    seen: dict[int, object] = {}
    waiting = [root]
    counted: Counter[str] = Counter()
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, _NOT_STATE):
            continue
        seen[id(each)] = each
        kind = type(each)
        counted[f"{kind.__module__}.{kind.__qualname__}"] += 1
        if isinstance(each, dict | list | set | tuple):
            counted[f"in {kind.__qualname__}"] += len(each)
        waiting += gc.get_referents(each)
        if isinstance(each, MethodType):
            waiting.append(each.__self__)
    return counted


class Churn:
    """A broker, one service that stays, and all others, who come and go."""

    def __init__(self) -> None:
        self.broker = MemoryBroker(
            max_connects_per_identity=0,
            flapping_count=0,
            max_history=40,
            max_cached_routes=20,
            max_allowed_topics=8,
            max_topic_alias=8,
        )
        self.stays = self.broker.service("backend", keep_alive=0)
        self.stays.subscribe("fleet/#", qos=1)
        self.commander = self.broker.service("commander", keep_alive=0)
        self.number = 0

    def round(self) -> None:
        self.number += 1
        number, broker, name = self.number, self.broker, f"meter-{self.number % DEVICES}"
        mine = f"fleet/meters/{name}"
        client = broker.open(shared_device(name))
        client.transport.address = f"198.51.100.{number % 250}:{number}"
        will = Will(f"{mine}/will/{number}", b"", QoS.AT_LEAST_ONCE, properties=Properties(will_delay_interval=5))
        client.connect(client_id=name, session_expiry_interval=WEEK, will=will if number % 2 else None)
        client.subscribe(f"{mine}/cmd/{number}", f"{mine}/cmd/{number}/+", f"$share/s{number}/{mine}/cmd/+", qos=1)
        for topic in range(4):
            client.send(publication(f"{mine}/telemetry/{number}/{topic}", b"x", 0, topic_alias=topic + 1))
        client.publish(f"{mine}/state/{number}", b"kept", qos=1, retain=True)
        client.publish(f"{mine}/state/{number}", b"", qos=2, retain=True)
        client.publish(f"fleet/others/{number}", b"", qos=1)
        client.unsubscribe(f"{mine}/cmd/{number}/+", f"$share/s{number}/{mine}/cmd/+")
        taken = broker.open(shared_device(name))
        taken.transport.address = f"203.0.113.{number % 250}:{number}"
        taken.connect(client_id=name, clean_start=False, session_expiry_interval=WEEK)
        (taken.vanish if number % 2 else taken.leave)()
        self.commander.publish(f"{mine}/cmd/{number}", b"waits", qos=1)
        older = broker.device(name, version=V311)  # Which ends the session that had a week.
        older.subscribe(f"{mine}/cmd/#", qos=1)
        older.publish(f"{mine}/telemetry/{number}", b"", qos=1)
        older.leave()
        instance = broker.service(client_id=f"backend-{number % INSTANCES}", session_expiry_interval=3)
        instance.subscribe(f"$share/g{number}/fleet/#", f"fleet/+/+/telemetry/{number}/#", qos=1)
        instance.vanish()
        for refused in (shared_service("backend"), shared_device(name)):
            stranger = broker.open(refused, version=V5)
            stranger.transport.address = f"192.0.2.{number % 250}:{number}"
            stranger.connect(client_id=f"another-{number}", expect=None)
        broker.advance(10)
        broker.keep_fresh()
        self.stays.acknowledge(*self.stays.messages())

    def rounds(self, times: int) -> Counter[str]:
        for _ in range(times):
            self.round()
        return census(self.broker.engine)


def test_what_comes_and_goes_leaves_nothing_behind() -> None:
    churn = Churn()
    churn.rounds(_ROUNDS)
    before, after = churn.rounds(_ROUNDS), churn.rounds(_ROUNDS)
    # As much as one round has under way, and a cache that was emptied sooner or later; not something of each round.
    grown = {kind: (before[kind], now) for kind, now in after.items() if now > before[kind] + _ROUNDS // 3}
    assert grown == {}
    metrics = churn.broker.metrics
    assert metrics.refused.total() == 2 * 3 * _ROUNDS, "all of it was done"
    assert metrics.sessions_expired >= 3 * _ROUNDS - 1
