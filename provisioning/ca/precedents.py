"""A fast path for the linter: of a draft like one that it has passed, only the differences are checked.

Theory
------
The certificates that an issuer makes for a profile are identical except for serial number, dates, subject, key and
its identifier, and identity. The linter (`provisioning.ca.lint`), whose library parses a whole certificate into
objects, checks the first of them; if it finds nothing, the bytes outside those six parts are remembered as
a *precedent*. Of the next draft with the same bytes only the six parts are read, and each is compared
with what was intended. So every signed byte was either read, or has passed the linter in a certificate of
the same issuer and profile.

Where those parts are, a parser finds out once for each length of serial number, name, key and URI. A draft whose parts
are as long, and whose bytes around these places are those of a precedent, has them at the same places: all lengths that
DER writes are among these bytes (docs/decisions/0336).

The slow reference is the linter: a test gives both the same drafts, and drafts that differ in any one byte.

Rules
-----
1. `Precedents.cover` says yes, or that the linter has to be asked; it never refuses.
2. It reads the draft's bytes, never the builder's state, and shares no encoder with the builder.
3. Bounded: a limited number of precedents is remembered, of one issuer only.

Handles: one Common Name and one identity URI, EC and Ed25519 keys, dates before 2050. The linter handles the rest.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from provisioning.ca.der import only_common_name
from provisioning.ca.lint import SERIAL_BITS, Intent, Made
from provisioning.ca.name_policy import SubjectNames
from provisioning.ca.profile import Profile
from provisioning.quick_values import quickly_made

_MOST: Final = 256
_MOMENTS: Final = 64
_NO_NAMES: Final = SubjectNames()
_SHORT: Final = 128
_TWO_OCTETS: Final = 0x82
_EXTENSIONS: Final = 0xA3
_INTEGER: Final = 0x02
_SUBJECT_KEY: Final = b"\x30\x1d\x06\x03\x55\x1d\x0e\x04\x16\x04\x14"
"""The extension up to its twenty octets; the second octet is its length, including them."""
_ALTERNATIVE_NAME: Final = b"\x06\x03\x55\x1d\x11\x04"
_KEYS: Final = {
    # The beginning of SubjectPublicKeyInfo, by its size: all but the key itself, which the library parsed before.
    91: bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004"),  # P-256
    120: bytes.fromhex("3076301006072a8648ce3d020106052b8104002203620004"),  # P-384
    44: bytes.fromhex("302a300506032b6570032100"),  # Ed25519
}
_BITS: Final = {91: 26, 120: 23, 44: 12}
"""Offset of the key's bits, of which its identifier is the hash."""


class _Unusual(Exception):
    """Not the format that is read here."""


_NOT_READ: Final = (_Unusual, IndexError, ValueError)  # The latter two: truncated, or not a date.


_VALIDITY_SIZE: Final = 32
_IDENTIFIER_SIZE: Final = 20

_Parts = tuple[bytes, bytes, bytes, bytes, bytes]
"""What differs, but for the dates: serial number, name, SubjectPublicKeyInfo, its identifier, URI."""


@quickly_made
@dataclass(frozen=True, slots=True)
class _Read:
    """A parsed draft: what it has in common with others, the parts that differ, and where each of these six begins."""

    common: bytes
    validity: bytes
    parts: _Parts
    places: tuple[int, int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class _Form:
    """Drafts whose parts have the same lengths and *places*: their profiles by what is around the parts."""

    places: tuple[int, int, int, int, int, int]
    known: dict[bytes, Profile]


class Precedents:
    """What drafts of one issuer have in common, once linted."""

    def __init__(self, issuer_not_after: datetime) -> None:
        self._ends = issuer_not_after
        self._known: Final[dict[bytes, Profile]] = {}
        self._forms: Final[dict[tuple[int, ...], _Form]] = {}
        """By the lengths of the parts."""

    def __len__(self) -> int:
        return len(self._known)

    def cover(self, fields: bytes, intent: Intent) -> bool:
        """Whether the linter would find nothing in *fields*, a TBSCertificate; False if it has to be asked."""
        made = intent.made
        if made is None or intent.names != _NO_NAMES or not self._allows(intent, made):
            return False
        meant = _meant(intent, made)
        if meant is None:
            return False
        dates = made.not_before, made.not_after
        form = self._forms.get(tuple(map(len, meant)))
        try:
            if form is not None and _has(fields, form, intent.profile, meant, dates):
                return True
            read = _read(fields)
            if (
                self._known.get(read.common) is intent.profile
                and read.parts == meant
                and _dates(read.validity) == dates
            ):
                self._learn(fields, read, intent.profile)
                return True
        except _NOT_READ:
            pass
        return False

    def remember(self, fields: bytes, profile: Profile) -> None:
        """Note that the linter has found nothing in *fields* as a certificate of *profile*."""
        try:
            read = _read(fields)
        except _NOT_READ:
            return
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[read.common] = profile

    def _learn(self, fields: bytes, read: _Read, profile: Profile) -> None:
        """Note where the parts are in *fields*, which is covered."""
        if list(read.places) != sorted(read.places):
            return
        sizes = tuple(map(len, read.parts))
        form = self._forms.get(sizes)
        if form is None or form.places != read.places:
            if len(self._forms) >= _MOST:
                self._forms.clear()
            form = self._forms[sizes] = _Form(read.places, {})
        if len(form.known) >= _MOST:
            form.known.clear()
        form.known[_around(fields, form, read.parts)] = profile

    def _allows(self, intent: Intent, made: Made) -> bool:
        """Whether the linter would let pass what was chosen for serial number, dates and role."""
        profile, not_before, not_after = intent.profile, made.not_before, made.not_after
        return (
            made.serial.bit_length() in SERIAL_BITS
            and not_before < not_after <= self._ends
            and not_after - not_before <= profile.life + profile.backdate
            and intent.identity.role is profile.role
        )


def _meant(intent: Intent, made: Made) -> _Parts | None:
    """Return what the parts have to be, None for a kind of key that is not read here."""
    bits = _BITS.get(len(made.spki))
    if bits is None:
        return None
    return (
        made.serial.to_bytes(made.serial.bit_length() // 8 + 1),
        intent.identity.name.encode(),
        made.spki,
        hashlib.sha1(made.spki[bits:], usedforsecurity=False).digest(),
        intent.identity.uri.encode(),
    )


def _has(fields: bytes, form: _Form, profile: Profile, meant: _Parts, dates: tuple[datetime, datetime]) -> bool:
    """Whether *fields* is one of *form*, for *profile*, with the parts that are *meant*, at the places for these."""
    serial, name, spki, identifier, uri = meant
    at, validity, named, key, identified, called = form.places
    return (
        form.known.get(_around(fields, form, meant)) is profile
        and fields.startswith(serial, at)
        and fields.startswith(name, named)
        and fields.startswith(spki, key)
        and fields.startswith(identifier, identified)
        and fields.startswith(uri, called)
        and _dates(fields[validity : validity + _VALIDITY_SIZE]) == dates
    )


def _around(fields: bytes, form: _Form, parts: _Parts) -> bytes:
    """Return what is around *parts*, as long as they are, at the places of *form*; the key's algorithm is no part."""
    serial, name, spki, _, uri = parts
    at, validity, named, key, identified, called = form.places
    return b"".join(
        (
            fields[:at],
            fields[at + len(serial) : validity],
            fields[validity + _VALIDITY_SIZE : named],
            fields[named + len(name) : key + _BITS[len(spki)]],
            fields[key + len(spki) : identified],
            fields[identified + _IDENTIFIER_SIZE : called],
            fields[called + len(uri) :],
        )
    )


def _read(fields: bytes) -> _Read:
    at, end = _content(fields, 0, len(fields), 0x30)
    places = [at]
    while at < end:
        _, at = _content(fields, at, end, fields[at])
        places.append(at)
    if at != len(fields):
        raise _Unusual
    # With more or fewer than eight fields, this is a ValueError.
    _, number, algorithm, _, validity, subject, key, extensions, _ = places
    serial, stop = _content(fields, number, algorithm, _INTEGER)
    spki = fields[key:extensions]
    head = _KEYS.get(len(spki))
    if head is None or not spki.startswith(head):
        raise _Unusual
    name = only_common_name(fields[subject:key])
    if name is None:
        raise _Unusual
    (identified, identifier), (called, uri), others = _extensions(fields, extensions)
    return _Read(
        # Each part is DER, which includes its length, so these bytes determine the parts' boundaries.
        b"".join((fields[places[0] : number], fields[algorithm:validity], head, *others)),
        fields[validity:subject],
        (fields[serial:stop], name, spki, identifier, uri),
        (serial, validity, key - len(name), key, identified, called),
    )


def _extensions(fields: bytes, at: int) -> tuple[tuple[int, bytes], tuple[int, bytes], list[bytes]]:
    """Return the key's identifier and the identity's URI, each behind its place, and all other extensions.

    In place of those two, these have a mark.
    """
    at, end = _content(fields, at, len(fields), _EXTENSIONS)
    at, stop = _content(fields, at, end, 0x30)
    if stop != end:
        raise _Unusual
    identifier = names = 0, b""
    others = []
    while at < end:
        inside, after = _content(fields, at, end, 0x30)
        if fields.startswith(_SUBJECT_KEY, at):
            if identifier[1]:
                raise _Unusual
            identifier = after - _IDENTIFIER_SIZE, fields[after - _IDENTIFIER_SIZE : after]
            others.append(_SUBJECT_KEY)
        elif fields.startswith(_ALTERNATIVE_NAME, inside):
            if names[1]:
                raise _Unusual
            uri = _only_uri(fields, inside + len(_ALTERNATIVE_NAME) - 1, after)
            names = after - len(uri), uri
            others.append(_ALTERNATIVE_NAME)
        else:
            others.append(fields[at:after])
        at = after
    return identifier, names, others


def _only_uri(fields: bytes, at: int, end: int) -> bytes:
    """Return the URI of a Subject Alternative Name that is not critical and contains nothing else."""
    for tag in (0x04, 0x30, 0x86):
        at, stop = _content(fields, at, end, tag)
        if stop != end:
            raise _Unusual
    return fields[at:end]


@functools.lru_cache(_MOMENTS)  # What is issued in a second has the same.
def _dates(validity: bytes) -> tuple[datetime, datetime]:
    """Return notBefore and notAfter, both UTCTime (RFC 5280 §4.1.2.5.1) in this half of the century."""
    # One element, whose length field says 32 octets.
    if validity[:4] != b"\x30\x1e\x17\x0d" or validity[17:19] != b"\x17\x0d":
        raise _Unusual
    return _date(validity[4:17]), _date(validity[19:])


def _date(text: bytes) -> datetime:
    if text[-1:] != b"Z" or not text[:-1].isdigit() or text[0] > 0x34:  # noqa: PLR2004 - "4": until 2049.
        raise _Unusual
    digits = int(text[:-1])
    day, second = divmod(digits, 1_000_000)
    return datetime(
        2000 + day // 10_000,
        day // 100 % 100,
        day % 100,
        second // 10_000,
        second // 100 % 100,
        second % 100,
        tzinfo=UTC,
    )


def _content(der: bytes, at: int, limit: int, tag: int) -> tuple[int, int]:
    """Return where the content of the element at *at* begins and ends; *limit* is the end of what it is in."""
    if der[at] != tag:
        raise _Unusual
    length = der[at + 1]
    at += 2
    if length >= _SHORT:
        if length == _SHORT + 1:
            length = der[at]
            at += 1
            least = _SHORT
        elif length == _TWO_OCTETS:
            length = der[at] << 8 | der[at + 1]
            at += 2
            least = 256
        else:
            raise _Unusual
        if length < least:  # DER has one way to write a length.
            raise _Unusual
    if at + length > limit:
        raise _Unusual
    return at, at + length
