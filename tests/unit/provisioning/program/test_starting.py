from __future__ import annotations

import gc
import os
import pty
import signal
import subprocess
import sys
from typing import Any

import pytest

from provisioning.program.starting import importing
from tests.support.provisioning import REPOSITORY

PROGRAM = """
import gc, sys
from provisioning.program.starting import importing
with importing():
    import structlog, httpx
    hidden = "rich" in sys.modules and sys.modules["rich"] is None
coloured = structlog.dev.rich is not None
command_line = "click" in sys.modules or "httpx._main" in sys.modules
import rich.console, pygments  # Whoever asks for them afterwards has them.
print(hidden, coloured, command_line, any(each is structlog.__dict__ for each in gc.get_objects()))
"""


def test_nothing_is_collected_meanwhile_and_everything_afterwards() -> None:
    assert gc.isenabled()
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError, match="broken"), importing():
        raise ImportError("broken")
    assert gc.isenabled()


def test_who_has_switched_collections_off_finds_them_so() -> None:
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN])
def test_ctrl_c_meanwhile_ends_the_process_without_a_word_unless_it_means_something_else(before: Any) -> None:
    usual = signal.signal(signal.SIGINT, before)
    try:
        with importing():
            assert signal.getsignal(signal.SIGINT) is (signal.SIG_IGN if before is signal.SIG_IGN else signal.SIG_DFL)
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, usual)


def test_what_is_there_already_is_not_hidden() -> None:
    import rich

    with importing():
        assert sys.modules["rich"] is rich
    assert sys.modules["rich"] is rich


@pytest.mark.parametrize(("watched", "said"), [(False, "True False False False"), (True, "False True False False")])
def test_libraries_have_no_rich_unless_watched_and_are_in_no_collection_s_way(watched: bool, said: str) -> None:
    terminal, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs if watched else subprocess.DEVNULL,
            text=True,
            check=True,
            timeout=60,
        )
    finally:
        os.close(theirs)
        os.close(terminal)
    assert done.stdout == f"{said}\n"
