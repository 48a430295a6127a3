"""The arguments of `fleet-sim run` and `fleet-sim scenarios`; `device_sim.commands.playing` does the former's work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from device_sim.broker_words import BrokerOption, HostOption, PathOption, PortOption, WebsocketOption, named
from device_sim.late_imports import late_imports
from device_sim.link.driver import Driver
from device_sim.stage.contestant import Contestant
from provisioning.program.hung_line import print_hung


def scenarios() -> None:
    """List the built-in scenarios."""
    with late_imports():
        from device_sim.scenario.catalogue import built_in

    for name, scenario in built_in().items():
        print_hung(f"{name:<16} {scenario.devices:>5} devices  {scenario.summary}", 32)


def run_scenario(
    scenario: Annotated[
        str, typer.Argument(help="A built-in scenario (see `scenarios`), a TOML file, or a Python file.")
    ],
    fleet: Annotated[
        Path | None,
        typer.Option(help="The fleet's directory, from `fleet-sim enrol`; its broker: --broker.", show_default=False),
    ] = None,
    broker: BrokerOption = None,
    host: HostOption = None,
    port: PortOption = None,
    server_name: Annotated[
        str | None,
        typer.Option(help="The name in the broker's certificate (default: that of --broker).", show_default=False),
    ] = None,
    websocket: WebsocketOption = False,
    path: PathOption = None,
    self_hosted: Annotated[
        bool, typer.Option("--self-hosted", help="Start provisioning, broker and a fleet of its own, and remove them.")
    ] = False,
    against: Annotated[
        Contestant,
        typer.Option(help="With --self-hosted: the broker. mosquitto gets the same fleet, and each new CRL by SIGHUP."),
    ] = Contestant.FLEETGATE,
    devices: Annotated[
        int | None,
        typer.Option(min=1, max=1_000_000, help="Number of devices, instead of the scenario's.", show_default=False),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed, instead of the scenario's.", show_default=False)] = None,
    sources: Annotated[
        int,
        typer.Option(
            min=0, max=250, help="Spread connections over this many loopback addresses; 0: as many as needed."
        ),
    ] = 0,
    driver: Annotated[
        Driver, typer.Option(help="The devices' MQTT client: paho-mqtt, or our own for very many devices.")
    ] = Driver.PAHO,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Spread the devices over this many processes.")] = 1,
    hybrid_key_exchange: Annotated[
        bool,
        typer.Option("--hybrid-key-exchange", help="Offer OpenSSL's default (X25519MLKEM768) instead of X25519."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Write report.json, report.html, timeline.csv and junit.xml here.", show_default=False),
    ] = None,
    metrics: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65_535,
            show_default=False,
            help="Show the figures to Prometheus meanwhile, at http://127.0.0.1:PORT/metrics.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON document.")] = False,
) -> None:
    """Run a scenario and check its thresholds. Ctrl-C once ends it early and reports; twice aborts.

    Exit codes: 0 all thresholds hold; 1 error; 2 usage; 3 the generator, or the link, was the bottleneck; 4 a device
    was wrongly admitted or refused; 99 a threshold is crossed; 130 ended by Ctrl-C.

    \b
    Example:
      fleet-sim run smoke --self-hosted
    """
    with late_imports():
        from device_sim.commands.playing import play

    play(
        scenario,
        fleet=fleet,
        broker=named(broker, host, port),
        server_name=server_name,
        websocket=websocket,
        path=path,
        self_hosted=self_hosted,
        against=against,
        devices=devices,
        seed=seed,
        sources=sources,
        driver=driver,
        workers=workers,
        hybrid_key_exchange=hybrid_key_exchange,
        output=output,
        metrics=metrics,
        as_json=as_json,
    )
