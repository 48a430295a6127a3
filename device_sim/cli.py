"""The command line of `fleet-sim`: arguments in, exit code out (`explanation` turns errors into words).

Exit codes: 0 everything holds; 1 an error, or a check that failed; 2 wrong usage; 4 a security check failed;
130 and 143 stopped by SIGINT or SIGTERM.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from device_sim.attack.command import attack, attack_table, revocation
from device_sim.attack.doctor import doctor
from device_sim.bench.command import bench
from device_sim.ctl_command import ctl
from device_sim.demo import DemoPlan, play
from device_sim.enrol_command import enrol
from device_sim.explanation import explained
from device_sim.export_command import export
from device_sim.interruption import Interruption, run
from device_sim.qualify.command import qualify_device
from device_sim.report import ExitCode, Report
from device_sim.report_command import report
from device_sim.run_command import run_scenario, scenarios
from device_sim.stage import Stage
from device_sim.view import View
from provisioning.version import product_version
from provisioning.version_option import version_option

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def about(*, version: Annotated[bool, version_option("fleet-sim")] = False) -> None:
    """Fleets of simulated devices, each with its own key and certificate."""
    del version  # Has been answered, if it was asked.


app.command()(attack)
app.command()(revocation)
app.command()(attack_table)
app.command("qualify")(qualify_device)
app.command()(doctor)


@app.command("version")
def show_version() -> None:
    """Print the version."""
    typer.echo(f"fleet-sim {product_version()}")


@app.command()
def demo(
    devices: Annotated[int, typer.Option(min=2, max=5000, help="How many devices.")] = 200,
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="How long to stream telemetry.")] = 15.0,
    seed: Annotated[int, typer.Option(help="The same seed makes the same readings and the same choices.")] = 42,
    keep: Annotated[
        bool, typer.Option("--keep", help="Afterwards leave service and broker running until Ctrl-C.")
    ] = False,
    directory: Annotated[
        Path | None,
        typer.Option("--dir", help="Work in this empty directory and leave it; otherwise in a temporary one."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")] = False,
) -> None:
    """Enrol a fleet, stream, revoke, and try to break in: the whole product on loopback, judged at the end."""
    view = View()
    plan = DemoPlan(devices, seconds, seed)
    outcome = ExitCode.ERROR

    async def story(interruption: Interruption) -> None:
        async def finished(found: Report, stage: Stage) -> None:
            nonlocal outcome
            outcome = found.exit_code
            if as_json:
                view.document(found)
            else:
                view.summary(found)
            if keep:
                view.directions(_directions(stage))
                await interruption.wait()

        with _workplace(directory) as workplace:
            await play(plan, workplace, view, finished)

    with explained(view):
        run(story)
    raise typer.Exit(outcome)


app.command()(enrol)
app.command()(export)
app.command("run")(run_scenario)
app.command()(scenarios)
app.command()(ctl)
app.add_typer(bench, name="bench")
app.command()(report)


def main() -> None:
    """Run the command line."""
    app()


@contextmanager
def _workplace(directory: Path | None) -> Iterator[Path]:
    if directory is not None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise typer.BadParameter(f"--dir {directory}: it is not empty; name one that is, or that does not exist")
        yield directory.absolute()
        return
    temporary = Path(tempfile.mkdtemp(prefix="fleetgate-demo-"))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary)


def _directions(stage: Stage) -> str:
    credentials = stage.directory / "credentials"
    provisioning = stage.directory / "provisioning"
    return f"""
Service and broker run until Ctrl-C:

  provisioning   {stage.provisioning_url}   CRL and CA certificates: {stage.http_url}
  broker         mqtts://{stage.broker.host}:{stage.broker.port}
  trust anchors  {stage.anchors}
  credentials    {credentials}/{{device,service,revoked,expired}}.{{crt,key}}, {provisioning}/operator.{{crt,key}}
  logs           {stage.directory / "logs"}

Receive everything:

  mosquitto_sub -V 5 -h localhost -p {stage.broker.port} -t 'fleet/#' -i backend-me --cafile {stage.anchors} \\
    --cert {credentials}/service.crt --key {credentials}/service.key -v"""
