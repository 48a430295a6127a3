"""Answers of the operators' REST API: tokens, certificates, devices, operators."""

from __future__ import annotations

from typing import TypedDict

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role


class Answer(BaseModel):
    """What the service answers. Fields that a newer service adds are no error; a moment without an offset is one."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        defer_build=True,  # A program uses one or two of the models.
    )


class IssuedToken(Answer):
    """A one-time enrolment token, shown only once."""

    device: str | None = None
    group: str | None = None
    role: Role
    token: str
    expires_at: AwareDatetime
    id: int | None = None
    device_state: str | None = None

    def __repr__(self) -> str:
        return f"IssuedToken(device={self.device!r}, group={self.group!r}, role={self.role!s})"

    __str__ = __repr__


class KnownToken(Answer):
    """A token and its state; the secret itself is not shown."""

    id: int
    device: str | None = None
    group: str | None = None
    role: Role
    state: str
    created_at: AwareDatetime
    created_by: str
    expires_at: AwareDatetime
    voided_at: AwareDatetime | None = None
    used_at: AwareDatetime | None = None
    serial: str | None = None


class RevokedCertificate(Answer):
    """A revocation as the service recorded it; *sequence* is its place in the revocation feed."""

    serial: str
    device: str
    reason: RevocationReason
    revoked_at: AwareDatetime
    sequence: int
    invalidity_date: AwareDatetime | None = None


class DepartedOperator(Answer):
    """An operator who has left: what is void of what that operator had promised, and what still lets others in.

    None: the service could not count it.
    """

    name: str
    tokens_voided: int
    approvals_undone: int
    claims_ended: int = 0
    trials_ended: int = 0
    manufacturers_ended: list[str] = []
    listed_ended: int = 0
    lists_ended: list[str] = []
    roles_ended: list[str] = []
    tokens_left: int | None = None
    approvals_left: int | None = None
    claims_left: int | None = None
    listed_left: int | None = None
    manufacturers_left: int | None = None
    operators_left: int | None = None
    operators_made: list[str] = []
    operators_gone: list[str] = []
    devices_left: int | None = None
    groups_changed: list[str] = []
    manufacturers_changed: list[str] = []
    lists_cut: list[str] = []
    devices_resumed: list[str] = []


class RuleChange(Answer):
    """What an operator has made of a group's rules at one time: rules that changed, *before* and *after*.

    *before* is None of a new group, and where the service's log does not say it: then *after* has all rules.
    """

    entry: int
    at: AwareDatetime
    group: str
    before: dict[str, str] | None = None
    after: dict[str, str]


class ListCut(Answer):
    """What an operator has taken off a group's list at one time: *count* entries, some of them named."""

    entry: int
    at: AwareDatetime
    group: str
    count: int
    names: list[str]


class LeftByOperator(Answer):
    """What an operator leaves behind, or would: what still lets others in, and what was changed."""

    name: str
    tokens_left: int
    approvals_left: int
    claims_left: int
    listed_left: int
    manufacturers_left: int
    operators_left: int
    operators_made: list[str]
    operators_gone: list[str] = []
    devices_left: int
    groups_changed: list[str]
    manufacturers_changed: list[str]
    lists_cut: list[str] = []
    devices_resumed: list[str]
    changes: list[RuleChange]
    list_cuts: list[ListCut] = []


class EndedEntries(Answer):
    """How many entries that an operator has put on lists have ended, and on the lists of which groups they are."""

    name: str
    listed_ended: int
    lists_ended: list[str]


class OtherForKey(Answer):
    """A good certificate, for the same key as one that was suspended."""

    serial: str
    device: str


class ReleasedCertificate(Answer):
    """A certificate whose suspension has ended; *sequence* is the release's place in the revocation feed."""

    serial: str
    device: str
    released_at: AwareDatetime
    sequence: int


class StillSuspended(Answer):
    """A certificate that a resumption was about, and that stays suspended.

    *by_itself*: by its serial number, so that its device's resumption does not concern it; otherwise with its device,
    which is suspended as a whole.
    """

    serial: str
    device: str
    by_itself: bool


class DeviceSearch(TypedDict, total=False):
    """Which devices to search for; None is the same as absent."""

    group: str | None
    state: str | None
    certificate: str | None
    name_part: str | None
    claim: str | None
    manufacturer: str | None


class EnrolledDevice(Answer):
    """A device, broker, service or operator that has, or had, a certificate."""

    name: str
    role: Role
    group: str | None = None
    state: str
    created_at: AwareDatetime
    suspended_at: AwareDatetime | None = None
    revoked_at: AwareDatetime | None = None
    decommissioned_at: AwareDatetime | None = None
    certificate: str | None = None
    """What it can show: valid, trial, suspended, revoked, expired or none; None: the service is older."""
    certificate_not_after: AwareDatetime | None = None
    certificates: int
    claims: list[str] = Field(default_factory=list)
    """That let it in."""
    manufacturer: str | None = None
    """With whose certificate it last enrolled."""

    def missed(self, search: DeviceSearch) -> str | None:
        """Return by which of what *search* says this is none, as from a service that does not know that filter."""
        said = (
            ("certificate", search.get("certificate"), [self.certificate]),
            ("claim", search.get("claim"), self.claims),
            ("manufacturer", search.get("manufacturer"), [self.manufacturer]),
        )
        return next((what for what, wanted, has in said if wanted is not None and wanted not in has), None)


class IssuedCertificate(Answer):
    """A certificate in the service's inventory; *serial* and *issuer_key_id* are hexadecimal."""

    serial: str
    device: str
    role: Role
    group: str | None = None
    issuer_key_id: str
    fingerprint_sha256: str
    not_before: AwareDatetime
    not_after: AwareDatetime
    state: str
    revoked_at: AwareDatetime | None = None
    reason: RevocationReason | None = None
    sequence: int | None = None
    invalidity_date: AwareDatetime | None = None
    suspended_by_itself: bool | None = None
    """Whether it stays suspended when its device is resumed; None: the service is older."""
    trial: str | None = None
    """Of one on hold because it was issued on trial: awaited, activated or ended. None: of any other."""


class KnownOperator(Answer):
    """An operator, with the role: auditor, enroller or admin."""

    name: str
    role: str
    granted_at: AwareDatetime | None = None
    granted_by: str | None = None


class GrantedRole(KnownOperator):
    """An operator with a new role, and what was taken back of what that operator had promised."""

    tokens_voided: int = 0
    approvals_undone: int = 0


class ListedOperator(KnownOperator):
    """The same with access: *state* is None before the first enrolment, *good_until* without a valid certificate."""

    state: str | None = None
    good_until: AwareDatetime | None = None


class Myself(Answer):
    """The caller: what the service knows about the client's own certificate."""

    name: str
    role: str
    serial: str
    not_after: AwareDatetime


class CertificateDetails(IssuedCertificate):
    """The same, with the certificate itself in PEM, and that of its issuing CA."""

    pem: str
    chain: str = ""
    """Below the root, which is the trust anchor; empty if the root is the issuer."""


class RenewalWindow(Answer):
    """The period in which a device renews, at a random time."""

    start: AwareDatetime
    end: AwareDatetime


class RenewalInfo(Answer):
    """When a certificate should be renewed (RFC 9773 §4.2); at once if the window's end has passed."""

    suggestedWindow: RenewalWindow  # noqa: N815 - the RFC's name


class OpenTokens(Answer):
    """How many tokens can be used now."""

    open: int


class FeedStatus(Answer):
    """The revocation feed: its newest number, and how many follow it."""

    sequence: int
    subscribers: int


class UnknownAuthority(Answer):
    """An issuing CA that a broker does not trust: the broker refuses every certificate that this CA has issued."""

    authority: str
    state: str
    broker: str
    said_at: AwareDatetime


class CrlStatus(Answer):
    """The newest CRL of one series."""

    number: int
    entries: int
    this_update: AwareDatetime
    next_update: AwareDatetime


class ServiceStatus(Answer):
    """What runs, what `/readyz` says of each part, counts by state, and the newest CRLs, by name."""

    version: str = ""  # An older service does not send it.
    build: str = ""  # As above.

    checks: dict[str, str] = {}  # As above.
    devices: dict[str, int]
    active_devices_without_certificate: int = 0  # As above.
    certificates: dict[str, int]
    tokens: OpenTokens
    feed: FeedStatus
    unknown_authorities: list[UnknownAuthority] = []  # An older service does not send it.
    crls: dict[str, CrlStatus]
