"""Of what a stranger sends to the operators' API nothing is parsed, and no more than its beginning is read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning.api.asked_for import check_json
from provisioning.enrolment import device_list, tokens
from tests.support.fleet import Fleet
from tests.support.operators import operator
from tests.unit.provisioning.api.test_still_operator import CHANGES, api_of, scope_of

PART = 16 * 1024
PARTS = 64
KNOWN = ("PUT", "/v1/revocations/feed/authorities")
LEFT = {"type": "http.disconnect"}


class Sent:
    """A client's body in parts, and what it is answered."""

    def __init__(self, parts: list[bytes], then: dict[str, Any] | None = None) -> None:
        """*then* comes behind the parts, which are all of the body if it is None."""
        whole = then is None
        self.left = [
            {"type": "http.request", "body": part, "more_body": not (whole and number == len(parts))}
            for number, part in enumerate(parts, 1)
        ]
        self.left += [] if then is None else [then]
        self.status, self.body = 0, b""

    async def to(self, app: Any, der: bytes | None, method: str, path: str) -> None:
        scope = scope_of(b"", method, path)
        scope["extensions"]["tls"]["client_cert_der"] = der
        scope |= {"raw_path": scope["path"].encode(), "query_string": b"", "state": {}}
        await app(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        return self.left.pop(0)

    async def _send(self, message: Any) -> None:
        self.status = message.get("status", self.status)
        self.body += message.get("body", b"")

    @property
    def answer(self) -> tuple[int, str]:
        return self.status, json.loads(self.body)["code"]


async def test_nobody_has_us_keep_or_parse_what_he_may_not_send(fleet: Fleet) -> None:
    app = api_of(fleet, [])
    for method, path in [*CHANGES, KNOWN]:
        if method == "DELETE":
            continue  # It has no body.
        for parts in ([b"no JSON"], [b"x" * PART] * PARTS):
            sent = Sent(parts)
            await sent.to(app, None, method, path)
            assert sent.answer == (403, "CERTIFICATE_MISSING"), (method, path)
            assert len(parts) - len(sent.left) <= 64 * 1024 // PART + 1, (method, path)


@pytest.mark.parametrize(
    ("parts", "then", "answer"),
    [
        ([b" " * PART] * 32 + [b'{"device": "nobody-s"}'], None, (404, "DEVICE_UNKNOWN")),
        ([b" " * PART] * 65, None, (413, "BODY_TOO_LARGE")),
        ([b'{"0":0', *[b',"1":1' * 2000] * 6, b"}"], None, (400, "INVALID_REQUEST")),
        ([b"[0", *[b",0" * 6000] * 2, b"]"], None, (400, "INVALID_REQUEST")),
        ([b" " * PART] * 32, LEFT, None),
    ],
    ids=["whole", "too large", "members", "elements", "left"],
)
async def test_what_an_operator_sends_is_read_to_its_end(
    fleet: Fleet, parts: list[bytes], then: dict[str, Any] | None, answer: tuple[int, str] | None
) -> None:
    sent = Sent(parts, then)
    der = (await operator(fleet, "anna")).public_bytes(Encoding.DER)
    await sent.to(api_of(fleet, []), der, "POST", "/v1/suspensions")
    assert (sent.answer if sent.body else None) == answer
    assert (b"more in it than any request" in sent.body) is (answer == (400, "INVALID_REQUEST"))
    assert len(sent.left) == 0


def test_the_largest_batches_are_not_too_much() -> None:
    """A fingerprint has the colons that openssl writes into it."""
    entry = {"name": "meter-1", "key_sha256": ":".join(["ab"] * 32)}
    check_json(json.dumps({"devices": [entry] * device_list.MAXIMUM_BATCH}).encode())
    most = {"devices": ["meter-1"] * tokens.MAXIMUM_BATCH, "dns_names": ["a"] * 32, "ip_addresses": ["b"] * 32}
    check_json(json.dumps(most).encode())
