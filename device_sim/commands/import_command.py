"""The arguments of `fleet-sim import`; `device_sim.commands.fleet_import` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from device_sim.late_imports import late_imports


def import_fleet(
    directory: Annotated[Path, typer.Argument(help="The fleet's directory: new, or one to continue.")],
    source: Annotated[
        Path,
        typer.Option(
            "--from", help="A directory of certificates and keys, or a CSV file that names them.", show_default=False
        ),
    ],
    cafile: Annotated[Path, typer.Option(help="Trust anchors, which verify the broker.", show_default=False)],
    backend_cert: Annotated[
        Path,
        typer.Option(
            help="Certificate of the run's own backend, which receives and counts all messages.", show_default=False
        ),
    ],
    backend_key: Annotated[
        Path | None, typer.Option(help="Its private key, if that is in another file.", show_default=False)
    ] = None,
    backend_id: Annotated[
        str | None, typer.Option(help="Its client identifier (default: its Common Name).", show_default=False)
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            help="The devices' group, which is in their topics (default: that in the certificate, or meters).",
            show_default=False,
        ),
    ] = None,
    passphrase_file: Annotated[
        Path | None,
        typer.Option(help="The passphrase of encrypted keys; the copies are not encrypted.", show_default=False),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(help="Leave out files of this name or pattern; may be given several times.", show_default=False),
    ] = None,
) -> None:
    """Copy existing certificates and their keys into a fleet; run it again to continue after Ctrl-C, or for new ones.

    Columns of the CSV file: certificate, and where needed key, chain, name, client_id, group.

    \b
    Example:
      fleet-sim import ./meters --from ./devices --cafile ca.pem --backend-cert backend.crt --backend-key backend.key
      fleet-sim import ./meters --from others/clients.csv --cafile others/ca-bundle.crt \\
        --backend-cert others/service.crt --backend-key others/service.key
    """
    with late_imports():
        from device_sim.commands.fleet_import import import_or_explain

    import_or_explain(
        directory, source, cafile, backend_cert, backend_key, backend_id, group, passphrase_file, skip or ()
    )
