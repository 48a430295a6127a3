"""A test run that is killed leaves no PostgreSQL server, and nothing on the disk or in memory."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support.programs import REPOSITORY

RUN = """
from pathlib import Path
from tests.support.postgresql import PostgresqlServer
with PostgresqlServer() as server:
    print(server._process.pid, server._outlived.pid, server._directory, flush=True)
    input()
"""
PATIENCE = 60.0


def run_until(end: Callable[[subprocess.Popen[str]], object]) -> Path:
    """Return the directory of a server whose run has come to that *end*, when both have ended."""
    with subprocess.Popen(
        [sys.executable, "-c", RUN], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        server, watch, directory = process.stdout.readline().split()
        assert (Path(directory) / "data").exists()
        others = [os.pidfd_open(int(server)), os.pidfd_open(int(watch))]
        end(process)
    for each in others:
        assert select.select((each,), (), (), PATIENCE)[0], "it has not ended"
        os.close(each)
    return Path(directory)


def test_a_run_that_is_killed_leaves_no_server_and_no_directory() -> None:
    assert not run_until(lambda process: process.kill()).exists()


def test_a_run_that_ends_in_order_leaves_none_either() -> None:
    assert not run_until(lambda process: process.communicate("")).exists()
