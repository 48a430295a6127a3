from __future__ import annotations

import errno
from typing import Any, cast

import pytest
import typer
from typer.testing import CliRunner

from broker import running
from broker.server import BrokerServer
from provisioning.ending import Ending


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
