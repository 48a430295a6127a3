"""Whatever else than yes or no a plugin answers keeps out: it fails closed, and is named."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from amqtt.contexts import BaseContext
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from structlog.testing import capture_logs

from broker.admission.refusal import RefusalCode
from broker.extension import Action
from broker.metrics import Metrics
from broker.plugins.logs import Complaints
from broker.plugins.questions import Questions
from broker.plugins.sessions import HostedSession
from broker.plugins.watch import Watch


class Asked(BaseAuthPlugin, BaseTopicPlugin):
    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(BaseContext())
        self._call = call

    async def authenticate(self, **_: object) -> Any:
        return self._call()

    async def topic_filtering(self, **_: object) -> Any:
        return self._call()


class TakesNothing(Asked):
    async def authenticate(self) -> Any:  # type: ignore[override]
        return True

    async def topic_filtering(self) -> Any:  # type: ignore[override]
        return True


async def forgotten() -> bool:
    return False


def await_forgotten() -> Coroutine[Any, Any, bool]:
    return forgotten()


def questions_of(plugin: Asked) -> Questions:
    metrics = Metrics()
    complaints = Complaints(metrics, asyncio.get_running_loop().time)
    watch = Watch(metrics, complaints)
    return Questions([plugin], lambda: 10, complaints, watch, patience=30.0, verdict_seconds=10.0)


@pytest.mark.parametrize(
    ("plugin", "error"),
    [
        (Asked(await_forgotten), "TypeError: the answer is of type coroutine, where True, False or None is wanted"),
        (Asked(lambda: "no"), "TypeError: the answer is of type str"),
        (Asked(lambda: 1), "TypeError: the answer is of type int"),
        (TakesNothing(bool), "TypeError: TakesNothing."),
    ],
    ids=["coroutine", "str", "int", "call"],
)
async def test_what_is_no_answer_keeps_out_and_the_plugin_is_named(plugin: Asked, error: str) -> None:
    questions, session = questions_of(plugin), HostedSession()
    with capture_logs() as logged:
        assert await questions.authenticate(session) is RefusalCode.PLUGIN_FAILED
        inquiry = questions.ask([(session, Action.PUBLISH, "t")])
        assert inquiry is not None
        answered = asyncio.Event()
        inquiry.when_done(lambda _: answered.set())
        await answered.wait()
    assert questions.known(session, Action.PUBLISH, "t") is RefusalCode.PLUGIN_FAILED
    assert [(each["code"], each["plugin"]) for each in logged] == [("PLUGIN_FAILED", type(plugin).__name__)] * 2
    assert all(str(each["error"]).startswith(error) for each in logged)


async def test_yes_lets_in_and_no_does_not() -> None:
    session = HostedSession()
    assert await questions_of(Asked(lambda: True)).authenticate(session) is None
    assert await questions_of(Asked(lambda: False)).authenticate(session) is RefusalCode.REFUSED_BY_PLUGIN
