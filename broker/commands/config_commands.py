"""``fleet-broker config``: a mosquitto configuration converted into the broker's settings.

The result goes to standard output or into files, errors and what to do next to standard error. Exit codes: 0 converted,
2 wrong usage, or a configuration that cannot be converted; then nothing is written.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Annotated

import typer

from broker.commands.error_line import USAGE, failed, say_wrong
from provisioning.program.command_group import command_group
from provisioning.program.unwritten import unwritten

config_app = command_group(name="config", help="Convert a mosquitto configuration.")


@config_app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="A mosquitto.conf; the files that it includes are read, too.")],
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write the settings into this new file, and the topic policy into policy.toml beside it.",
            show_default=False,
        ),
    ] = None,
    listener: Annotated[
        list[int] | None,
        typer.Option(metavar="PORT", help="Convert only the listener at this port; repeatable.", show_default=False),
    ] = None,
    policy: Annotated[bool, typer.Option("--policy", help="Print the topic policy instead of the settings.")] = False,
) -> None:
    """Print the broker's settings for a mosquitto.conf or, if it cannot be converted, each line that prevents it.

    An option without a meaning here is left out, and a comment says why. Run it in the folder where mosquitto runs: a
    relative path in the file begins there.

    \b
    Example:
      fleet-broker config convert /etc/mosquitto/mosquitto.conf --output broker.toml
    """
    from broker.mosquitto.conf import UnreadableConf
    from broker.mosquitto.conversion import InvalidConf, beside, converted

    if output is not None and policy:
        raise failed("--policy prints the policy, and --output writes it too: give one of them", USAGE)
    try:
        made = converted(file, listener or (), output)
    except (InvalidConf, UnreadableConf) as error:
        raise failed(str(error), USAGE) from None
    for each in made.left_out:
        say_wrong(each)
    if output is not None:
        _write({output: made.settings, beside(output): made.policy})
    else:
        typer.echo(made.policy if policy else made.settings, nl=False)


def _write(texts: dict[Path, str]) -> None:
    """Write each text into its new file; all of them, or none. Raises `typer.Exit`."""
    written: list[Path] = []
    try:
        for path, text in texts.items():
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w", encoding="utf-8") as file:
                written.append(path)
                file.write(text)
    except OSError as error:
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink()
        raise failed(unwritten(error.filename or written[-1], error), USAGE) from None
