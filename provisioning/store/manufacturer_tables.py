"""The tables about manufacturers: their CAs, those CAs' CRLs, and the devices that enrolled with their certificates.

The rules are those of `provisioning.store.tables`.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    UniqueConstraint,
)

from provisioning.store.columns import BIG_ID, NAME, SERIAL, metadata
from provisioning.store.tables import devices
from provisioning.store.utc_date_time import UtcDateTime

manufacturers = Table(
    "manufacturers",
    metadata,
    Column("id", BIG_ID, primary_key=True),
    Column("name", NAME, nullable=False, unique=True),
    Column("group_name", NAME, nullable=False),
    Column("name_prefix", NAME, nullable=False),
    Column("subject", LargeBinary, nullable=False),
    Column("fingerprint_sha256", String(64), nullable=False, unique=True),
    Column("der", LargeBinary, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", NAME, nullable=False),
    Column("ended_at", UtcDateTime),
    Column("lapsed_lists", String(8), nullable=False, server_default="refuse"),
    Column("revoked_devices", String(8), nullable=False, server_default="report"),
)
"""CAs of manufacturers, whose device certificates (IDevIDs) admit devices to a group."""

manufacturer_lists = Table(
    "manufacturer_lists",
    metadata,
    Column("id", BIG_ID, primary_key=True),
    Column("manufacturer_id", BIG_ID, ForeignKey("manufacturers.id"), nullable=False),
    Column("scope", String(2000), nullable=False),
    Column("number", String(49), nullable=False),
    Column("this_update", UtcDateTime, nullable=False),
    Column("next_update", UtcDateTime, nullable=False),
    Column("sha256", LargeBinary(32), nullable=False),
    Column("entries", Integer, nullable=False),
    Column("taken_at", UtcDateTime, nullable=False),
    Column("taken_by", NAME, nullable=False),
    UniqueConstraint("manufacturer_id", "scope"),
)
"""The newest CRL of each manufacturer's CA, for each scope that has its own."""

manufacturer_revocations = Table(
    "manufacturer_revocations",
    metadata,
    Column("list_id", BIG_ID, ForeignKey("manufacturer_lists.id"), primary_key=True, autoincrement=False),
    Column("serial", SERIAL, primary_key=True),
    Column("entry", BigInteger, nullable=False),
)
"""The entries of those CRLs: each certificate with reason and time (`provisioning.pki.revocation.pack`).

On SQLite it has no row ids."""

manufacturer_list_urls = Table(
    "manufacturer_list_urls",
    metadata,
    Column("id", BIG_ID, primary_key=True),
    Column("manufacturer_id", BIG_ID, ForeignKey("manufacturers.id"), nullable=False),
    Column("url", String(500), nullable=False),
    Column("due_at", UtcDateTime, nullable=False),
    Column("fetched_at", UtcDateTime),
    Column("problem", String(400), nullable=False),
    Column("failures", Integer, nullable=False),
    Column("etag", String(200), nullable=False),
    Column("modified", String(200), nullable=False),
    UniqueConstraint("manufacturer_id", "url"),
)
"""The URLs of manufacturers' lists, and fetch results: see `provisioning.store.manufacturer_list_urls`."""

idevids = Table(
    "idevids",
    metadata,
    Column("device_id", BIG_ID, ForeignKey(devices.c.id), primary_key=True, autoincrement=False),
    Column("manufacturer_id", BIG_ID, ForeignKey("manufacturers.id"), nullable=False),
    Column("serial", SERIAL, nullable=False),
    Index("ix_idevids_serial", "serial"),
)
"""The manufacturer's certificate (IDevID) with which each device last enrolled, if it ever did with one."""

recalls = Table(
    "recalls",
    metadata,
    Column("device_id", BIG_ID, ForeignKey(devices.c.id), primary_key=True, autoincrement=False),
    Column("entry", BigInteger, nullable=False),
    Column("found_at", UtcDateTime, nullable=False),
)
"""Devices whose manufacturer has revoked that certificate since, with the entry and when it was acted on."""
