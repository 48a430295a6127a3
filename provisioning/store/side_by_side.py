"""What a work may know of being led side by side with others, see `provisioning.store.company`."""

from __future__ import annotations

from typing import Final

from sqlalchemy.engine import Connection

COMPANY: Final = "company"
"""Of a connection's notes: whoever leads several works side by side on it."""


class GoneAlone(Exception):
    """A member has found that it must be done by itself; it has changed nothing."""


def go_alone(connection: Connection) -> None:
    """Leave the company, if the work is in one, before anything is changed: what comes now is everybody's."""
    if COMPANY in connection.info:
        raise GoneAlone
