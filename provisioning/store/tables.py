"""The tables, as the code sees them. The migrations create those on disk; a test compares the two.

Rules
-----
1. A certificate's row is written once, when it is issued, and never changed: a revocation is a row of its own, whose
   primary key is its place in the feed.
2. No secret is stored: of a token only its SHA-256. Tokens have 256 random bits, so a plain hash cannot be searched.
3. Serial numbers are lower-case hexadecimal text: they exceed every integer type.
4. Times are UTC, and are read as such from every database.

Does not handle: the tables about manufacturers (`provisioning.store.manufacturer_tables`). All of them are in
`provisioning.store.every_table`.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)

from provisioning.store.columns import BIG_ID, NAME, SERIAL, metadata
from provisioning.store.utc_date_time import UtcDateTime

counters = Table(
    "counters",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", BigInteger, nullable=False),
)
"""Numbers that rise without gaps in commit order: taking one locks its row until the transaction ends."""

devices = Table(
    "devices",
    metadata,
    Column("id", BIG_ID, primary_key=True),
    Column("name", NAME, nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("group_name", NAME),
    Column("created_at", UtcDateTime, nullable=False),
    Column("revoked_at", UtcDateTime),
    Column("suspended_at", UtcDateTime),
    Column("decommissioned_at", UtcDateTime),
    Column("origin", String(200)),
    Column("trial_ends_at", UtcDateTime),
    Index("ix_devices_group_name", "group_name", "name"),
    # The devices that count in a group. Not a partial index: defining one makes SQLAlchemy import both dialects.
    Index("ix_devices_counted", "group_name", "decommissioned_at", "trial_ends_at"),
    # On disk it has only those whose role is not device (migration 0038), not said here for the same reason.
    Index("ix_devices_servers", "role"),
)
"""Every party that has a certificate, whatever its role. A name keeps its role and group for ever."""

crl_shards = Table(
    "crl_shards",
    metadata,
    Column("id", BIG_ID, primary_key=True, autoincrement=False),
    Column("issuer", NAME, nullable=False),
    Column("url", String(500), nullable=False, unique=True),
)
"""Parts of an issuer's CRL. The URL is in certificates and CRL, so it never changes: a new URL, new shards."""

certificates = Table(
    "certificates",
    metadata,
    Column("id", BIG_ID, primary_key=True),
    Column("issuer_key_id", String(40), nullable=False),
    Column("serial", SERIAL, nullable=False),
    Column("device_id", BIG_ID, ForeignKey("devices.id"), nullable=False),
    Column("spki_sha256", LargeBinary(32), nullable=False),
    Column("fingerprint_sha256", String(64), nullable=False),
    Column("not_before", UtcDateTime, nullable=False),
    Column("not_after", UtcDateTime, nullable=False),
    Column("issued_at", UtcDateTime, nullable=False),
    Column("der", LargeBinary, nullable=False),
    Column("crl_shard_id", BIG_ID, ForeignKey("crl_shards.id")),
    Column("granted_seconds", Integer),
    UniqueConstraint("serial", "issuer_key_id"),  # In this order: a serial number alone is looked up, too.
    Index("ix_certificates_device_id", "device_id", "id"),  # Finds a device's newest, however many it has had.
    # A key's owner is in `device_keys`, which alone would change a random page for each certificate.
    Index("ix_certificates_key", "device_id", "spki_sha256", "id"),
    # With the device, so that what can connect is counted by it alone. On PostgreSQL it includes the id (migration
    # 0035), as every index does on SQLite; saying so here makes SQLAlchemy import its dialect.
    Index("ix_certificates_not_after", "not_after", "crl_shard_id", "device_id"),
)

authorities = Table(
    "authorities",
    metadata,
    Column("id", BIG_ID, primary_key=True),
    Column("name", NAME, nullable=False, unique=True),
    Column("kind", String(8), nullable=False),
    Column("state", String(12), nullable=False),
    Column("key_id", String(40), nullable=False),
    Column("der", LargeBinary, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("changed_at", UtcDateTime, nullable=False),
    Column("line", NAME, nullable=False, server_default="default"),
    Index("ix_authorities_key_id", "key_id"),
)
"""The fleet's own CAs and their states: see `provisioning.store.authorities`."""

known_authorities = Table(
    "known_authorities",
    metadata,
    Column("device_id", BIG_ID, ForeignKey("devices.id"), primary_key=True, autoincrement=False),
    Column("authority_id", BIG_ID, ForeignKey("authorities.id"), primary_key=True, autoincrement=False),
    Column("known", Boolean, nullable=False),
    Column("said_at", UtcDateTime, nullable=False),
)
"""Which issuing CAs each broker has reported that it trusts, or not: see `provisioning.store.known_authorities`."""

host_names = Table(
    "host_names",
    metadata,
    Column("name", String(253), primary_key=True),
    Column("device_id", BIG_ID, ForeignKey("devices.id"), nullable=False),
)
"""Host names that devices requested or were given, each with its owner: see `provisioning.store.host_names`."""

device_keys = Table(
    "device_keys",
    metadata,
    Column("spki_sha256", LargeBinary(32), primary_key=True),
    Column("device_id", BIG_ID, ForeignKey("devices.id")),
)
"""The first device certified for a key, and so the only one for ever; NULL: a claim's key, which no device may have.

On SQLite it has no row ids."""

revocations = Table(
    "revocations",
    metadata,
    Column("sequence", BIG_ID, primary_key=True, autoincrement=False),
    Column("certificate_id", BIG_ID, ForeignKey("certificates.id"), nullable=False, unique=True),
    Column("reason", String(24), nullable=False),
    Column("revoked_at", UtcDateTime, nullable=False),
    Column("revoked_by", NAME, nullable=False),
    Column("invalidity_date", UtcDateTime),
    Column("by_itself", Boolean, nullable=False, server_default=false()),
)
"""What is revoked now. *sequence* is that of the event that recorded it; a release removes the row.

*by_itself*: it was put on hold by its serial number, and stays so whatever becomes of its device; of what was revoked
since, it had been. Nothing is issued for its key."""

revocation_events = Table(
    "revocation_events",
    metadata,
    Column("sequence", BIG_ID, primary_key=True, autoincrement=False),
    Column("certificate_id", BIG_ID, ForeignKey("certificates.id"), nullable=False),
    Column("kind", String(8), nullable=False),
    Column("reason", String(24), nullable=False),
    Column("occurred_at", UtcDateTime, nullable=False),
    Column("actor", NAME, nullable=False),
    Column("invalidity_date", UtcDateTime),
)
"""The feed's events: every revocation and every release, in commit order, for ever."""

unfinished_ends = Table(
    "unfinished_ends",
    metadata,
    Column("device_id", BIG_ID, ForeignKey("devices.id"), primary_key=True, autoincrement=False),
    Column("reason", String(24), nullable=False),
    Column("invalidity_date", UtcDateTime),
    Column("ended_at", UtcDateTime, nullable=False),
    Column("ended_by", NAME, nullable=False),
    Column("before_id", BigInteger, nullable=False),
)
"""Devices with certificates still to be revoked, or released: see `provisioning.store.unfinished_ends`.

Those are the ones with a lower id than *before_id*."""

unfinished_key_ends = Table(
    "unfinished_key_ends",
    metadata,
    Column("device_id", BIG_ID, ForeignKey("devices.id"), primary_key=True, autoincrement=False),
    Column("spki_sha256", LargeBinary(32), primary_key=True),
    Column("invalidity_date", UtcDateTime),
    Column("ended_at", UtcDateTime, nullable=False),
    Column("ended_by", NAME, nullable=False),
)
"""Device keys reported as compromised, with certificates still to be revoked for it."""

unfinished_authority_ends = Table(
    "unfinished_authority_ends",
    metadata,
    Column("issuer_key_id", String(40), primary_key=True),
    Column("reason", String(24), nullable=False),
    Column("invalidity_date", UtcDateTime),
    Column("ended_at", UtcDateTime, nullable=False),
    Column("ended_by", NAME, nullable=False),
)
"""Revoked CAs with certificates still to be recorded as revoked, and the reason."""

tokens = Table(
    "tokens",
    metadata,
    Column("id", BIG_ID, primary_key=True),
    Column("digest", LargeBinary(32), nullable=False, unique=True),
    Column("device", NAME),
    Column("group_name", NAME),
    Column("role", String(16), nullable=False),
    Column("dns_names", JSON, nullable=False),
    Column("ip_addresses", JSON, nullable=False),
    Column("lifetime_seconds", Integer),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", NAME, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("voided_at", UtcDateTime),
    Column("used_at", UtcDateTime),
    Column("certificate_id", BIG_ID, ForeignKey("certificates.id")),
    # Spent if and only if there is a certificate for it.
    CheckConstraint("(used_at IS NULL) = (certificate_id IS NULL)", name="spent_on_a_certificate"),
    Index("ix_tokens_device", "device"),
    Index("ix_tokens_group_name", "group_name", "id"),
    Index("ix_tokens_expires_at", "expires_at"),
    Index("ix_tokens_created_by", "created_by", "id"),  # Finds what a maker has made since a number.
)

voided_makers = Table(
    "voided_makers",
    metadata,
    Column("operator", NAME, primary_key=True),
    Column("through_id", BIG_ID, primary_key=True, autoincrement=False),
    Column("voided_at", UtcDateTime, nullable=False),
)
"""Operators whose unused tokens are void, up to a number: they have left (`provisioning.store.tokens`)."""

enrolment_groups = Table(
    "enrolment_groups",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("rules", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", NAME, nullable=False),
    Column("changed_at", UtcDateTime, nullable=False),
    Column("changed_by", NAME, nullable=False),
)
"""Groups configured by an operator; for the rules see `provisioning.store.groups`."""

group_paces = Table(
    "group_paces",
    metadata,
    Column("group_name", NAME, primary_key=True),
    Column("thousandths", BigInteger, nullable=False),
    Column("at", UtcDateTime, nullable=False),
)
"""The bucket's level of each group with a pace, as of a time: see `provisioning.enrolment.pace`."""

group_rooms = Table(
    "group_rooms",
    metadata,
    Column("group_name", NAME, primary_key=True),
    Column("taken", BigInteger, nullable=False),
)
"""How many devices each group with a maximum has at most: see `provisioning.store.group_rooms`."""

claims = Table(
    "claims",
    metadata,
    Column("id", BIG_ID, primary_key=True),
    Column("name", NAME, nullable=False, unique=True),
    Column("group_name", NAME, nullable=False),
    Column("fingerprint_sha256", String(64), nullable=False, unique=True),
    Column("der", LargeBinary, nullable=False),
    Column("maximum_devices", Integer, nullable=False),
    Column("trial_seconds", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", NAME, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    Column("taken", Integer, nullable=False, server_default="0"),
)
"""Claim certificates, each shared by a production batch. Their keys are not here."""

claim_places = Table(
    "claim_places",
    metadata,
    # In this order, so that only the other index begins with the claim: PostgreSQL uses that without statistics.
    Column("device_id", BIG_ID, ForeignKey("devices.id"), primary_key=True, autoincrement=False),
    Column("claim_id", BIG_ID, ForeignKey("claims.id"), primary_key=True, autoincrement=False),
    Column("ends_at", UtcDateTime),
    Index("ix_claim_places_ends_at", "claim_id", "ends_at"),
)
"""Devices with a place of a claim, as many as its row says are taken: see `provisioning.store.claim_places`."""

activations = Table(
    "activations",
    metadata,
    Column("certificate_id", BIG_ID, ForeignKey("certificates.id"), primary_key=True, autoincrement=False),
    Column("claim_id", BIG_ID, ForeignKey("claims.id"), nullable=False),
    Column("device_id", BIG_ID, ForeignKey("devices.id"), nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("activated_at", UtcDateTime),
    Column("withdrawn_at", UtcDateTime),
    Index("ix_activations_claim_id", "claim_id"),
    # Finds whether any trial of a device was withdrawn, however many it has had.
    Index("ix_activations_withdrawn_at", "device_id", "withdrawn_at"),
)
"""Certificates obtained with a claim: on trial until they are renewed, see `provisioning.store.claims`.

*withdrawn_at* is since when one is revoked for ever, unless another certificate replaced it; or since when it activates
nobody, because its claim was made by an operator whose key was compromised."""

listed_devices = Table(
    "listed_devices",
    metadata,
    Column("group_name", NAME, primary_key=True),
    Column("name", NAME, primary_key=True),
    Column("spki_sha256", LargeBinary(32)),
    Column("added_at", UtcDateTime, nullable=False),
    Column("added_by", NAME, nullable=False),
    # Another who has put the same there before, if one has.
    Column("also_by", NAME),
    Column("also_at", UtcDateTime),
    Index("ix_listed_devices_added_by", "added_by", "added_at"),
    # On disk it has only those that have one (migration 0041), see `devices`.
    Index("ix_listed_devices_also_by", "also_by", "also_at"),
)
"""The devices that operators expect."""

ended_listers = Table(
    "ended_listers",
    metadata,
    Column("operator", NAME, primary_key=True),
    Column("through_at", UtcDateTime, primary_key=True),
    Column("ended_at", UtcDateTime, nullable=False),
)
"""Operators whose entries in `listed_devices`, up to a moment, are nobody's word any more."""

approvals = Table(
    "approvals",
    metadata,
    # From a counter (`provisioning.store.approvals`). PostgreSQL's column has a sequence, too, which nobody draws from.
    Column("id", BIG_ID, primary_key=True, autoincrement=False),
    Column("group_name", NAME, nullable=False),
    Column("name", NAME, nullable=False),
    Column("spki_sha256", LargeBinary(32), nullable=False),
    Column("evidence", String(200), nullable=False),
    Column("state", String(16), nullable=False),
    Column("requested_at", UtcDateTime, nullable=False),
    Column("decided_at", UtcDateTime),
    Column("decided_by", NAME),
    Column("used_at", UtcDateTime),
    Column("certificate_id", BIG_ID, ForeignKey("certificates.id")),
    Column("asked_from", String(64)),
    Column("answered", LargeBinary),
    UniqueConstraint("group_name", "name", "spki_sha256"),
    Index("ix_approvals_state", "state", "group_name"),
)
"""Requests that wait, or waited, for an operator's decision."""

hastened_renewals = Table(
    "hastened_renewals",
    metadata,
    Column("id", BIG_ID, primary_key=True),
    Column("group_name", NAME),
    Column("hastened_at", UtcDateTime, nullable=False),
    Column("spread_seconds", Integer, nullable=False),
    Column("hastened_by", NAME, nullable=False),
    Index("ix_hastened_renewals_hastened_at", "hastened_at"),
)
"""Orders to renew certificates issued before a time, of one group or (none) of all."""

serial_reservations = Table(
    "serial_reservations",
    metadata,
    Column("serial", SERIAL, primary_key=True),
    Column("reserved_at", UtcDateTime, nullable=False),
)
"""Serial numbers on disk before anything is signed under them. One that outlives its process is never used.

On SQLite it has no row ids."""

crls = Table(
    "crls",
    metadata,
    Column("issuer", NAME, primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("this_update", UtcDateTime, nullable=False),
    Column("next_update", UtcDateTime, nullable=False),
    Column("entries", Integer, nullable=False),
    Column("der", LargeBinary, nullable=False),
)

crl_history = Table(
    "crl_history",
    metadata,
    Column("list", NAME, primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("through_sequence", BigInteger, nullable=False),
    Column("next_update", UtcDateTime, nullable=False),
)
"""Complete CRLs that relying parties may still hold, and the last event in each: bases of delta CRLs."""

audit_entries = Table(
    "audit_entries",
    metadata,
    Column("number", BIG_ID, primary_key=True, autoincrement=False),
    Column("at", UtcDateTime, nullable=False),
    Column("actor", NAME, nullable=False),
    Column("action", String(32), nullable=False),
    Column("subject", String(80), nullable=False),
    Column("details", Text, nullable=False),
    Column("mac", LargeBinary(32), nullable=False),
    # On disk it has only `provisioning.store.rare_changes` (migration 0042), see `devices`.
    Index("ix_audit_entries_changes", "actor", "action", "subject", "number"),
)
"""Append-only: see `provisioning.store.audit`."""

audit_head = Table(
    "audit_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("number", BigInteger, nullable=False),
    Column("mac", LargeBinary(32), nullable=False),
    Column("seal", LargeBinary(32), nullable=False),
)
"""One row: the end of the audit log. Appending locks it."""

operators = Table(
    "operators",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("role", String(16), nullable=False),
    Column("granted_at", UtcDateTime, nullable=False),
    Column("granted_by", NAME, nullable=False),
)
"""What each operator may do: see `provisioning.store.operators`."""

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("digest", LargeBinary(32), primary_key=True),
    Column("request_digest", LargeBinary(32), nullable=False),
    Column("begun_at", UtcDateTime, nullable=False),
    Column("answer", LargeBinary),
    Index("ix_idempotency_keys_begun_at", "begun_at"),
)
"""Requests by the idempotency keys that their callers gave them: see `provisioning.api.idempotency`."""
