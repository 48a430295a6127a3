from __future__ import annotations

import errno
from typing import Any, cast

import pytest
import typer
from structlog.testing import capture_logs
from typer.testing import CliRunner

from broker.process import running
from broker.process.server import BrokerServer
from broker.settings.limits import Limits
from provisioning.program.ending import Ending
from tests.support.descriptors import a_shell_that_allows


class Failing:
    """A server, and what ends it."""

    def __init__(self, failure: BaseException) -> None:
        self.failure = failure
        self.told = ""

    async def run(self) -> None:
        raise self.failure

    def within(self, _seconds: float, _code: int, told: str = "") -> None:
        self.told = told


@pytest.mark.parametrize("failure", [BrokenPipeError(errno.EPIPE, "Broken pipe"), KeyError("x")])
def test_a_part_that_fails_ends_the_broker_with_a_word_whatever_the_system_calls_it(failure: Exception) -> None:
    failing: Any = Failing(failure)
    app = typer.Typer()
    app.command()(lambda: running._run(cast("BrokerServer", failing), cast("Ending", failing)))
    result = CliRunner().invoke(app, standalone_mode=True)
    assert result.exit_code == 1
    assert not isinstance(result.exception, SystemExit), "with a traceback"
    assert type(failure).__name__ in failing.told


@pytest.mark.parametrize(("chosen", "room"), [(200, 150), (150, None), (Limits().max_connections, None)])
def test_too_few_descriptors_for_the_connections_that_were_chosen_are_told_at_the_start(
    chosen: int, room: int | None
) -> None:
    with a_shell_that_allows(300), capture_logs() as told:
        running._count_descriptors(chosen)
    assert [(each["code"], each["room"]) for each in told] == ([] if room is None else [("FEW_DESCRIPTORS", room)])
