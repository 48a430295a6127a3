"""Lines for people: at a terminal cut at spaces and set in, into a pipe as they are."""

from __future__ import annotations

import fcntl
import io
import os
import struct
import subprocess
import sys
import termios
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from provisioning.program.hung_line import hung

LINE = "failed   keys          the key of issuing-ca: fleet/issuing-ca.key is no PEM private key " + "f0" * 16
PROGRAM = f"from provisioning.program.hung_line import print_hung; print_hung({LINE!r}, 23)"


def shown_at(width: int) -> list[str]:
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
    try:
        subprocess.run([sys.executable, "-c", PROGRAM], stdout=theirs, check=True, env=environment, timeout=60)
        return os.read(ours, 65536).decode().splitlines()
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("width", [60, 80])
def test_a_line_goes_on_below_at_a_terminal_and_no_word_is_cut(width: int) -> None:
    first, *others = shown_at(width)
    assert first.startswith("failed   keys          the key of")
    assert others
    assert all(each.startswith(" " * 23 + each.strip()[:1]) for each in others)
    assert all(len(each) <= width for each in (first, *others))
    assert " ".join(each.strip() for each in (first, *others)) == LINE


@pytest.mark.parametrize("width", [200, 40], ids=["wide enough", "too narrow to set in"])
def test_a_line_that_fits_or_could_not_be_set_in_is_as_it_was(width: int) -> None:
    assert shown_at(width) == [LINE]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [40, 60])
def test_a_line_in_wide_characters_goes_on_where_the_terminal_is_full(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    line = "failed   keys    " + "計器の鍵 " * 12 + "e\u0301te\u0301 " * 12
    first, *others = hung(line, Terminal(), 9).split("\n")
    assert others
    assert all(width - 9 < cell_len(each) <= width for each in (first, *others[:-1])), (
        "no line is cut before it must be"
    )
    assert all(each.startswith(" " * 9 + each.strip()[:1]) for each in others)
    assert " ".join(each.strip() for each in (first, *others)) == line.strip()


@given(st.text("abcdefgh -", min_size=1).map(str.strip), st.integers(8, 40))
def test_lines_go_on_as_the_standard_library_would_have_them(line: str, width: int) -> None:
    expected = textwrap.fill(line, width, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("COLUMNS", str(width))
        assert hung(line, Terminal(), 4) == expected


def test_into_a_pipe_a_line_is_a_line() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == LINE + "\n"
