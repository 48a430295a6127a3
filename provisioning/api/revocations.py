"""The operators' REST API for revocations, which are for ever: of a device, a certificate, or many in one step."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, ClassVar, Final, Self

from fastapi import Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from provisioning.api.idempotency import repeatable
from provisioning.api.operators import DONE_BEFORE, Name, Operator, Services, new_router
from provisioning.errors import Code, Refused
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.serial_number import normal_serial
from provisioning.program.moments import rfc3339
from provisioning.revocation.departed_operators import Departed
from provisioning.revocation.named_certificate import LONGEST_PEM
from provisioning.revocation.recording import RevocationOutcome, Revoked
from provisioning.store.promises import Left

MAXIMUM_TOGETHER: Final = 1000
"""Named in one request: one transaction, which nobody else should have to wait for."""
_SERIAL_DIGITS: Final = 40  # RFC 5280 §4.1.2.2: 20 octets.

router: Final = new_router()

Serial = Annotated[str, Field(max_length=64)]


class Target(BaseModel):
    """A ``device`` with all its certificates, one certificate by ``serial``, or many in one step."""

    model_config = ConfigDict(extra="forbid")

    device: Name | None = None
    serial: Serial | None = None
    devices: Annotated[list[Name], Field(max_length=MAXIMUM_TOGETHER)] = []
    serials: Annotated[list[Serial], Field(max_length=MAXIMUM_TOGETHER)] = []

    @property
    def normal_serials(self) -> list[str]:
        """The ``serials`` as the store writes them; raises `Refused` if one is none."""
        return [named_serial(each) for each in self.serials]

    ways: ClassVar[str] = "device, or serial, or lists: devices, serials or both"

    @property
    def kinds(self) -> int:
        """How many of the ways to name a target are used."""
        return (self.device is not None) + (self.serial is not None) + bool(self.devices or self.serials)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.kinds != 1:
            raise ValueError(f"give either {self.ways}")
        return self


class RevocationRequest(Target):
    """What to revoke, and why; ``certificate``, in PEM, also for one that the service does not know any more."""

    certificate: Annotated[str, Field(max_length=LONGEST_PEM)] | None = None
    reason: RevocationReason = RevocationReason.UNSPECIFIED
    invalidity_date: AwareDatetime | None = None
    """Since when it is known or suspected not to be trusted (RFC 5280 §5.3.2)."""
    keep_tokens: bool = False

    ways: ClassVar[str] = "device, or serial, or certificate, or lists: devices, serials or both"

    @property
    def kinds(self) -> int:
        """How many of the ways to name a target are used."""
        return super().kinds + (self.certificate is not None)


@router.post("/revocations", status_code=HTTPStatus.CREATED, responses=DONE_BEFORE)
@repeatable
async def revoke(body: RevocationRequest, operator: Operator, services: Services, response: Response) -> dict[str, Any]:
    """Revoke permanently. 201 if this call did it, 200 with the original record if it was done before.

    A certificate revoked for another reason is changed to keyCompromise: 201, with the original date.
    A ``device`` that has not come, but is promised its name by a token, a list or an approval, is ended, too: ``names``
    has those of whom no certificate was ever issued. 404 for a name that nobody has promised.
    ``devices`` and ``serials`` are revoked together. If one is unknown, none is revoked; ``items`` of the problem
    document lists each unknown one.
    A ``certificate`` that this service's CA has signed and its store has lost is recorded, and revoked, in one step.
    An operator who has no valid certificate left leaves: unused tokens that he made are void, and requests that he
    approved wait again, unless ``keep_tokens`` is set: a later call without it takes back what was kept. With
    keyCompromise claims that he made end as well, devices on trial by them cannot be activated, manufacturers' CAs that
    he registered admit nobody, and nor do his entries on lists of expected devices. ``operators`` tells of each; if
    what is left could not be counted, without what ``GET /v1/operators/{name}/left`` has.
    """
    by, since, keep = operator.device.name, body.invalidity_date, body.keep_tokens
    if body.devices or body.serials:
        outcome = await services.revocation.revoke_batch(
            body.devices, body.normal_serials, body.reason, by=by, invalidity_date=since, keep_tokens=keep
        )
    elif body.certificate is not None:
        outcome = await services.revocation.revoke_shown(
            body.certificate, body.reason, by=by, invalidity_date=since, keep_tokens=keep
        )
    elif body.device is not None:
        outcome = await services.revocation.revoke_device(
            body.device, body.reason, by=by, invalidity_date=since, keep_tokens=keep
        )
    else:
        outcome = await services.revocation.revoke_serial(
            named_serial(body.serial or ""), body.reason, by=by, invalidity_date=since, keep_tokens=keep
        )
    if not outcome.changed:
        response.status_code = HTTPStatus.OK
    return ended_answer(outcome)


def ended_answer(outcome: RevocationOutcome) -> dict[str, Any]:
    """Return the answer to an operator who has ended something."""
    departed = [_departed_item(each) for each in outcome.departed]
    revoked = [revoked_item(each) for each in outcome.revoked]
    return {"revoked": revoked, "operators": departed, "names": [*outcome.names]}


def _departed_item(departed: Departed) -> dict[str, Any]:
    left = departed.left
    item: dict[str, Any] = {
        "name": departed.name,
        "tokens_voided": departed.tokens_voided,
        "approvals_undone": departed.approvals_undone,
        "claims_ended": departed.claims_ended,
        "trials_ended": departed.trials_ended,
        "manufacturers_ended": [*departed.manufacturers_ended],
        "listed_ended": sum(departed.listed_ended.values()),
        "lists_ended": [*departed.listed_ended],
        "roles_ended": [*departed.roles_ended],
    }
    # What could not be counted is left out: it is no zero.
    return item if left is None else item | left_item(left)


def left_item(left: Left) -> dict[str, Any]:
    """Return what an operator leaves behind, as an answer tells it."""
    return {
        "tokens_left": left.tokens,
        "approvals_left": left.approvals,
        "claims_left": left.claims,
        "listed_left": left.listed,
        "manufacturers_left": left.manufacturers,
        "operators_left": len(left.operators),
        "operators_made": [*left.operators],
        "operators_gone": [*left.operators_gone],
        "devices_left": left.devices,
        "groups_changed": [*left.groups],
        "manufacturers_changed": [*left.manufacturers_changed],
        "lists_cut": [*left.unlisted],
        "devices_resumed": [*left.resumed],
    }


def named_serial(text: str) -> str:
    """Return the serial number that *text* names, in any usual spelling; raise `Refused` if it is none."""
    digits = normal_serial(text)
    if not digits or len(digits) > _SERIAL_DIGITS or any(digit not in "0123456789abcdef" for digit in digits):
        raise Refused(Code.INVALID_REQUEST, f"serial {text[:80]!r} is not a serial number in hexadecimal")
    return digits


def revoked_item(revoked: Revoked) -> dict[str, Any]:
    """Return a revocation as an answer tells it."""
    return {
        "serial": revoked.serial,
        "device": revoked.device,
        "reason": revoked.reason,
        "revoked_at": rfc3339(revoked.revoked_at),
        "sequence": revoked.sequence,
        "invalidity_date": rfc3339(revoked.invalidity_date),
    }
