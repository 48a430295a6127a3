"""Queries about the fleet's own CAs: which there are, what each may do now, and the certificates between roots.

Theory
------
A CA's state is in the store and not in a file, so that every process of the service acts on the same one, and an
issuing transaction can check it as it commits::

    announced ──► active ──► retiring ──► retired
        └────────────┴───────────┴──────► revoked

Announced: it is published to relying parties, and issues nothing yet; if its line ends before it does, it is retired.
Active: it issues; there is one at a time in each line. Retiring: it issues no more, but still publishes the status of
what it has issued. Retired, revoked: it is no longer trusted.

A line is a succession of issuing CAs (docs/decisions/0086-groups-with-their-own-issuing-cas.md). A fleet has one,
`DEFAULT_LINE`, until an operator begins another; a group's rules say which one certifies its devices.

Rules
-----
1. At most one issuing CA of a line is active; one of the default line always is, after the first.
2. A certificate here never changes; a name and a key identifier belong to one CA for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import bindparam, func, insert, select, update
from sqlalchemy.engine import Connection

from provisioning.pki.keys import key_identifier
from provisioning.store import counters
from provisioning.store.prepared import Prepared
from provisioning.store.tables import authorities, certificates, devices


class AuthorityKind(StrEnum):
    """What a CA's certificate is for."""

    ROOT = "root"
    ISSUING = "issuing"
    CROSS = "cross"
    """A root's name and key certified by another root (RFC 7030 §4.1.3)."""


class AuthorityState(StrEnum):
    """What a CA may do now."""

    ANNOUNCED = "announced"
    ACTIVE = "active"
    RETIRING = "retiring"
    RETIRED = "retired"
    REVOKED = "revoked"

    @property
    def trusted(self) -> bool:
        """Whether relying parties are told to trust it."""
        return self in _TRUSTED


DEFAULT_LINE: Final = "default"
"""Certifies all that are in no group with its own line, including brokers, operators and the service itself."""
_TRUSTED: Final = frozenset({AuthorityState.ANNOUNCED, AuthorityState.ACTIVE, AuthorityState.RETIRING})


@dataclass(frozen=True, slots=True)
class StoredAuthority:
    """One CA."""

    name: str
    kind: AuthorityKind
    state: AuthorityState
    key_id: bytes
    certificate: x509.Certificate
    created_at: datetime
    changed_at: datetime
    line: str = DEFAULT_LINE
    """Of an issuing CA: the succession that it belongs to."""

    @property
    def issues(self) -> bool:
        """Whether new certificates are its: of an issuing CA that is active in its line."""
        return self.kind is AuthorityKind.ISSUING and self.state is AuthorityState.ACTIVE


_ALL: Final = select(authorities).order_by(authorities.c.id)
_STATE: Final = Prepared(
    select(authorities.c.state).where(
        authorities.c.key_id == bindparam("wanted"), authorities.c.kind == AuthorityKind.ISSUING.value
    )
)
_MAY_SIGN: Final = frozenset({AuthorityState.ACTIVE.value, AuthorityState.RETIRING.value})


def every(connection: Connection, *, for_update: bool = False) -> list[StoredAuthority]:
    """Return all CAs, the oldest first; with *for_update* nobody else changes them until the transaction ends."""
    rows = connection.execute(_ALL.with_for_update() if for_update else _ALL)
    return [
        StoredAuthority(
            row.name,
            AuthorityKind(row.kind),
            AuthorityState(row.state),
            bytes.fromhex(row.key_id),
            x509.load_der_x509_certificate(row.der),
            row.created_at,
            row.changed_at,
            row.line,
        )
        for row in rows
    ]


def trusted_roots(found: Sequence[StoredAuthority]) -> list[StoredAuthority]:
    """Return those of *found* that are roots and trusted, the oldest first."""
    return [each for each in found if each.kind is AuthorityKind.ROOT and each.state.trusted]


def described(found: Sequence[StoredAuthority]) -> str:
    """Return the CAs with their states, as text for messages."""
    return ", ".join(f"{each.name} ({each.state})" for each in found if each.kind is not AuthorityKind.CROSS) or "none"


def name_of(connection: Connection, key_id: str) -> str:
    """Return the name of the issuing CA with the key identifier *key_id*, in hexadecimal."""
    statement = select(authorities.c.name).where(
        authorities.c.key_id == key_id, authorities.c.kind == AuthorityKind.ISSUING.value
    )
    name: str = connection.execute(statement).scalar_one()
    return name


def below_root(connection: Connection, key_id: str) -> list[x509.Certificate]:
    """Return the certificate of the issuing CA with the key identifier *key_id*, in hexadecimal; none for a root's."""
    statement = select(authorities.c.der).where(
        authorities.c.key_id == key_id, authorities.c.kind == AuthorityKind.ISSUING.value
    )
    return [x509.load_der_x509_certificate(der) for der in connection.execute(statement).scalars()]


def key_ids(connection: Connection) -> dict[str, str]:
    """Return the key identifier of each CA in hexadecimal, by its name."""
    rows = connection.execute(select(authorities.c.name, authorities.c.key_id))
    return {row.name: row.key_id for row in rows}


def states(connection: Connection) -> Sequence[tuple[str, str]]:
    """Return only names and states, which are compared to detect changes."""
    statement = select(authorities.c.name, authorities.c.state).order_by(authorities.c.name)
    return [(name, state) for name, state in connection.execute(statement)]


def active_lines(connection: Connection) -> list[str]:
    """Return the lines with an active CA, in order of name; no CA changes until the transaction ends."""
    return sorted(each.line for each in every(connection, for_update=True) if each.issues)


def may_sign(connection: Connection, key_id: bytes) -> bool:
    """Whether the issuing CA with this key may sign a certificate in this transaction.

    A retiring one may: another process may not know of it yet, and such certificates are good until they expire.
    """
    row = _STATE.first(connection, {"wanted": key_id.hex()})
    return row is not None and row[0] in _MAY_SIGN


def is_revoked(connection: Connection, key_id: bytes) -> bool:
    """Whether the issuing CA with this key was revoked."""
    row = _STATE.first(connection, {"wanted": key_id.hex()})
    return row is not None and row[0] == AuthorityState.REVOKED.value


def revoked_between(connection: Connection, after: datetime, before: datetime, made_by: datetime) -> list[bytes]:
    """Return the key identifiers of issuing CAs revoked *after* one time and *before* another, made by a third."""
    statement = select(authorities.c.key_id).where(
        authorities.c.kind == AuthorityKind.ISSUING.value,
        authorities.c.state == AuthorityState.REVOKED.value,
        authorities.c.changed_at.between(after, before),
        authorities.c.created_at <= made_by,
    )
    return [bytes.fromhex(key_id) for key_id in connection.execute(statement).scalars()]


def knows(connection: Connection, key_id: bytes) -> bool:
    """Whether any of this fleet's CAs, past or present, has this key."""
    return connection.execute(select(authorities.c.id).where(authorities.c.key_id == key_id.hex())).first() is not None


def add(
    connection: Connection,
    name: str,
    kind: AuthorityKind,
    state: AuthorityState,
    certificate: x509.Certificate,
    now: datetime,
    line: str = DEFAULT_LINE,
) -> None:
    """Record a CA."""
    connection.execute(
        insert(authorities).values(
            name=name,
            kind=kind.value,
            state=state.value,
            key_id=key_identifier(certificate.public_key()).hex(),
            der=certificate.public_bytes(Encoding.DER),
            created_at=now,
            changed_at=now,
            line=line,
        )
    )
    if kind is not AuthorityKind.CROSS:
        counters.ensure(connection, counters.crl_counter(name))


def set_state(connection: Connection, name: str, state: AuthorityState, now: datetime) -> None:
    """Record what the CA called *name* may do from now on."""
    connection.execute(update(authorities).where(authorities.c.name == name).values(state=state.value, changed_at=now))


def adopt(connection: Connection, root: x509.Certificate, issuing: x509.Certificate, now: datetime) -> bool:
    """Record the two CAs that a fleet is founded with, if none is recorded; return whether they were."""
    if connection.execute(select(func.count()).select_from(authorities)).scalar_one():
        return False
    add(connection, "root-ca", AuthorityKind.ROOT, AuthorityState.ACTIVE, root, now)
    add(connection, "issuing-ca", AuthorityKind.ISSUING, AuthorityState.ACTIVE, issuing, now)
    return True


def last_expiries(connection: Connection, key_id: bytes, but_of: str, behind: int) -> dict[str | None, datetime]:
    """Return when the last certificate that this CA has issued expires, for each group or none.

    Those of the device *but_of* are not counted, nor those up to the row *behind*. From row 0 on all certificates
    are read: never in a transaction that others wait for.
    """
    statement = (
        select(devices.c.group_name, func.max(certificates.c.not_after))
        .select_from(certificates.join(devices))
        .where(certificates.c.issuer_key_id == key_id.hex(), devices.c.name != but_of, certificates.c.id > behind)
        .group_by(devices.c.group_name)
    )
    return dict(connection.execute(statement).all())
