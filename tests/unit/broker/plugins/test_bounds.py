"""Whatever plugins and clients do: queues, answers and log lines are bounded, and one plugin's trouble is its own."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import sys
from collections import Counter

import pytest
from structlog.testing import capture_logs

from broker.admission.refusal import RefusalCode
from broker.engine.extension import Action
from broker.metrics import Metrics
from broker.plugins import watch
from broker.plugins.events import Handler, PluginEvents
from broker.plugins.logs import LOGGER, Outcomes, forward_logs
from broker.plugins.verdicts import Verdicts
from broker.plugins.watch import Watch

NO, FAILED = RefusalCode.REFUSED_BY_PLUGIN, RefusalCode.PLUGIN_FAILED


def events_of(metrics: Metrics, most: int = 3, patience: float = 30.0, **handlers: Handler) -> PluginEvents:
    outcomes = Outcomes(metrics, asyncio.get_running_loop().time)
    return PluginEvents("Mine", handlers, lambda: most, patience, outcomes, Watch(metrics, outcomes))


def test_answers_are_bounded_and_the_oldest_go_first() -> None:
    verdicts = Verdicts(lambda: 2, lifetime=10.0)
    who = object()
    for number, refusal in enumerate((None, NO, None)):
        verdicts.put((who, Action.PUBLISH, f"t/{number}"), refusal, now=0.0)
    assert len(verdicts) == 2
    assert verdicts.known((who, Action.PUBLISH, "t/0")) is FAILED, "what was forgotten is refused"
    assert verdicts.known((who, Action.PUBLISH, "t/1")) is NO
    assert verdicts.known((who, Action.PUBLISH, "t/2")) is None
    assert verdicts.known((object(), Action.PUBLISH, "t/2")) is FAILED, "another connection begins with none"
    assert verdicts.known((who, Action.RECEIVE, "t/2")) is FAILED


def test_answers_about_long_topics_count_for_several() -> None:
    verdicts = Verdicts(lambda: 300, lifetime=10.0)
    who = object()
    for number in range(10):
        verdicts.put((who, Action.PUBLISH, f"{number}{'x' * 65_000}"), NO, now=0.0)
        verdicts.put((who, Action.PUBLISH, f"{number}{'x' * 65_000}"), NO, now=0.0)
    assert len(verdicts) == 2
    for number in range(400):
        verdicts.put((who, Action.PUBLISH, f"t/{number}"), NO, now=0.0)
    assert len(verdicts) == 300


def test_an_answer_that_alone_takes_all_room_is_kept_until_the_next() -> None:
    """Otherwise a client with such a topic would be refused whatever plugins say."""
    verdicts = Verdicts(lambda: 1, lifetime=10.0)
    long, short = ((object(), Action.PUBLISH, "x" * length) for length in (65_000, 1))
    verdicts.put(long, None, now=0.0)
    assert verdicts.fresh(long, 1.0)
    assert verdicts.known(long) is None
    verdicts.put(short, NO, now=0.0)
    assert (verdicts.known(long), verdicts.known(short), len(verdicts)) == (FAILED, NO, 1)


def test_answers_grow_old_and_failures_sooner() -> None:
    verdicts = Verdicts(lambda: 10, lifetime=10.0)
    good, bad = (object(), Action.PUBLISH, "t"), (object(), Action.PUBLISH, "t")
    verdicts.put(good, None, now=0.0)
    verdicts.put(bad, FAILED, now=0.0, lifetime=1.0)
    assert [(verdicts.fresh(good, now), verdicts.fresh(bad, now)) for now in (0.9, 1.0, 9.9, 10.0)] == [
        *((True, True), (True, False), (True, False), (False, False)),
    ]
    assert verdicts.known(good) is None, "old is better than none for a message on its way"


async def test_events_are_told_one_after_the_other_in_order() -> None:
    told: list[int] = []
    under_way = 0

    async def hear(*, number: int) -> None:
        nonlocal under_way
        under_way += 1
        assert under_way == 1
        await asyncio.sleep(0)
        told.append(number)
        under_way -= 1

    events = events_of(Metrics(), most=100, hear=hear)
    task = asyncio.create_task(events.run())
    for number in range(50):
        events.tell("hear", number=number)
        events.tell("something else", number=number)
    await events.drained()
    task.cancel()
    assert told == list(range(50))


async def test_others_have_their_turn_between_the_events_of_a_plugin_that_waits_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, told, seen = 100.0, 0, list[int]()

    async def hear() -> None:
        nonlocal now, told
        now += 0.001  # So long it takes.
        told += 1

    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now, raising=False)
    events = events_of(Metrics(), most=100, hear=hear)
    for _ in range(50):
        events.tell("hear")
    task = asyncio.create_task(events.run())
    while told < 50:
        await asyncio.sleep(0)
        seen.append(told)
    task.cancel()
    assert max(after - before for before, after in itertools.pairwise([0, *seen])) <= 10


async def test_a_full_queue_holds_until_somebody_gives_up_then_drops_and_counts() -> None:
    metrics, go, room = Metrics(), asyncio.Event(), Counter[str]()

    async def hear(*, number: int) -> None:
        del number
        await go.wait()

    events = events_of(metrics, most=4, hear=hear)
    task = asyncio.create_task(events.run())
    for number in range(4):
        events.tell("hear", number=number)
    held = [events.holds]
    events.when_room(lambda: room.update(["room"]))
    events.give_up()
    assert [*held, events.holds] == [True, False]
    events.tell("hear", number=4)
    assert metrics.plugin_outcomes == {"PLUGIN_EVENT_DROPPED": 1}
    assert len(events) == 4
    assert room == {}
    go.set()
    await events.drained()
    assert room == {"room": 1}
    for number in range(4):
        events.tell("hear", number=number)
    assert events.holds, "half of it was empty meanwhile"
    task.cancel()


async def test_who_has_given_up_once_is_not_held_before_half_of_the_queue_is_empty() -> None:
    """And not at all while there is room."""
    told, go = asyncio.Queue[int](), asyncio.Queue[None]()

    async def hear(*, number: int) -> None:
        told.put_nowait(number)
        await go.get()

    events = events_of(Metrics(), most=4, hear=hear)
    task = asyncio.create_task(events.run())
    held = []
    for number in range(4):
        held.append(events.holds)
        events.tell("hear", number=number)
    assert (held, events.holds) == ([False] * 4, True)
    events.give_up()
    await told.get()
    assert len(events) == 3
    events.tell("hear", number=4)
    assert not events.holds, "it is full, and more than half full since somebody gave up"
    for _ in range(2):
        go.put_nowait(None)
        await told.get()
    assert len(events) == 2
    held.clear()
    for number in (5, 6):
        held.append(events.holds)
        events.tell("hear", number=number)
    assert [*held, events.holds] == [False, False, True]
    task.cancel()


async def test_who_waits_for_room_goes_on_when_there_is_some_also_by_other_limits() -> None:
    told, go, limit = asyncio.Queue[None](), asyncio.Queue[None](), [3]

    async def hear() -> None:
        told.put_nowait(None)
        await go.get()

    outcomes = Outcomes(Metrics(), asyncio.get_running_loop().time)
    events = PluginEvents("Mine", {"hear": hear}, lambda: limit[0], 30.0, outcomes, Watch(Metrics(), outcomes))
    room: list[int] = []
    for _ in range(3):
        events.tell("hear")
    events.when_room(lambda: room.append(len(events)))
    limit[0] = 1
    task = asyncio.create_task(events.run())
    for _ in range(3):
        await told.get()
        go.put_nowait(None)
    assert room == [0]
    task.cancel()


async def test_who_gives_up_where_there_is_room_gives_up_nothing() -> None:
    """Publishers wait for several plugins at once, and give up all of them because one is slow."""

    async def hear() -> None: ...

    events = events_of(Metrics(), most=4, hear=hear)
    for _ in range(3):
        events.tell("hear")
    events.give_up()
    events.tell("hear")
    assert events.holds


async def test_a_packet_that_fails_when_there_is_room_again_fails_alone() -> None:
    told = asyncio.Event()

    async def hear() -> None:
        if not len(events):
            told.set()

    def fail() -> None:
        raise LookupError("a defect")

    events, waiting = events_of(Metrics(), most=2, hear=hear), asyncio.Event()
    for _ in range(2):
        events.tell("hear")
    events.when_room(fail)
    events.when_room(waiting.set)
    with capture_logs() as logs:
        task = asyncio.create_task(events.run())
        await asyncio.wait({task, asyncio.create_task(told.wait())}, return_when=asyncio.FIRST_COMPLETED)
    assert (told.is_set(), waiting.is_set(), task.done()) == (True, True, False)
    assert [each["code"] for each in logs] == ["INTERNAL_ERROR"]
    task.cancel()
    await asyncio.wait({task})


class Unsayable(Exception):
    def __str__(self) -> str:
        raise LookupError("no words")


async def test_who_raises_or_hangs_is_told_of_and_hears_the_next_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_CLEANING", 0.05)
    metrics, told = Metrics(), asyncio.Event()

    async def hear(*, how: str) -> None:
        if how == "raise":
            raise ValueError("of mine")
        if how == "exit":
            sys.exit("by a library of mine")
        if how == "cancelled":
            raise asyncio.CancelledError("a task of mine was")
        if how == "hang":
            await asyncio.Event().wait()
        if how == "gives up":
            raise TimeoutError("my server has not answered")
        if how == "deaf":
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            await asyncio.Event().wait()
        if how == "unsayable":
            raise Unsayable
        told.set()

    events = events_of(metrics, most=10, patience=0.05, hear=hear)
    with capture_logs() as logs:
        task = asyncio.create_task(events.run())
        for how in ("raise", "exit", "cancelled", "hang", "gives up", "deaf", "unsayable", "well"):
            events.tell("hear", how=how)
        await told.wait()
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled(), "that was ours"
    assert [event["error"] for event in logs] == [
        "ValueError: of mine", "SystemExit: by a library of mine", "CancelledError: a task of mine was",
        "TimeoutError: ", "TimeoutError: my server has not answered", "TimeoutError: ",
        "Unsayable: its own text raises LookupError",
    ]  # fmt: skip
    late, raised = "plugin: not ended in 0.05 s", "plugin has raised"
    assert [event["event"] for event in logs] == [raised, raised, raised, late, raised, late, raised]
    assert {event["code"] for event in logs} == {"PLUGIN_FAILED"}
    assert metrics.plugin_outcomes == {"PLUGIN_FAILED": 7}


async def test_the_end_does_not_wait_for_ever() -> None:
    metrics = Metrics()

    async def hear() -> None:
        await asyncio.Event().wait()

    events = events_of(metrics, most=10, patience=0.05, hear=hear)
    await events.drained()
    assert metrics.plugin_outcomes == {}, "nobody has told it anything"
    for _ in range(3):
        events.tell("hear")
    with capture_logs() as logs:
        await events.drained()
    assert metrics.plugin_outcomes == {"PLUGIN_EVENT_DROPPED": 1}
    assert [each["waiting"] for each in logs] == [3]
    assert len(events) == 0


async def test_who_blocks_while_it_is_told_is_named_with_what_it_was_told() -> None:
    metrics, now = Metrics(), 0.0

    async def hear() -> None:
        nonlocal now
        now += 0.2

    outcomes = Outcomes(metrics, lambda: now)
    watch = Watch(metrics, outcomes, lambda: now)
    events = PluginEvents("Mine", {"hear": hear}, lambda: 3, 30.0, outcomes, watch)
    with capture_logs() as logs:
        await events.call("hear", hear)
    assert [(each["plugin"], each["hook"]) for each in logs] == [("Mine", "hear")]


@pytest.mark.parametrize("minutes", [1, 3])
def test_complaints_are_counted_all_and_logged_ten_times_a_minute(minutes: int) -> None:
    now = 0.0
    metrics = Metrics()
    outcomes = Outcomes(metrics, lambda: now)
    with capture_logs() as logs:
        for minute in range(minutes):
            now = 61.0 * minute
            for _ in range(100):
                outcomes.tell("REFUSED_BY_PLUGIN", "Mine", "refused")
            outcomes.tell("PLUGIN_FAILED", "Mine", "failed")
    assert metrics.plugin_outcomes == {"REFUSED_BY_PLUGIN": 100 * minutes, "PLUGIN_FAILED": minutes}
    refused = [event for event in logs if event["code"] == "REFUSED_BY_PLUGIN"]
    assert len(refused) == 10 * minutes
    assert [event["not_told"] for event in refused if "not_told" in event] == [90] * (minutes - 1)


class Unspeakable:
    def __str__(self) -> str:
        raise LookupError("no words")


@pytest.mark.parametrize(
    ("said", "arguments", "text"),
    [
        ("%s of %d", ("one", 2), "one of 2"),
        ("%s of %d", ("one",), "'%s of %d', whose arguments do not fit (TypeError)"),
        ("%d", ("x",), "'%d', whose arguments do not fit (TypeError)"),
        ("%s", (Unspeakable(),), "'%s', whose arguments do not fit (LookupError)"),
        (Unspeakable(), (), "'Unspeakable', whose arguments do not fit (LookupError)"),
    ],
)
def test_a_line_that_cannot_be_put_into_words_is_no_error_of_the_plugin(
    said: object, arguments: tuple[object, ...], text: str
) -> None:
    """`logging` raises nothing either: a plugin that decides would refuse everybody for a slip in a line."""
    forward_logs("info")
    record = logging.LogRecord(f"{LOGGER}.Mine", logging.INFO, __file__, 1, said, arguments, None)
    with capture_logs() as logs:
        for each in logging.getLogger(LOGGER).handlers:
            if type(each).__module__ == forward_logs.__module__:  # Not pytest's own, which raises.
                each.handle(record)
    assert [(each["event"], each["text"]) for each in logs] == [("plugin says", text)]
