"""The commands of `fleet-sim bench`, familiar from emqtt-bench; `benchmarking` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from device_sim.bench.given import Given
from device_sim.late_imports import late_imports
from provisioning.program.command_group import command_group
from provisioning.program.gathered_options import with_options

bench = command_group(
    help="Benchmark a broker over TLS: conn, pub, sub. Each client has its own key (--fleet), or all share one."
)

Topic = Annotated[str, typer.Option("-t", "--topic", help="With %i number, %c client identifier, %g group.")]
Qos = Annotated[int, typer.Option("-q", "--qos", min=0, max=2, help="Quality of service.")]
Limit = Annotated[int, typer.Option("-L", "--limit", min=0, help="Messages in all; 0: no limit.")]


@bench.command()
@with_options(Given, behind=True)
def conn(given: Given) -> None:
    """Connect, and stay connected: until Ctrl-C, or for so many seconds (--duration).

    \b
    Example:
      fleet-sim bench conn -h localhost -p 8883 -c 1000 -R 100 --fleet ./meters
    """
    with late_imports():
        from device_sim.bench.benchmarking import benchmark
        from device_sim.bench.plan import Kind

    benchmark(given, Kind.CONN)


@bench.command()
@with_options(Given, behind=True)
def pub(
    given: Given,
    topic: Topic,
    message_interval: Annotated[
        int, typer.Option("-I", "--interval_of_msg", min=1, help="Milliseconds between two messages of a client.")
    ] = 1000,
    size: Annotated[
        str | None,
        typer.Option(
            "-s",
            "--size",
            help="Bytes of payload (default: 256): 64, 64-1024, or 64:70,1024:30 by weight.",
            show_default=False,
        ),
    ] = None,
    message: Annotated[
        str | None, typer.Option("-m", "--message", help="A payload of your own, unchecked.", show_default=False)
    ] = None,
    payload_file: Annotated[
        Path | None, typer.Option("--payload-file", help="The same, from a file.", show_default=False)
    ] = None,
    qos: Qos = 0,
    retain: Annotated[bool, typer.Option("-r", "--retain", help="Retained messages.")] = False,
    limit: Limit = 0,
) -> None:
    """Connect and publish; a late client skips messages, which is counted.

    \b
    Example:
      fleet-sim bench pub -c 100 -R 100 -I 100 -q 1 -s 256 -t fleet/%g/%c/telemetry --fleet ./meters
    """
    with late_imports():
        from device_sim.bench.benchmarking import benchmark, payloads
        from device_sim.bench.plan import Kind

    interval, what = message_interval / 1000.0, payloads(size, message, payload_file)
    benchmark(given, Kind.PUB, topic=topic, qos=qos, interval=interval, retain=retain, limit=limit, **what)


@bench.command()
@with_options(Given, behind=True)
def sub(given: Given, topic: Topic, qos: Qos = 0, limit: Limit = 0) -> None:
    """Connect and subscribe; measures the latency of messages of `bench pub` on this machine.

    \b
    Example:
      fleet-sim bench sub -c 1 -q 1 -t 'fleet/#' --fleet ./meters --service
    """
    with late_imports():
        from device_sim.bench.benchmarking import benchmark
        from device_sim.bench.plan import Kind

    benchmark(given, Kind.SUB, topic=topic, qos=qos, limit=limit)
