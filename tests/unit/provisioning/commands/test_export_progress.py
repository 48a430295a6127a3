"""An export says how far it has come, if it ends early; on a terminal that shows the rows, nothing is between them."""

from __future__ import annotations

import sys

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

    def progress(what: str, total: int) -> None:
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
