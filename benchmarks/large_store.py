"""Fills a service's store with the history of years, to see what stays usable: devices, renewals, revocations, tokens.

    fleet-provisioning init --dir fleet --passphrase-file passphrase
    .venv/bin/python benchmarks/large_store.py --dir fleet                    300,000 devices, a million certificates
    … --devices 3000                                                          a hundredth of everything

The service must be stopped. Rows are inserted as the service would have written them, in portions; the audit entries
are a valid chain. Of the certificates only the serial numbers are their own: all else is the operator's certificate, so
that whatever reads them can. Half have expired. On PostgreSQL set FLEET_PROVISIONING_DATABASE_URL as for the service.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import Table, func, insert, select, text, update
from sqlalchemy.engine import Connection

from provisioning.directory.audit_key import read_audit_key
from provisioning.directory.files import AuthorityFiles
from provisioning.store import audit
from provisioning.store.audit import Action
from provisioning.store.database import Database
from provisioning.store.tables import (
    approvals,
    authorities,
    certificates,
    counters,
    crl_shards,
    device_keys,
    devices,
    host_names,
    idempotency_keys,
    listed_devices,
    revocation_events,
    revocations,
    tokens,
)

_BASE: Final = 1_000
"""Below are the service's own rows."""
_PORTION: Final = 10_000
_GROUPS: Final = 20
_DAYS: Final = 360
_LIFE: Final = timedelta(days=180)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many rows of each kind."""

    devices: int
    certificates: int
    final: int
    """Revoked for ever, a third of them expired since."""
    held: int
    """Suspended devices."""
    released: int
    """Holds that were ended: two events each, and nothing else."""
    tokens: int
    """Spent."""
    open_tokens: int
    pending: int
    """Approvals that wait."""
    decided: int
    audit_entries: int
    idempotency_keys: int

    @classmethod
    def of(cls, devices: int) -> Sizes:
        """Return what a fleet of so many *devices* has gathered."""
        return cls(
            devices=devices,
            certificates=devices * 10 // 3,
            final=devices // 3,
            held=devices // 150,
            released=devices // 6,
            tokens=devices * 5 // 3,
            open_tokens=devices // 30,
            pending=devices // 60,
            decided=devices // 15,
            audit_entries=devices * 10 // 3,
            idempotency_keys=devices // 3,
        )


class Filling:
    """Rows of each table, the same for the same sizes."""

    def __init__(
        self, sizes: Sizes, issuers: Sequence[str], shards: Sequence[int], template: x509.Certificate, now: datetime
    ) -> None:
        """*issuers*: key identifiers of issuing CAs, the oldest first; *template*: the certificate that all are."""
        self.sizes = sizes
        self._issuers = issuers
        self._shards = shards
        self._now = now
        self._begun = now - timedelta(days=_DAYS)
        der = template.public_bytes(Encoding.DER)
        digits = template.serial_number.to_bytes((template.serial_number.bit_length() + 7) // 8)
        self._before, self._after = der.split(digits, 1)
        self._length = len(digits)
        order = random.Random(sizes.certificates)  # noqa: S311 - Not for secrets.
        step = sizes.certificates // sizes.devices
        # Each device's first, and in between renewals of any.
        self._owners = [
            number // step if number % step == 0 and number < sizes.devices * step else order.randrange(sizes.devices)
            for number in range(sizes.certificates)
        ]

    def _at(self, number: int) -> datetime:
        return self._begun + (self._now - self._begun) * (number / self.sizes.certificates)

    def serial(self, number: int) -> int:
        """Return the serial number of the certificate *number*: spread as random ones are."""
        digest = hashlib.sha256(b"serial %d" % number).digest()[: self._length]
        return int.from_bytes(bytes([digest[0] & 0x7F | 0x40]) + digest[1:])

    def devices(self) -> Iterator[Row]:
        """Yield the parties, of whom some are suspended, revoked or decommissioned."""
        for number in range(self.sizes.devices):
            state: Row = {"suspended_at": None, "revoked_at": None, "decommissioned_at": None}
            if number < self.sizes.held:
                state["suspended_at"] = self._now
            elif number % 30 == 0:
                state["revoked_at" if number % 60 else "decommissioned_at"] = self._now
            yield {
                "id": _BASE + number, "name": f"meter-{number:07}", "role": "device",
                "group_name": f"group-{number % _GROUPS:02}", "created_at": self._begun, **state,
            }  # fmt: skip

    def certificates(self) -> Iterator[Row]:
        """Yield the certificates in the order of their issuance."""
        for number, owner in enumerate(self._owners):
            serial = self.serial(number).to_bytes(self._length)
            at = self._at(number)
            key = hashlib.sha256(b"key %d" % number).digest()
            issuer = number * len(self._issuers) // self.sizes.certificates
            yield {
                "id": _BASE + number, "issuer_key_id": self._issuers[issuer], "serial": f"{int.from_bytes(serial):x}",
                "device_id": _BASE + owner, "spki_sha256": key,
                "fingerprint_sha256": hashlib.sha256(serial).hexdigest(), "not_before": at, "not_after": at + _LIFE,
                "issued_at": at, "der": self._before + serial + self._after,
                "crl_shard_id": self._shards[number % len(self._shards)] if self._shards else None,
            }  # fmt: skip

    def keys(self) -> Iterator[Row]:
        """Yield who has which key."""
        for number, owner in enumerate(self._owners):
            yield {"spki_sha256": hashlib.sha256(b"key %d" % number).digest(), "device_id": _BASE + owner}

    def ends(self) -> Iterator[tuple[int, str]]:
        """Yield each certificate that is revoked now, with the reason."""
        total = self.sizes.certificates
        step = total // self.sizes.final
        reasons = ("superseded", "keyCompromise", "cessationOfOperation", "unspecified")
        for number in range(0, total, step):
            if self._owners[number] >= self.sizes.held and number // step < self.sizes.final:
                yield number, reasons[number // step % 4]
        for number in range(total - 1, total // 2, -1):
            if self._owners[number] < self.sizes.held:
                yield number, "certificateHold"

    def events(self) -> Iterator[Row]:
        """Yield the feed: those holds that were ended first, then what holds now."""
        sequence = 0
        for number in range(1, self.sizes.released + 1):
            for kind in ("revoked", "released"):
                sequence += 1
                yield self._event(sequence, number * 3 % self.sizes.certificates, kind, "certificateHold")
        for number, reason in self.ends():
            sequence += 1
            yield self._event(sequence, number, "revoked", reason)

    def revocations(self) -> Iterator[Row]:
        """Yield what holds now."""
        for sequence, (number, reason) in enumerate(self.ends(), 2 * self.sizes.released + 1):
            yield {
                "sequence": sequence, "certificate_id": _BASE + number, "reason": reason,
                "revoked_at": self._at(number).replace(microsecond=0), "revoked_by": "admin",
            }  # fmt: skip

    def _event(self, sequence: int, number: int, kind: str, reason: str) -> Row:
        return {
            "sequence": sequence, "certificate_id": _BASE + number, "kind": kind, "reason": reason,
            "occurred_at": self._at(number), "actor": "admin",
        }  # fmt: skip

    def tokens(self) -> Iterator[Row]:
        """Yield spent tokens, then those that are open."""
        for number in range(self.sizes.tokens + self.sizes.open_tokens):
            spent = number < self.sizes.tokens
            of = number % self.sizes.certificates
            at = self._now - timedelta(days=80) * (1 - number / (self.sizes.tokens + self.sizes.open_tokens))
            yield {
                "id": _BASE + number, "digest": hashlib.sha256(b"token %d" % number).digest(),
                "device": f"meter-{self._owners[of]:07}" if spent else f"new-{number:07}",
                "group_name": f"group-{number % _GROUPS:02}", "role": "device", "dns_names": [], "ip_addresses": [],
                "created_at": at, "created_by": "admin",
                "expires_at": at + timedelta(hours=1) if spent else self._now + timedelta(days=30),
                "used_at": at if spent else None, "certificate_id": _BASE + of if spent else None,
            }  # fmt: skip

    def approvals(self) -> Iterator[Row]:
        """Yield requests that were approved and used, then those that wait."""
        for number in range(self.sizes.decided + self.sizes.pending):
            decided = number < self.sizes.decided
            yield {
                "id": _BASE + number, "group_name": f"group-{number % _GROUPS:02}", "name": f"asks-{number:07}",
                "spki_sha256": hashlib.sha256(b"asks %d" % number).digest(), "evidence": "list",
                "state": "used" if decided else "pending", "requested_at": self._now - timedelta(days=1),
                "decided_at": self._now if decided else None, "decided_by": "admin" if decided else None,
                "used_at": self._now if decided else None, "asked_from": "192.0.2.1",
            }  # fmt: skip

    def listed(self) -> Iterator[Row]:
        """Yield expected devices: as many as have an open token."""
        for number in range(self.sizes.open_tokens):
            yield {
                "group_name": f"group-{number % _GROUPS:02}", "name": f"new-{number:07}", "spki_sha256": None,
                "added_at": self._now, "added_by": "admin",
            }  # fmt: skip

    def host_names(self) -> Iterator[Row]:
        """Yield a host name for one of ten devices."""
        for number in range(0, self.sizes.devices, 10):
            yield {"name": f"meter-{number:07}.example.org", "device_id": _BASE + number}

    def idempotency_keys(self) -> Iterator[Row]:
        """Yield requests answered yesterday."""
        for number in range(self.sizes.idempotency_keys):
            yield {
                "digest": hashlib.sha256(b"idempotent %d" % number).digest(), "request_digest": bytes(32),
                "begun_at": self._now - timedelta(hours=23), "answer": bytes(400),
            }  # fmt: skip


async def fill(directory: Path, url: str, sizes: Sizes, shards: int, say: Callable[[str], None]) -> None:
    """Insert everything into the store of the authority in *directory*, which no service may be using."""
    files = AuthorityFiles(directory)
    database = Database(url, read_audit_key(files))
    template = x509.load_pem_x509_certificate((directory / "operator.crt").read_bytes())
    now = datetime.now(UTC).replace(microsecond=0)
    try:
        issuers = await database.read(_issuers)
        numbers = list(range(_BASE, _BASE + shards))
        await database.write(partial(_add_shards, names=[name for name, _ in issuers], numbers=numbers))
        if database.url.get_backend_name() == "sqlite":
            await database.write(_hurry)
        filling = Filling(sizes, [key_id for _, key_id in issuers], numbers, template, now)
        for table, rows in (
            (devices, filling.devices()), (certificates, filling.certificates()), (device_keys, filling.keys()),
            (revocation_events, filling.events()), (revocations, filling.revocations()), (tokens, filling.tokens()),
            (approvals, filling.approvals()), (listed_devices, filling.listed()),
            (host_names, filling.host_names()), (idempotency_keys, filling.idempotency_keys()),
        ):  # fmt: skip
            say(f"{table.name}: {await _insert(database, table, rows)}")
        await database.write(_count)
        await _audit(database, sizes.audit_entries, now)
        say(f"audit_entries: {sizes.audit_entries}")
    finally:
        await database.close()


def _issuers(connection: Connection) -> list[tuple[str, str]]:
    statement = select(authorities.c.name, authorities.c.key_id).where(authorities.c.kind == "issuing")
    return [(name, key_id) for name, key_id in connection.execute(statement.order_by(authorities.c.id))]


def _add_shards(connection: Connection, names: Sequence[str], numbers: Sequence[int]) -> None:
    for number in numbers:
        name = names[number % len(names)]
        row = {"id": number, "issuer": name, "url": f"http://old.example.org/crl/{name}-{number}.crl"}
        connection.execute(insert(crl_shards), row)


def _hurry(connection: Connection) -> None:
    """Keep the indexes in memory: rows of one portion change pages everywhere."""
    connection.exec_driver_sql("PRAGMA cache_size = -1000000")


async def _insert(database: Database, table: Table, rows: Iterator[Row]) -> int:
    inserted = 0

    def add(connection: Connection, portion: Sequence[Row]) -> None:
        if connection.dialect.name == "postgresql":
            _copy(connection, table, portion)
        else:
            connection.execute(insert(table), portion)

    while portion := list(itertools.islice(rows, _PORTION)):
        await database.write(partial(add, portion=portion))
        inserted += len(portion)
    return inserted


def _copy(connection: Connection, table: Table, portion: Sequence[Row]) -> None:
    """Insert by COPY: row by row the server would take four times as long."""
    names = list(portion[0])
    binders = [table.c[name].type.dialect_impl(connection.dialect).bind_processor(connection.dialect) for name in names]
    driver: Any = connection.connection.driver_connection
    with driver.cursor() as cursor, cursor.copy(f"COPY {table.name} ({', '.join(names)}) FROM STDIN") as copy:
        for row in portion:
            copy.write_row(
                [value if bind is None else bind(value) for bind, value in zip(binders, row.values(), strict=True)]
            )


def _count(connection: Connection) -> None:
    """Go on counting behind what was inserted."""
    newest = connection.execute(select(func.max(revocation_events.c.sequence))).scalar_one()
    connection.execute(update(counters).where(counters.c.name == "revocation").values(value=newest))
    if connection.dialect.name == "postgresql":
        for table in ("devices", "certificates", "tokens", "approvals"):
            connection.execute(
                text(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT max(id) FROM {table}))")  # noqa: S608
            )


async def _audit(database: Database, count: int, now: datetime) -> None:
    def append(connection: Connection, first: int, last: int) -> None:
        entries = [
            (f"meter-{number:07}", {"serial": hashlib.sha256(b"%d" % number).hexdigest()[:38], "group": "group-01"})
            for number in range(first, last)
        ]
        audit.append_each(connection, now, "meter-0000001", Action.CERTIFICATE_SIGNED, entries)

    for first in range(0, count, _PORTION):
        await database.write(partial(append, first=first, last=min(count, first + _PORTION)))


def main() -> int:
    """Fill the store that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--dir", type=Path, required=True, help="the service's directory")
    parser.add_argument("--devices", type=int, default=300_000, help="all else follows from it (300,000)")
    parser.add_argument("--shards", type=int, default=0, help="CRL shards that the certificates name (0)")
    options = parser.parse_args()
    url = os.environ.get("FLEET_PROVISIONING_DATABASE_URL", f"sqlite:///{options.dir.resolve() / 'fleet.db'}")
    asyncio.run(fill(options.dir, url, Sizes.of(options.devices), options.shards, lambda line: print(line, flush=True)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
