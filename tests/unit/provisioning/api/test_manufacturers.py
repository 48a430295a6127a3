"""Operators register, change and end manufacturers over the API, and give their lists: what they say is what holds."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning.enrolment.manufacturer_fetch import MAXIMUM_URLS
from provisioning.revocation.recall_watch import RecallWatch
from tests.support.asgi import through
from tests.support.fleet import Fleet
from tests.support.manufacturer import Manufacturer
from tests.support.requests import NOON
from tests.support.ways import enrol, group, listed, register
from tests.unit.provisioning.api.test_claims import Api
from tests.unit.provisioning.api.test_still_operator import caller, scope_of

URLS = ["http://pki.acme.example/1.crl", "http://pki.acme.example/2.crl"]


@pytest.fixture
def acme() -> Manufacturer:
    return Manufacturer(begin=NOON - timedelta(days=1))


async def api(fleet: Fleet) -> Api:
    await group(fleet, "manufacturer")
    return Api(fleet, await caller(fleet))


class Lists(Api):
    """Gives lists as they are."""

    async def give(self, content: bytes, query: str = "") -> tuple[int, Any]:
        scope = scope_of(self._der, "POST", "/v1/manufacturers/acme/lists") | {"query_string": query.encode()}
        answer = await through(self._app, scope, content)
        return answer.status_code, json.loads(bytes(answer.body))


async def test_a_manufacturer_is_as_it_was_registered(fleet: Fleet, acme: Manufacturer) -> None:
    ask = await api(fleet)
    order = {"name": "acme", "group": "line", "certificate": acme.pem, "name_prefix": "acme-"}
    made: dict[str, Any] = order | {
        "ended_at": None,
        "fingerprint_sha256": acme.certificate.fingerprint(hashes.SHA256()).hex(),
        "certificate": acme.certificate.public_bytes(Encoding.PEM).decode(),
        "created_at": "2027-03-01T12:00:00Z",
        "created_by": "anna",
        "lapsed_lists": "refuse",
        "revoked_devices": "report",
        "list_urls": [],
        "lists": [],
    }
    assert await ask("POST", "/v1/manufacturers", order) == (201, made)
    assert await ask("GET", "/v1/manufacturers/acme") == (200, made)
    fleet.clock.advance(timedelta(minutes=1))
    ended = made | {"ended_at": "2027-03-01T12:01:00Z"}
    assert await ask("DELETE", "/v1/manufacturers/acme") == (200, ended)
    assert await ask("GET", "/v1/manufacturers") == (200, {"items": [ended], "next": None})


@pytest.mark.parametrize("term", ["lapsed_lists", "revoked_devices", "list_urls"])
async def test_one_term_is_changed_and_no_other(fleet: Fleet, acme: Manufacturer, term: str) -> None:
    ask = await api(fleet)
    await register(fleet, acme)
    terms: dict[str, Any] = {"lapsed_lists": "accept", "revoked_devices": "suspend", "list_urls": URLS}
    before = {"lapsed_lists": "refuse", "revoked_devices": "report", "list_urls": []}
    other = {"lapsed_lists": "refuse", "revoked_devices": "revoke", "list_urls": URLS[:1]}

    async def changed(to: dict[str, Any]) -> dict[str, Any]:
        status, after = await ask("PATCH", "/v1/manufacturers/acme", to)
        assert status == 200, after
        return {each: after[each] for each in before} | {"list_urls": [each["url"] for each in after["list_urls"]]}

    assert await changed({term: terms[term]}) == before | {term: terms[term]}
    assert await changed(other) == other
    assert await changed({term: terms[term]}) == other | {term: terms[term]}


async def test_manufacturers_are_told_in_pages_in_order_of_name(fleet: Fleet) -> None:
    ask = await api(fleet)
    for name in "cab":
        await register(fleet, Manufacturer(name, begin=NOON - timedelta(days=1)), name=name)

    async def page(query: str) -> tuple[list[str], str | None]:
        _, found = await ask("GET", "/v1/manufacturers", query=query)
        return [each["name"] for each in found["items"]], found["next"]

    assert await page("limit=2") == (["a", "b"], "b")
    assert await page("limit=2&after=b") == (["c"], None)


async def test_a_list_is_told_as_it_is_and_one_that_says_less_is_taken_only_if_that_is_said(
    fleet: Fleet, acme: Manufacturer
) -> None:
    await group(fleet, "manufacturer")
    await register(fleet, acme)
    ask = Lists(fleet, await caller(fleet))
    first = listed(acme, *range(1, 41), number=7)
    about = {
        "number": 7,
        "this_update": "2027-03-01T12:00:00Z",
        "next_update": "2027-03-02T12:00:00Z",
        "about": [],
        "entries": 40,
        "sha256": x509.load_der_x509_crl(first).fingerprint(hashes.SHA256()).hex(),
        "taken_at": "2027-03-01T12:00:00Z",
        "taken_by": "anna",
    }
    assert await ask.give(first) == (201, about | {"revoked": 40, "released": 0})
    assert await ask.give(first) == (200, about | {"revoked": 0, "released": 0})
    assert (await ask("GET", "/v1/manufacturers/acme"))[1]["lists"] == [about]
    hour = timedelta(hours=1)
    fleet.clock.advance(2 * hour)
    lower, fewer = (
        listed(acme, *range(1, 41), number=6, now=NOON + hour),
        listed(acme, 1, 41, number=8, now=NOON + 2 * hour),
    )
    for odd, word, other in ((lower, "renumbered", "fewer"), (fewer, "fewer", "renumbered")):
        assert (await ask.give(odd))[0] == 400
        assert (await ask.give(odd, f"{other}=true"))[0] == 400
        status, taken = await ask.give(odd, f"{word}=true")
        assert status == 201, taken
    assert (taken["revoked"], taken["released"]) == (1, 39)
    status, removed = await ask("DELETE", f"/v1/manufacturers/acme/lists/{taken['sha256']}")
    assert (status, removed["released"]) == (200, 2)
    for no_hash in ("ab", "A" * 64, "a" * 65):
        assert (await ask("DELETE", f"/v1/manufacturers/acme/lists/{no_hash}"))[0] == 400


async def test_devices_whose_certificate_was_revoked_are_told_in_pages(fleet: Fleet, acme: Manufacturer) -> None:
    await group(fleet, "manufacturer")
    await register(fleet, acme)
    ask = Lists(fleet, await caller(fleet))
    idevids = [acme.idevid(name)[0] for name in ("SN-2", "SN-1")]
    for name, idevid in zip(("SN-2", "SN-1"), idevids, strict=True):
        await enrol(fleet, name, certificate=idevid)
    await fleet.suspension.suspend_device("SN-1", by="boss")
    reason = x509.ReasonFlags.superseded
    await ask.give(listed(acme, *idevids, reason=reason))
    fleet.clock.advance(timedelta(hours=1))
    watch = RecallWatch(fleet.database, fleet.clock, fleet.revocation, fleet.suspension, "provisioning")
    await watch.look()
    items = [
        {
            "device": name,
            "group": "line",
            "state": state,
            "idevid": f"{idevid.serial_number:x}",
            "reason": "superseded",
            "revoked_at": "2027-03-01T12:00:00Z",
            "found_at": "2027-03-01T13:00:00Z",
        }
        for name, state, idevid in (("SN-1", "suspended", idevids[1]), ("SN-2", "active", idevids[0]))
    ]
    path = "/v1/manufacturers/acme/revoked"
    assert await ask("GET", path) == (200, {"items": items, "next": None})
    assert await ask("GET", path, query="limit=1") == (200, {"items": items[:1], "next": "SN-1"})
    assert await ask("GET", path, query="limit=1&after=SN-1") == (200, {"items": items[1:], "next": None})


@pytest.mark.parametrize(
    ("path", "method", "odd"),
    [
        ("/v1/manufacturers", "POST", {"more": 1}),
        ("/v1/manufacturers", "POST", {"certificate": 65 * 1024 * "x"}),
        ("/v1/manufacturers/acme", "PATCH", {"more": 1}),
        ("/v1/manufacturers/acme", "PATCH", {"lapsed_lists": "any"}),
        ("/v1/manufacturers/acme", "PATCH", {"list_urls": URLS[:1] * (MAXIMUM_URLS + 1)}),
    ],
)
async def test_what_no_manufacturer_can_have_is_refused(
    fleet: Fleet, acme: Manufacturer, path: str, method: str, odd: dict[str, object]
) -> None:
    ask = await api(fleet)
    if method == "PATCH":
        await register(fleet, acme)
    whole = {"name": "acme", "group": "line", "certificate": acme.pem} if method == "POST" else {}
    status, refused = await ask(method, path, whole | odd)
    assert (status, refused["code"]) == (400, "INVALID_REQUEST")
