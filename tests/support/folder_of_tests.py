"""A folder of tests of which the fixtures with the scope ``package`` end with its last test, and not with the run.

A service that waits does something every second, and a worker goes on for minutes with tests that need none. Of the
scope that is meant for that pytest says it is a Python package's, with a file ``__init__.py``; our folders are none.
"""

from __future__ import annotations

from pathlib import Path

import pytest


class Folder(pytest.Package):
    """Such a folder."""

    def setup(self) -> None:
        """Import nothing: there is no ``__init__.py``."""


def collected(path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Return the folder at *path* if it has fixtures of its own: pytest's hook ``pytest_collect_directory``."""
    return Folder.from_parent(parent, path=path) if (path / "conftest.py").exists() else None
