"""Whatever else than yes or no a plugin answers keeps out: it fails closed, and is named."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, MutableMapping, Sequence
from typing import Any
from unittest.mock import Mock

import pytest
from amqtt.contexts import BaseContext
from amqtt.plugins.base import BaseAuthPlugin, BasePlugin, BaseTopicPlugin
from structlog.testing import capture_logs

from broker.admission.inquiry import Inquiry
from broker.admission.refusal import RefusalCode
from broker.engine.extension import Action
from broker.metrics import Metrics
from broker.plugins import questions as asking
from broker.plugins import watch
from broker.plugins.logs import Outcomes
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


def giving_up() -> bool:
    raise TimeoutError("my server has not answered")


def questions_of(*plugins: BasePlugin[Any], patience: float = 30.0, most: int = 10) -> Questions:
    metrics = Metrics()
    outcomes = Outcomes(metrics, asyncio.get_running_loop().time)
    watch = Watch(metrics, outcomes)
    return Questions(plugins, lambda: most, outcomes, watch, patience=patience, verdict_seconds=10.0)


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
        (Asked(giving_up), "TimeoutError: my server has not answered"),
    ],
    ids=["coroutine", "str", "int", "call", "mock", "unsayable", "gives up"],
)
async def test_what_is_no_answer_keeps_out_and_the_plugin_is_named(plugin: Asked, error: str) -> None:
    failures = await failures_of(questions_of(plugin))
    assert [each["plugin"] for each in failures] == [type(plugin).__name__] * 2
    assert all(str(each["error"]).startswith(error) for each in failures)
    assert {each["event"] for each in failures} == {"plugin has raised"}


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
    failures = await failures_of(questions_of(plugin, patience=0.05))
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


async def test_who_waits_for_an_answer_when_nobody_is_asked_any_more_is_refused_at_once() -> None:
    never = asyncio.Event()

    class Thinks(Asked):
        async def topic_filtering(self, **_: object) -> Any:
            await never.wait()

    questions, session = questions_of(Thinks(bool)), HostedSession()
    inquiry = questions.ask([(session, Action.PUBLISH, "t")])
    assert inquiry is not None
    await asyncio.sleep(0)
    with capture_logs() as logged:
        closing = asyncio.create_task(questions.close())
        for _ in range(20):
            if not closing.done():
                await asyncio.sleep(0)
    assert closing.done(), "it waits for nobody's patience"
    assert failures_in(logged) == [], "the plugin has not failed"
    assert inquiry.done, "nothing goes on when it is closed"
    assert questions.known(session, Action.PUBLISH, "t") is RefusalCode.PLUGIN_FAILED


async def test_nothing_is_kept_of_a_question_but_its_answer() -> None:
    """There is one for each topic of each connection, for as long as the broker runs."""
    questions, session = questions_of(Asked(lambda: True)), HostedSession()
    for number in range(3):
        inquiry = questions.ask([(session, Action.PUBLISH, f"t/{number}")])
        assert inquiry is not None
        answered = asyncio.Event()
        inquiry.when_done(lambda _, answered=answered: answered.set())  # type: ignore[misc]
        await answered.wait()
        await asyncio.sleep(0)
    assert (len(questions._tasks), len(questions._asked), len(questions._verdicts)) == (0, 0, 3)


@pytest.mark.parametrize("is_defect", [True, False])
async def test_a_defect_in_finding_out_is_told_and_nothing_else_is(is_defect: bool) -> None:
    async def find_out() -> None:
        if is_defect:
            raise LookupError("a defect")

    questions = questions_of(Asked(bool))
    with capture_logs() as logged:
        questions.start(find_out())
        for _ in range(5):
            await asyncio.sleep(0)
    assert [each["code"] for each in logged] == ["INTERNAL_ERROR"] * is_defect


async def test_no_memory_in_finding_out_is_the_event_loops_which_ends_the_process() -> None:
    async def find_out() -> None:
        raise MemoryError

    met: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: met.append(context["exception"]))
    questions = questions_of(Asked(bool))
    questions.start(find_out())
    for _ in range(5):
        await asyncio.sleep(0)
    assert [type(each) for each in met] == [MemoryError]


def saying(kind: type[BasePlugin[Any]], name: str, answer: Callable[[], Any]) -> BasePlugin[Any]:
    """Return a plugin of *kind*, called *name*, that says *answer*; one that raises it if it is an exception."""

    async def say(_self: object, **_: object) -> Any:
        return answer()

    hooks = {"authenticate": say, "topic_filtering": say}
    made: BasePlugin[Any] = type(name, (kind,), hooks)(BaseContext())
    return made


YES, NO, NOTHING = (lambda: True), (lambda: False), (lambda: None)


@pytest.mark.parametrize(
    ("answers", "authenticated", "permitted", "refusing"),
    [
        ([YES, NO], RefusalCode.REFUSED_BY_PLUGIN, RefusalCode.REFUSED_BY_PLUGIN, (["B"], ["B"])),
        ([NOTHING, YES], None, RefusalCode.REFUSED_BY_PLUGIN, ([], ["A"])),
        ([NOTHING, NOTHING], RefusalCode.REFUSED_BY_PLUGIN, RefusalCode.REFUSED_BY_PLUGIN, (["A", "B"], ["A", "B"])),
        ([YES, raising], RefusalCode.PLUGIN_FAILED, RefusalCode.PLUGIN_FAILED, ([], [])),
        ([raising, NO], RefusalCode.REFUSED_BY_PLUGIN, RefusalCode.REFUSED_BY_PLUGIN, (["B"], ["B"])),
        ([raising, NOTHING], RefusalCode.PLUGIN_FAILED, RefusalCode.REFUSED_BY_PLUGIN, ([], ["B"])),
    ],
    ids=["one no", "one says nothing", "nobody says anything", "one fails", "one fails and one no", "no answer at all"],
)
async def test_all_are_asked_and_each_that_refuses_is_named(
    answers: Sequence[Callable[[], Any]],
    authenticated: RefusalCode | None,
    permitted: RefusalCode | None,
    refusing: tuple[list[str], list[str]],
) -> None:
    session = HostedSession()
    for kind, outcome, named in zip(
        (BaseAuthPlugin, BaseTopicPlugin), (authenticated, permitted), refusing, strict=True
    ):
        questions = questions_of(*(saying(kind, name, said) for name, said in zip("AB", answers, strict=True)))
        with capture_logs() as logs:
            if kind is BaseAuthPlugin:
                assert await questions.authenticate(session) is outcome
            else:
                await answered(questions.ask([(session, Action.PUBLISH, "t")]))
                assert questions.known(session, Action.PUBLISH, "t") is outcome
        assert [each["plugin"] for each in logs if each["code"] == "REFUSED_BY_PLUGIN"] == named


async def test_a_plugin_is_asked_what_those_of_its_kind_are_and_nothing_else() -> None:
    session = HostedSession()
    questions = questions_of(saying(BaseAuthPlugin, "Auth", YES), saying(BaseTopicPlugin, "Topic", NO))
    assert await questions.authenticate(session) is None
    await answered(questions.ask([(session, Action.PUBLISH, "t")]))
    assert questions.known(session, Action.PUBLISH, "t") is RefusalCode.REFUSED_BY_PLUGIN
    questions = questions_of(saying(BaseAuthPlugin, "Auth", NO), saying(BaseTopicPlugin, "Topic", YES))
    assert await questions.authenticate(session) is RefusalCode.REFUSED_BY_PLUGIN
    await answered(questions.ask([(session, Action.PUBLISH, "t")]))
    assert questions.known(session, Action.PUBLISH, "t") is None


async def answered(inquiry: Inquiry | None) -> None:
    assert inquiry is not None
    if not inquiry.done:
        done = asyncio.Event()
        inquiry.when_done(lambda _: done.set())
        await done.wait()


async def test_what_is_known_is_not_asked_and_what_is_being_asked_is_asked_once() -> None:
    asked: list[str] = []
    go = asyncio.Event()

    class Slow(BaseTopicPlugin):
        async def topic_filtering(self, *, topic: str, **_: object) -> bool:
            asked.append(topic)
            await go.wait()
            return topic != "b"

    questions, session = questions_of(Slow(BaseContext())), HostedSession()
    wanted = [(Action.PUBLISH, "a"), (Action.RECEIVE, "a"), (Action.PUBLISH, "b")]
    first = questions.ask([(session, action, topic) for action, topic in wanted])
    second = questions.ask([(session, Action.PUBLISH, "a")])
    assert first is not None
    assert second is not None
    assert questions.known(session, Action.PUBLISH, "a") is RefusalCode.PLUGIN_FAILED, "not known yet"
    go.set()
    await answered(second)
    await answered(first)
    assert asked == ["a", "a", "b"]
    assert [questions.known(session, Action.PUBLISH, topic) for topic in "ab"] == [None, RefusalCode.REFUSED_BY_PLUGIN]
    assert questions.ask([(session, Action.PUBLISH, "a"), (session, Action.PUBLISH, "b")]) is None
    await answered(questions.ask([(session, Action.PUBLISH, "b"), (session, Action.PUBLISH, "c")]))
    assert asked == ["a", "a", "b", "c"]
    session.standing = object()
    assert questions.known(session, Action.PUBLISH, "a") is RefusalCode.PLUGIN_FAILED, "another connection"
    await answered(questions.ask([(session, Action.PUBLISH, "a")]))
    assert asked[4:] == ["a"]


@pytest.mark.parametrize("at_once", [True, False])
async def test_who_comes_while_as_many_questions_wait_as_may_is_refused_and_nobody_else(at_once: bool) -> None:
    """Also when all of them come in one turn, as those about the receivers of one message do."""
    asked: list[str] = []
    go = asyncio.Event()

    class Slow(BaseTopicPlugin):
        async def topic_filtering(self, *, topic: str, **_: object) -> bool:
            asked.append(topic)
            await go.wait()
            return True

    questions, session = questions_of(Slow(BaseContext()), most=2), HostedSession()
    for topic in "ab":
        assert questions.ask([(session, Action.PUBLISH, topic)]) is not None
        if not at_once:
            await asyncio.sleep(0)
    with capture_logs() as logged:
        await answered(questions.ask([(session, Action.PUBLISH, "c")]))
    assert questions.known(session, Action.PUBLISH, "c") is RefusalCode.PLUGIN_FAILED
    assert [(each["plugin"], each["topic"]) for each in failures_in(logged)] == [("Slow", "c")]
    assert asked == ["a", "b"]
    go.set()
    await answered(questions.ask([(session, Action.PUBLISH, "b")]))
    assert questions.known(session, Action.PUBLISH, "b") is None


async def test_who_gets_no_turn_in_time_is_refused_and_a_turn_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_AT_ONCE", 1)
    go = asyncio.Event()

    class Slow(BaseAuthPlugin):
        async def authenticate(self, **_: object) -> bool:
            await go.wait()
            return True

    questions = questions_of(Slow(BaseContext()), patience=0.1)
    patient = questions_of(Slow(BaseContext()))
    with capture_logs() as logs:
        first = asyncio.create_task(patient.authenticate(HostedSession()))
        questions._turn = patient._turn
        await asyncio.sleep(0)
        assert await questions.authenticate(HostedSession()) is RefusalCode.PLUGIN_FAILED
    assert [(each["plugin"], each["event"]) for each in failures_in(logs)] == [
        ("Slow", "no turn to ask plugins in 0.1 s")
    ]
    go.set()
    assert await first is None
    assert await patient.authenticate(HostedSession()) is None


async def test_a_failure_is_an_answer_for_a_second_and_a_verdict_for_as_long_as_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    class Asking(BaseTopicPlugin):
        async def topic_filtering(self, *, topic: str, **_: object) -> bool:
            asked.append(topic)
            if topic == "fails":
                raise ValueError
            return topic == "good"

    questions, session, now = questions_of(Asking(BaseContext())), HostedSession(), 100.0
    monkeypatch.setattr(questions, "_loop", Clocked(questions._loop, lambda: now))
    topics = ["good", "bad", "fails"]
    for now, left in ((100.0, topics), (100.9, []), (101.0, ["fails"]), (109.9, ["fails"]), (110.0, topics[:2])):
        asked.clear()
        for topic in topics:
            if (inquiry := questions.ask([(session, Action.PUBLISH, topic)])) is not None:
                await answered(inquiry)
        assert asked == left, now


class Clocked:
    """An event loop whose clock is in the test's hand."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]) -> None:
        self.create_task = loop.create_task
        self.time = clock


async def test_who_still_waits_at_the_end_is_refused() -> None:
    class Slow(BaseTopicPlugin):
        async def topic_filtering(self, **_: object) -> bool:
            await asyncio.Event().wait()
            return True

    questions, session = questions_of(Slow(BaseContext())), HostedSession()
    inquiry = questions.ask([(session, Action.PUBLISH, "t")])
    await asyncio.sleep(0)
    await questions.close()
    await answered(inquiry)
    assert questions.known(session, Action.PUBLISH, "t") is RefusalCode.PLUGIN_FAILED
