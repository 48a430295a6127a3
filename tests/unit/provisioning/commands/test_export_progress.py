"""An export says how far it has come, if it ends early; on a terminal that shows the rows, nothing is between them."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from provisioning.commands import certificate_commands
from provisioning.commands.certificate_commands import _writing


@pytest.mark.parametrize(("error", "told"), [(KeyboardInterrupt(), True), (ValueError(), True), (OSError(), False)])
def test_an_export_that_ends_early_says_how_far_it_has_come(
    capsys: pytest.CaptureFixture[str], error: BaseException, *, told: bool
) -> None:
    with pytest.raises(type(error)), _writing(3) as advance:  # noqa: PT012 - each is told before it
        advance()
        raise error
    assert capsys.readouterr().err == ("fleet-provisioning: 1 of 3 certificates are written\n" if told else "")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_on_a_terminal_rows_are_not_broken_by_a_bar(monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool) -> None:
    bars: list[str] = []

    def progress(what: str, total: int, *, drawn: bool) -> None:
        assert drawn
        bars.append(what)
        raise LookupError(total)

    monkeypatch.setattr(certificate_commands, "progress", progress)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    if is_terminal:
        with _writing(1) as advance:
            advance()
    else:
        with pytest.raises(LookupError), _writing(1):
            pass
    assert bars == ([] if is_terminal else ["certificates written"])


_EXPORT = "from provisioning.commands.certificate_commands import _writing as w\nwith w(2) as a: a(); print('row')"


@pytest.mark.parametrize("to_a_pipe", [True, False])
def test_no_bar_is_between_rows_that_come_to_the_terminal_by_head(tmp_path: Path, *, to_a_pipe: bool) -> None:
    """Real parts: standard error is a terminal, standard output a pipe, or a file."""
    ours, theirs = pty.openpty()
    with (tmp_path / "rows").open("wb") as file:
        subprocess.run(
            [sys.executable, "-c", _EXPORT],
            stdout=subprocess.PIPE if to_a_pipe else file,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm"},
            check=True,
            timeout=60,
        )
    os.write(theirs, b"end")
    os.close(theirs)
    shown = b""
    while not shown.endswith(b"end"):
        shown += os.read(ours, 4096)
    os.close(ours)
    assert (b"certificates written" in shown) is not to_a_pipe
