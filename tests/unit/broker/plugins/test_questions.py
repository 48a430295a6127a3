"""Whatever else than yes or no a plugin answers keeps out: it fails closed, and is named."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, MutableMapping, Sequence
from typing import Any
from unittest.mock import Mock

import pytest
from amqtt.contexts import BaseContext
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from structlog.testing import capture_logs

from broker.admission.refusal import RefusalCode
from broker.engine.extension import Action
from broker.metrics import Metrics
from broker.plugins import watch
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


class Unsayable(Exception):
    def __str__(self) -> str:
        raise LookupError("no words")


class Deaf(Asked):
    """Catches its cancellation, and goes on."""

    async def authenticate(self, **_: object) -> Any:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue

    topic_filtering = authenticate


class Belated(Asked):
    """Says yes when its time is over."""

    async def authenticate(self, **_: object) -> Any:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return True

    topic_filtering = authenticate


PRETENDER = Mock(spec=bool)
"""For `isinstance` it is a bool."""


def raising() -> bool:
    raise Unsayable


def questions_of(plugin: Asked, patience: float = 30.0) -> Questions:
    metrics = Metrics()
    complaints = Complaints(metrics, asyncio.get_running_loop().time)
    watch = Watch(metrics, complaints)
    return Questions([plugin], lambda: 10, complaints, watch, patience=patience, verdict_seconds=10.0)


def failures_in(logged: Sequence[MutableMapping[str, Any]]) -> list[MutableMapping[str, Any]]:
    """Return what is said of failures: on a busy machine any step may be a slow one (PLUGIN_BLOCKS)."""
    return [each for each in logged if each["code"] == "PLUGIN_FAILED"]


async def failures_of(questions: Questions) -> list[MutableMapping[str, Any]]:
    """Ask whether a client is let in, and may publish; the plugin fails to answer. Return what is said of that."""
    session = HostedSession()
    with capture_logs() as logged:
        assert await questions.authenticate(session) is RefusalCode.PLUGIN_FAILED
        inquiry = questions.ask([(session, Action.PUBLISH, "t")])
        assert inquiry is not None
        answered = asyncio.Event()
        inquiry.when_done(lambda _: answered.set())
        await answered.wait()
    assert questions.known(session, Action.PUBLISH, "t") is RefusalCode.PLUGIN_FAILED
    return failures_in(logged)


@pytest.mark.parametrize(
    ("plugin", "error"),
    [
        (Asked(await_forgotten), "TypeError: the answer is of type coroutine, where True, False or None is wanted"),
        (Asked(lambda: "no"), "TypeError: the answer is of type str"),
        (Asked(lambda: 1), "TypeError: the answer is of type int"),
        (TakesNothing(bool), "TypeError: TakesNothing."),
        (Asked(lambda: PRETENDER), "TypeError: the answer is of type Mock"),
        (Asked(raising), "Unsayable: its own text raises LookupError"),
    ],
    ids=["coroutine", "str", "int", "call", "mock", "unsayable"],
)
async def test_what_is_no_answer_keeps_out_and_the_plugin_is_named(plugin: Asked, error: str) -> None:
    failures = await failures_of(questions_of(plugin))
    assert [each["plugin"] for each in failures] == [type(plugin).__name__] * 2
    assert all(str(each["error"]).startswith(error) for each in failures)


async def test_yes_lets_in_and_no_does_not() -> None:
    session = HostedSession()
    assert await questions_of(Asked(lambda: True)).authenticate(session) is None
    assert await questions_of(Asked(lambda: False)).authenticate(session) is RefusalCode.REFUSED_BY_PLUGIN


@pytest.mark.parametrize("plugin", [Deaf(bool), Belated(bool)], ids=["deaf", "belated"])
async def test_who_catches_its_cancellation_is_given_up_and_keeps_out(
    plugin: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever waits for its answer would wait for ever, and a hundred of them would leave nobody a turn."""
    monkeypatch.setattr(watch, "_CLEANING", 0.05)
    failures = await failures_of(questions_of(plugin, 0.05))
    assert [each["event"] for each in failures] == ["plugin has not answered in 0.05 s"] * 2
    assert [each["plugin"] for each in failures] == [type(plugin).__name__] * 2
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_the_broker_ends_though_a_plugin_catches_its_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_CLEANING", 0.05)
    questions = questions_of(Deaf(bool))
    questions.ask([(HostedSession(), Action.PUBLISH, "t")])
    await asyncio.sleep(0)
    await questions.close()
