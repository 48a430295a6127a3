"""A manufacturer whose devices are let in."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.support.fleet import Fleet
from tests.support.manufacturer import Manufacturer
from tests.support.requests import NOON
from tests.support.ways import group, register


@pytest.fixture
async def acme(fleet: Fleet) -> Manufacturer:
    """A manufacturer that is registered."""
    await group(fleet, "manufacturer", server_keys=True)
    registered = Manufacturer(begin=NOON - timedelta(days=1))
    await register(fleet, registered)
    return registered
