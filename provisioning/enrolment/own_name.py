"""The name that nobody is enrolled under: the provisioning service's own.

Theory
------
Whoever holds a certificate of role ``service`` and this name is the provisioning service to everybody who speaks to it
(`provisioning.client.genuine_server`): he is sent tokens, and is believed that nobody is revoked. The service makes
that certificate itself when it is due (`provisioning.authorities.own_credentials`), with no token and no request. So no
token, no renewal and no other evidence buys one, whoever has made or shown it.

The name is refused for every role. It is taken from the beginning, so that another role would get nothing by it either.
"""

from __future__ import annotations

from provisioning.errors import Code, Refused
from provisioning.pki.identity import PROVISIONING


def check_nobody_enrols_as_the_service(name: str) -> None:
    """Raise `Refused` if *name*, which somebody is to be enrolled under, is the service's own."""
    if name == PROVISIONING:
        raise Refused(
            Code.PROTECTED,
            f"{name} is the name of the provisioning service itself, which renews its own certificate: choose another "
            "name",
        )
