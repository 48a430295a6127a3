"""What all tests share: imports, a PostgreSQL server a worker, where they write, order, garbage, no log of others."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
from collections.abc import Generator, Iterator
from typing import Any

import pytest
import structlog
from hypothesis import settings

from tests.support import every_store, folder_of_tests, programs
from tests.support.compiled_again import REPOSITORY, is_compiled
from tests.support.few_rounds import encrypt_with_few
from tests.support.long_tests import LONGEST, dealt
from tests.support.memory_place import memory_place
from tests.support.one_report import OneReport
from tests.support.postgresql import PostgresqlServer, unused

# A machine may be busy with other tests: an example takes as long as it needs. Where `CI` is set, Hypothesis would have
# both try the same examples in each run.
settings.register_profile("fleetgate", deadline=None, derandomize=False)
settings.register_profile("thorough", deadline=None, derandomize=False, max_examples=2_000)  # `make test-thorough`
settings.register_profile("compiled", deadline=None, derandomize=False, max_examples=50)  # See tests.support.examples
settings.load_profile("compiled" if is_compiled(REPOSITORY / "broker" / "mqtt" / "publish.py") else "fleetgate")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--on-postgresql", action="store_true",
        help="tests of the service have its store on PostgreSQL wherever they name none: see tests.support.every_store",
    )  # fmt: skip


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """Collect the tests once for all workers."""
    from tests.support import one_collection  # Where there are workers alone

    one_collection.prepare(config, specs, {"imported": programs.shared()})


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Have every worker fork its programs from one process, which ends with this one."""
    node.workerinput["imported"] = programs.shared()


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # The tests run in the background of a shell; what they start
        signal.signal(signal.SIGINT, signal.default_int_handler)  # does not, and is sent Ctrl-C.
    if imported := getattr(config, "workerinput", {}).get("imported"):
        programs.join(*imported)
        config.pluginmanager.register(OneReport())
    encrypt_with_few()
    _forget_loggers()
    if (memory := memory_place(runs_programs=True)) is not None:  # Before pytest makes the first directory of a test.
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(memory))


pytest_collect_directory = folder_of_tests.collected


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with those that take longest: each worker with its share of them."""
    if config.getoption("--on-postgresql"):
        names = {item: {item.path.name, getattr(item, "originalname", "")} for item in items}
        config.hook.pytest_deselected(items=[each for each in items if names[each] & every_store.SQLITE_ALONE])
        items[:] = [each for each in items if not names[each] & every_store.SQLITE_ALONE]
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    items[:] = dealt(items, workers, is_long=lambda item: item.path.name in LONGEST)


@pytest.hookimpl
def pytest_collection_finish(session: pytest.Session) -> None:
    """Before workers are forked, found the cluster that each copies, if one of them will."""
    if getattr(session.config, "workerinput", {}).get("is_for_all") and any(
        session.config.getoption("--on-postgresql")
        or "postgresql" in item.nodeid
        or "postgresql" in getattr(item, "fixturenames", ())
        for item in session.items
    ):
        with contextlib.suppress(AssertionError, OSError, subprocess.SubprocessError):
            unused()  # If that is impossible, the test says so that needs it.


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect tests without collections of garbage: all that is imported and collected lasts to the end.

    Nor is it looked through for garbage while tests run, and what they leave is looked through a tenth as often.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        gc.enable()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    with PostgresqlServer() as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def stores_on_postgresql(request: pytest.FixtureRequest) -> None:
    """With ``--on-postgresql``, have every store there."""
    if request.config.getoption("--on-postgresql"):
        every_store.server = request.getfixturevalue("postgresql")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, object, object]:
    """Let no test have the log of another, even of one whose end fails: `_forget_loggers`."""
    try:
        return (yield)
    finally:
        structlog.reset_defaults()


def _forget_loggers() -> None:
    """Have no logger remember how the log was set up when it was first used.

    A command that runs in a test's process sets it up for the process. Loggers that remember it, as the programs' do,
    would show those who come later nothing of what they look for.
    """
    configure = structlog.configure

    def unremembered(**settings: Any) -> None:
        configure(**settings | {"cache_logger_on_first_use": False})

    pytest.MonkeyPatch().setattr(structlog, "configure", unremembered)
