"""Names that the shell offers at Tab. For devices and groups the running service is asked, as the command would ask it.

CAs are those whose certificates are in the directory, on which their commands work.

Rules
-----
1. All names that begin like what was typed, or none: of a part, the shell would type what only the part has in common.
2. It takes two seconds at most, and nothing is said of a failure: who cannot ask is offered nothing, and types on.
3. Nothing is imported for it until a name is completed.
"""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from provisioning.commands.service_command import Connection
from provisioning.errors import ConfigurationError
from provisioning.program.starting import importing

_SECONDS: Final = 2.0
_PATHS: Final = ("directory", "cafile", "cert", "key")
"""Of a `Connection`: at a completion they are texts (`provisioning.program.given_values`)."""


def device_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of devices, and other parties, that begin with *incomplete*; for ``autocompletion=``."""
    return _asked(ctx.params, "devices", incomplete)


def group_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of configured groups that begin with *incomplete*; for ``autocompletion=``."""
    return _asked(ctx.params, "groups", incomplete)


OfGroup = Annotated[
    str | None, typer.Option(help="Of this group only.", autocompletion=group_names, show_default=False)
]


def issuing_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of issuing CAs that begin with *incomplete*; for ``autocompletion=``."""
    return _of_cas(ctx.params, "issuing-", incomplete)


def root_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of roots that begin with *incomplete*; for ``autocompletion=``."""
    return _of_cas(ctx.params, "root-", incomplete)


def _of_cas(given: dict[str, Any], kind: str, beginning: str) -> list[str]:
    directory = Path(given.get("directory") or os.environ.get("FLEET_PROVISIONING_DIRECTORY") or "fleet")
    return sorted(path.stem for path in directory.glob(f"{kind}*.crt") if path.stem.startswith(beginning))


def _asked(given: dict[str, Any], kind: str, beginning: str) -> list[str]:
    with importing():
        import asyncio

        from provisioning.client.operator import RequestRefused, ServiceUnavailable
        from provisioning.pki.tls import TlsConfigurationError

    values: dict[str, Any] = {each.name: given.get(each.name) for each in fields(Connection)}
    values |= {name: Path(values[name]) for name in _PATHS if values[name]}

    async def ask() -> list[str]:
        client = Connection(**values).client()
        async with asyncio.timeout(_SECONDS), client:
            return await client.names(kind, beginning)

    try:
        return asyncio.run(ask())
    except (ConfigurationError, RequestRefused, ServiceUnavailable, TlsConfigurationError, OSError):
        return []  # TimeoutError is an OSError.
