"""The arguments of `fleet-sim bench`, which people know from emqtt-bench; what it does is in `benchmarking`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from device_sim.broker_words import HOST, PORT, BrokerOption, named
from device_sim.late_imports import late_imports
from device_sim.link.driver import Driver
from provisioning.program.command_group import command_group

bench = command_group(
    help="Benchmark a broker over TLS: conn, pub, sub. Each client has its own key (--fleet), or all share one."
)

Host = Annotated[
    str | None, typer.Option("-h", "--host", help=f"The same in two words (default: {HOST}).", show_default=False)
]
Port = Annotated[
    int | None,
    typer.Option(
        "-p", "--port", min=1, max=65535, help=f"With --host: its port (default: {PORT}).", show_default=False
    ),
]
Count = Annotated[int, typer.Option("-c", "--count", min=1, max=1_000_000, help="How many clients.")]
ConnRate = Annotated[
    float | None, typer.Option("-R", "--connrate", min=0.01, help="Connections a second.", show_default=False)
]
Interval = Annotated[int, typer.Option("-i", "--interval", min=1, help="Milliseconds between two connections.")]
Topic = Annotated[str, typer.Option("-t", "--topic", help="With %i number, %c client identifier, %g group.")]
Qos = Annotated[int, typer.Option("-q", "--qos", min=0, max=2, help="Quality of service.")]
Version = Annotated[int, typer.Option("-V", "--version", min=4, max=5, help="MQTT 5, or 4 for 3.1.1.")]
KeepAlive = Annotated[int, typer.Option("-k", "--keepalive", min=0, max=65535, help="Seconds of keep alive.")]
First = Annotated[int, typer.Option("-n", "--startnumber", min=0, help="Number of the first client (one pair).")]
Prefix = Annotated[str, typer.Option("--prefix", help="What client identifiers begin with (one pair).")]
Seconds = Annotated[float, typer.Option("-d", "--duration", min=0, help="Seconds after which it ends; 0: at Ctrl-C.")]
Limit = Annotated[int, typer.Option("-L", "--limit", min=0, help="Messages in all; 0: no limit.")]
Fleet = Annotated[
    Path | None, typer.Option("--fleet", help="A fleet's directory: a key for each client.", show_default=False)
]
Service = Annotated[bool, typer.Option("--service", help="With --fleet: as instances of its service.")]
CaFile = Annotated[Path | None, typer.Option("--cacertfile", help="Trust anchors (one pair).", show_default=False)]
CertFile = Annotated[Path | None, typer.Option("--certfile", help="Certificate of all clients.", show_default=False)]
KeyFile = Annotated[Path | None, typer.Option("--keyfile", help="Its private key.", show_default=False)]
ServerName = Annotated[
    str | None, typer.Option("--server-name", help="The name in the broker's certificate.", show_default=False)
]
WhichDriver = Annotated[Driver, typer.Option("--driver", help="paho-mqtt, or our own client for very many.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as one JSON document.")]


@bench.command()
def conn(
    broker: BrokerOption = None, host: Host = None, port: Port = None, count: Count = 200, rate: ConnRate = None,
    interval: Interval = 10, version: Version = 5, keepalive: KeepAlive = 300, first: First = 1,
    prefix: Prefix = "bench-", duration: Seconds = 0.0, fleet: Fleet = None, service: Service = False,
    ca: CaFile = None, cert: CertFile = None, key: KeyFile = None, server_name: ServerName = None,
    driver: WhichDriver = Driver.LIGHT, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Connect, and stay connected.

    \b
    Example:
      fleet-sim bench conn -h localhost -p 8883 -c 1000 -R 100 --fleet ./meters
    """  # noqa: D301 - the help formatter's mark for "keep these lines"
    with late_imports():
        from device_sim.bench.benchmarking import benchmark, keyring, planned
        from device_sim.bench.plan import Kind

    plan = planned(Kind.CONN, count, rate, interval, seconds=duration)
    ring = keyring(fleet, service, ca, cert, key, prefix, first)
    benchmark(plan, ring, named(broker, host, port) or (HOST, PORT), server_name, version, keepalive, driver, as_json)


@bench.command()
def pub(
    topic: Topic, broker: BrokerOption = None, host: Host = None, port: Port = None, count: Count = 200,
    rate: ConnRate = None, interval: Interval = 10, message_interval: Annotated[
        int, typer.Option("-I", "--interval_of_msg", min=1, help="Milliseconds between two messages of a client.")
    ] = 1000, size: Annotated[int, typer.Option("-s", "--size", min=16, max=1_000_000, help="Bytes of payload.")] = 256,
    qos: Qos = 0, retain: Annotated[bool, typer.Option("-r", "--retain", help="Retained messages.")] = False,
    limit: Limit = 0,
    version: Version = 5, keepalive: KeepAlive = 300, first: First = 1, prefix: Prefix = "bench-",
    duration: Seconds = 0.0, fleet: Fleet = None, service: Service = False, ca: CaFile = None,
    cert: CertFile = None, key: KeyFile = None, server_name: ServerName = None, driver: WhichDriver = Driver.LIGHT,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Connect and publish; a late client skips messages, which is counted.

    \b
    Example:
      fleet-sim bench pub -c 100 -R 100 -I 100 -q 1 -s 256 -t fleet/%g/%c/telemetry --fleet ./meters
    """  # noqa: D301 - the help formatter's mark for "keep these lines"
    with late_imports():
        from device_sim.bench.benchmarking import benchmark, keyring, planned
        from device_sim.bench.plan import Kind

    plan = planned(
        Kind.PUB, count, rate, interval, topic=topic, qos=qos, message_interval=message_interval, size=size,
        retain=retain, limit=limit, seconds=duration,
    )  # fmt: skip
    ring = keyring(fleet, service, ca, cert, key, prefix, first)
    benchmark(plan, ring, named(broker, host, port) or (HOST, PORT), server_name, version, keepalive, driver, as_json)


@bench.command()
def sub(
    topic: Topic, broker: BrokerOption = None, host: Host = None, port: Port = None, count: Count = 200,
    rate: ConnRate = None, interval: Interval = 10, qos: Qos = 0,
    limit: Limit = 0, version: Version = 5, keepalive: KeepAlive = 300, first: First = 1,
    prefix: Prefix = "bench-", duration: Seconds = 0.0, fleet: Fleet = None, service: Service = False,
    ca: CaFile = None, cert: CertFile = None, key: KeyFile = None, server_name: ServerName = None,
    driver: WhichDriver = Driver.LIGHT, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Connect and subscribe; measures the latency of messages of `bench pub` on this machine.

    \b
    Example:
      fleet-sim bench sub -c 1 -q 1 -t 'fleet/#' --fleet ./meters --service
    """  # noqa: D301 - the help formatter's mark for "keep these lines"
    with late_imports():
        from device_sim.bench.benchmarking import benchmark, keyring, planned
        from device_sim.bench.plan import Kind

    plan = planned(Kind.SUB, count, rate, interval, topic=topic, qos=qos, limit=limit, seconds=duration)
    ring = keyring(fleet, service, ca, cert, key, prefix, first)
    benchmark(plan, ring, named(broker, host, port) or (HOST, PORT), server_name, version, keepalive, driver, as_json)
