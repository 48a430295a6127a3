"""Who of the operators at the admin port may do more than read."""

from __future__ import annotations

import pytest

from broker.admin.operator_door import Operators
from tests.support.pki import DOMAIN
from tests.support.wire import MemoryBroker


@pytest.mark.parametrize(
    ("caller", "may"),
    [
        (f"spiffe://{DOMAIN}/operator/anna", True),
        (f"spiffe://{DOMAIN}/operator/night-shift/anna", True),
        (f"spiffe://{DOMAIN}/operator/bert", False),
        (f"spiffe://{DOMAIN}/operator/Anna", False),
        ("spiffe://plant-7.example/operator/anna", False),
    ],
)
def test_who_is_named_and_ours_may_change_something(caller: str, may: bool) -> None:
    engine = MemoryBroker().engine
    assert Operators(engine, ("anna",)).may_change(caller) is may
    assert not Operators(engine).may_change(caller)
