"""What `fleet-sim bench` does: a benchmark of any broker."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import typer

from broker.mqtt.codes import ProtocolVersion
from device_sim.bench.bench import Bench, Figures
from device_sim.bench.given import Given
from device_sim.bench.keyring import FleetKeyring, Keyring, OnePair
from device_sim.bench.own_content import own_content
from device_sim.bench.plan import InvalidPlan, Kind, Plan
from device_sim.bench.show import Meter, document, exit_code_of, summary
from device_sim.bench.sizes import sizes_in
from device_sim.broker_words import HOST, PORT, named
from device_sim.credentials.fleet_directory import FleetDirectory
from device_sim.descriptors import TooFewDescriptors, have
from device_sim.explanation import explained
from device_sim.interruption import Interruption, run
from device_sim.link.closure import Closure, Layer
from device_sim.link.endpoint import carried, endpoint_of, path_asked
from device_sim.link.link import Terms
from device_sim.remedies import with_remedy
from device_sim.report import ExitCode
from device_sim.run.manner import has_many_sources, loopback_addresses, sources_for
from device_sim.view import View
from provisioning.pki.tls import CredentialFiles
from provisioning.program.host_and_port import with_port

_LONG_ENOUGH = 10.0
"""Seconds after which the absence of any admission is worth reporting."""


def benchmark(given: Given, kind: Kind, **messages: Any) -> None:
    """Run what is *given*, with *messages* in the terms of a `Plan`, and print the figures.

    Raises `typer.BadParameter`, `typer.Exit`.
    """
    try:
        plan = Plan(kind, given.count, given.rate or 1000.0 / given.interval, seconds=given.duration, **messages)
    except InvalidPlan as error:
        raise typer.BadParameter(str(error)) from error
    try:
        path = path_asked(given.websocket, given.path)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    ring = _keyring(given)
    broker = named(given.broker, given.host, given.port) or (HOST, PORT)
    view = View()
    terms = Terms(seconds_alive=given.keepalive, version=ProtocolVersion(given.version))

    async def story(interruption: Interruption) -> Bench:
        endpoint = carried(await endpoint_of(*broker, given.server_name), path)
        several = has_many_sources(endpoint.host)
        sources = loopback_addresses(sources_for(plan.clients)) if several else ()
        played = Bench(plan, ring, endpoint, terms, given.driver, sources)
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
    code = exit_code_of(plan, figures)
    with view.telling(code):
        if given.as_json:
            view.result(json.dumps(document(plan, figures), indent=1))
        else:
            view.show(summary(plan, figures))
    if not figures.admitted.count:
        view.failed(ConnectionError(_nobody(with_port(*broker), figures)))
    raise typer.Exit(code)


def payloads(size: str | None, message: str | None, file: Path | None) -> dict[str, Any]:
    """Return what is published, in the terms of a `Plan`. Raises `typer.BadParameter`."""
    try:
        content = own_content(message, file)
        sizes = {} if size is None else {"size": sizes_in(size)}
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if content is None:
        return sizes
    if sizes:
        raise typer.BadParameter("-s: a payload of your own has its size; leave it out")
    return {"content": content}


def _keyring(given: Given) -> Keyring:
    """Return the identities of the clients. Raises `typer.BadParameter`."""
    if (given.fleet is None) == (given.ca is None):
        raise typer.BadParameter("name a credential: --fleet DIR, or --cacertfile with --certfile and --keyfile")
    if given.ca is not None:
        if (given.cert is None) != (given.key is None):
            raise typer.BadParameter("--certfile and --keyfile go together: name both")
        pair = CredentialFiles(given.cert, given.key) if given.cert is not None and given.key is not None else None
        return OnePair(given.ca, pair, given.prefix, given.first)
    with explained(View()):
        return FleetKeyring(FleetDirectory.read(given.fleet or Path()), given.service)
    raise typer.Exit(ExitCode.ERROR)


def _nobody(broker: str, figures: Figures) -> str:
    """Return why no client got in at *broker*; if the user ended the benchmark at once, firewalls are not mentioned."""
    answer = figures.first_refusal
    if answer is None and figures.seconds < _LONG_ENOUGH:
        return f"it ended after {figures.seconds:.1f} s, before {broker} had let anybody in"
    answer = answer or Closure(Layer.TCP, "timeout", "no answer yet", time.monotonic())
    return with_remedy(f"nobody gets in at {broker}: {answer}", answer)
