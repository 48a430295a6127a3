"""What all tests share: imports, a PostgreSQL server a worker, where they write, order, garbage, no log of others."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator, Iterator
from typing import Any, Final

import pytest
import structlog
from hypothesis import settings

from tests.support import programs
from tests.support.memory_place import memory_place
from tests.support.postgresql import PostgresqlServer

# A machine may be busy with other tests: an example takes as long as it needs.
settings.register_profile("fleetgate", deadline=None)
settings.load_profile("fleetgate")

LONGEST: Final = {
    "test_attack.py",
    "test_attack_on_one_fault.py",
    "test_chaos.py",
    "test_clock.py",
    "test_demo.py",
    "test_durability.py",
    "test_full_volume.py",
    "test_judged_by_testssl.py",
    "test_peers.py",
    "test_planted_faults.py",
    "test_qualify.py",
    "test_qualify_faulty_devices.py",
    "test_real_clients.py",
    "test_run.py",
    "test_run_in_trouble.py",
    "test_schemathesis.py",
    "test_smoke.py",
}
"""Files with tests that take ten seconds and more. One that begins last has a core to itself, and the others wait."""


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Have every worker fork its programs from one process, which ends with this one."""
    node.workerinput["imported"] = programs.shared()


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # The tests run in the background of a shell; what they start
        signal.signal(signal.SIGINT, signal.default_int_handler)  # does not, and is sent Ctrl-C.
    if imported := getattr(config, "workerinput", {}).get("imported"):
        programs.join(*imported)
    if (memory := memory_place(runs_programs=True)) is not None:  # Before pytest makes the first directory of a test.
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(memory))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with those that take longest."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect tests without collections of garbage: all that is imported and collected lasts to the end.

    Nor is it looked through for garbage while tests run.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    with PostgresqlServer() as server:
        yield server


@pytest.fixture(autouse=True)
def log_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let no test have the log of another.

    A command that runs in the test's process sets it up for the process. Loggers that remember it, as the programs' do,
    would show those who come later nothing of what they look for.
    """
    configure = structlog.configure

    def unremembered(**settings: Any) -> None:
        configure(**settings | {"cache_logger_on_first_use": False})

    monkeypatch.setattr(structlog, "configure", unremembered)
    yield
    structlog.reset_defaults()
