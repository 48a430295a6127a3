"""Where a client should have its responses sent: Response Information, for clients that ask for it (MQTT 5 §4.10).

A client that makes requests names a Response Topic in each, and needs one of its own. The broker's operator defines it
once for all clients, with placeholders filled in per client as in the topic policy.

Rules
-----
1. It informs and grants nothing: the topic policy grants.
2. A client that lacks a name used in the text (a service has no group) is told nothing.
3. No I/O, no clock.
"""

from __future__ import annotations

from broker.admission.filter_template import FilterTemplate, InvalidFilter
from broker.admission.policy import names_of
from broker.admission.policy_file import PolicyError
from provisioning.pki.identity import Identity

_WILDCARDS = "+#"


class ResponseInformation:
    """The topic below which clients receive their responses, with placeholders. Raises `PolicyError`."""

    def __init__(self, text: str) -> None:
        try:
            self._template = FilterTemplate(text)
        except InvalidFilter as error:
            raise PolicyError(f"response_information: {error}") from None
        if any(wildcard in text for wildcard in _WILDCARDS):
            raise PolicyError(f"response_information: {text!r}: a topic name has no wildcards; leave + and # out")

    def of(self, identity: Identity, client_id: str) -> str | None:
        """Return the Response Information of *identity*'s client *client_id*, None for none."""
        return self._template.fill(names_of(identity, client_id))
