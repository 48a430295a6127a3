"""The tester, held against brokers that are too kind: what lets through what it should not must fail for it."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from device_sim.attack.capabilities import Capabilities, CrlFile, Feature
from device_sim.attack.catalogue import CATALOGUE, pick
from device_sim.attack.foreign_server import Papers
from device_sim.attack.run import run
from device_sim.attack.target import Impossible, SigningRegistrar, Target
from device_sim.attack.verdict import Outcome, Verdict
from device_sim.link.tls_dial import Endpoint
from device_sim.stage.foreign_process import LOOPBACK, free_port, serving
from tests.support.needed import needed

CLAIMS = Capabilities(name="lenient", supports=frozenset(Feature) - {Feature.TLS12})


@pytest.fixture
async def lenient(tmp_path: Path) -> AsyncIterator[Target]:
    """mosquitto that asks nobody for a certificate, reads no CRL, and lets everybody publish and read everything."""
    program = needed("mosquitto")
    papers, port, config = Papers(tmp_path), free_port(), tmp_path / "mosquitto.conf"
    config.write_text(
        f"""
        allow_anonymous true
        listener {port} 127.0.0.1
        cafile {papers.anchors}
        certfile {papers.certificate}
        keyfile {papers.key}
        require_certificate false
        """
        + ("user root\n" if os.geteuid() == 0 else "")
    )
    arguments = [program, "-v", "-c", str(config)]
    async with serving("mosquitto", arguments, log=tmp_path / "mosquitto.log", ready="running"):
        # It believes that its CRL is read: nobody does.
        registrar = SigningRegistrar(papers.issuer, CrlFile(crl_file=tmp_path / "unread.pem"))
        yield Target(CLAIMS, Endpoint(LOOPBACK, port, "localhost"), papers.ca, papers.issuer, registrar)


async def outcomes(target: Target, only: str) -> dict[str, Outcome]:
    found = await run(target, pick(CATALOGUE, [only]), lambda _: None)
    return {outcome.name: outcome for outcome in found}


async def test_nothing_that_a_lenient_broker_lets_through_passes_for_refused(lenient: Target) -> None:
    found = await outcomes(lenient, "2-no-certificate,3-expired,5-revoked,6-revoked-live,7,8,9,19,35,36,37")
    kept_out = {name for name, outcome in found.items() if outcome.verdict is not Verdict.FAIL}
    unknown_to_it = {"35-delayed", "36-queue", "36-exclusive"}  # Prefixes that mean nothing to mosquitto.
    skipped = {"7-resumed-suspended"}  # It needs an enrolment service that suspends.
    skipped |= {"19-clean-start-of-refused", "37-will-of-refused"}  # It refuses nobody.
    reasons = {name: found[name].judgement for name in kept_out}
    withstood = {"35-before-connect"}  # It reads nothing before CONNECT.
    assert kept_out == {"0-alive", "0-stays"} | unknown_to_it | skipped | withstood, reasons
    assert {name for name in kept_out if found[name].verdict is Verdict.SKIP} == skipped, reasons


async def test_a_server_that_asks_for_no_certificate_is_not_shown_one(lenient: Target) -> None:
    """What came uninvited would be refused (RFC 8446 §4.4.2), and pass for a judgement of it."""
    found = await outcomes(lenient, "1-own-tls,2-empty-list,15-reversed-chain,16-malformed-der,17-no-proof")
    kept_out = {name for name, outcome in found.items() if outcome.verdict is not Verdict.FAIL}
    assert kept_out == {"0-alive", "0-stays", "1-own-tls"}, {name: found[name].judgement for name in kept_out}


async def test_what_is_heard_is_held_against_who_claims_a_topic_policy_alone(lenient: Target) -> None:
    claims = CLAIMS.model_copy(update={"supports": CLAIMS.supports - {Feature.SUBSCRIPTION_POLICY}})
    outcome = (await outcomes(replace(lenient, capabilities=claims), "36-other-device"))["36-other-device"]
    assert outcome.verdict is Verdict.FAIL, outcome.judgement


async def test_a_will_says_nothing_of_a_broker_that_closes_no_revoked_session(lenient: Target) -> None:
    outcome = (await outcomes(lenient, "38-will-of-revoked"))["38-will-of-revoked"]
    assert outcome.verdict is Verdict.SKIP
    assert "is not closed here" in outcome.judgement.why


async def test_memory_that_cannot_be_seen_is_not_told(lenient: Target) -> None:
    outcome = (await outcomes(lenient, "42-never-reads"))["42-never-reads"]
    assert outcome.seen is not None
    assert outcome.seen.reason.startswith("its memory cannot be seen from here")


async def test_a_broker_that_answers_no_connect_is_judged_by_nothing(tmp_path: Path) -> None:
    papers = Papers(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(papers.certificate, papers.key)

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        finally:
            writer.close()

    async with await asyncio.start_server(hang, LOOPBACK, 0, ssl=context) as listener:
        endpoint = Endpoint(LOOPBACK, listener.sockets[0].getsockname()[1], "localhost")
        target = Target(CLAIMS, endpoint, papers.ca, papers.issuer, SigningRegistrar(papers.issuer, None))
        with pytest.raises(Impossible, match=r"a good device is not let in: mqtt open .*nothing was tried"):
            await outcomes(target, "3-expired")
