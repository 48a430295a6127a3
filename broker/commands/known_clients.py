"""Client identifiers that the shell offers at Tab: the running broker is asked, as the command would ask it.

Rules
-----
1. All that have a session and begin like what was typed, or none: of a part, the shell would type what only the part
   has in common. Left out is what a shell would not take for a word as it is: a service chooses its identifiers.
2. The broker has two seconds to answer, and nothing is said of a failure: who cannot ask is offered nothing, and types
   on. Those seconds are not spent on imports, which take as long where a machine is slow.
3. Nothing is imported for it until an identifier is completed.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any, Final

import typer

from broker.commands.admin_command import RunningBroker, remote_options

_SECONDS: Final = 2.0
_MOST: Final = 500
_WORD: Final = re.compile(r"[\w.,:@%+/=-]+", re.ASCII)


def client_ids(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the client identifiers with a session that begin with *incomplete*; for ``autocompletion=``."""
    from broker.admin.client import BrokerUnreachable, RequestRefused
    from broker.settings.config_file import ConfigError

    remote = ctx.find_root().params
    found: list[str] = []

    def ask() -> None:
        try:
            remote_options(remote.get("url"), **_paths(remote, "cafile", "cert", "key"))
            there = _paths(ctx.params, "socket", "state_dir", "config", "cafile", "cert", "key")
            with RunningBroker(url=ctx.params.get("url"), **there).connect() as client:
                query = {"beginning": incomplete} if incomplete else {}
                answer = client.get("/v1/sessions", limit=str(_MOST), **query)
            if answer["matched"] == answer["shown"]:
                found.extend(each["client_id"] for each in answer["sessions"])
        except (BrokerUnreachable, ConfigError, RequestRefused, typer.BadParameter):
            pass
        except (KeyError, TypeError, ValueError):
            pass  # What answers there is no broker.

    asking = threading.Thread(target=ask, daemon=True)  # Not waited for any longer when the answer has been given.
    asking.start()
    asking.join(_SECONDS)
    return sorted({each for each in list(found) if _WORD.fullmatch(each)})


def _paths(given: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return options as paths: at a completion they are texts (`provisioning.program.given_values`)."""
    return {name: Path(given[name]) if given.get(name) is not None else None for name in names}
