"""The list of expected devices: a name that is not on it is refused; a key that is on it proves the client's identity.

An entry without a key is only a name, which others may know, so it needs another way beside it. An entry with a key is
fulfilled by that key alone, and the request's own signature shows that the client holds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

from sqlalchemy.engine import Connection

from provisioning.enrolment.attempt import Attempt
from provisioning.enrolment.ways.way import Vouched, Way
from provisioning.errors import Code, Refused
from provisioning.store import listed_devices
from provisioning.store.groups import Group, WayName


class ListedWay(Way):
    """A condition: nothing is presented for it but the request itself."""

    name: ClassVar[WayName] = WayName.LISTED

    @classmethod
    def presented(cls, connection: Connection, attempt: Attempt) -> Self | None:  # noqa: ARG003 - a way's signature
        """Apply to every request."""
        return cls()

    def vouch(self, connection: Connection, attempt: Attempt, group: Group, shown: Sequence[Vouched]) -> Vouched:  # noqa: ARG002 - a way's signature
        """Refuse a name that is not on the list, or is on it with another key."""
        name = attempt.request.common_name
        found = listed_devices.find(connection, group.name, name)
        if found is None:
            raise Refused(
                Code.NOT_LISTED, f"{name} is not on the list of group {group.name}: the operator has to add it"
            )
        if found.ended_at is not None:
            raise Refused(
                Code.NOT_LISTED,
                f"{name} is not on the list of group {group.name} any more, as whoever put it there cannot vouch for "
                "it: the operator has to add it again",
            )
        entry = found.device
        if entry.spki_sha256 is not None and attempt.server_key:
            raise Refused(
                Code.NOT_LISTED,
                f"{name} is on the list of group {group.name} with its own public key, and the service would make "
                "another: use /simpleenroll with that key, or the operator has to list the name alone",
            )
        if entry.spki_sha256 is not None and entry.spki_sha256 != attempt.request.key_fingerprint:
            raise Refused(
                Code.NOT_LISTED,
                f"{name} is on the list of group {group.name} with another public key: use that key, or the operator "
                "has to correct the list",
            )
        pinned = entry.spki_sha256 is not None
        return Vouched(found.by, "listed key" if pinned else "listed", proves=pinned, identifies=pinned)
