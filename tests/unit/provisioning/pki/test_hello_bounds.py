"""A ClientHello with too long a list is refused before OpenSSL does what costs more than the bytes."""

from __future__ import annotations

import ssl

import pytest

from provisioning.pki import hello_bounds
from provisioning.pki.tls import ClientCertificate, server_context
from tests.support.client_hellos import (
    AUTHORITIES,
    HYBRID,
    ILLEGAL_PARAMETER,
    P256,
    RESPONDERS,
    RETRY,
    X25519,
    answer_of,
    hello,
    numbers,
    offered_keys,
    sized,
)
from tests.support.pki import shared_pki

PKI = shared_pki()
"""A group that nobody has."""
A_NAME = sized(b"\x30\0")
"""The shortest name of a CA."""
A_RESPONDER = sized(b"\xa1\x02\x30\0")


@pytest.fixture(scope="module", params=[0, 100], ids=["tickets", "remembered"])
def context(request: pytest.FixtureRequest) -> ssl.SSLContext:
    """A server's context that gives tickets, as provisioning's, or remembers TLS sessions, as the broker's."""
    return server_context(
        PKI.broker().credential,
        PKI.anchors,
        client_certificate=ClientCertificate.REQUIRED,
        remembered_sessions=request.param,
    )


def of_groups(size: int) -> bytes:
    """Return a hello whose groups have *size* bytes, and after which shares of some are looked for.

    From 4.0 on OpenSSL itself looks at 128 groups, and refuses a share of any other and two of one.
    """
    groups = [X25519, *range(0x2000, 0x2000 + (size - 2) // 2 - 1)]
    return hello(groups=groups, shares=[(each, b"x") for each in groups[1:21]])


def of_authorities(size: int) -> bytes:
    names = A_NAME * ((size - 2) // len(A_NAME))
    return hello(numbers(AUTHORITIES) + sized(sized(names)))


def of_responders(size: int) -> bytes:
    named = A_RESPONDER * ((size - 5) // len(A_RESPONDER))
    return hello(numbers(RESPONDERS) + sized(b"\x01" + sized(named) + sized(b"")))


def of_suites(size: int) -> bytes:
    return hello(suites=[0x1301] * (size // 2))


def of_keys(number: int, name: bytes = b"x" * 100) -> bytes:
    return hello(*offered_keys([name] * number))


MOST = hello_bounds.MOST_BYTES


@pytest.mark.parametrize(
    ("taken", "refused"),
    [
        (of_groups(MOST[10]), of_groups(MOST[10] + 2)),
        (of_authorities(MOST[47]), of_authorities(MOST[47] + 4)),
        (of_responders(MOST[5]), of_responders(MOST[5] + 6)),
        (of_suites(hello_bounds.MOST_SUITES), of_suites(hello_bounds.MOST_SUITES + 2)),
        (of_keys(hello_bounds.MOST_KEYS), of_keys(hello_bounds.MOST_KEYS + 1)),
        (of_keys(2, b"x" * 20_000), of_keys(1600, b"x")),
    ],
    ids=["groups", "authorities", "responders", "suites", "keys", "large-keys"],
)
def test_a_list_has_a_bound(context: ssl.SSLContext, taken: bytes, refused: bytes) -> None:
    assert answer_of(context, taken).startswith(b"\x16\x03\x03")
    assert answer_of(context, refused) == ILLEGAL_PARAMETER


@pytest.mark.parametrize("kept", [0, 3, 1100])
def test_keys_that_are_cut_off_are_openssl_s_to_refuse(context: ssl.SSLContext, kept: int) -> None:
    """Their length says more than there is."""
    *before, keys = offered_keys([b"x" * 60_000])
    cut = keys[:2] + sized(keys[4 : 4 + kept])
    assert answer_of(context, hello(*before, cut))[:1] == b"\x15"


def test_a_hello_that_was_asked_for_again_is_judged_again(context: ssl.SSLContext) -> None:
    first = hello(groups=[X25519, P256], shares=[])
    assert RETRY in answer_of(context, first)
    assert answer_of(context, first, of_groups(60_000)) == ILLEGAL_PARAMETER


def test_what_costs_no_more_than_its_bytes_is_taken(context: ssl.SSLContext) -> None:
    shares = [(HYBRID, bytes(1216)), (X25519, b"\x09" + bytes(31))] + [(P256, bytes(65))] * 100
    long = hello(numbers(0xFAFA) + sized(bytes(40_000)), groups=[HYBRID, X25519, P256], shares=shares[1:])
    assert answer_of(context, long).startswith(b"\x16\x03\x03")


def test_a_judgement_that_fails_is_a_refusal(context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_session: int) -> bool:
        raise MemoryError

    monkeypatch.setattr(hello_bounds, "_is_too_long", fail)
    answer = answer_of(context, hello())
    assert answer[:1] == b"\x15"
    assert len(answer) == len(ILLEGAL_PARAMETER)
