"""What `fleet-sim demo` does: play the demo, show its progress, and keep it running if requested."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from device_sim.demo.demo import play
from device_sim.demo.demo_plan import DemoPlan
from device_sim.destination import expect_directory
from device_sim.explanation import explained
from device_sim.interruption import Interruption, run
from device_sim.report import ExitCode, Report
from device_sim.stage.stage import Stage
from device_sim.stage.workplace import workplace
from device_sim.view import View


def demonstrate(devices: int, seconds: float, seed: int, keep: bool, directory: Path | None, as_json: bool) -> None:
    """Play the demo in *directory* or a temporary one; *keep*: until the user ends it. Raises `typer.Exit`."""
    view = View()
    plan = DemoPlan(devices, seconds, seed)
    outcome = ExitCode.ERROR

    async def story(interruption: Interruption) -> None:
        async def finished(found: Report, stage: Stage) -> None:
            nonlocal outcome
            outcome = found.exit_code
            with view.telling(outcome):
                if as_json:
                    view.document(found)
                else:
                    view.summary(found)
            if keep:
                view.directions(_directions(stage))
                await interruption.wait()

        with _workplace(directory, view.said) as place:
            await play(plan, place, view, finished)

    with explained(view):
        run(story)
    raise typer.Exit(outcome)


@contextmanager
def _workplace(directory: Path | None, said: Callable[[str], None]) -> Iterator[Path]:
    if directory is not None:
        expect_directory("--dir", directory, mode=0o700)
        try:
            filled = any(directory.iterdir())
        except OSError as error:
            raise typer.BadParameter(f"--dir {directory} cannot be read: {error.strerror}; name another") from None
        if filled:
            raise typer.BadParameter(f"--dir {directory}: it is not empty; name one that is, or that does not exist")
        yield directory.absolute()
        return
    with workplace("demo", said) as temporary:
        yield temporary


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
