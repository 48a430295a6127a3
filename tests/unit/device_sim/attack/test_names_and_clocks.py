"""A server's name that is asked for says nothing of the client, and a device's wrong clock is told from a broker's."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from device_sim.attack import run
from device_sim.attack.capabilities import Feature
from device_sim.attack.catalogue import CATALOGUE, pick
from device_sim.attack.verdict import Verdict
from tests.support.faulty_broker import Fault, faulty

PASS, WARN, FAIL, SKIP = Verdict.PASS, Verdict.WARN, Verdict.FAIL, Verdict.SKIP


@pytest.mark.parametrize(
    ("fault", "verdicts"),
    [
        (Fault.TAKES_THE_FIRST_NAME, [PASS, PASS, PASS]),
        (Fault.BELIEVES_SNI, [PASS, WARN, FAIL]),  # Nobody is named at first: the address has not been sent.
        (Fault.NONE, [PASS, PASS, FAIL]),
    ],
)
async def test_whom_a_client_asks_for_is_not_who_it_is(tmp_path: Path, fault: Fault, verdicts: list[Verdict]) -> None:
    async with faulty(tmp_path, fault) as target:
        supports = target.capabilities.supports | {Feature.CLIENT_ID_BINDING}
        held = replace(target, capabilities=target.capabilities.model_copy(update={"supports": supports}))
        found = await run.run(held, pick(CATALOGUE, ["27-*sni*"]), lambda _: None)
    assert [each.verdict for each in found[:3]] == verdicts, [each.judgement for each in found]


@pytest.mark.parametrize(
    ("ends", "ahead"),
    [
        (timedelta(days=1), PASS),
        (timedelta(days=3650), PASS),
        (datetime(9999, 12, 31, tzinfo=UTC) - datetime.now(UTC), SKIP),
    ],
    ids=["a day", "ten years", "no end (RFC 5280 section 4.1.2.5)"],
)
async def test_a_clock_is_wrong_by_as_much_as_the_broker_s_certificate_takes(
    tmp_path: Path, ends: timedelta, ahead: Verdict
) -> None:
    """A broker whose certificate was good for more than two years had failed."""
    async with faulty(tmp_path, ends=ends) as target:
        found = await run.run(target, pick(CATALOGUE, ["43"]), lambda _: None)
    assert [each.verdict for each in found[:2]] == [ahead, PASS], [each.judgement for each in found]
