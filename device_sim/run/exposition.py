"""A run's figures for Prometheus, while it lasts: the last second's, and what has added up since it began.

Theory
------
Whoever runs a scenario for hours wants its figures beside the broker's own, in the same dashboard. The run has them
already, second by second; a request renders them, and nothing is computed between two requests.

Rules
-----
1. It listens on loopback only: it says which devices a broker has refused, and why, to whoever asks. A browser there
   gets no figures for a page of a name that points here (`provisioning.program.loopback`).
2. Labels are bounded: durations, percentiles, and `_MOST_REASONS` reasons of refusals. Never a device.
3. A request has at most `_LONGEST` bytes and `_PATIENCE` seconds. There are `_AT_ONCE` connections at a time, and who
   has waited longest makes room: strangers who keep theirs open keep nobody out.
4. One request a connection. Who still sends when he has been answered is heard out for a moment: closing with unread
   bytes would reset the connection, and the answer might be lost (RFC 9112 §9.6).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from device_sim.run.recorder import Sample
from device_sim.run.runner import Run
from provisioning.program.host_and_port import with_port
from provisioning.program.loopback import is_nobodys_name, own_loopback

PATH: Final = "/metrics"
_MOST_REASONS: Final = 20
_LONGEST, _PATIENCE, _AT_ONCE = 8192, 5.0, 16
_HEAR_OUT_SECONDS = 1.0
_REQUEST_LINE: Final = re.compile(rb"([A-Z]{1,20}) (\S+) HTTP/1\.[01]")
_HOST: Final = re.compile(rb"\r\nhost[ \t]*:([^\r]*)", re.IGNORECASE)
_NOT_HERE: Final = b"for this machine only: ask for localhost, or an address, in Host\n"
_PERCENTILES: Final = {"50": "p50", "95": "p95", "99": "p99"}


def exposition(run: Run) -> bytes:
    """Return the figures of *run* in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(run))
    return generate_latest(registry)


class _Figures(Collector):
    def __init__(self, run: Run) -> None:
        self._run = run

    def collect(self) -> Iterable[Metric]:
        run = self._run
        about = GaugeMetricFamily("fleet_sim_run_info", "What is run, and where.", labels=["scenario", "broker"])
        about.add_metric([run.scenario.name, run.target.broker_name], 1)
        yield about
        yield GaugeMetricFamily("fleet_sim_devices", "Devices of the scenario.", run.scenario.devices)
        samples = run.recorder.samples
        if samples:
            yield from _of_second(samples[-1])
        states = [process.state for process in run.processes if process.state is not None]
        yield CounterMetricFamily(
            "fleet_sim_revoked_total", "Devices that the run has revoked.", sum(state.revoked for state in states)
        )
        yield CounterMetricFamily(
            "fleet_sim_lost_connections_total",
            "Broken connections of devices.",
            sum(state.lost_connections for state in states),
        )
        yield CounterMetricFamily(
            "fleet_sim_altered_total",
            "Messages that arrived altered.",
            sum(backend.altered for backend in run.backends),
        )
        yield CounterMetricFamily(
            "fleet_sim_unexpected_total",
            "Messages that nobody has sent.",
            sum(backend.unexpected for backend in run.backends),
        )
        refusals = CounterMetricFamily("fleet_sim_refusals_total", "Refused attempts, by reason.", labels=["reason"])
        for reason, count in sum((Counter(state.refused) for state in states), Counter[str]()).most_common(
            _MOST_REASONS
        ):
            refusals.add_metric([reason], count)
        yield refusals


def _of_second(sample: Sample) -> Iterator[Metric]:
    health = sample.health
    yield GaugeMetricFamily(
        "fleet_sim_run_seconds", "Seconds since the run began, when these figures were taken.", sample.at
    )
    yield GaugeMetricFamily("fleet_sim_connected", "Devices that are connected.", sample.connected)
    yield GaugeMetricFamily("fleet_sim_told", "Devices that are to be connected.", sample.told)
    yield CounterMetricFamily("fleet_sim_published_total", "Messages that devices have published.", sample.published)
    yield CounterMetricFamily(
        "fleet_sim_received_total", "Messages that the run's backend has received.", sample.received
    )
    latency = GaugeMetricFamily(
        "fleet_sim_latency_seconds", "Of the last second, from when each was due.", labels=["of", "percentile"]
    )
    for metric, seen in sample.windows.items():
        for percentile, name in _PERCENTILES.items():
            latency.add_metric([str(metric), percentile], getattr(seen, name) / 1000)
    yield latency
    yield GaugeMetricFamily(
        "fleet_sim_generator_lag_seconds", "How late the simulator's own loop was, p99.", health.lag_p99_ms / 1000
    )
    yield GaugeMetricFamily(
        "fleet_sim_generator_processor_ratio", "Share of a core that the simulator used.", health.processor
    )
    yield GaugeMetricFamily(
        "fleet_sim_generator_waiting_ratio", "Share of the time in which it waited for a core.", health.waiting
    )
    yield GaugeMetricFamily("fleet_sim_generator_memory_bytes", "Memory of the simulator.", health.memory_mb * 1e6)


class Page:
    """What is shown at `PATH`: nothing, until `show` says what."""

    def __init__(self) -> None:
        self.port = 0
        self._content: Callable[[], bytes] | None = None
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        """Those who had to make room, and have not noticed yet."""

    @property
    def address(self) -> str:
        """The page's URL."""
        return f"http://{with_port(own_loopback(), self.port)}{PATH}"

    def show(self, content: Callable[[], bytes]) -> None:
        """Show what *content* returns when asked."""
        self._content = content

    def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, in a task."""
        if len(self._open) >= _AT_ONCE:
            longest = next(iter(self._open))
            self._open.pop(longest).transport.abort()
            self._leaving.add(longest)
            longest.add_done_callback(self._leaving.discard)
        task = asyncio.create_task(self._serve(reader, writer), name="metrics")
        self._open[task] = writer
        task.add_done_callback(lambda done: self._open.pop(done, None))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, EOFError, TimeoutError):
                answer = await self._answered(reader)
                async with asyncio.timeout(_PATIENCE):
                    writer.write(answer)
                    await writer.drain()
                writer.write_eof()
                async with asyncio.timeout(_HEAR_OUT_SECONDS):
                    while await reader.read(_LONGEST):
                        pass
        finally:
            writer.close()

    async def _answered(self, reader: asyncio.StreamReader) -> bytes:
        """Return the answer to the request that *reader* gets. Raises `EOFError`, `OSError`."""
        try:
            async with asyncio.timeout(_PATIENCE):
                request = await reader.readuntil(b"\r\n\r\n")
        except TimeoutError:
            return _written(HTTPStatus.REQUEST_TIMEOUT)
        except asyncio.LimitOverrunError:
            return _written(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        line = _REQUEST_LINE.fullmatch(request.partition(b"\r\n")[0])
        if line is None:
            return _written(HTTPStatus.BAD_REQUEST)
        method, target = line.groups()
        if target.partition(b"?")[0] != PATH.encode():
            return _written(HTTPStatus.NOT_FOUND)
        if method not in {b"GET", b"HEAD"}:
            return _written(HTTPStatus.METHOD_NOT_ALLOWED)
        if not all(is_nobodys_name(each.decode("latin-1")) for each in _HOST.findall(request)):
            return _written(HTTPStatus.MISDIRECTED_REQUEST, _NOT_HERE, bodyless=method == b"HEAD")
        if self._content is None:
            return _written(HTTPStatus.SERVICE_UNAVAILABLE)
        return _written(HTTPStatus.OK, self._content(), bodyless=method == b"HEAD")

    async def leave(self) -> None:
        """Cut off who is still asking."""
        for writer in self._open.values():
            writer.transport.abort()
        await asyncio.gather(*self._open, *self._leaving)


def _written(status: HTTPStatus, content: bytes = b"", *, bodyless: bool = False) -> bytes:
    """Return an answer; only its head if *bodyless* (RFC 9110 §9.3.2)."""
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {CONTENT_TYPE_PLAIN_0_0_4}\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if bodyless else content)


@asynccontextmanager
async def exposed(port: int) -> AsyncIterator[Page]:
    """Yield a page at *port* of this machine. Raises `OSError` naming the option."""
    page, host = Page(), own_loopback()
    try:
        server = await asyncio.start_server(page.serve, host, port, limit=_LONGEST)
    except OSError as error:
        raise OSError(
            error.errno, f"--metrics {port}: {with_port(host, port)} is not free; name another port"
        ) from error
    page.port = server.sockets[0].getsockname()[1]
    try:
        yield page
    finally:
        server.close()
        await page.leave()
