"""Variables that Kubernetes sets for a Service: those of one called fleet-broker look like the broker's settings.

A pod gets variables for each Service of its namespace that begin with the Service's name (`enableServiceLinks`),
among them ``FLEET_BROKER_PORT=tcp://10.0.0.1:8883``, which is no port.
"""

from __future__ import annotations

import re
from typing import Final

_MADE: Final = re.compile(r"SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?")
_ADDRESS: Final = re.compile(r"(tcp|udp|sctp)://")


def service_link(rest: str, value: str) -> str:
    """Return the remedy for the variable called *rest* after our prefix; empty if Kubernetes did not set it."""
    if _MADE.fullmatch(rest) is None and not (rest == "PORT" and _ADDRESS.match(value)):
        return ""
    return (
        "Kubernetes has made it for a Service of that name, and it is no setting: say enableServiceLinks: false in the "
        "pod, or call the Service otherwise"
    )
