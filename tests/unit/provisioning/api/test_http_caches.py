"""How long an HTTP cache may keep what it was given: not past nextUpdate, by which nobody believes it any more.

A cache goes by max-age where there is one, whatever Expires says (RFC 9111 §5.3), and RFC 9919 §7.2 has max-age end
before nextUpdate.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta

import httpx
import pytest
from cryptography.x509 import ocsp
from starlette.applications import Starlette

from provisioning.api.ocsp import OcspEndpoint, OcspQuestions
from provisioning.api.relying import relying_party_routes
from provisioning.ca.crl import CrlIssuer
from provisioning.revocation.publisher import CrlPlan, CrlPublisher
from provisioning.store.counters import crl_counter
from tests.support.fleet import Fleet
from tests.support.ocsp import request_der
from tests.support.responding import DAY, Responding

TYPE = {"Content-Type": "application/ocsp-request"}


def kept(headers: Mapping[str, str]) -> timedelta:
    found = re.search("max-age=([0-9]+)", headers["Cache-Control"])
    assert found is not None
    return timedelta(seconds=int(found[1]))


async def no_wait(_seconds: float) -> None:
    """Do not wait for the next second: the clock stands."""


async def test_an_ocsp_answer_is_kept_no_longer_than_its_signer_lives(fleet: Fleet) -> None:
    """A signer is renewed at half of its life, unless its CA ends with it or its key is away."""
    responding = await Responding.on(fleet)
    app = OcspEndpoint(Starlette(), questions=OcspQuestions(responding.responder), body_seconds=10)
    question = request_der(await fleet.enrol(), responding.issuer)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ca.example.org") as client:
        first = await client.post("/ocsp", content=question, headers=TYPE)
        assert kept(first.headers) == responding.responder.remembered == timedelta(minutes=5)
        fleet.clock.advance(7 * DAY - timedelta(minutes=11))
        seen = set()
        for seconds in (0, 59, 1, 200.5, 100, 100, 100, 60, 30.5, 5, 2, 1):
            fleet.clock.advance(timedelta(seconds=seconds))
            answer = await client.post("/ocsp", content=question, headers=TYPE)
            ends = ocsp.load_der_ocsp_response(answer.content).next_update_utc
            assert ends is not None
            assert fleet.clock() + kept(answer.headers) <= ends
            seen.add(kept(answer.headers))
        assert {timedelta(minutes=5), timedelta()} <= seen


@pytest.mark.parametrize(("life", "most"), [(DAY, 60), (timedelta(minutes=1), 30), (timedelta(seconds=1), 0)])
async def test_a_list_is_kept_for_half_of_its_life_at_most_and_not_past_its_end(
    fleet: Fleet, life: timedelta, most: int
) -> None:
    """The next one is there when half of its life is over, unless nobody can sign it."""
    issuing, name = fleet.authority.issuing_ca, "issuing-ca"
    issuer = CrlIssuer(issuing.certificate, issuing.key)
    plan = CrlPlan(name, crl_counter(name), life, 0.01, lambda: issuer, "http://ca.example.org/delta")
    publisher = CrlPublisher(fleet.database, plan, fleet.clock, no_wait)
    await publisher.start()
    app = Starlette(routes=list(relying_party_routes({name: publisher}, {}, fleet.clock)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ca.example.org") as client:
        for path in ("/crl/issuing-ca.crl", "/crl/issuing-ca.pem", "/crl/issuing-ca.delta.crl"):
            assert kept((await client.get(path)).headers) == timedelta(seconds=most)
        fleet.clock.advance(life - timedelta(seconds=0.5))
        assert kept((await client.get("/crl/issuing-ca.crl")).headers) == timedelta(), "half a second is left of it"
        fleet.clock.advance(life)
        assert kept((await client.get("/crl/issuing-ca.crl")).headers) == timedelta(), "it has lapsed"
