from __future__ import annotations

import base64
import contextlib
from typing import Any, NoReturn, cast
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Scope

from provisioning.api.ocsp import OcspEndpoint, OcspQuestions, decode_path
from provisioning.ca.ocsp import Failure, failure_response
from tests.support.asgi import through
from tests.support.panic import panic

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


class Panicking:
    """A responder whose parser panics."""

    async def answer(self, _request: bytes) -> NoReturn:
        panic()


@pytest.mark.parametrize(("method", "path"), [("GET", "/ocsp//MAA="), ("POST", "/ocsp")])
async def test_who_makes_the_parser_panic_is_told_of_an_internal_error(method: str, path: str) -> None:
    questions = OcspQuestions(cast("Any", Panicking()))
    headers = [(b"content-type", b"application/ocsp-request")]
    asked: Scope = {"type": "http", "method": method, "path": path, "headers": headers}
    told = await through(OcspEndpoint(cast("Any", None), questions=questions, body_seconds=10), asked, b"0\0")
    assert (told.status_code, told.body) == (200, failure_response(Failure.INTERNAL_ERROR))
    assert questions.answered_so_far["internal_error"] == 1
