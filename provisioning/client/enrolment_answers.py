"""Answers of the operators' REST API about enrolment: groups, claims, manufacturers, lists, approvals, renewals."""

from __future__ import annotations

from pydantic import AwareDatetime

from provisioning.client.operator_answers import Answer


class EnrolmentGroup(Answer):
    """A configured enrolment group: which ways lead into it, and what its devices get."""

    name: str
    ways: list[str]
    profile: str
    profile_known: bool = True
    lifetime_seconds: int | None = None
    maximum_devices: int | None = None
    certificates_per_minute: int | None = None
    same_key_seconds: int
    new_key: str
    renewal_grace_seconds: int
    server_keys: bool
    tls_unique: bool
    webhook_url: str | None = None
    webhook_timeout_seconds: int
    issuing_line: str
    full: bool | None = None
    created_at: AwareDatetime
    created_by: str
    changed_at: AwareDatetime
    changed_by: str


class ClaimCertificate(Answer):
    """A claim certificate, without its key."""

    name: str
    group: str
    maximum_devices: int
    used: int
    activation_seconds: int
    expires_at: AwareDatetime
    ended_at: AwareDatetime | None = None
    fingerprint_sha256: str
    certificate: str
    created_at: AwareDatetime
    created_by: str


class IssuedClaimCertificate(ClaimCertificate):
    """A claim certificate with its key, seen here and never again."""

    private_key: str

    def __repr__(self) -> str:
        return f"IssuedClaimCertificate(name={self.name!r}, group={self.group!r})"

    __str__ = __repr__


class ManufacturerList(Answer):
    """A manufacturer's newest list of revoked certificates: about all of them, or those whose list is at *about*."""

    number: int
    this_update: AwareDatetime
    next_update: AwareDatetime
    about: list[str]
    entries: int
    sha256: str
    taken_at: AwareDatetime
    taken_by: str


class ManufacturerListUrl(Answer):
    """Where a manufacturer's lists are fetched; *problem*: why the last attempt brought nothing."""

    url: str
    fetched_at: AwareDatetime | None = None
    problem: str | None = None
    due_at: AwareDatetime


class TakenList(ManufacturerList):
    """A list that is in use now: how many it has revoked that the one before had not, and how many released."""

    revoked: int
    released: int


class Manufacturer(Answer):
    """A manufacturer's CA, whose device certificates open a group."""

    name: str
    group: str
    name_prefix: str
    ended_at: AwareDatetime | None = None
    fingerprint_sha256: str
    certificate: str
    created_at: AwareDatetime
    created_by: str
    lapsed_lists: str
    revoked_devices: str = "report"
    list_urls: tuple[ManufacturerListUrl, ...] = ()
    lists: list[ManufacturerList]


class RecalledDevice(Answer):
    """A device that is known, whose manufacturer has revoked the certificate that let it in, *idevid*."""

    device: str
    group: str | None = None
    state: str
    idevid: str
    reason: str
    revoked_at: AwareDatetime
    found_at: AwareDatetime


class RemovedList(ManufacturerList):
    """A list that is in use no more: how many of those it named are named by no other of the manufacturer's."""

    released: int


class ExpectedDevice(Answer):
    """A device on a group's list, with its public key's SHA-256 if that is known."""

    name: str
    key_sha256: str | None = None
    added_at: AwareDatetime | None = None
    added_by: str | None = None
    also_by: str | None = None
    ended_at: AwareDatetime | None = None


class ListError(Answer):
    """What is wrong with an entry of a batch, by its place from 0."""

    index: int
    detail: str


class ListOutcome(Answer):
    """What became of a batch for a group's list."""

    new: int
    replaced: int
    errors: list[ListError]


class Approval(Answer):
    """A request that waits, or waited, for an operator's decision."""

    id: int
    group: str
    name: str
    key_sha256: str
    evidence: str
    asked_from: str | None = None
    state: str
    requested_at: AwareDatetime
    decided_at: AwareDatetime | None = None
    decided_by: str | None = None


class HastenedRenewal(Answer):
    """A mass renewal that was ordered: for certificates of *group*, or all, that were issued before *at*."""

    group: str | None = None
    at: AwareDatetime
    spread_seconds: int
    certificates: int
