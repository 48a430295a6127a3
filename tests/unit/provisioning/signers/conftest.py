from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.softhsm import FaultyModule, SoftToken


@pytest.fixture(scope="session")
def _faulty_token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SoftToken, FaultyModule]]:
    """One token for all tests of this process: a module reads its configuration once, when it is loaded."""
    directory: Path = tmp_path_factory.mktemp("softhsm")
    made = SoftToken.new(directory)
    module = FaultyModule(made)
    environment = {"SOFTHSM2_CONF": str(made.configuration), **module.environment}
    os.environ |= environment
    yield replace(made, through=module.library), module
    for name in environment:
        del os.environ[name]


@pytest.fixture
def token(_faulty_token: tuple[SoftToken, FaultyModule]) -> SoftToken:
    return _faulty_token[0]


@pytest.fixture
def faulty(_faulty_token: tuple[SoftToken, FaultyModule]) -> Iterator[FaultyModule]:
    """What stands before that token's module, and is mended at the end of the test."""
    module = _faulty_token[1]
    yield module
    module.mend_all()
