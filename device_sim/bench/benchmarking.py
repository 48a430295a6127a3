"""What `fleet-sim bench` does: a benchmark of any broker."""

from __future__ import annotations

import ipaddress
import json
import time
from pathlib import Path

import typer

from broker.mqtt.codes import ProtocolVersion
from device_sim.bench.bench import Bench, Figures
from device_sim.bench.keyring import FleetKeyring, Keyring, OnePair
from device_sim.bench.plan import InvalidPlan, Kind, Plan
from device_sim.bench.show import Meter, document, summary
from device_sim.broker_words import shown
from device_sim.credentials.fleet_directory import FleetDirectory
from device_sim.descriptors import TooFewDescriptors, have
from device_sim.explanation import explained
from device_sim.interruption import Interruption, run
from device_sim.link.closure import Closure, Layer
from device_sim.link.driver import Driver
from device_sim.link.endpoint import endpoint_of
from device_sim.link.link import Terms
from device_sim.remedies import with_remedy
from device_sim.report import ExitCode
from device_sim.run.manner import loopback_addresses, sources_for
from device_sim.view import View
from provisioning.pki.tls import CredentialFiles

_LONG_ENOUGH = 10.0
"""Seconds after which it tells something that nobody was let in."""


def planned(
    kind: Kind, count: int, rate: float | None, interval: int, *, topic: str = "", qos: int = 0,
    message_interval: int = 1000, size: int = 256, retain: bool = False, limit: int = 0, seconds: float = 0.0,
) -> Plan:  # fmt: skip
    """Return the plan that the options make, milliseconds as seconds. Raises `typer.BadParameter`."""
    try:
        return Plan(
            kind, count, rate or 1000.0 / interval, topic, qos, message_interval / 1000.0, size, retain, limit, seconds
        )
    except InvalidPlan as error:
        raise typer.BadParameter(str(error)) from error


def keyring(
    fleet: Path | None, service: bool, ca: Path | None, cert: Path | None, key: Path | None, prefix: str, first: int
) -> Keyring:
    """Return whom the clients are taken for. Raises `typer.BadParameter`."""
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


def benchmark(
    plan: Plan, ring: Keyring, broker: tuple[str, int], server_name: str | None, version: int, keepalive: int,
    driver: Driver, as_json: bool,
) -> None:  # fmt: skip
    """Carry out *plan* and print the figures. Raises `typer.Exit`."""
    view = View()
    terms = Terms(seconds_alive=keepalive, version=ProtocolVersion(version))

    async def story(interruption: Interruption) -> Bench:
        endpoint = await endpoint_of(*broker, server_name)
        loopback = ipaddress.ip_address(endpoint.host).is_loopback
        sources = loopback_addresses(sources_for(plan.clients)) if loopback else ()
        played = Bench(plan, ring, endpoint, terms, driver, sources)
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
    if not figures.admitted.count:
        view.failed(ConnectionError(_nobody(shown(*broker), figures)))
    if figures.troubled or figures.admitted.count < plan.clients:
        raise typer.Exit(ExitCode.ERROR)
    raise typer.Exit(ExitCode.INVALID if figures.invalid else ExitCode.OK)


def _nobody(broker: str, figures: Figures) -> str:
    """Return why nobody got in at *broker*; who ended the benchmark at once is not told of firewalls."""
    answer = figures.first_refusal
    if answer is None and figures.seconds < _LONG_ENOUGH:
        return f"it ended after {figures.seconds:.1f} s, before {broker} had let anybody in"
    answer = answer or Closure(Layer.TCP, "timeout", "no answer yet", time.monotonic())
    return with_remedy(f"nobody gets in at {broker}: {answer}", answer)
