"""Examples of what is sent to the operators' API and of what it answers, by schema; a test holds them against it."""

from __future__ import annotations

from typing import Any, Final

_SERIAL = "5a1d5b0ecba961bcd84084c9a721793f"
_SHA256 = "3b5d5c37129550422f3c0f7b54e2a2c4d1f5a0c6f8d4b5a1e7c9d0b3f6a8e1c2"
_FROM, _TO, _NOW = "2027-01-05T08:00:00Z", "2027-04-05T08:00:00Z", "2027-01-06T10:15:00Z"
_PEM = "-----BEGIN CERTIFICATE-----\nMIIB…\n-----END CERTIFICATE-----\n"
_KEY_ID = "8c1f0e6a2b9d4c7e5f3a1b0c9d8e7f6a5b4c3d2e"

_CERTIFICATE: dict[str, Any] = {
    "serial": _SERIAL, "device": "meter-17", "role": "device", "group": "north", "issuer_key_id": _KEY_ID,
    "fingerprint_sha256": _SHA256, "not_before": _FROM, "not_after": _TO, "state": "active", "revoked_at": None,
    "reason": None, "sequence": None, "invalidity_date": None, "suspended_by_itself": False,
    "trial": None,
}  # fmt: skip
_RULES: dict[str, Any] = {
    "ways": ["token", "listed+claim"], "profile": "device", "same_key_seconds": 3600, "new_key": "refuse",
    "server_keys": False, "tls_unique": False, "renewal_grace_seconds": 604_800, "webhook_timeout_seconds": 5,
    "issuing_line": "default",
}  # fmt: skip
_MADE = {"created_at": _FROM, "created_by": "admin"}
_CLAIM: dict[str, Any] = {
    "name": "batch-7", "group": "north", "maximum_devices": 500, "used": 12, "activation_seconds": 3600,
    "expires_at": _TO, "ended_at": None, "fingerprint_sha256": _SHA256, "certificate": _PEM, **_MADE,
}  # fmt: skip
_LIST: dict[str, Any] = {
    "number": 41, "this_update": _FROM, "next_update": _TO, "about": [], "entries": 3, "sha256": _SHA256,
    "taken_at": _NOW, "taken_by": "admin",
}  # fmt: skip
_OPERATOR = {"name": "anna", "role": "enroller", "granted_at": _FROM, "granted_by": "admin"}
_LIST_CUT: dict[str, Any] = {"entry": 7001, "at": _NOW, "group": "north", "count": 1, "names": ["meter-17"]}
_RULE_CHANGE: dict[str, Any] = {
    "entry": 4711, "at": _NOW, "group": "north", "before": {"ways": "listed+token"}, "after": {"ways": "token"},
}  # fmt: skip

EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    # What is sent.
    "TokensRequest": {"device": "meter-17", "group": "north", "ttl_seconds": 3600},
    "RevocationRequest": {"device": "meter-17", "reason": "keyCompromise"},
    "Target": {"device": "meter-17"},
    "DeviceTarget": {"device": "meter-17"},
    "VoidingRequest": {"tokens": [17, 18]},
    "NewGroup": {"name": "north", "ways": ["token", "listed+claim"], "renewal_grace_seconds": 604_800},
    "GroupChange": {"renewal_grace_seconds": 604_800},
    "Batch": {"devices": [{"name": "meter-17"}, {"name": "meter-18", "key_sha256": _SHA256}]},
    "NewClaim": {"name": "batch-7", "group": "north", "maximum_devices": 500, "life_seconds": 2_592_000},
    "NewManufacturer": {"name": "acme", "group": "north", "certificate": _PEM, "name_prefix": "acme-"},
    "ManufacturerTerms": {"revoked_devices": "suspend", "list_urls": ["http://pki.acme.example/devices.crl"]},
    "Decision": {"decision": "approve"},
    "HastenRequest": {"group": "north", "spread_seconds": 21_600},
    "RoleChange": {"role": "enroller"},
    # What is answered.
    "IssuedToken": {
        "device": "meter-17", "group": "north", "role": "device", "token": "fgt_…", "id": 17, "expires_at": _NOW,
        "device_state": "revoked",
    },
    "KnownToken": {
        "id": 17, "device": "meter-17", "group": "north", "role": "device", "state": "used", **_MADE,
        "expires_at": _NOW, "voided_at": None, "used_at": _NOW, "serial": _SERIAL,
    },
    "EnrolledDevice": {
        "name": "meter-17", "role": "device", "group": "north", "state": "active", "created_at": _FROM,
        "suspended_at": None, "revoked_at": None, "decommissioned_at": None, "certificate_not_after": _TO,
        "certificate": "valid", "certificates": 2, "claims": [], "manufacturer": None,
    },
    "IssuedCertificate": _CERTIFICATE,
    "CertificateDetails": _CERTIFICATE | {"pem": _PEM, "chain": _PEM},
    "RevokedCertificate": {
        "serial": _SERIAL, "device": "meter-17", "reason": "keyCompromise", "revoked_at": _NOW, "sequence": 1042,
        "invalidity_date": None,
    },
    "DepartedOperator": {
        "name": "anna", "tokens_voided": 3, "approvals_undone": 1, "claims_ended": 0, "trials_ended": 0,
        "manufacturers_ended": [], "listed_ended": 250, "lists_ended": ["north"], "roles_ended": [],
        "tokens_left": 0, "approvals_left": 0, "claims_left": 0, "listed_left": 0,
        "manufacturers_left": 0, "operators_left": 1, "operators_made": ["bert"], "operators_gone": [],
        "devices_left": 0,
        "groups_changed": ["north"], "manufacturers_changed": [], "lists_cut": [],
        "devices_resumed": ["meter-17"],
    },
    "LeftByOperator": {
        "name": "anna", "tokens_left": 0, "approvals_left": 0, "claims_left": 0, "listed_left": 250,
        "manufacturers_left": 0, "operators_left": 1, "operators_made": ["bert"], "operators_gone": [],
        "devices_left": 0,
        "groups_changed": ["north"], "manufacturers_changed": [], "lists_cut": [],
        "devices_resumed": ["meter-17"],
        "changes": [_RULE_CHANGE],
        "list_cuts": [_LIST_CUT],
    },
    "RuleChange": _RULE_CHANGE,
    "ListCut": _LIST_CUT,
    "EndedEntries": {"name": "anna", "listed_ended": 250, "lists_ended": ["north"]},
    "OtherForKey": {"serial": _SERIAL, "device": "meter-17"},
    "ReleasedCertificate": {"serial": _SERIAL, "device": "meter-17", "released_at": _NOW, "sequence": 1043},
    "StillSuspended": {"serial": _SERIAL, "device": "meter-17", "by_itself": True},
    "EnrolmentGroup": {
        "name": "north", **_RULES, "lifetime_seconds": None, "maximum_devices": None, "certificates_per_minute": 60,
        "webhook_url": None, **_MADE, "changed_at": _FROM, "changed_by": "admin", "full": None,
        "profile_known": True,
    },
    "ExpectedDevice": {
        "name": "meter-18", "key_sha256": _SHA256, "added_at": _FROM, "added_by": "anna", "also_by": None,
        "ended_at": None,
    },
    "ListOutcome": {"new": 1, "replaced": 0, "errors": [{"index": 1, "detail": "name: 'a b' is no device's name"}]},
    "ClaimCertificate": _CLAIM,
    "IssuedClaimCertificate": _CLAIM | {"used": 0, "private_key": "-----BEGIN PRIVATE KEY-----\n…\n"},
    "Manufacturer": {
        "name": "acme", "group": "north", "name_prefix": "acme-", "ended_at": None, "fingerprint_sha256": _SHA256,
        "certificate": _PEM, **_MADE, "lapsed_lists": "refuse", "revoked_devices": "report", "list_urls": [],
        "lists": [_LIST],
    },
    "TakenList": _LIST | {"revoked": 1, "released": 0},
    "RemovedList": _LIST | {"released": 3},
    "RecalledDevice": {
        "device": "acme-4711", "group": "north", "state": "active", "idevid": _SERIAL, "reason": "keyCompromise",
        "revoked_at": _FROM, "found_at": _NOW,
    },
    "Approval": {
        "id": 3, "group": "lab", "name": "bench-1", "key_sha256": _SHA256, "evidence": "nothing",
        "asked_from": "192.0.2.7", "state": "pending", "requested_at": _NOW, "decided_at": None, "decided_by": None,
    },
    "HastenedRenewal": {"group": "north", "at": _NOW, "spread_seconds": 21_600, "certificates": 1200},
    "RenewalInfo": {"suggestedWindow": {"start": "2027-03-06T08:00:00Z", "end": "2027-03-08T08:00:00Z"}},
    "GrantedRole": _OPERATOR | {"tokens_voided": 0, "approvals_undone": 0},
    "ListedOperator": _OPERATOR | {"state": "active", "good_until": _TO},
    "Myself": {"name": "anna", "role": "enroller", "serial": _SERIAL, "not_after": _TO},
    "ServiceStatus": {
        "version": "0.1.0",
        "build": "3c1f9a02b6de",
        "checks": {"store": "ok", "issuing_ca": "ok", "ocsp_signer": "ok", "crls": "ok"},
        "devices": {"active": 1200, "suspended": 0, "revoked": 3, "decommissioned": 1},
        "active_devices_without_certificate": 7,
        "certificates": {"active": 1193, "suspended": 0, "revoked": 5, "expired": 310},
        "tokens": {"open": 12},
        "feed": {"sequence": 1042, "subscribers": 2},
        "unknown_authorities": [
            {"authority": "issuing-2", "state": "announced", "broker": "broker-1", "said_at": _NOW}
        ],
        "crls": {"issuing-ca": {"number": 1795889921588, "entries": 5, "this_update": _FROM, "next_update": _NOW}},
    },
    "KnownAuthorities": {"known": {"issuing-ca": True, "issuing-2": False}},
    "Problem": {
        "type": "about:blank", "title": "Not Found", "status": 404, "code": "DEVICE_UNKNOWN",
        "detail": "no device is called 'meter-17'",
    },
    "RefusedItem": {"device": "meter-17", "code": "DEVICE_UNKNOWN", "detail": "no device is called 'meter-17'"},
}  # fmt: skip
"""By schema."""
