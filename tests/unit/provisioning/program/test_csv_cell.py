"""What is written into a CSV file."""

from __future__ import annotations

import pytest

from provisioning.program.csv_cell import csv_cell


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (True, "true"),
        (False, "false"),
        (None, None),
        (0, 0),
        (-1, -1),
        ("meter-1", "meter-1"),
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
    ],
)
def test_it_is_as_in_json_and_no_formula(value: object, cell: object) -> None:
    assert csv_cell(value) == cell
    assert type(csv_cell(value)) is type(cell), "0 and False are equal"
