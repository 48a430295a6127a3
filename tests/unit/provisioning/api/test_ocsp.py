from __future__ import annotations

import base64
import contextlib
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.api.ocsp import decode_path

# Its base64 is full of what goes wrong in a path.
REQUEST = b"\x30" + bytes.fromhex("fbeffbffffbf") * 9


@pytest.mark.parametrize(
    "path",
    [
        "/" + quote(base64.b64encode(REQUEST), safe=""),
        "/" + base64.b64encode(REQUEST).decode(),
        "//" + base64.b64encode(REQUEST).decode(),
        "/" + base64.b64encode(REQUEST).decode().replace("+", "%20"),
        "/" + base64.b64encode(REQUEST).decode().rstrip("="),
        "/" + base64.urlsafe_b64encode(REQUEST).decode(),
        "/" + quote(base64.encodebytes(REQUEST), safe=""),
    ],
    ids=["escaped", "raw", "two slashes", "space for plus", "no padding", "URL-safe", "line ends"],
)
def test_the_path_is_read_however_a_client_writes_it(path: str) -> None:
    assert b"/" in base64.b64encode(REQUEST)
    assert b"+" in base64.b64encode(REQUEST)
    assert decode_path(path.encode()) == REQUEST


@pytest.mark.parametrize("path", ["/*", "/M*==", "/MA%ZZ"])
def test_a_path_that_is_no_base64_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="not base64"):
        decode_path(path.encode())


@given(st.binary(max_size=200))
def test_any_request_survives_both_spellings(body: bytes) -> None:
    request = b"\x30" + body
    encoded = base64.b64encode(request)
    assert decode_path(b"/" + encoded) == decode_path(b"/" + quote(encoded, safe="").encode()) == request


@given(st.binary(max_size=100))
def test_any_path_is_decoded_or_refused(path: bytes) -> None:
    with contextlib.suppress(ValueError):
        decode_path(path)
