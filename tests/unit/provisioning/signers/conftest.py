from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.softhsm import SoftToken


@pytest.fixture(scope="session")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftToken]:
    """One token for all tests of this process: a module reads its configuration once, when it is loaded."""
    directory: Path = tmp_path_factory.mktemp("softhsm")
    made = SoftToken.new(directory)
    os.environ["SOFTHSM2_CONF"] = str(made.configuration)
    yield made
    del os.environ["SOFTHSM2_CONF"]
