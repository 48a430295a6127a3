"""The attack against brokers that staple wrongly: each is found, and one that staples rightly is not accused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from device_sim.attack import run
from device_sim.attack.catalogue import CATALOGUE, pick
from device_sim.attack.issuer import CLIENT_AUTH, Issuer, Paper
from device_sim.attack.verdict import Outcome, Verdict
from device_sim.credentials.certification import common_name
from tests.support.asking_client import is_stapled
from tests.support.faulty_broker import faulty

DAY = timedelta(days=1)
Stapled = Callable[[Issuer, Paper], bytes]


def good(ca: Issuer, own: Paper) -> bytes:
    return ca.vouches_for(own.certificate)


def of_another(ca: Issuer, _own: Paper) -> bytes:
    return ca.vouches_for(ca.issue(None, subject=common_name("another"), usages=CLIENT_AUTH).certificate)


def by_a_namesake(ca: Issuer, own: Paper) -> bytes:
    namesake = Issuer.founded(ca.certificate.subject)
    return ca.vouches_for(own.certificate, responder=Paper(namesake.certificate, namesake.key))


def noise(_ca: Issuer, _own: Paper) -> bytes:
    return b"no response"


def skip_unless_stapled(stapled: Stapled) -> None:
    """From 3.6 on OpenSSL reads its staple: what is none, or is about another certificate, it does not send."""
    ca = Issuer.founded(common_name("CA"))
    if stapled in {of_another, noise} and not is_stapled(stapled(ca, Paper(ca.certificate, ca.key))):
        pytest.skip("OpenSSL staples no such thing")


async def tried(directory: Path, stapled: Stapled | None, *, due: bool = False, of_another_ca: bool = False) -> Outcome:
    (case,) = pick(CATALOGUE, ["45-staple"])
    async with faulty(directory, stapled=stapled, staple_due=due, of_another_ca=of_another_ca) as target:
        found = await run.run(target, [case], lambda _: None)
    return next(each for each in found if each.name == case.name)


@pytest.mark.parametrize(
    ("stapled", "words"),
    [
        (lambda ca, own: ca.vouches_for(own.certificate, begins=-2 * DAY, ends=-DAY), "the answer ended on"),
        (lambda ca, own: ca.vouches_for(own.certificate, begins=DAY, ends=2 * DAY), "which is yet to come"),
        (of_another, "about another certificate"),
        (by_a_namesake, "the signature is not that of the responder"),
        (lambda ca, own: ca.vouches_for(own.certificate, responder=own), "one that it certified for OCSP signing"),
        (lambda ca, own: ca.vouches_for(own.certificate, revoked=True), "revoked, or unknown"),
        (lambda _ca, _own: b"0\x03\n\x01\x03", "the responder says TRY_LATER"),
        (noise, "not an OCSP response"),
    ],
    ids=["expired", "yet-to-come", "another", "namesake", "itself", "revoked", "try-later", "noise"],
)
@pytest.mark.parametrize("of_another_ca", [False, True])
async def test_a_staple_that_no_device_may_believe_is_found(
    tmp_path: Path, stapled: Stapled, words: str, of_another_ca: bool
) -> None:
    skip_unless_stapled(stapled)
    found = await tried(tmp_path, stapled, of_another_ca=of_another_ca)
    assert found.verdict is Verdict.FAIL
    assert words in found.judgement.why


@pytest.mark.parametrize("of_another_ca", [False, True])
async def test_a_good_staple_passes(tmp_path: Path, of_another_ca: bool) -> None:
    assert (await tried(tmp_path, good, due=True, of_another_ca=of_another_ca)).verdict is Verdict.PASS


async def test_a_staple_is_missed_where_the_certificate_says_that_it_is_due(tmp_path: Path) -> None:
    found = await tried(tmp_path, None, due=True)
    assert (found.verdict, "its certificate says that it always does" in found.judgement.why) == (Verdict.FAIL, True)
    found = await tried(tmp_path, None)
    assert (found.verdict, found.judgement.why) == (Verdict.SKIP, "the broker's certificate names no OCSP responder")
