"""Fixtures of the tests of revocation."""

from __future__ import annotations

import pytest

from tests.support.many_certificates import make_portions_small


@pytest.fixture
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    make_portions_small(monkeypatch)
