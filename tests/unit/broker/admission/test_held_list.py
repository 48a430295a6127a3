"""Entries of very many are compared with pauses; which list takes another's place is in `test_crl_shelf`."""

from __future__ import annotations

from broker.admission import held_list
from broker.admission.held_list import newly_listed


def test_who_is_new_is_looked_for_with_pauses() -> None:
    pauses: list[None] = []
    entries = dict.fromkeys(range(20_000), 1)
    assert newly_listed(entries, {1: 1}, lambda: pauses.append(None)) == entries.keys() - {1}
    assert len(pauses) > 4


def test_lists_of_very_many_are_compared_and_merged_with_pauses() -> None:
    """In 0.4 s each, of a million, in which nobody else in the process ran."""
    many, others = dict.fromkeys(range(20_000), 1), dict.fromkeys(range(10_000, 30_000), 2)
    pauses: list[None] = []
    assert held_list._united(many, others, lambda: pauses.append(None)) == {**many, **others}
    assert len(pauses) > 4
    pauses.clear()
    assert held_list._are_among(many, {**many, **others}, lambda: pauses.append(None))
    assert len(pauses) > 4
    assert not held_list._are_among(many, others, lambda: None)
