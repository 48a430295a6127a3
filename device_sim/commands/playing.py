"""What `fleet-sim run` does: a scenario against a broker, judged and reported."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import typer

from device_sim.broker_words import HOST, PORT
from device_sim.credentials.enrolling import enrol_fleet, names_of
from device_sim.credentials.evidence import Given, presenting
from device_sim.credentials.fleet_directory import FleetDirectory, Origin
from device_sim.descriptors import TooFewDescriptors, have
from device_sim.destination import expect_directory
from device_sim.explanation import explained
from device_sim.interruption import Interruption, run
from device_sim.link.driver import Driver
from device_sim.link.endpoint import carried, endpoint_of, path_asked
from device_sim.link.tls_dial import Endpoint
from device_sim.report import ExitCode
from device_sim.results.document import Document, document_of
from device_sim.results.files import clear_all, write_all
from device_sim.results.progress import kept
from device_sim.results.summary import summary_of
from device_sim.run.control import listening
from device_sim.run.live import RunState
from device_sim.run.manner import Manner, has_many_sources, loopback_addresses, sources_for
from device_sim.run.runner import Run
from device_sim.run.target import Impossible, Target, operator_of
from device_sim.scenario.catalogue import find
from device_sim.scenario.model import InvalidScenario, Scenario
from device_sim.stage.contestant import Contestant
from device_sim.stage.stage import BACKEND, GROUP, raised
from device_sim.stage.workplace import workplace
from device_sim.view import Progress, View
from provisioning.client.est import EstClient
from provisioning.program.host_and_port import with_port

_ENROLLING_AT_ONCE = 16


def play(
    scenario: str,
    *,
    fleet: Path | None,
    broker: tuple[str, int] | None,
    server_name: str | None,
    websocket: bool,
    path: str | None,
    self_hosted: bool,
    against: Contestant,
    devices: int | None,
    seed: int | None,
    sources: int,
    driver: Driver,
    workers: int,
    hybrid_key_exchange: bool,
    output: Path | None,
    metrics: int | None,
    as_json: bool,
) -> None:
    """Run *scenario* on *fleet* or *self_hosted*, print the report and write it to *output*. Raises `typer.Exit`."""
    view = View()
    try:
        chosen = _changed(find(scenario), devices, seed, websocket, path)
        have(chosen.connections)
    except (InvalidScenario, TooFewDescriptors) as error:
        view.failed(error)
        raise typer.Exit(ExitCode.USAGE) from None
    _check_where(fleet, broker, server_name, against, self_hosted=self_hosted)
    expect_directory("--output", output)

    async def story(interruption: Interruption) -> tuple[Document, tuple[list[Path], list[OSError]]]:
        where = (
            _self_hosted(chosen, against, view)
            if fleet is None
            else _on(fleet, broker or (HOST, PORT), server_name, chosen.path_asked)
        )
        async with _exposed(metrics, view) as show, where as target:
            addresses = _sources(target.broker, sources, chosen.devices)
            played = Run(chosen, target, Manner(driver, workers, addresses, hybrid_key_exchange), view.said)
            show(played)
            view.chapter(f"{chosen.name}: {chosen.summary or f'{chosen.devices} devices'}")
            async with listening(played.obey, view.said), view.watching(lambda: RunState.of(played)):
                document = document_of(await played.play(interruption, lambda: _recorded(output, played)))
        return document, _written(document, output)

    with explained(view):
        try:
            document, written = run(story)
        except Impossible as error:
            view.failed(error)
            raise typer.Exit(ExitCode.USAGE) from None
    raise typer.Exit(_reported(document, written, view, as_json=as_json))


def _reported(document: Document, written: tuple[list[Path], list[OSError]], view: View, *, as_json: bool) -> int:
    """Print the report, and which files were *written* and why others were not; return the exit code."""
    with view.telling(document["exit_code"]):
        if as_json:
            view.result(json.dumps(document, indent=1))
        else:
            view.show(summary_of(document))
    files, errors = written
    for file in files:
        view.said(f"written: {file}")
    return view.not_written(errors, document["exit_code"])


@asynccontextmanager
async def _exposed(port: int | None, view: View) -> AsyncIterator[Callable[[Run], None]]:
    """Yield what shows a run at *port*; before it begins, so that a port that is not free ends nothing."""
    if port is None:
        yield lambda _: None
        return
    from device_sim.run.exposition import exposed, exposition  # Only who asks for it loads the library.

    async with exposed(port) as page:
        view.said(f"metrics: {page.address}")
        yield lambda run: page.show(lambda: exposition(run))


@asynccontextmanager
async def _recorded(output: Path | None, played: Run) -> AsyncIterator[None]:
    """Keep what is known of the run in *output*, in place of an older report there.

    Not before it has begun: an argument that is wrong costs nobody a report.
    """
    if output is not None:
        clear_all(output)
    async with kept(output, played):
        yield


def _written(document: Document, output: Path | None) -> tuple[list[Path], list[OSError]]:
    """Write the report to *output*; return the files, and why others are not there.

    Before it is printed, and within the story: it is there if the reader of our output has left, and a signal leaves no
    half of it. And it is printed also if the disk is full.
    """
    return ([], []) if output is None else write_all(document, output)


def _check_where(
    fleet: Path | None,
    broker: tuple[str, int] | None,
    server_name: str | None,
    against: Contestant,
    *,
    self_hosted: bool,
) -> None:
    """Raise `typer.BadParameter` if the options do not name one place to run."""
    if self_hosted and fleet is not None:
        raise typer.BadParameter("--self-hosted makes a fleet and a broker of its own: leave out --fleet, or itself")
    if self_hosted and (broker is not None or server_name is not None):
        raise typer.BadParameter("--self-hosted starts the broker: --broker and --server-name are for --fleet")
    if not self_hosted and fleet is None:
        raise typer.BadParameter("say where to run: --self-hosted, or --fleet DIR with --broker HOST:PORT")
    if fleet is not None and against is not Contestant.FLEETGATE:
        raise typer.BadParameter("--against is for --self-hosted; a broker of yours is named by --broker")


def _sources(broker: Endpoint, asked: int, devices: int) -> tuple[str, ...]:
    if has_many_sources(broker.host):
        return loopback_addresses(asked or sources_for(devices))
    if asked > 1:
        raise typer.BadParameter(
            "--sources: only a broker on this machine, by IPv4, is reached from several addresses; leave it out"
        )
    return ()


def _changed(scenario: Scenario, devices: int | None, seed: int | None, websocket: bool, path: str | None) -> Scenario:
    try:
        path_asked(websocket or scenario.websocket, path)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    given = {"devices": devices, "seed": seed, "websocket": websocket or None, "path": path}
    return scenario.model_copy(update={key: value for key, value in given.items() if value is not None})


@asynccontextmanager
async def _on(
    directory: Path, broker: tuple[str, int], server_name: str | None, path: str | None
) -> AsyncIterator[Target]:
    fleet = FleetDirectory.read(directory)
    endpoint = carried(await endpoint_of(*broker, server_name), path)
    async with operator_of(fleet) as operator:
        yield Target(endpoint, fleet, fleet.origin.provisioning_url, operator, broker_name=with_port(*broker))


@asynccontextmanager
async def _self_hosted(scenario: Scenario, against: Contestant, view: View) -> AsyncIterator[Target]:
    view.chapter("Provisioning and broker start, the fleet enrols")
    with workplace("run", view.said) as directory:
        async with (
            raised(directory, view.said, against.started(scenario.own_topics, websocket=scenario.websocket)) as stage,
            asyncio.TaskGroup() as watchers,
        ):
            watching = watchers.create_task(stage.watch(), name="watch the stage")
            anchors = stage.anchors.read_text()
            origin = Origin(stage.provisioning_url, stage.operator_credential)
            fleet = FleetDirectory.create(directory / "fleet", origin, anchors, BACKEND, lasting=False)
            names, started = names_of("meter", scenario.devices), time.monotonic()

            def enrolling() -> Progress:
                return Progress("enrolled", len(fleet.devices), len(names), time.monotonic() - started)

            async with (
                view.watching(enrolling),
                EstClient(stage.provisioning_url, stage.anchors, connections=1) as est,
                presenting(
                    Given(life=scenario.certificate_life), GROUP, stage.provisioning_url, stage.anchors,
                    stage.operator, _ENROLLING_AT_ONCE,
                ) as evidence,
            ):  # fmt: skip
                await enrol_fleet(fleet, names, stage.operator, est, evidence, _ENROLLING_AT_ONCE, lambda: None)
            hosted = stage.hosted
            broker = carried(stage.broker, scenario.path_asked)
            yield Target(broker, fleet, stage.provisioning_url, stage.operator, hosted.restart, hosted.name)
            watching.cancel()
