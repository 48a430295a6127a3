"""The name that nobody can enrol under: the provisioning service's own.

Theory
------
To its clients, the holder of a certificate with role ``service`` and this name is the provisioning service
(`provisioning.client.genuine_server`): they send it tokens, and believe it about revocation. The service makes
that certificate itself when it is due (`provisioning.authorities.own_credentials`), without a token or a request. So no
token, renewal or other evidence is worth one, whoever made or presents it.

The name is refused for every role. It is reserved from the start, so that it is of no use with another role either.
"""

from __future__ import annotations

from provisioning.errors import Code, Refused
from provisioning.pki.identity import PROVISIONING


def check_nobody_enrols_as_the_service(name: str) -> None:
    """Raise `Refused` if *name*, requested for an enrolment, is the service's own."""
    if name == PROVISIONING:
        raise Refused(
            Code.PROTECTED,
            f"{name} is the name of the provisioning service itself, which renews its own certificate: choose another "
            "name",
        )
