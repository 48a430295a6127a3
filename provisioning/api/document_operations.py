"""What the document says of each operation of the operators' API: its name, what it is about, and what it answers.

The names are those of methods in generated clients, so they stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from provisioning.client.enrolment_answers import (
    Approval,
    ClaimCertificate,
    EnrolmentGroup,
    ExpectedDevice,
    HastenedRenewal,
    IssuedClaimCertificate,
    ListOutcome,
    Manufacturer,
    RecalledDevice,
    RemovedList,
    TakenList,
)
from provisioning.client.operator_answers import (
    Answer,
    CertificateDetails,
    DepartedOperator,
    EndedEntries,
    EnrolledDevice,
    GrantedRole,
    IssuedCertificate,
    IssuedToken,
    KnownToken,
    LeftByOperator,
    ListedOperator,
    Myself,
    OtherForKey,
    ReleasedCertificate,
    RenewalInfo,
    RevokedCertificate,
    ServiceStatus,
    StillSuspended,
)

TAGS: Final = {
    "tokens": "One-time enrolment tokens.",
    "devices": "Devices, brokers, services and operators: everything that has a certificate, and its state.",
    "certificates": "The inventory: which certificates were issued, and the state of each.",
    "revocation": "Revoke, suspend, resume, decommission; and the feed that reports it at once.",
    "groups": "Enrolment groups: the ways to enrol in each, and what its devices get.",
    "expected devices": "Lists of the devices that a group expects.",
    "claims": "Claim certificates, which a production batch shares.",
    "manufacturers": "Manufacturers' CAs whose device certificates allow enrolment in a group, and their CRLs.",
    "approvals": "Requests for certificates that wait for a decision.",
    "renewals": "When to renew (ACME renewal information, RFC 9773), and requests to renew now.",
    "operators": "Operators and their roles.",
    "service": "The state of the service.",
}
"""In the order in which a reader meets them."""

PAGE: Final = "items and next"
"""Of a list that goes on: it is in ``items``, and ``next`` is the cursor of the page that follows."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation."""

    name: str
    tag: str
    summary: str
    answer: type[Answer] | None = None
    """None: it is no JSON, or described where the document is put together."""
    within: str = ""
    """The field of the answer with a list of those; or `PAGE`."""
    beside: tuple[str, type[Answer]] | None = None
    """Another field of the answer, and what it is a list of."""
    names: str = ""
    """Another field of the answer, with a list of names."""


_TOKENS, _CERTIFICATES, _REVOCATION, _LISTED = "tokens", "certificates", "revocation", "expected devices"
_DEPARTED: Final = "operators", DepartedOperator
_SAME_KEY: Final = "same_key", OtherForKey
_MAKERS, _ONE_MAKER, _CLAIMS = "manufacturers", "/v1/manufacturers/{name}", "claims"

OPERATIONS: Final = {
    "POST /v1/tokens": Operation("create_tokens", _TOKENS, "Make enrolment tokens", IssuedToken, "tokens"),
    "GET /v1/tokens": Operation("list_tokens", _TOKENS, "List tokens", KnownToken, PAGE),
    "GET /v1/tokens/{number}": Operation("show_token", _TOKENS, "Show a token", KnownToken),
    "DELETE /v1/tokens/{number}": Operation("void_token", _TOKENS, "Void a token", KnownToken),
    "POST /v1/voidings": Operation("void_tokens", _TOKENS, "Void tokens", KnownToken, "tokens"),
    "GET /v1/devices": Operation("list_devices", "devices", "List devices", EnrolledDevice, PAGE),
    "GET /v1/devices/{name}": Operation("show_device", "devices", "Show a device", EnrolledDevice),
    "GET /v1/certificates": Operation("list_certificates", _CERTIFICATES, "List certificates", IssuedCertificate, PAGE),
    "GET /v1/certificates/{serial}": Operation(
        "show_certificate", _CERTIFICATES, "Show a certificate", CertificateDetails
    ),
    "GET /v1/inventory/counts": Operation("count_certificates", _CERTIFICATES, "Count certificates by state"),
    "GET /v1/inventory/export": Operation("export_certificates", _CERTIFICATES, "Export certificates as JSON or CSV"),
    "POST /v1/revocations": Operation(
        "revoke", _REVOCATION, "Revoke devices or certificates", RevokedCertificate, "revoked", _DEPARTED, "names"
    ),
    "POST /v1/suspensions": Operation(
        "suspend", _REVOCATION, "Suspend devices or certificates", RevokedCertificate, "suspended", _SAME_KEY
    ),
    "POST /v1/resumptions": Operation(
        "resume", _REVOCATION, "End suspensions", ReleasedCertificate, "resumed", ("still_suspended", StillSuspended)
    ),
    "POST /v1/decommissions": Operation(
        "decommission", _REVOCATION, "Decommission devices", RevokedCertificate, "revoked", _DEPARTED, "names"
    ),
    "GET /v1/revocations/feed": Operation("follow_revocations", _REVOCATION, "Follow revocations"),
    "PUT /v1/revocations/feed/authorities": Operation(
        "tell_known_authorities", _REVOCATION, "Report which issuing CAs a broker trusts"
    ),
    "POST /v1/groups": Operation("create_group", "groups", "Make a group", EnrolmentGroup),
    "GET /v1/groups": Operation("list_groups", "groups", "List groups", EnrolmentGroup, PAGE),
    "GET /v1/groups/{name}": Operation("show_group", "groups", "Show a group", EnrolmentGroup),
    "PATCH /v1/groups/{name}": Operation("change_group", "groups", "Change a group's rules", EnrolmentGroup),
    "POST /v1/groups/{group}/listed": Operation("expect_devices", _LISTED, "Expect devices", ListOutcome),
    "GET /v1/groups/{group}/listed": Operation(
        "list_expected_devices", _LISTED, "List expected devices", ExpectedDevice, PAGE
    ),
    "DELETE /v1/groups/{group}/listed/{name}": Operation("unlist_device", _LISTED, "Remove an expected device"),
    "DELETE /v1/operators/{name}/listed": Operation(
        "end_expected_devices", _LISTED, "End what an operator has put on lists", EndedEntries
    ),
    "POST /v1/claims": Operation("create_claim", _CLAIMS, "Make a claim certificate", IssuedClaimCertificate),
    "GET /v1/claims": Operation("list_claims", _CLAIMS, "List claim certificates", ClaimCertificate, PAGE),
    "GET /v1/claims/{name}": Operation("show_claim", _CLAIMS, "Show a claim certificate", ClaimCertificate),
    "DELETE /v1/claims/{name}": Operation("end_claim", _CLAIMS, "End a claim", ClaimCertificate),
    "POST /v1/manufacturers": Operation("add_manufacturer", _MAKERS, "Register a manufacturer", Manufacturer),
    "GET /v1/manufacturers": Operation("list_manufacturers", _MAKERS, "List manufacturers", Manufacturer, PAGE),
    f"GET {_ONE_MAKER}": Operation("show_manufacturer", _MAKERS, "Show a manufacturer", Manufacturer),
    f"PATCH {_ONE_MAKER}": Operation("change_manufacturer", _MAKERS, "Change a manufacturer's terms", Manufacturer),
    f"DELETE {_ONE_MAKER}": Operation("end_manufacturer", _MAKERS, "Stop trusting a manufacturer", Manufacturer),
    f"GET {_ONE_MAKER}/revoked": Operation(
        "list_recalled_devices", _MAKERS, "List devices that their manufacturer has revoked", RecalledDevice, PAGE
    ),
    f"POST {_ONE_MAKER}/lists": Operation("take_manufacturer_list", _MAKERS, "Upload a manufacturer's CRL", TakenList),
    f"DELETE {_ONE_MAKER}/lists/{{sha256}}": Operation(
        "remove_manufacturer_list", _MAKERS, "Remove a manufacturer's CRL", RemovedList
    ),
    "GET /v1/approvals": Operation("list_approvals", "approvals", "List requests", Approval, PAGE),
    "POST /v1/approvals/{number}/decision": Operation(
        "decide_approval", "approvals", "Approve or deny a request", Approval
    ),
    "POST /v1/renewals/hasten": Operation(
        "hasten_renewals", "renewals", "Have certificates renewed now", HastenedRenewal
    ),
    "GET /v1/renewal-info/{identifier}": Operation(
        "show_renewal_info", "renewals", "Show when to renew a certificate", RenewalInfo
    ),
    "GET /v1/operators": Operation("list_operators", "operators", "List operators", ListedOperator, "items"),
    "GET /v1/operators/me": Operation("show_myself", "operators", "Show the calling operator", Myself),
    "GET /v1/operators/{name}/left": Operation(
        "show_left", "operators", "Show what an operator leaves behind", LeftByOperator
    ),
    "PUT /v1/operators/{name}": Operation("grant_role", "operators", "Set an operator's role", GrantedRole),
    "GET /v1/status": Operation("show_status", "service", "Show the state of the service", ServiceStatus),
}
