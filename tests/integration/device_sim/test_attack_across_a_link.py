"""`fleet-sim attack` across a link with a round trip of 600 ms: the verdicts on mosquitto are those from nearby.

The link is a proxy that holds everything back, and the test says how far away the broker is: from a proxy nearby, the
kernel knows only the way to the proxy. With the kernel's TCP at both ends (`benchmarks/bad_links.py`, which needs root)
all of the catalogue was tried: docs/decisions/0235.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from device_sim.attack import bystander
from device_sim.attack.catalogue import CATALOGUE, pick
from device_sim.attack.mosquitto_target import mosquitto
from device_sim.attack.run import run
from device_sim.attack.verdict import Outcome, Verdict
from device_sim.link.distance import Distance
from device_sim.trouble.proxy import Proxy
from device_sim.trouble.trouble import Trouble
from tests.support.needed import needed

ROUND_TRIP = 0.6
HERE = Distance()
SATELLITE = Distance(ROUND_TRIP, ROUND_TRIP, ROUND_TRIP + 0.2, packets=1000)


def new(place: Path) -> Path:
    place.mkdir()
    return place


async def outcomes(
    place: Path, monkeypatch: pytest.MonkeyPatch, only: str, distance: Distance
) -> Mapping[str, Outcome]:
    needed("mosquitto")
    monkeypatch.setattr(bystander, "distance_of", lambda _: distance)
    async with mosquitto(place) as near, Proxy(near.endpoint.host, near.endpoint.port) as link:
        link.set(Trouble(latency=distance.round_trip / 2))
        target = replace(near, endpoint=replace(near.endpoint, port=link.port))
        found = await run(target, pick(CATALOGUE, [only]), lambda _: None)
    return {outcome.name: outcome for outcome in found}


async def test_a_case_that_only_takes_many_round_trips_is_not_the_broker_s_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = await outcomes(tmp_path, monkeypatch, "24-wildcard-name", SATELLITE)
    assert far["24-wildcard-name"].verdict is Verdict.PASS, far["24-wildcard-name"].judgement


async def test_who_is_revoked_behind_its_handshake_has_shown_its_certificate_by_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mosquitto reads its CRL at the handshake: it must not look as if it read it at CONNECT."""
    for place, distance in (("near", HERE), ("far", SATELLITE)):
        found = await outcomes(new(tmp_path / place), monkeypatch, "5-revoked-before-connect", distance)
        seen = found["5-revoked-before-connect"].seen
        assert seen is not None
        assert seen.got_in, f"{place}: {seen.text}"
