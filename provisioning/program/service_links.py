"""Variables that Kubernetes makes for a Service: of one called fleet-broker they look like settings of the broker.

A pod is told of each Service of its namespace by variables that begin with the Service's name (`enableServiceLinks`),
``FLEET_BROKER_PORT=tcp://10.0.0.1:8883`` among them, which is no port.
"""

from __future__ import annotations

import re
from typing import Final

_MADE: Final = re.compile(r"SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?")
_ADDRESS: Final = re.compile(r"(tcp|udp|sctp)://")


def service_link(rest: str, value: str) -> str:
    """Return what to do about the variable called *rest* behind our prefix; empty if Kubernetes has not made it."""
    if _MADE.fullmatch(rest) is None and not (rest == "PORT" and _ADDRESS.match(value)):
        return ""
    return (
        "Kubernetes has made it for a Service of that name, and it is no setting: say enableServiceLinks: false in the "
        "pod, or call the Service otherwise"
    )
