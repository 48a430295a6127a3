"""How a work that is led side by side with others leaves them, see `provisioning.store.company`."""

from __future__ import annotations

from typing import Final

from sqlalchemy.engine import Connection

COMPANY: Final = "company"
"""Key in a connection's ``info``: the leader of several works side by side on it."""


class GoneAlone(Exception):
    """A member has found that it must run by itself; it has changed nothing."""


def go_alone(connection: Connection) -> None:
    """Leave the company, if the work is in one, before anything is changed: what follows affects all its members."""
    if COMPANY in connection.info:
        raise GoneAlone
