"""Whatever a stranger sends: a parser returns or refuses, and never anything else."""

from __future__ import annotations

import base64
import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from provisioning.api.est import parse_basic
from provisioning.api.request_text import decode_body
from provisioning.api.revocations import named_serial
from provisioning.ca.csr import read_key_request, verify_csr
from provisioning.ca.der import SEQUENCE, SET, element, object_identifier
from provisioning.enrolment.groups import parse_ways
from provisioning.enrolment.renewal_info import parse_identifier
from provisioning.enrolment.tokens import digest_of, new_token
from provisioning.enrolment.webhook import check_url
from provisioning.errors import Code, Refused
from provisioning.pki.keys import generate_key
from provisioning.pki.serial_number import serial_text
from provisioning.store.serials import new_serial
from tests.support.hostile_requests import common_name, request
from tests.support.requests import csr_der

VALID = csr_der()


@given(st.binary(max_size=400))
def test_any_bytes_are_a_request_or_refused(der: bytes) -> None:
    with contextlib.suppress(Refused):
        verify_csr(der)


@given(st.integers(0, len(VALID) - 1), st.integers(0, 255))
def test_one_changed_byte_never_passes_as_the_signed_request(position: int, byte: int) -> None:
    changed = bytearray(VALID)
    changed[position] = byte
    try:
        request = verify_csr(bytes(changed))
    except Refused as refusal:
        assert refusal.code.startswith("CSR_")  # noqa: PT017 - either outcome is right
    else:
        # What is signed is unchanged; a signature has more than one encoding only if nothing was changed.
        assert request == verify_csr(VALID)


@given(st.integers(0, len(VALID)))
def test_a_request_cut_anywhere_is_refused(length: int) -> None:
    if length < len(VALID):
        with pytest.raises(Refused):
            verify_csr(VALID[:length])


@given(st.binary(min_size=1, max_size=300), st.data())
def test_white_space_anywhere_changes_nothing(content: bytes, data: st.DataObject) -> None:
    text = base64.b64encode(content)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    body, last = b"", 0
    for cut in cuts:
        body += text[last:cut] + data.draw(st.sampled_from([b" ", b"\t", b"\r\n", b"\n", b""]))
        last = cut
    assert decode_body(body + text[last:]) == content


@given(st.binary(max_size=300))
@example(b"-----BEGIN CERTIFICATE REQUEST-----")
def test_any_body_is_decoded_or_refused(body: bytes) -> None:
    with contextlib.suppress(Refused):
        decode_body(body)


@given(
    st.one_of(
        st.none(),
        st.text(max_size=300),
        st.binary(max_size=60).map(lambda raw: "Basic " + base64.b64encode(raw).decode()),
    )
)
def test_any_authorization_header_is_a_credential_or_refused(header: str | None) -> None:
    try:
        credential = parse_basic(header)
    except Refused as refusal:
        assert refusal.code is Code.TOKEN_MISSING  # noqa: PT017 - either outcome is right
    else:
        assert credential.user
        assert credential.token


@given(st.text(max_size=80))
def test_only_what_looks_like_a_token_is_hashed(text: str) -> None:
    if not (text.startswith("fgt_") and len(text) == 47):
        with pytest.raises(Refused):
            digest_of(text)


def test_every_token_made_here_can_be_looked_up() -> None:
    made = {new_token() for _ in range(1000)}
    assert len({digest_of(token) for token in made}) == 1000


@given(st.text(alphabet="0123456789abcdefABCDEFx:- ", max_size=50))
def test_a_serial_number_is_normal_or_refused(text: str) -> None:
    with contextlib.suppress(Refused):
        normal = named_serial(text)
        assert normal == serial_text(int(normal, 16))
        assert named_serial(normal) == normal


def test_a_serial_number_survives_every_usual_spelling() -> None:
    serial = new_serial()
    text = serial_text(serial)
    colons = ":".join(text[index : index + 2] for index in range(0, len(text), 2))
    for spelling in (text, text.upper(), "0x" + text, "00" + text, colons):
        assert named_serial(spelling) == text
    longest = "f" * 40  # As DER has it, with a zero octet before the first bit.
    assert named_serial("00" + longest) == longest
    with pytest.raises(Refused):
        named_serial("1" + longest)


@given(st.binary(max_size=400))
def test_any_bytes_are_a_request_for_a_key_or_refused(der: bytes) -> None:
    with contextlib.suppress(Refused):
        read_key_request(der)


@given(st.text(max_size=200) | st.from_regex(r"[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_=-]{0,40}", fullmatch=True))
@example("aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE")
def test_any_text_names_a_certificate_or_is_refused(text: str) -> None:
    with contextlib.suppress(Refused):
        key, serial = parse_identifier(text)
        assert key
        assert serial >= 0


@given(
    st.lists(st.text(max_size=30) | st.sampled_from(["token", "claim+webhook", "webhook", "+", "token+"]), max_size=5)
)
def test_any_ways_are_read_or_refused(texts: list[str]) -> None:
    with contextlib.suppress(Refused):
        assert all(alternative for alternative in parse_ways(texts))


@given(st.text(max_size=80) | st.from_regex(r"https?://[a-z0-9.:\[\]@]{0,20}(/[a-z]{0,5})?", fullmatch=True))
def test_a_webhook_s_url_is_https_or_on_this_machine_or_refused(url: str) -> None:
    with contextlib.suppress(ValueError):
        assert check_url(url).startswith(("https://", "http://127.", "http://[::1]"))


_OIDS = st.sampled_from(
    [
        "2.5.4.3", "2.5.4.5", "2.5.29.17", "2.5.29.19", "2.5.29.15", "2.5.29.37", "1.2.840.113549.1.9.7",
        "1.2.840.113549.1.9.14", "1.2.840.113549.1.9.16.2.37", "1.2.840.113549.1.9.16.2.54", "1.2.3.4",
    ]
).map(object_identifier)  # fmt: skip
_TAGS = [b"\x01", b"\x02", b"\x03", b"\x04", b"\x05", b"\x0c", b"\x13", b"\x16", b"\x1e", b"\x82", b"\x86"]
_PRIMITIVES = st.builds(element, st.sampled_from(_TAGS), st.binary(max_size=40))
_TREES = st.recursive(
    _OIDS | _PRIMITIVES,
    lambda inner: st.builds(
        lambda tag, parts: element(tag, b"".join(parts)),
        st.sampled_from([b"\x30", b"\x31", b"\xa0", b"\x04"]),
        st.lists(inner, max_size=4),
    ),
    max_leaves=12,
)
_KEY = generate_key()


@given(st.lists(_TREES, max_size=3).map(b"".join), st.lists(_TREES, max_size=3).map(b"".join))
def test_whatever_a_request_with_a_good_signature_says_it_is_read_or_refused_by_name(
    subject: bytes, attributes: bytes
) -> None:
    names = element(SEQUENCE, element(SET, common_name(b"meter-17")) + subject)
    der = request(names, attributes, key=_KEY)
    for read in (verify_csr, read_key_request):
        try:
            read(der)
        except Refused as refusal:
            assert refusal.code.startswith("CSR_") or refusal.code is Code.KEY_ENCRYPTION  # noqa: PT017
            assert refusal.detail  # noqa: PT017
