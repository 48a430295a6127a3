"""What the tests of CAs' lives have in common."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.ceremonies import Ceremonies, ceremonies


@pytest.fixture(scope="session")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority that nothing is done with: most of these tests took less than founding one."""
    directory = tmp_path_factory.mktemp("founded") / "fleet"

    async def found() -> None:
        async with ceremonies(directory):
            pass

    asyncio.run(found())
    return directory


@pytest.fixture
async def fleet_cas(tmp_path: Path, founded: Path) -> AsyncIterator[Ceremonies]:
    async with ceremonies(tmp_path / "fleet", copy_of=founded) as opened:
        yield opened
