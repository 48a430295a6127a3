"""Where a client may have its answers sent: Response Information, for those that ask for it (MQTT 5 §4.10).

A client that makes requests names a Response Topic in each, and has to know one that is its own: whose, the broker's
operator says once for all clients, with the names of each filled in as in the topic policy.

Rules
-----
1. It is told, and grants nothing: the topic policy does.
2. Who lacks a name that the text needs (a service has no group) is told nothing.
3. No I/O, no clock.
"""

from __future__ import annotations

from broker.admission.filter_template import FilterTemplate, InvalidFilter
from broker.admission.policy import names_of
from broker.admission.policy_file import PolicyError
from provisioning.pki.identity import Identity

_WILDCARDS = "+#"


class ResponseInformation:
    """A topic below which clients find their answers, with placeholders. Raises `PolicyError`."""

    def __init__(self, text: str) -> None:
        try:
            self._template = FilterTemplate(text)
        except InvalidFilter as error:
            raise PolicyError(f"response_information: {error}") from None
        if any(wildcard in text for wildcard in _WILDCARDS):
            raise PolicyError(f"response_information: {text!r}: a topic has no wildcards; leave + and # out")

    def of(self, identity: Identity, client_id: str) -> str | None:
        """Return what the client *client_id* of *identity* is told, None for nothing."""
        return self._template.fill(names_of(identity, client_id))
