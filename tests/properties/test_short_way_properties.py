"""What is written and read by a short way is what the library's own would make of it."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import DateTime
from sqlalchemy.dialects import sqlite

from provisioning.directory.audit_chain import AuditHead, link, seal
from provisioning.enrolment.attempt import Attempt, TlsConnection, TokenCredential
from provisioning.pki import named_curves
from provisioning.pki.identity import InvalidIdentity, check_name
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.program.flat_json import FlatJson
from provisioning.store.utc_date_time import UtcDateTime
from tests.support.requests import NOON

MOMENTS = st.datetimes(timezones=st.just(UTC))
VALUES = st.one_of(
    st.text(),
    MOMENTS,
    st.datetimes(),
    st.none(),
    st.booleans(),
    st.integers(),
    st.lists(st.text(), max_size=2),
    st.sampled_from(RevocationReason),
)
PLAIN_VALUES = st.recursive(
    st.one_of(st.text(), MOMENTS, st.none(), st.integers()), lambda some: st.lists(some, max_size=3), max_leaves=6
)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
CHARACTERS = st.one_of(st.sampled_from("aZ09._- /\u00b2\u0661\u0131\n\0"), st.characters())


@given(st.text(CHARACTERS, max_size=4) | st.text("aZ9._-", max_size=66))
def test_a_name_is_one_if_it_is_what_the_rule_says(value: str) -> None:
    try:
        allowed = check_name("name", value) == value
    except InvalidIdentity:
        allowed = False
    assert allowed == bool(NAME.fullmatch(value))


@given(
    st.lists(st.binary(max_size=3), max_size=named_curves.MOST_CERTIFICATES + 2),
    st.integers(0, 200),
    st.binary(max_size=3),
    st.sampled_from([0x0303, 0x0304]),
)
def test_certificates_are_counted_as_their_lengths_say(
    certificates: list[bytes], kept: int, rest: bytes, version: int
) -> None:
    is_new = version == 0x0304
    entries = [len(each).to_bytes(3) + each + (b"\0\0" if is_new else b"") for each in certificates]
    whole = b"\x0b\0\0\0" + (b"\0" if is_new else b"") + b"\0\0\0" + b"".join(entries) + rest
    message = whole[:kept]
    place = 8 if is_new else 7
    for _ in range(named_curves.MOST_CERTIFICATES):
        place += 3 + int.from_bytes(message[place : place + 3])
        place += 2 + int.from_bytes(message[place : place + 2]) if is_new else 0
    assert named_curves._is_costly(message, version) == (place < len(message))


def _as_text(value: object) -> str:
    return value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else str(value)


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("sort_keys", [True, False])
@given(line=st.dictionaries(st.text(), PLAIN_VALUES) | st.dictionaries(st.text(), VALUES))
def test_an_object_is_written_as_the_library_writes_it(
    line: dict[str, object], ascii_only: bool, sort_keys: bool
) -> None:
    library = json.JSONEncoder(default=_as_text, ensure_ascii=ascii_only, sort_keys=sort_keys)
    assert FlatJson(ascii_only=ascii_only, sort_keys=sort_keys).encode(line) == library.encode(line)


@given(
    key=st.binary(min_size=1, max_size=100),
    previous=st.binary(max_size=32),
    content=st.binary(max_size=300),
    number=st.integers(0, 2**63),
)
def test_a_code_of_the_chain_is_the_hmac_of_what_it_is_of_whatever_was_asked_before(
    key: bytes, previous: bytes, content: bytes, number: int
) -> None:
    for _ in range(2):
        assert link(key, previous, content) == hmac.digest(key, previous + content, hashlib.sha256)
        head = f"head {number}:{previous.hex()}".encode()
        assert seal(key, AuditHead(number, previous)) == hmac.digest(key, head, hashlib.sha256)


@given(moment=MOMENTS | st.none())
def test_sqlite_s_text_of_a_time_is_read_as_the_library_reads_it(moment: datetime | None) -> None:
    dialect: Any = sqlite.dialect()
    kind = UtcDateTime()
    write, read = kind.bind_processor(dialect), kind.result_processor(dialect, None)
    library = DateTime().dialect_impl(dialect).result_processor(dialect, None)
    assert write is not None
    assert read is not None
    assert library is not None
    text = write(moment)
    naive = library(text)
    assert read(text) == moment == (None if naive is None else naive.replace(tzinfo=UTC))


def test_an_attempt_at_another_moment_is_the_same_in_all_else() -> None:
    whole: Any = {each.name: object() for each in fields(Attempt)}
    whole |= {"token": TokenCredential("a", "b"), "connection": TlsConnection("TLSv1.3")}
    attempt = Attempt(**whole)
    assert attempt.at(NOON) == replace(attempt, now=NOON)
