"""A device that keeps the key it asks for is not locked out by lost answers, nor let in by a copy of its old key."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest

from provisioning.errors import Refused
from provisioning.pki.keys import generate_key
from provisioning.store.groups import Group
from tests.support.fleet import Fleet, successor_csr
from tests.support.requests import csr_der

_HOUR = timedelta(hours=1)
_GRACE = timedelta(days=60)
_GONE = [timedelta(), _HOUR, timedelta(days=1), timedelta(days=20), timedelta(days=35), timedelta(days=50)]
"""How long a device is away between two attempts; its certificates last for thirty days."""
_STEPS = 16


@pytest.mark.parametrize("rotates", [True, False])
@pytest.mark.parametrize("window", [timedelta(), _HOUR])
@pytest.mark.parametrize("seed", range(4))
async def test_lost_answers_in_any_order_lock_no_device_out(
    fleet: Fleet, seed: int, window: timedelta, *, rotates: bool
) -> None:
    chance = random.Random(seed)
    await fleet.groups.create(Group("north", renewal_grace=_GRACE, same_key_window=window), by="admin")
    key = following = generate_key()
    held = await fleet.enrol(csr=csr_der(key))
    replaced = []
    for _ in range(_STEPS):
        left = held.not_valid_after_utc + _GRACE - fleet.clock()
        fleet.clock.advance(chance.choice([each for each in _GONE if each <= left]))
        if rotates and following is key:
            following = generate_key()  # On disk before it is asked for: kept until its certificate has come.
        answer = await fleet.reenrol(held, successor_csr(held, following))
        if chance.random() < 1 / 2:
            continue  # Lost.
        if rotates:
            replaced.append(held)
        held, key = answer, following
    fleet.clock.advance(window)
    for each in replaced:
        if fleet.clock() > each.not_valid_after_utc:
            with pytest.raises(Refused, match="CERTIFICATE_EXPIRED"):
                await fleet.reenrol(each, successor_csr(each, generate_key()))
