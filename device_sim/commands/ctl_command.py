"""`fleet-sim ctl`: give orders to a run in progress."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from device_sim.late_imports import late_imports
from device_sim.report import ExitCode
from device_sim.run.order import ORDERS
from provisioning.program.command_group import command_group

if TYPE_CHECKING:
    from device_sim.interruption import Interruption

_SILENT_SECONDS = 3.0
_WAITS = "the run is at it; Ctrl-C ends the waiting, not the run"


ctl_app = command_group()


@ctl_app.command(context_settings={"ignore_unknown_options": True})  # "-5%" is an (invalid) share, not an option.
def ctl(
    order: Annotated[list[str], typer.Argument(help=f"One of: {ORDERS}.")],
    process: Annotated[
        int | None, typer.Option("--run", help="The run's process, if there are several.", show_default=False)
    ] = None,
) -> None:
    """Control a run from another terminal. Returns when the order is done.

    \b
    Example:
      fleet-sim ctl revoke 5%
      fleet-sim ctl rate x10
    """
    with late_imports():
        import asyncio

        from device_sim.explanation import explained
        from device_sim.interruption import Interrupted, run
        from device_sim.run.control import tell
        from device_sim.view import View

    view = View()

    async def story(_: Interruption) -> tuple[bool, str]:
        waits = asyncio.get_running_loop().call_later(_SILENT_SECONDS, view.said, _WAITS)
        try:
            return await tell(" ".join(order), process)
        finally:
            waits.cancel()

    with explained(view):
        try:
            done, text = run(story)
        except Interrupted as error:
            view.failed(ValueError("not waited for any longer; the run carries it out all the same"))
            raise typer.Exit(error.exit_code) from None
        if done:
            view.result(text)
            return
    view.failed(ValueError(text))
    raise typer.Exit(ExitCode.USAGE)
