"""Why the service refuses: stable codes, and the two exceptions that carry a sentence for the person who reads it.

Theory
------
A refusal has a code that never changes and a sentence that names the field and says what to do. Only
`provisioning.enrolment.problems` decides what a code means on the wire (an HTTP status, a media type).

Rules
-----
1. A `Refused` is the caller's to fix; anything else that leaves a service is a bug and is answered without detail.
2. A detail never holds a token, a passphrase or a key.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Code(StrEnum):
    """The stable first word of every refusal."""

    # The request itself.
    BODY_ENCODING = "BODY_ENCODING"
    BODY_TOO_LARGE = "BODY_TOO_LARGE"
    BODY_TOO_SLOW = "BODY_TOO_SLOW"
    INVALID_REQUEST = "INVALID_REQUEST"
    MEDIA_TYPE = "MEDIA_TYPE"
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
    NOT_FOUND = "NOT_FOUND"
    # The certificate signing request.
    CSR_MALFORMED = "CSR_MALFORMED"
    CSR_SIGNATURE = "CSR_SIGNATURE"
    CSR_KEY = "CSR_KEY"
    CSR_NAME = "CSR_NAME"
    CSR_SUBJECT_CHANGED = "CSR_SUBJECT_CHANGED"
    CSR_LINK = "CSR_LINK"
    KEY_REUSED = "KEY_REUSED"
    KEY_ENCRYPTION = "KEY_ENCRYPTION"
    SERVER_KEYS_REFUSED = "SERVER_KEYS_REFUSED"
    # The enrolment token.
    TOKEN_MISSING = "TOKEN_MISSING"
    TOKEN_UNKNOWN = "TOKEN_UNKNOWN"
    TOKEN_USED = "TOKEN_USED"
    TOKEN_EXPIRED = "TOKEN_EXPIRED"
    TOKEN_VOID = "TOKEN_VOID"
    TOKEN_DEVICE = "TOKEN_DEVICE"
    TOKEN_GROUP = "TOKEN_GROUP"
    NAME_TAKEN = "NAME_TAKEN"
    # The other ways to be let in.
    NOT_ADMITTED = "NOT_ADMITTED"
    CLAIM_EXHAUSTED = "CLAIM_EXHAUSTED"
    CLAIM_ENDED = "CLAIM_ENDED"
    MANUFACTURER_CERTIFICATE = "MANUFACTURER_CERTIFICATE"
    MANUFACTURER_REVOKED = "MANUFACTURER_REVOKED"
    MANUFACTURER_LIST_LAPSED = "MANUFACTURER_LIST_LAPSED"
    NOT_LISTED = "NOT_LISTED"
    APPROVAL_DENIED = "APPROVAL_DENIED"
    APPROVALS_FULL = "APPROVALS_FULL"
    APPROVAL_DECIDED = "APPROVAL_DECIDED"
    APPROVAL_OUTDATED = "APPROVAL_OUTDATED"
    WEBHOOK_VETO = "WEBHOOK_VETO"
    WEBHOOK_FAILED = "WEBHOOK_FAILED"
    # The group that the device would belong to.
    WAY_REFUSED = "WAY_REFUSED"
    GROUP_FULL = "GROUP_FULL"
    GROUP_UNKNOWN = "GROUP_UNKNOWN"
    GROUP_EXISTS = "GROUP_EXISTS"
    CLAIM_UNKNOWN = "CLAIM_UNKNOWN"
    MANUFACTURER_UNKNOWN = "MANUFACTURER_UNKNOWN"
    MANUFACTURER_LIST_UNKNOWN = "MANUFACTURER_LIST_UNKNOWN"
    APPROVAL_UNKNOWN = "APPROVAL_UNKNOWN"
    NAME_EXISTS = "NAME_EXISTS"
    # A token that an operator names by its number.
    TOKEN_NUMBER_UNKNOWN = "TOKEN_NUMBER_UNKNOWN"
    TOKEN_SPENT = "TOKEN_SPENT"
    # The certificate that authenticates the caller.
    CERTIFICATE_MISSING = "CERTIFICATE_MISSING"
    CERTIFICATE_UNKNOWN = "CERTIFICATE_UNKNOWN"
    CERTIFICATE_REVOKED = "CERTIFICATE_REVOKED"
    CERTIFICATE_SUSPENDED = "CERTIFICATE_SUSPENDED"
    CERTIFICATE_EXPIRED = "CERTIFICATE_EXPIRED"
    ROLE = "ROLE"
    OPERATOR_ROLE = "OPERATOR_ROLE"
    LAST_ADMIN = "LAST_ADMIN"
    PROTECTED = "PROTECTED"
    # What was asked about.
    DEVICE_SUSPENDED = "DEVICE_SUSPENDED"
    DEVICE_DECOMMISSIONED = "DEVICE_DECOMMISSIONED"
    REVOCATION_FINAL = "REVOCATION_FINAL"
    ON_TRIAL = "ON_TRIAL"
    DEVICE_UNKNOWN = "DEVICE_UNKNOWN"
    SERIAL_UNKNOWN = "SERIAL_UNKNOWN"
    CERTIFICATE_FOREIGN = "CERTIFICATE_FOREIGN"
    FEED_AHEAD = "FEED_AHEAD"
    FEED_CROWDED = "FEED_CROWDED"
    IDEMPOTENCY_BUSY = "IDEMPOTENCY_BUSY"
    IDEMPOTENCY_MISMATCH = "IDEMPOTENCY_MISMATCH"
    IDEMPOTENCY_UNKNOWN = "IDEMPOTENCY_UNKNOWN"
    RATE_LIMITED = "RATE_LIMITED"
    # The service.
    UNAVAILABLE = "UNAVAILABLE"
    INTERNAL = "INTERNAL"


class Refused(Exception):
    """The service will not do what was asked; *code* says why to a program, *detail* to a person."""

    def __init__(self, code: Code, detail: str, *, retry_after: int | None = None) -> None:
        """*retry_after*: in so many seconds the same may be granted."""
        super().__init__(code, detail)
        self.code = code
        self.detail = detail
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


def invalid(detail: str) -> Refused:
    """Return the refusal of a request of which a field is wrong: *detail* names it."""
    return Refused(Code.INVALID_REQUEST, detail)


class RefusedStranger(Refused):
    """A refusal of somebody who has shown nothing that is anybody's here.

    *code* and *detail* say why, for the log and the metrics. The answer is the same whatever they say, and ends with
    *beside*: what follows from what the client has presented alone.
    """

    def __init__(self, code: Code, detail: str, beside: str = "") -> None:
        super().__init__(code, detail)
        self.beside = beside


@dataclass(frozen=True, slots=True)
class RefusedItem:
    """One of many that were asked for together, and why it is not done."""

    kind: str
    """What is named: ``device``, ``serial`` or ``token``."""
    name: str | int
    code: Code
    detail: str


class RefusedTogether(Refused):
    """Nothing of many that were asked for together is done, because of *items*; the code is that of the first."""

    def __init__(self, items: Sequence[RefusedItem], undone: str) -> None:
        """*undone* is what nothing of the request was: ``revoked``."""
        named = "; ".join(_told_together(items[:_NAMED]))
        more = f" and {len(items) - _NAMED} others" if len(items) > _NAMED else ""
        super().__init__(items[0].code, f"{named}{more}; nothing of this request was {undone}")
        self.items = tuple(items)


_NAMED: Final = 10
"""Items that the detail of a refusal names; all are in the answer."""
_UNKNOWN: Final = {
    Code.DEVICE_UNKNOWN: "no device is called",
    Code.SERIAL_UNKNOWN: "no certificate has serial",
    Code.TOKEN_NUMBER_UNKNOWN: "there is no token, or it was removed after its end:",
}
"""What is said once of many."""


def _told_together(items: Sequence[RefusedItem]) -> Iterator[str]:
    for code, words in _UNKNOWN.items():
        unknown = [repr(each.name) for each in items if each.code is code]
        if unknown:
            yield f"{words} {', '.join(unknown)}"
    yield from (each.detail for each in items if each.code not in _UNKNOWN)


class Refusals:
    """Collects why some of many that are asked for together cannot be done."""

    def __init__(self) -> None:
        self._items: list[RefusedItem] = []

    @contextlib.contextmanager
    def of(self, kind: str, name: str | int) -> Iterator[None]:
        """Keep what the block refuses: it is about the one so named."""
        try:
            yield
        except Refused as refusal:
            self._items.append(RefusedItem(kind, name, refusal.code, refusal.detail))

    def check(self, undone: str) -> None:
        """Raise `RefusedTogether` if anything was refused."""
        if self._items:
            raise RefusedTogether(self._items, undone)


class Pending(Exception):
    """Nobody has decided yet: the same request may be repeated after *retry_after* seconds."""

    def __init__(self, detail: str, retry_after: int) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after = retry_after


class ConfigurationError(Exception):
    """The service cannot start as configured; the text names the setting or file and the remedy."""


class InvalidSettings(ConfigurationError):
    """A flag, a variable or the settings file has a value that no service could use, or a name that is no setting."""
