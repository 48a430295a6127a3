"""Operators make, list, show and end claims over the API: what they order is what is made, and who did it is told."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from provisioning.pki.keys import spki_fingerprint
from provisioning.store import audit
from tests.support.asgi import through
from tests.support.fleet import Fleet
from tests.support.requests import NOON
from tests.support.ways import HOUR, group
from tests.unit.provisioning.api.test_still_operator import api_of, caller, scope_of

ORDER = {"name": "batch", "group": "line", "maximum_devices": 5, "life_seconds": 3600}


class Api:
    """The operators' API, called by anna."""

    def __init__(self, fleet: Fleet, der: bytes, **other: Any) -> None:
        self._app = api_of(fleet, [], **other)
        self._der = der

    async def __call__(self, method: str, path: str, body: object = None, query: str = "") -> tuple[int, Any]:
        scope = scope_of(self._der, method, path) | {"query_string": query.encode()}
        answer = await through(self._app, scope, b"" if body is None else json.dumps(body).encode())
        return answer.status_code, json.loads(bytes(answer.body))


async def api(fleet: Fleet) -> Api:
    await group(fleet, "claim")
    return Api(fleet, await caller(fleet))


async def test_a_claim_is_as_it_was_ordered_and_its_key_is_in_that_answer_alone(fleet: Fleet) -> None:
    ask = await api(fleet)
    status, made = await ask("POST", "/v1/claims", ORDER | {"activation_seconds": 600})
    assert status == 201
    key = load_pem_private_key(made.pop("private_key").encode(), None)
    certificate = x509.load_pem_x509_certificate(made["certificate"].encode())
    assert spki_fingerprint(key.public_key()) == spki_fingerprint(certificate.public_key())  # type: ignore[arg-type]
    assert certificate.not_valid_after_utc == NOON + HOUR
    assert made == {
        "name": "batch",
        "group": "line",
        "maximum_devices": 5,
        "used": 0,
        "activation_seconds": 600,
        "expires_at": "2027-03-01T13:00:00Z",
        "ended_at": None,
        "fingerprint_sha256": certificate.fingerprint(hashes.SHA256()).hex(),
        "certificate": certificate.public_bytes(Encoding.PEM).decode(),
        "created_at": "2027-03-01T12:00:00Z",
        "created_by": "anna",
    }
    assert await ask("GET", "/v1/claims/batch") == (200, made)
    assert await ask("GET", "/v1/claims") == (200, {"items": [made], "next": None})
    status, twice = await ask("POST", "/v1/claims", ORDER)
    assert (status, twice["code"]) == (409, "NAME_EXISTS")


async def test_a_trial_is_an_hour_unless_it_was_said(fleet: Fleet) -> None:
    ask = await api(fleet)
    assert (await ask("POST", "/v1/claims", ORDER))[1]["activation_seconds"] == 3600


async def test_an_ended_claim_stays_in_the_list_with_its_end(fleet: Fleet) -> None:
    ask = await api(fleet)
    await ask("POST", "/v1/claims", ORDER)
    fleet.clock.advance(timedelta(minutes=1))
    status, ended = await ask("DELETE", "/v1/claims/batch")
    assert (status, ended["ended_at"]) == (200, "2027-03-01T12:01:00Z")
    assert await ask("GET", "/v1/claims/batch") == (200, ended)
    done = await fleet.database.read(lambda connection: audit.about(connection, "batch", 9))
    assert [each.actor for each in done] == ["anna", "anna"]
    for method in ("GET", "DELETE"):
        status, refusal = await ask(method, "/v1/claims/nobody")
        assert (status, refusal["code"]) == (404, "CLAIM_UNKNOWN")


async def test_claims_are_told_in_pages_in_order_of_name(fleet: Fleet) -> None:
    ask = await api(fleet)
    for name in "cab":
        assert (await ask("POST", "/v1/claims", ORDER | {"name": name}))[0] == 201

    async def page(query: str) -> tuple[list[str], str | None]:
        _, found = await ask("GET", "/v1/claims", query=query)
        return [each["name"] for each in found["items"]], found["next"]

    assert await page("limit=2") == (["a", "b"], "b")
    assert await page("limit=2&after=b") == (["c"], None)
    assert await page("limit=3") == (["a", "b", "c"], None)


async def test_what_no_claim_can_have_is_refused_and_nothing_is_made(fleet: Fleet) -> None:
    ask = await api(fleet)
    for odd in ({"maximum_devices": -1}, {"life_seconds": -1}, {"activation_seconds": -1}, {"more": 1}, {"name": ""}):
        status, _ = await ask("POST", "/v1/claims", ORDER | odd)
        assert status == 400, odd
    assert await ask("GET", "/v1/claims") == (200, {"items": [], "next": None})
