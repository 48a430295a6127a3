"""The variables of the environment that a program's settings come from: those that begin with its prefix.

One that is no setting would do nothing, unnoticed: a mistyped limit, or one in small letters, which the library would
take if no other of that name comes after it.

Kubernetes gives a pod variables for each Service of its namespace that begin with the Service's name
(`enableServiceLinks`): for one called fleet-broker they look like the broker's settings, among them
``FLEET_BROKER_PORT=tcp://10.0.0.1:8883``, which is no port.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final

_MADE: Final = re.compile(r"SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?")
_ADDRESS: Final = re.compile(r"(tcp|udp|sctp)://")


class NoSettingVariable(ValueError):
    """A variable has the prefix and is no setting; the text names it and the remedy."""


def named_in_variables(prefix: str) -> Iterator[tuple[str, str]]:
    """Yield each variable that begins with *prefix*, and the setting that it names. Raises `NoSettingVariable`."""
    for variable, value in os.environ.items():
        if not variable.upper().startswith(prefix):
            continue
        if variable != variable.upper():
            raise NoSettingVariable(f"{variable}: write it in capitals, {variable.upper()}")
        rest = variable.removeprefix(prefix)
        if _is_of_kubernetes(rest, value):
            raise NoSettingVariable(
                f"{variable}: Kubernetes has made it for a Service of that name, and it is no setting: say "
                "enableServiceLinks: false in the pod, or call the Service otherwise"
            )
        yield variable, rest.lower()


def _is_of_kubernetes(rest: str, value: str) -> bool:
    return _MADE.fullmatch(rest) is not None or (rest == "PORT" and _ADDRESS.match(value) is not None)
