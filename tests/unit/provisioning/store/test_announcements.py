"""What other processes are told when it commits: whatever makes a certificate worthless before it is itself revoked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy.engine import Connection

from provisioning.pki.revocation_reason import RevocationReason
from provisioning.store import (
    announcements,
    revocations,
    unfinished_authority_ends,
    unfinished_ends,
    unfinished_key_ends,
)
from provisioning.store.certificates_of_key import DeviceKey
from provisioning.store.unfinished_authority_ends import EndedIssuer, UnfinishedAuthorityEnd
from tests.support.fleet import Fleet
from tests.support.requests import NOON

ENDED = {"ended_at": NOON, "ended_by": "admin"}
REASON = RevocationReason.CA_COMPROMISE
WORKS: dict[str, Callable[[Connection], object]] = {
    "devices": lambda connection: unfinished_ends.begin(connection, [1], reason=REASON, **ENDED),  # type: ignore[arg-type]
    "keys": lambda connection: unfinished_key_ends.begin(
        connection, [DeviceKey(1, b"k" * 32)], invalidity_date=None, **ENDED  # type: ignore[arg-type]
    ),
    "a CA": lambda connection: unfinished_authority_ends.begin(
        connection, EndedIssuer("aa"), UnfinishedAuthorityEnd(REASON, None, NOON, "admin")
    ),
    "revocations": lambda connection: revocations.add(
        connection, [1], reason=REASON, revoked_at=NOON, revoked_by="admin"
    ),
}  # fmt: skip
NOTHING: dict[str, Callable[[Connection], object]] = {
    "devices": lambda connection: unfinished_ends.begin(connection, [], reason=REASON, **ENDED),  # type: ignore[arg-type]
    "keys": lambda connection: unfinished_key_ends.begin(connection, [], invalidity_date=None, **ENDED),  # type: ignore[arg-type]
    "revocations": lambda connection: revocations.add(
        connection, [], reason=REASON, revoked_at=NOON, revoked_by="admin"
    ),
}


@pytest.mark.parametrize("ends", WORKS)
async def test_an_end_is_announced_and_none_is_not(fleet: Fleet, ends: str) -> None:
    """Another process would go on to answer from its cache that the certificates are good."""
    await fleet.enrol("meter-1")

    def announced(connection: Connection) -> tuple[bool, bool]:
        if (nothing := NOTHING.get(ends)) is not None:
            nothing(connection)
        before = announcements.take(connection)
        WORKS[ends](connection)
        return before, announcements.take(connection)

    assert await fleet.database.write(announced) == (False, True)
