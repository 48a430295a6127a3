"""Cases about keys, chains and dates: who overlooks what is wrong is found, and a clock that is behind is no fault."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from device_sim.attack import broker_clock, der, lifetime_cases, run
from device_sim.attack.capabilities import Capabilities, Feature
from device_sim.attack.case import Case
from device_sim.attack.catalogue import CATALOGUE, pick
from device_sim.attack.issuer import Issuer
from device_sim.attack.scene import Scene
from device_sim.attack.target import Impossible, SigningRegistrar, Target
from device_sim.attack.verdict import Outcome, Verdict
from device_sim.credentials.certification import common_name
from device_sim.link.tls_dial import Endpoint
from device_sim.trouble.proxy import Proxy
from device_sim.trouble.trouble import Trouble
from tests.support.credulous_server import credulous
from tests.support.faulty_broker import Fault, faulty

REFUSED = {Verdict.PASS, Verdict.WARN}
"""asyncio closes before its alert is sent: a refusal, and no more is said."""


@pytest.fixture(autouse=True)
def _short_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else this machine does, it is the broker that is judged."""
    monkeypatch.setattr(run, "MOST_WAITING", 10.0)


def case(name: str) -> Case:
    (found,) = pick(CATALOGUE, [name])
    return found


async def tried(target: Target, name: str) -> Outcome:
    here = Scene(target)
    try:
        return await run._tried(here, case(name))
    finally:
        await here.close()


@pytest.mark.parametrize("name", ["23-p192", "23-p224", "23-ed448", "17-empty-proof", "17-weak-proof"])
async def test_who_looks_at_no_proof_is_found(name: str) -> None:
    authority = Issuer.founded(common_name("CA"))
    claims = Capabilities(name="credulous", supports=frozenset({Feature.MQTT5}))
    async with credulous() as port:
        endpoint = Endpoint("127.0.0.1", port, "localhost")
        target = Target(claims, endpoint, Path("none"), authority, SigningRegistrar(authority, None))
        outcome = await tried(target, name)
    assert (outcome.verdict, outcome.judgement.why) == (
        Verdict.FAIL, "the attack succeeded: the broker let it in",
    ), outcome.judgement  # fmt: skip


@pytest.mark.parametrize("name", ["23-p224", "23-ed448"])
async def test_who_checks_the_proof_is_not_accused(tmp_path: Path, name: str) -> None:
    async with faulty(tmp_path) as target:
        outcome = await tried(target, name)
    assert outcome.verdict in REFUSED, outcome.judgement


async def test_with_its_own_key_a_device_of_a_rare_kind_is_let_in(tmp_path: Path) -> None:
    """So it is the other key for which it was refused, and not its kind."""
    async with faulty(tmp_path) as target:
        outcome = await tried(target, "23-ed448")
    assert outcome.seen is not None
    assert (outcome.seen.got_in, outcome.seen.figures) == (False, "with its own key: mqtt CONNACK 0x00")


@pytest.mark.parametrize("seconds", [0, 1, 7, 100, 70_000])
@pytest.mark.parametrize("fault", [Fault.NONE, Fault.OVERLOOKS_DATES])
async def test_a_clock_that_is_behind_excuses_itself_and_no_leniency(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int, fault: Fault
) -> None:
    monkeypatch.setattr(broker_clock, "now", lambda: datetime.now(UTC) + timedelta(seconds=seconds))
    async with faulty(tmp_path, fault) as target:
        outcome = await tried(target, "3-expired-1s")
    assert outcome.seen is not None
    if fault is Fault.OVERLOOKS_DATES:
        assert outcome.judgement.why == "the attack succeeded: the broker let it in"
        return
    assert (outcome.verdict in REFUSED, outcome.seen.got_in) == (True, False), outcome.judgement
    told = outcome.seen.figures
    near = {f"the broker's clock is up to {seconds + each} s behind the attacker's" for each in (0, 1, 2)}
    assert told in near or (told == "" and seconds <= 1)


@pytest.mark.parametrize("latency", [0.0, 0.1])
async def test_who_waits_for_an_expiry_waits_by_the_clock_of_the_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, latency: float
) -> None:
    """By ours it is over, and a broker whose clock is behind was blamed for letting the device stay.

    Its clock goes on while it is asked, ten times: across a long link for seconds.
    """
    async with faulty(tmp_path) as target, Proxy("127.0.0.1", target.endpoint.port) as link:
        link.set(Trouble(latency=latency))
        here = Scene(replace(target, endpoint=replace(target.endpoint, port=link.port)))
        paper = lifetime_cases._short_lived(here)
        for ahead in (0, 20):
            monkeypatch.setattr(broker_clock, "now", lambda ahead=ahead: datetime.now(UTC) + timedelta(seconds=ahead))
            left = (paper.certificate.not_valid_after_utc - datetime.now(UTC)).total_seconds()
            waits = await lifetime_cases._there(here, paper)
            passed = left - (paper.certificate.not_valid_after_utc - datetime.now(UTC)).total_seconds()
            assert left - passed <= waits <= left + 1.01  # Its clock is ours, as it is, to the second.
        monkeypatch.setattr(broker_clock, "now", lambda: datetime.now(UTC) + timedelta(seconds=100))
        with pytest.raises(Impossible, match=r"the broker's clock is up to 10\d s behind: nobody waits here"):
            await lifetime_cases._there(here, paper)
        await here.close()


async def test_where_no_date_is_good_enough_nothing_is_said_of_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that is days behind refuses good devices as well: there is no control."""
    monkeypatch.setattr(broker_clock, "now", lambda: datetime.now(UTC) + timedelta(days=30))
    async with faulty(tmp_path) as target:
        outcome = await tried(target, "3-expired-1s")
    assert outcome.verdict is Verdict.SKIP
    assert "is refused as well: see the clocks" in outcome.judgement.why


@pytest.mark.parametrize("name", ["9-cross-signed", "24-name-constraints", "24-expired-ca"])
async def test_who_refuses_every_chain_has_not_refused_the_bad_one(tmp_path: Path, name: str) -> None:
    """The control is of a CA that this broker does not trust."""
    async with faulty(tmp_path) as target:
        strange = Issuer.founded(common_name("Nobody's CA"), path_length=None)
        outcome = await tried(replace(target, other_issuer=strange), name)
    assert outcome.verdict is Verdict.SKIP, outcome.judgement
    assert " is refused as well: " in outcome.judgement.why


@pytest.mark.parametrize("name", ["9-cross-signed", "24-name-constraints", "24-expired-ca"])
async def test_a_ca_that_may_certify_cas_needs_no_second_one(tmp_path: Path, name: str) -> None:
    """As that of a broker set up by hand: `openssl req -x509` makes one without a path length."""
    async with faulty(tmp_path) as target:
        assert (await tried(target, name)).judgement.why == "the target's CA may certify no CA, and there is no other"
    (place := tmp_path / "other").mkdir()
    async with faulty(place, path_length=None) as target:
        outcome = await tried(target, name)
    assert outcome.verdict in REFUSED, outcome.judgement


async def test_a_revoked_ca_is_tried_only_where_somebody_can_be_told_of_it(tmp_path: Path) -> None:
    async with faulty(tmp_path) as target:
        assert (await tried(target, "24-revoked-ca")).judgement.why.startswith("the target's CA may certify no CA")
        other = replace(target, other_issuer=target.issuer)
        outcome = await tried(other, "24-revoked-ca")
    assert (outcome.verdict, outcome.judgement.why) == (
        Verdict.SKIP, "the tester has no way to tell this broker that a CA is revoked",
    )  # fmt: skip


def test_an_extension_is_added_behind_its_like() -> None:
    authority = Issuer.founded(common_name("CA"))
    paper = authority.issue(None, subject=common_name("meter-1"), dns_names=["a"])
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.32473.1"), b"\x05\x00")
    critical = x509.Extension(unknown.oid, True, unknown)
    read = x509.load_der_x509_certificate(der.with_extension(paper.certificate, critical, authority.key))
    added = read.extensions[-1]
    assert (added.oid, added.critical, added.value) == (unknown.oid, True, unknown)
    assert list(read.extensions)[:-1] == list(paper.certificate.extensions)
    read.verify_directly_issued_by(authority.certificate)
    names = x509.SubjectAlternativeName([x509.DNSName("b")])
    twice = der.with_extension(paper.certificate, x509.Extension(names.oid, False, names), authority.key)
    with pytest.raises(x509.DuplicateExtension):
        _ = x509.load_der_x509_certificate(twice).extensions
