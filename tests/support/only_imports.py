"""Has all test files imported, and no test made of them: `.ci/run` does so before there are workers.

    python -m pytest -p tests.support.only_imports --collect-only

Otherwise each worker, at the same time, would compile all tests to byte code, and all that they import. Only properties
are made into tests: where there are some, hypothesis reads our sources for values to try, and keeps what it has found.
"""

from __future__ import annotations

import pytest
from hypothesis import is_hypothesis_test


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(obj: object) -> list[pytest.Item] | None:
    """Make nothing of *obj*, which a test file defines, unless it is a property."""
    return None if is_hypothesis_test(obj) else []
