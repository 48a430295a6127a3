"""What subscriptions cost as they grow in number: CPU time an operation, in memory, in one process.

    .venv/bin/python benchmarks/subscriptions.py                        half a minute
    .venv/bin/python benchmarks/subscriptions.py --devices 10000 --compiled

*storm*: many devices connect, each subscribing to its own topics and to one wildcard that all share, and publishing in
between, so that the routes of earlier devices are cached. The cost per device must not grow with their number. The
wildcard is tried in three places: where it matches none of the devices' topics, where it matches them all, and where it
is a sibling of them below the same level. Then each device has its own unshared wildcard.

*matching*: many subscriptions, and topics without a cached route: first from all over the tree, then the same 500
repeatedly. The steps of a match do not grow with the number of subscriptions; with topics from all over, what grows is
the processor's wait for memory, since a large tree does not fit in its caches. The 500 do, however large the tree.

tests/unit/broker/routing/test_growth.py counts the operations; here they are timed.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
if "--compiled" in sys.argv:
    sys.path.insert(0, str(REPOSITORY / ".build" / "compiled"))

from broker.metrics import Metrics  # noqa: E402
from broker.mqtt.message import Message  # noqa: E402
from broker.mqtt.subscription import Subscription  # noqa: E402
from broker.routing.router import Routes  # noqa: E402
from broker.session.queue import QueueLimits  # noqa: E402
from broker.session.session import Session  # noqa: E402
from provisioning.pki.identity import Identity  # noqa: E402
from provisioning.pki.role import Role  # noqa: E402

WILDCARDS = {
    "matching nothing of theirs": "fleet/all/#",
    "beside their topics": "fleet/meters/+/alert",
    "matching what they publish": "fleet/meters/+/state",
}
OWN_WILDCARDS = {
    "matching nothing": "fleet/meters/+/{}/#",
    "that begins with +": "+/x/{}/#",
    "matching its own topics": "fleet/+/{}/#",
}
_LIMITS = QueueLimits(10_000, 1 << 24)
_CACHE = 200_000
_PASSES = 5


def main() -> int:
    """Print the costs at growing numbers."""
    options = _parser().parse_args()
    gc.disable()  # The broker freezes long-lived objects, so they are not scanned there either.
    steps = [options.devices // 10, options.devices // 3, options.devices]
    for place, wildcard in WILDCARDS.items():
        _print(f"storm, a shared wildcard {place}", steps, "device", partial(_storm, wildcard))
    for place, wildcard in OWN_WILDCARDS.items():
        _print(f"storm, each a wildcard of its own, {place}", steps, "device", partial(_storm, wildcard))
    subscriptions = [options.subscriptions // 100, options.subscriptions // 10, options.subscriptions]
    matches = options.matches
    for whose, topics in (("from all over", matches), ("of 500, again and again", 500)):
        matching = partial(_matching, topics, matches)
        _print(f"matching a topic that is not cached, {whose}", subscriptions, "match", matching)
    return 0


def _print(title: str, numbers: list[int], what: str, measure: Callable[[int], float]) -> None:
    costs = [(number, measure(number) * 1e6) for number in numbers]
    said = ", ".join(f"{number:,}: {cost:.1f} µs a {what}" for number, cost in costs)
    sys.stdout.write(f"{title}: {said}; {costs[-1][1] / costs[0][1]:.2f} of the first\n")
    sys.stdout.flush()


def _session(name: str) -> Session:
    return Session(name, Identity("bench.internal", Role.DEVICE, name, "meters"), _LIMITS, Metrics())


def _storm(wildcard: str, devices: int) -> float:
    routes = Routes(_CACHE)
    message = Message(b"t", b"x")
    started = time.process_time()
    for number in range(devices):
        name = f"m{number:05}"
        session = _session(name)
        routes.subscribe(session, Subscription(f"fleet/meters/{name}/cmd/#", 1))
        routes.subscribe(session, Subscription(wildcard.format(name), 0))
        # The first telemetry; also its state, except for a few devices where all listen: each is delivered to all.
        routes[f"fleet/meters/{name}/telemetry".encode()].deliver(message, session, 0.0)
        if wildcard != WILDCARDS["matching what they publish"] or number % (devices // 10) == 0:
            routes[f"fleet/meters/{name}/state".encode()].deliver(message, session, 0.0)
    return (time.process_time() - started) / devices


def _matching(different: int, matches: int, subscriptions: int) -> float:
    routes = Routes(1)  # Practically no cache.
    for number in range(subscriptions):
        session = _session(f"m{number:06}")
        wild = ("cmd/#", "cmd/+", "cmd/+/ack", "cmd")[number % 4]
        routes.subscribe(session, Subscription(f"fleet/meters/m{number:06}/{wild}", 1))
    routes.subscribe(_session("backend"), Subscription("fleet/+/+/telemetry", 1))
    devices = [number % different * 7919 % subscriptions for number in range(matches)]
    topics = [f"fleet/meters/m{device:06}/cmd/x".encode() for device in devices]
    return min(_timed(routes, topics) for _ in range(_PASSES)) / len(topics)


def _timed(routes: Routes, topics: list[bytes]) -> float:
    started = time.process_time()
    for topic in topics:
        routes[topic]
    return time.process_time() - started


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--devices", type=int, default=10_000, help="of the storm (10,000)")
    parser.add_argument("--subscriptions", type=int, default=100_000, help="of matching (100,000)")
    parser.add_argument("--matches", type=int, default=20_000, help="of each five passes (20,000)")
    parser.add_argument("--compiled", action="store_true", help="the hot path of `make compiled`")
    return parser


if __name__ == "__main__":
    sys.exit(main())
