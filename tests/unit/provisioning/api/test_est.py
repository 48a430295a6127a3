from __future__ import annotations

import base64

import pytest

from provisioning.api.est import (
    _CERTS_ONLY,
    _in_base64,
    _IssuedResponse,
    _lines_of_base64,
    check_label,
    parse_basic,
)
from provisioning.api.request_text import decode_body
from provisioning.errors import Code, Refused


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "body",
    [
        b"MAoCAQE=",
        b"MAoC\r\nAQE=\r\n",
        b" M A\toCAQE = ",
        b"-----BEGIN CERTIFICATE REQUEST-----\nMAoCAQE=\n-----END CERTIFICATE REQUEST-----\n",
        b"-----BEGIN NEW CERTIFICATE REQUEST-----\nMAoCAQE=\n-----END NEW CERTIFICATE REQUEST-----",
    ],
    ids=range(5),
)
def test_every_way_to_write_base64_is_read(body: bytes) -> None:
    assert decode_body(body) == bytes.fromhex("300a020101")


@pytest.mark.parametrize("body", [b"", b" \r\n", b"MAoCAQE", b"MAo!AQE=", b"\x30\x0a\x02", b"MAoCAQE=MAo="], ids=repr)
def test_what_is_not_base64_is_refused(body: bytes) -> None:
    with pytest.raises(Refused) as caught:
        decode_body(body)
    assert caught.value.code is Code.BODY_ENCODING


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"MAoC\r\nAQ!=\r\n", "character 3 of line 2 is '!'"),
        (b"-----BEGIN CERTIFICATE REQUEST-----\nMAoC\nA_E=\n-----END CERTIFICATE REQUEST-----",
         "character 2 of line 3 is '_', as in base64url: write"),
        (b"MAo\xffAQE=", "character 4 of line 1 is '0xff'"),
        (b"MAoCAQE", "it has 7 characters of it, .*: send all of it"),
    ],
    ids=range(4),
)  # fmt: skip
def test_where_it_is_not_base64_is_told(body: bytes, says: str) -> None:
    with pytest.raises(Refused, match=says):
        decode_body(body)


def test_the_scheme_s_case_does_not_matter_and_a_token_may_hold_colons() -> None:
    credential = parse_basic(basic("meter-17:a:b").replace("Basic", "bAsIc"))
    assert (credential.user, credential.token) == ("meter-17", "a:b")


@pytest.mark.parametrize(
    "header",
    [None, "", "Basic", "Basic !!", "Bearer abc", basic(""), basic("user"), basic("user:"), basic(":token"),
     "Basic " + base64.b64encode(b"\xff:\xff").decode(), basic("u:" + "x" * 1000),
     basic("user:token").replace("Basic", "Bearer"), basic("user:token").removeprefix("Basic ")],
    ids=range(13),
)  # fmt: skip
def test_what_is_no_basic_credential_is_refused(header: str | None) -> None:
    with pytest.raises(Refused) as caught:
        parse_basic(header)
    assert caught.value.code is Code.TOKEN_MISSING


@pytest.mark.parametrize("label", ["cacerts", "simpleenroll", "fullcmc", "", "-a", "a b", "ü"])
def test_an_operation_s_name_or_no_name_is_no_label(label: str) -> None:
    with pytest.raises(Refused):
        check_label(label)
    assert check_label("north") == "north"


def test_an_answer_in_base64_is_as_the_libraries_would_have_it() -> None:
    for size in (1, 56, 57, 58, 700):
        content = bytes(range(256)) * 3
        assert _lines_of_base64(content[:size]) == base64.encodebytes(content[:size])
    slow, quick = _in_base64(b"TUE=", _CERTS_ONLY), _IssuedResponse(b"TUE=")
    for name in ("status_code", "body", "raw_headers", "background"):
        assert getattr(quick, name) == getattr(slow, name)
