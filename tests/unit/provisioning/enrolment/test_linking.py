"""A request that is linked to a TLS connection is good on that one alone (RFC 7030 §3.5)."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest

from provisioning.ca.csr import verify_csr
from provisioning.enrolment.attempt import Attempt, TlsConnection
from provisioning.enrolment.linking import check_link
from provisioning.errors import Code, Refused
from provisioning.store.groups import Group
from tests.support.requests import NOON, csr_der

UNIQUE = b"twelve bytes"
OLD, NEW = TlsConnection("TLSv1.2", UNIQUE), TlsConnection("TLSv1.3")
LAX, STRICT = Group("line"), Group("line", tls_unique=True)
LINKED = base64.b64encode(UNIQUE)


def attempt(challenge: bytes | None, connection: TlsConnection | None) -> Attempt:
    return Attempt(replace(verify_csr(csr_der()), challenge=challenge), NOON, connection=connection)


@pytest.mark.parametrize("group", [LAX, STRICT], ids=["lax", "strict"])
def test_the_unique_of_the_connection_is_the_link(group: Group) -> None:
    check_link(attempt(LINKED, OLD), group)


@pytest.mark.parametrize("connection", [OLD, NEW, None], ids=["TLS 1.2", "TLS 1.3", "none"])
def test_no_link_is_none_where_none_is_asked_for(connection: TlsConnection | None) -> None:
    check_link(attempt(None, connection), LAX)


@pytest.mark.parametrize("group", [LAX, STRICT], ids=["lax", "strict"])
@pytest.mark.parametrize(
    ("challenge", "connection", "words"),
    [
        (LINKED, NEW, "TLSv1.3 has none: connect with TLS 1.2, "),
        (LINKED, None, "this connection has none"),
        (LINKED, TlsConnection("TLSv1.2", UNIQUE[:-1]), "is not the base64 of this connection's"),
        (LINKED[:-4], OLD, "is not the base64 of this connection's"),
        (b"!" + LINKED, OLD, "is not the base64 of this connection's"),
        (b"", OLD, "is not the base64 of this connection's"),
        (b"secret", OLD, "is not the base64 of this connection's"),
    ],
)
def test_what_is_linked_to_another_connection_is_refused(
    challenge: bytes, connection: TlsConnection | None, words: str, group: Group
) -> None:
    with pytest.raises(Refused) as caught:
        check_link(attempt(challenge, connection), group)
    assert caught.value.code is Code.CSR_LINK
    assert words in caught.value.detail
    assert ("or leave the attribute out" in caught.value.detail) is not group.tls_unique, "where that would help"


@pytest.mark.parametrize("connection", [OLD, NEW, None], ids=["TLS 1.2", "TLS 1.3", "none"])
def test_a_group_may_want_every_request_linked(connection: TlsConnection | None) -> None:
    with pytest.raises(Refused, match="wants requests linked") as caught:
        check_link(attempt(None, connection), STRICT)
    assert caught.value.code is Code.CSR_LINK
