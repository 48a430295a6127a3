"""The workloads: each runs one kind of load against one freshly started peer and returns its figures.

Rules
-----
1. The same work for both peers: the same devices, messages and order, fixed before the run. A run in which a connection
   or a message was lost has no figure; it is reported as failed.
2. The server's CPU time is read between two phases of the load, never estimated from its rate. Set-up, warm-up and
   closing are not measured.
3. Where the rate is "as fast as it goes", the number of messages in flight is bounded, so that no peer measures how
   much it can pile up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peers
from disturbance import FOREIGN_LIMIT, STOLEN_LIMIT, machine_seconds
from mqload import Load, LoadFailed
from pki import BACKEND, GROUP, BenchPki
from processes import ChildFailed

PUBLISHERS = 200
SUBSCRIBERS = 200
PACED_RATE = 10_000
BURST = 10
_FAN_IN_UNDELIVERED = 20_000
_FAN_OUT_UNDELIVERED = 500
_WARM_UP = 50
_SETTLE_SECONDS = 0.5
_END_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work a run is."""

    devices: int
    """At least as many as publish in any scenario."""
    fan_in_qos0: int
    fan_in_qos1: int
    fan_out: int
    paced_publishers: int
    paced_seconds: float


FULL = Sizes(
    devices=2000, fan_in_qos0=200_000, fan_in_qos1=100_000, fan_out=3_000, paced_publishers=1000, paced_seconds=4
)
QUICK = Sizes(
    devices=1000, fan_in_qos0=60_000, fan_in_qos1=30_000, fan_out=1_000, paced_publishers=1000, paced_seconds=2
)
SMOKE = Sizes(
    devices=PUBLISHERS, fan_in_qos0=4_000, fan_in_qos1=2_000, fan_out=50, paced_publishers=200, paced_seconds=0.2
)


@dataclass(slots=True)
class Measurement:
    """The result of one run of one scenario against one peer."""

    figures: dict[str, float] = field(default_factory=dict)
    tls: str = ""
    load_busy: float = 0.0
    """Largest share of one core that the load generator used: near 1, it set the pace rather than the server."""
    foreign: float = 0.0
    """Largest number of cores that programs outside the benchmark kept busy."""
    stolen: float = 0.0
    """Largest number of cores that the hypervisor gave to other machines."""
    failure: str | None = None

    @property
    def disturbed(self) -> bool:
        """Whether others had so much of the processors that rates and percentiles say little of the peer."""
        return self.stolen > STOLEN_LIMIT or self.foreign > FOREIGN_LIMIT


@dataclass(frozen=True, slots=True)
class Workbench:
    """Everything that a scenario needs."""

    pki: BenchPki
    folder: Path
    sizes: Sizes
    server_cores: frozenset[int] | None = None
    load_cores: frozenset[int] | None = None


def run(scenario: str, bench: Workbench, peer: str) -> Measurement:
    """Run *scenario* against *peer*. A failure of peer or load is part of the result, with the figures before it."""
    measurement = Measurement()
    folder = bench.folder / f"{scenario}-{peer}-{time.monotonic_ns()}"
    folder.mkdir()
    try:
        with peers.start(peer, bench.pki, folder, bench.server_cores) as server:
            SCENARIOS[scenario](_Run(bench, server, folder, measurement))
    except (LoadFailed, ChildFailed) as error:
        measurement.failure = str(error)
    return measurement


@dataclass(frozen=True, slots=True)
class _Moment:
    wall: float
    server: float
    load: float
    machine: float
    stolen: float


@dataclass(frozen=True, slots=True)
class _Run:
    """One scenario in progress."""

    bench: Workbench
    server: peers.Server
    folder: Path
    result: Measurement

    def load(self, *arguments: str | Path | float) -> Load:
        """Return a load generator with this fleet's credentials and topics."""
        pki = self.bench.pki
        return Load(
            [
                *("-p", str(self.server.port), "-a", pki.trust_anchors, "-D", pki.devices),
                *("-C", pki.backend.certificate, "-K", pki.backend.key, "-I", BACKEND),
                *("-t", f"fleet/{GROUP}/%s/telemetry", "-f", f"fleet/{GROUP}/+/telemetry"),
                *(argument if isinstance(argument, Path) else str(argument) for argument in arguments),
            ],
            self.folder / "load.log",
            self.bench.load_cores,
        )

    @contextmanager
    def measured(self, load: Load) -> Iterator[Callable[[], float]]:
        """Measure the block; afterwards the yielded function returns the server's CPU seconds in it."""
        before = self._now(load)
        used: list[float] = []
        yield lambda: used[0]
        after = self._now(load)
        wall, server = after.wall - before.wall, after.server - before.server
        load_cpu, machine = after.load - before.load, after.machine - before.machine
        used.append(server)
        self.result.load_busy = max(self.result.load_busy, load_cpu / wall)
        self.result.foreign = max(self.result.foreign, (machine - server - load_cpu) / wall)
        self.result.stolen = max(self.result.stolen, (after.stolen - before.stolen) / wall)

    def _now(self, load: Load) -> _Moment:
        server, used = self.server.process.cpu_seconds(), load.cpu_seconds()
        return _Moment(time.monotonic(), server, used, *machine_seconds())


def _connections(run: _Run) -> None:
    """Every device connects, stays idle, leaves, reconnects with its TLS session, and once more without."""
    devices = run.bench.sizes.devices
    with run.load("-n", _WARM_UP) as load:
        load.phase("connect")
        load.proceed()
        load.wait(_END_SECONDS)
    empty = run.server.process.memory_kib()
    with run.load("-n", devices, "-R") as load:
        with run.measured(load) as cpu:
            run.result.tls = str(load.phase("connect")["tls"])
        run.result.figures["handshake_cpu"] = cpu() / devices * 1e3
        time.sleep(_SETTLE_SECONDS)
        run.result.figures["memory"] = (run.server.process.memory_kib() - empty) / devices
        load.proceed()
        load.phase("closed")
        time.sleep(_SETTLE_SECONDS)
        with run.measured(load) as cpu:
            load.proceed()
            resumed = load.phase("resume")["resumed"]
        if resumed != devices:
            raise LoadFailed(f"{resumed} of {devices} TLS sessions were resumed")
        run.result.figures["resumed_cpu"] = cpu() / devices * 1e3
        time.sleep(_SETTLE_SECONDS)
        run.result.figures["memory_reconnected"] = (run.server.process.memory_kib() - empty) / devices
        load.proceed()
        load.wait(_END_SECONDS)
    time.sleep(_SETTLE_SECONDS)
    with run.load("-n", devices) as load:
        with run.measured(load) as cpu:
            load.phase("connect")
        run.result.figures["known_cpu"] = cpu() / devices * 1e3
        load.proceed()
        load.wait(_END_SECONDS)


def _messages(run: _Run, *arguments: str | float) -> tuple[dict[str, Any], float]:
    """Connect, then send the messages; return the load's result and the server's CPU seconds for the messages alone."""
    with run.load(*arguments) as load:
        run.result.tls = str(load.phase("connect")["tls"])
        time.sleep(_SETTLE_SECONDS)
        with run.measured(load) as cpu:
            load.proceed()
            result = load.phase("messages")
        if result["lost_connections"]:
            raise LoadFailed(f"{result['lost_connections']} connections were lost")
        if result["received"] != result["expected"]:
            raise LoadFailed(f"{result['received']} of {result['expected']} messages were delivered")
        load.proceed()
        load.wait(_END_SECONDS)
    return result, cpu()


def _fan_in(run: _Run, key: str, messages: int, *, qos: int = 0, burst: int = 1, persistent: bool = False) -> None:
    """Many publishers, one subscriber that gets everything, as fast as it goes, *burst* messages per write."""
    under_way = ("-W", _FAN_IN_UNDELIVERED, "-B", burst, *(("-E",) if persistent else ()))
    result, cpu = _messages(run, "-n", PUBLISHERS, "-s", 1, "-m", messages, "-q", qos, *under_way)
    run.result.figures[f"{key}_rate"] = result["delivered_per_second"] / 1e3
    run.result.figures[f"{key}_cpu"] = cpu / result["received"] * 1e6


def _fan_in_qos0(run: _Run) -> None:
    _fan_in(run, "fan_in_qos0", run.bench.sizes.fan_in_qos0)


def _fan_in_burst(run: _Run) -> None:
    _fan_in(run, "fan_in_burst", run.bench.sizes.fan_in_qos0, burst=BURST)


def _fan_in_qos1(run: _Run) -> None:
    _fan_in(run, "fan_in_qos1", run.bench.sizes.fan_in_qos1, qos=1)


def _fan_in_durable(run: _Run) -> None:
    """Give the subscriber a persistent session: acknowledged messages are on disk here, in memory at the baseline."""
    _fan_in(run, "fan_in_durable", run.bench.sizes.fan_in_qos1, qos=1, persistent=True)


def _fan_out(run: _Run) -> None:
    """One publisher, many subscribers that each get everything, as fast as it goes."""
    result, cpu = _messages(run, "-n", 1, "-s", SUBSCRIBERS, "-m", run.bench.sizes.fan_out, "-W", _FAN_OUT_UNDELIVERED)
    run.result.figures["fan_out_rate"] = result["delivered_per_second"] / 1e3
    run.result.figures["fan_out_cpu"] = cpu / result["received"] * 1e6


def _paced(run: _Run) -> None:
    """Run a fleet at its usual pace: each device sends ten messages per second, the server is not saturated."""
    messages = int(run.bench.sizes.paced_seconds * PACED_RATE)
    result, cpu = _messages(run, "-n", run.bench.sizes.paced_publishers, "-s", 1, "-m", messages, "-r", PACED_RATE)
    run.result.figures["paced_p50"] = result["latency_ms_p50"]
    run.result.figures["paced_p99"] = result["latency_ms_p99"]
    run.result.figures["paced_cpu"] = cpu / result["received"] * 1e6


SCENARIOS: dict[str, Callable[[_Run], None]] = {
    "connections": _connections,
    "fan-in-qos0": _fan_in_qos0,
    "fan-in-burst": _fan_in_burst,
    "fan-in-qos1": _fan_in_qos1,
    "fan-in-durable": _fan_in_durable,
    "fan-out": _fan_out,
    "paced": _paced,
}
