"""What the tests of CAs' lives have in common."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.ceremonies import Ceremonies, ceremonies


@pytest.fixture
async def fleet_cas(tmp_path: Path) -> AsyncIterator[Ceremonies]:
    async with ceremonies(tmp_path / "fleet") as opened:
        yield opened
