"""The log line of a refused enrolment: what the client is told, or why it is told less.

A device that cannot show the text of an answer, and whoever is told nothing because nothing was shown, are helped by
nobody but a person who reads the log: so each refusal of what was asked for is in it, also of a request that could not
be read. Not in it, as whoever asks is told all that there is to tell: what is answered before an operation is asked
(another method, a label that no group can have, a body that is too long or late, too many requests).

The line has the address that the request came from, without the port: of a device that nobody knows yet it is all that
leads to it. It is there for as long as the log is kept (docs/operations.md, Logs).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from provisioning.enrolment.attempt import TlsConnection
from provisioning.errors import Refused

log = structlog.get_logger(__name__)


@contextmanager
def refusals_logged(connection: TlsConnection | None, name: str | None = None) -> Iterator[None]:
    """Log a `Refused` that leaves the context; *name*: the device's, once the request was read."""
    try:
        yield
    except Refused as refusal:
        address = None if connection is None else connection.address
        who = {key: value for key, value in (("name", name), ("address", address)) if value is not None}
        log.info("enrolment refused", code=refusal.code.value, detail=refusal.detail, **who)
        raise
