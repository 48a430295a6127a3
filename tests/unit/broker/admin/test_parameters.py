"""The parameters of operators' requests: what has no effect is refused and named, what is recorded is bounded."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from broker.admin.http_messages import Request
from broker.admin.parameters import InvalidRequest, limit_of, object_in, read, refuse_unknown, reload_asked, told_of
from broker.reload.parts import ProposedAnchors
from broker.reload.report import Part


def request(
    path: str = "/v1/status", query: dict[str, str] | None = None, *, method: str = "GET", body: bytes = b""
) -> Request:
    return Request(method, path, query or {}, body, "me")


@pytest.mark.parametrize(
    ("path", "query", "complaint"),
    [
        ("/v1/status", {"verbose": "1"}, "verbose: no such parameter; there is none here"),
        ("/v1/why", {"about": "x", "limit": "3"}, "limit: no such parameter; there is about"),
        ("/v1/sessions/kick", {"client": "x"}, "client: no such parameter; there is none here"),
    ],
)
def test_a_parameter_without_effect_is_refused(path: str, query: dict[str, str], complaint: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        refuse_unknown(request(path, query))
    assert str(refused.value) == complaint


def test_a_parameter_with_an_effect_is_none_of_those() -> None:
    refuse_unknown(request("/v1/why", {"about": "x"}))
    refuse_unknown(request("/v1/status"))
    refuse_unknown(request("/v1/sessions", {"colour": "red"}))  # Its selection says so, with what there is.


def test_a_reload_is_of_everything_and_real_unless_it_says_otherwise() -> None:
    assert reload_asked(b"{}") == (set(Part), {}, False)
    assert reload_asked(b'{"parts": ["policy", "limits"], "dry_run": true}') == ({Part.POLICY, Part.LIMITS}, {}, True)
    trial = {"dry_run": True, "policy": "[x]", "anchors": "pem", "bundle": "plant"}
    assert reload_asked(json.dumps(trial).encode()) == (
        set(Part),
        {Part.POLICY: "[x]", Part.TRUST: ProposedAnchors("pem", "plant")},
        True,
    )
    quoted = json.dumps({"dry_run": True, "policy": '"x", \\' * 5000}).encode()
    assert reload_asked(quoted)[1] == {Part.POLICY: '"x", \\' * 5000}
    assert reload_asked(b'{"dry_run": true, "anchors": ""}')[1] == {Part.TRUST: ProposedAnchors("", None)}


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"partz": []}, "partz: no such field; there are parts, dry_run, policy, anchors, bundle"),
        ({"parts": "policy"}, "parts: a list of "),
        ({"parts": []}, "parts: a list of "),
        ({"parts": ["policy", "everything"]}, "parts: a list of "),
        ({"parts": ["policy"] * 5}, "parts: a list of "),
        ({"parts": [["policy"]]}, "parts: a list of "),
        ({"dry_run": 1}, "dry_run: true or false"),
        ({"policy": "[x]"}, "policy: the text of a policy file, and only for a dry run"),
        ({"dry_run": False, "anchors": "pem"}, "anchors: certificates in PEM, and only for a dry run"),
        ({"dry_run": True, "policy": 1}, "policy: the text of a policy file, and only for a dry run"),
        ({"dry_run": True, "policy": "\ud800"}, "policy: contains a lone surrogate"),
        ({"dry_run": True, "anchors": "pem", "bundle": "\ud800"}, "bundle: contains a lone surrogate"),
        ({"dry_run": True, "bundle": "plant"}, "bundle: only together with anchors"),
        ({"dry_run": True, "policy": "", "parts": ["limits"]}, "parts: policy is not among them"),
        ({"dry_run": True, "anchors": "", "parts": ["policy"]}, "parts: trust is not among them"),
    ],
)
def test_what_a_reload_cannot_be_is_refused_by_its_field(asked: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        reload_asked(json.dumps(asked).encode())
    assert str(refused.value).startswith(complaint)


@pytest.mark.parametrize(("text", "limit"), [(None, None), ("1", 1), ("010", 10), ("999999999", 999_999_999)])
def test_a_limit_is_a_number(text: str | None, limit: int | None) -> None:
    assert limit_of(text) == limit


@pytest.mark.parametrize(
    "text", ["", "0", "000", "-1", "1.0", " 1", "ten", "\u0661", "\u00b2", "1000000000", "0000000001"]
)
def test_anything_else_is_no_limit(text: str) -> None:
    with pytest.raises(InvalidRequest, match="limit: a number from 1 to 999999999"):
        limit_of(text)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "the body is not JSON"),
        (b"\xff", "the body is not JSON"),
        (b"[" * 50_000, "the body is not JSON"),
        (b"[]", "the body is not a JSON object"),
        (b'"x"', "the body is not a JSON object"),
        (b'{"a": 1, "b": 2, "b": 2}', "b: given twice"),
        (b'{"a": {"c": 1, "c": 2}}', "c: given twice"),
        (b'{"a": [' + b'"x",' * 5000 + b"0]}", "the body has more than 500 strings"),
    ],
)
def test_a_body_is_one_json_object_that_can_be_read_in_one_way(body: bytes, complaint: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        object_in(body)
    assert str(refused.value).startswith(complaint)


def test_what_is_recorded_of_a_request_is_bounded_whatever_it_contains() -> None:
    assert told_of(request()) == {}
    assert told_of(request(query={"about": "x" * 300})) == {"query": {"about": "x" * 200}}
    assert told_of(request(method="POST", body=b"no object")) == {"bytes": 9}
    asked = {
        "reason": "y" * 300,
        "k" * 300: 1,
        "parts": ["z" * 300, ["deep"], *map(str, range(20))],
        "nested": {"deep": 1},
        "none": None,
        "sure": True,
        "half": 0.5,
    }
    body = told_of(request(method="POST", body=json.dumps(asked).encode()))["body"]
    assert body == {
        "reason": "y" * 200,
        "k" * 200: 1,
        "parts": ["z" * 200, "…", *map(str, range(8))],
        "nested": "…",
        "none": None,
        "sure": True,
        "half": 0.5,
    }
    many = json.dumps(dict.fromkeys(map(str, range(50)), 0)).encode()
    assert told_of(request(method="POST", body=many)) == {"body": dict.fromkeys(map(str, range(10)), 0)}
    assert told_of(request(body=b"{}")) == {}, "nothing reads the body of a GET"


def test_no_number_of_a_request_makes_a_record_that_is_not_json() -> None:
    """Python's reader takes them, and its writer would write them."""
    told = told_of(request(method="POST", body=b'{"a": NaN, "b": -Infinity, "c": 1e999, "d": 1e9, "e": [NaN]}'))
    assert told == {"body": {"a": "…", "b": "…", "c": "…", "d": 1e9, "e": ["…"]}}


def test_a_large_body_is_read_beside_the_event_loop() -> None:
    """A megabyte of small objects held everybody up for half a second, and for as long again to be recorded."""

    async def reader(body: bytes) -> threading.Thread:
        return await read(body, lambda _body: threading.current_thread())

    here = threading.current_thread()
    assert asyncio.run(reader(b"x" * 4096)) is here
    assert asyncio.run(reader(b"x" * 4097)) is not here
