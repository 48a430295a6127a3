"""Pauses are shortened, by different amounts, and never by more than is allowed."""

from __future__ import annotations

import pytest

from provisioning.program.spread import spread


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_pause_is_shortened_by_any_part_of_the_share(share: float) -> None:
    factors = [spread(share) for _ in range(1_000)]
    assert 1 - share <= min(factors) < 1 - 0.9 * share
    assert 1 - 0.1 * share < max(factors) <= 1
