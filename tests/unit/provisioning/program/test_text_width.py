"""How many columns a text takes at a terminal."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from provisioning.program.text_width import padded, width_of


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("", 0),
        ("meter-1", 7),
        ("Zähler", 6),
        ("Za\u0308hler", 6),  # The same, with the dots by themselves.
        ("Счётчик", 7),
        ("計器", 4),
        ("ｶ計", 3),  # A half-width one.
        ("\uff2d\uff11", 4),  # Full-width ones.
        ("측정기", 6),
        ("🌡1", 2),
        ("🚀", 2),
        ("✅ ok", 5),
        ("กำ", 2),
        ("मी", 2),
    ],
)
def test_a_text_takes_as_many_columns_as_a_terminal_gives_it(text: str, width: int) -> None:
    assert width_of(text) == width
    assert padded(text, 9) == text + " " * (9 - width)
    assert padded(text, width) == padded(text, width - 1) == text


def test_another_one_s_tables_agree_for_ideographs_and_syllables() -> None:
    for first, last in ((0x3041, 0x3096), (0x4E00, 0x4EFF), (0xAC00, 0xACFF), (0xFF01, 0xFF60), (0x0300, 0x036F)):
        for each in map(chr, range(first, last)):
            assert width_of(each) == cell_len(each), each
