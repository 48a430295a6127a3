"""What a test worker tells the run of a test: how it went, in one message.

pytest-xdist tells that a test begins, what became of its setup, of itself and of its teardown, and that it has ended:
five messages, each of which is packed, sent, unpacked and shown to every plugin once more. With tests that take
milliseconds, that is as much work as the tests.

Rules
-----
1. A setup or teardown that passed is not reported, unless another phase failed: what servers said while they were put
   away is then part of the failure.
2. Everything is told in order, at the test's end. What a worker that crashes has not told, the run knows to be missing:
   it keeps the list of what each worker has been given.
"""

from __future__ import annotations

import pytest
from _pytest.runner import runtestprotocol


class OneReport:
    """The part of a worker that runs a test and tells of it, in place of pytest's own."""

    @pytest.hookimpl
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        """Run *item*, and report what its phases came to."""
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        failed = any(report.failed for report in reports)
        for report in reports:
            if failed or report.when == "call" or not report.passed:
                item.ihook.pytest_runtest_logreport(report=report)
        return True
