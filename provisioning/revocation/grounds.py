"""Why something is revoked, and since when it was not to be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from provisioning.errors import Code, Refused
from provisioning.pki.revocation_reason import RevocationReason

_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Grounds:
    """Why something is revoked, and since when it was not to be trusted, if that is known (RFC 5280 §5.3.2)."""

    reason: RevocationReason
    invalidity_date: datetime | None = None

    @property
    def facts(self) -> dict[str, object]:
        """The facts for the audit log."""
        known = {} if self.invalidity_date is None else {"invalidity_date": self.invalidity_date}
        return {"reason": self.reason.value, **known}


def grounds_of(reason: RevocationReason, invalidity_date: datetime | None, now: datetime) -> Grounds:
    """Return the grounds; raise `Refused` unless the date is a time in UTC from 1970 until *now*."""
    if invalidity_date is None:
        return Grounds(reason)
    if not _EARLIEST <= invalidity_date <= now:
        raise Refused(
            Code.INVALID_REQUEST,
            f"invalidity_date {invalidity_date:%Y-%m-%dT%H:%M:%S%z} must be a time in the past, not before 1970",
        )
    return Grounds(reason, invalidity_date.replace(microsecond=0))  # RFC 5280 §5.3.2: no fractions.
