"""`fleet-sim bench`: a benchmark of any broker, with the options that people know from emqtt-bench."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from typing import Annotated

import typer

from broker.mqtt.codes import ProtocolVersion
from device_sim.bench.bench import Bench
from device_sim.bench.keyring import FleetKeyring, Keyring, OnePair
from device_sim.bench.plan import InvalidPlan, Kind, Plan
from device_sim.bench.show import Meter, document, summary
from device_sim.descriptors import TooFewDescriptors, have
from device_sim.driver import Driver
from device_sim.endpoint import endpoint_of
from device_sim.explanation import explained
from device_sim.fleet_directory import FleetDirectory
from device_sim.interruption import Interruption, run
from device_sim.link import Terms
from device_sim.report import ExitCode
from device_sim.run.manner import loopback_addresses, sources_for
from device_sim.view import View
from provisioning.pki.tls import CredentialFiles

bench = typer.Typer(
    help="Benchmark a broker over TLS: conn, pub, sub. Clients have keys of their own (--fleet), or one for all.",
    no_args_is_help=True,
)

Host = Annotated[str, typer.Option("-h", "--host", help="The broker.")]
Port = Annotated[int, typer.Option("-p", "--port", min=1, max=65535, help="Its port.")]
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
WhichDriver = Annotated[Driver, typer.Option("--driver", help="Our own MQTT client, or paho-mqtt.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as one JSON document.")]


@bench.command()
def conn(
    host: Host = "localhost", port: Port = 8883, count: Count = 200, rate: ConnRate = None, interval: Interval = 10,
    version: Version = 5, keepalive: KeepAlive = 300, first: First = 1, prefix: Prefix = "bench-",
    duration: Seconds = 0.0, fleet: Fleet = None, service: Service = False, ca: CaFile = None,
    cert: CertFile = None, key: KeyFile = None, server_name: ServerName = None, driver: WhichDriver = Driver.LIGHT,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Connect, and stay connected.

    fleet-sim bench conn -h localhost -p 8883 -c 1000 -R 100 --fleet ./meters
    """
    plan = _planned(Kind.CONN, count, rate, interval, seconds=duration)
    ring = _keyring(fleet, service, ca, cert, key, prefix, first)
    _bench(plan, ring, host, port, server_name, version, keepalive, driver, as_json)


@bench.command()
def pub(
    topic: Topic, host: Host = "localhost", port: Port = 8883, count: Count = 200, rate: ConnRate = None,
    interval: Interval = 10, message_interval: Annotated[
        int, typer.Option("-I", "--interval_of_msg", min=1, help="Milliseconds between two messages of a client.")
    ] = 1000, size: Annotated[int, typer.Option("-s", "--size", min=16, max=1_000_000, help="Bytes of payload.")] = 256,
    qos: Qos = 0, retain: Annotated[bool, typer.Option("-r", "--retain", help="Retained messages.")] = False,
    limit: Limit = 0,
    version: Version = 5, keepalive: KeepAlive = 300, first: First = 1, prefix: Prefix = "bench-",
    duration: Seconds = 0.0, fleet: Fleet = None, service: Service = False, ca: CaFile = None,
    cert: CertFile = None, key: KeyFile = None, server_name: ServerName = None, driver: WhichDriver = Driver.LIGHT,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Connect and publish; a client that is late skips, and that is counted.

    fleet-sim bench pub -c 100 -R 100 -I 100 -q 1 -s 256 -t fleet/%g/%c/telemetry --fleet ./meters
    """
    plan = _planned(
        Kind.PUB, count, rate, interval, topic=topic, qos=qos, message_interval=message_interval, size=size,
        retain=retain, limit=limit, seconds=duration,
    )  # fmt: skip
    ring = _keyring(fleet, service, ca, cert, key, prefix, first)
    _bench(plan, ring, host, port, server_name, version, keepalive, driver, as_json)


@bench.command()
def sub(
    topic: Topic, host: Host = "localhost", port: Port = 8883, count: Count = 200, rate: ConnRate = None,
    interval: Interval = 10, qos: Qos = 0,
    limit: Limit = 0, version: Version = 5, keepalive: KeepAlive = 300, first: First = 1,
    prefix: Prefix = "bench-", duration: Seconds = 0.0, fleet: Fleet = None, service: Service = False,
    ca: CaFile = None, cert: CertFile = None, key: KeyFile = None, server_name: ServerName = None,
    driver: WhichDriver = Driver.LIGHT, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Connect and subscribe; messages of `bench pub` on this machine tell how long they took.

    fleet-sim bench sub -c 1 -q 1 -t 'fleet/#' --fleet ./meters --service
    """
    plan = _planned(Kind.SUB, count, rate, interval, topic=topic, qos=qos, limit=limit, seconds=duration)
    ring = _keyring(fleet, service, ca, cert, key, prefix, first)
    _bench(plan, ring, host, port, server_name, version, keepalive, driver, as_json)


def _planned(
    kind: Kind, count: int, rate: float | None, interval: int, *, topic: str = "", qos: int = 0,
    message_interval: int = 1000, size: int = 256, retain: bool = False, limit: int = 0, seconds: float = 0.0,
) -> Plan:  # fmt: skip
    try:
        return Plan(
            kind, count, rate or 1000.0 / interval, topic, qos, message_interval / 1000.0, size, retain, limit, seconds
        )
    except InvalidPlan as error:
        raise typer.BadParameter(str(error)) from error


def _keyring(
    fleet: Path | None, service: bool, ca: Path | None, cert: Path | None, key: Path | None, prefix: str, first: int
) -> Keyring:
    if (fleet is None) == (ca is None):
        raise typer.BadParameter("say as whom: --fleet DIR, or --cacertfile with --certfile and --keyfile")
    if ca is not None:
        if (cert is None) != (key is None):
            raise typer.BadParameter("--certfile and --keyfile go together: name both")
        return OnePair(ca, CredentialFiles(cert, key) if cert is not None and key is not None else None, prefix, first)
    view = View()
    with explained(view):
        return FleetKeyring(FleetDirectory.read(fleet or Path()), service)
    raise typer.Exit(ExitCode.ERROR)


def _bench(
    plan: Plan, keyring: Keyring, host: str, port: int, server_name: str | None, version: int, keepalive: int,
    driver: Driver, as_json: bool,
) -> None:  # fmt: skip
    view = View()
    terms = Terms(seconds_alive=keepalive, version=ProtocolVersion(version))

    async def story(interruption: Interruption) -> Bench:
        endpoint = await endpoint_of(host, port, server_name)
        loopback = ipaddress.ip_address(endpoint.host).is_loopback
        sources = loopback_addresses(sources_for(plan.clients)) if loopback else ()
        played = Bench(plan, keyring, endpoint, terms, driver, sources)
        meter = Meter(played)
        async with view.watching(lambda: meter):
            await played.run(interruption)
        return played

    with explained(view):
        try:
            have(plan.clients)
            figures = run(story).figures
        except (InvalidPlan, TooFewDescriptors) as error:
            view.failed(error)
            raise typer.Exit(ExitCode.USAGE) from None
    if as_json:
        view.result(json.dumps(document(plan, figures), indent=1))
    else:
        view.show(summary(plan, figures))
    if figures.refused or figures.admitted.count < plan.clients:
        raise typer.Exit(ExitCode.ERROR)
    raise typer.Exit(ExitCode.INVALID if figures.invalid else ExitCode.OK)
