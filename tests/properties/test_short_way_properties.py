"""What is written and read by a short way is what the library's own would make of it."""

from __future__ import annotations

import hashlib
import hmac
import json
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


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("sort_keys", [True, False])
@given(line=st.dictionaries(st.text(), PLAIN_VALUES) | st.dictionaries(st.text(), VALUES))
def test_an_object_is_written_as_the_library_writes_it(
    line: dict[str, object], ascii_only: bool, sort_keys: bool
) -> None:
    library = json.JSONEncoder(default=str, ensure_ascii=ascii_only, sort_keys=sort_keys)
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
