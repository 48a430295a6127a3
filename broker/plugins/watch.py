"""Which plugin blocks the event loop: measures how long each runs between two waits, and reports it while it lasts.

Theory
------
Plugins run in the broker's event loop, as in amqtt. One that blocks it (``time.sleep``, a password hash, a synchronous
database) stops every client for that long. Nothing can interrupt it, not even an asyncio time-out, which only fires
when the loop runs again. But it can be reported which one it was. A call of a plugin is a coroutine; `watched` drives
it step by step, where a step is everything that the plugin does until it waits for something. Each step is measured.

A time-out cancels the call, which may clean up. One that catches its cancellation and continues, as a loop with a bare
``except`` does, would never end, and neither would the wait for its answer: after `_CLEANING` seconds it is abandoned,
wherever it is, and whatever it has met meanwhile. A time-out of the plugin's own cancels the task as well, until it has
been handled; a task of its own that is cancelled does not. Neither makes the call end.

One that catches its cancellation and ends otherwise, with an answer or an error, would leave its caller uncancelled,
and a task that delivers events would wait for the next. So it counts as cancelled: what it returns then is dropped.

A step that never ends would never be measured. So a thread checks now and then, and reports what has blocked the loop
for a second.

Rules
-----
1. A step longer than `_BLOCKS` seconds is reported (``PLUGIN_BLOCKS``), and its time is counted for the plugin.
2. What a plugin does outside of its calls (tasks and timers of its own) is not seen here, only in ``loop_lag_seconds``.
3. The thread only reads and logs. Without plugins there is none.
4. A cancelled call ends for its caller within `_CLEANING` seconds and as cancelled, whatever the plugin does.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import types
from collections.abc import Callable, Coroutine, Generator, Iterator
from time import monotonic
from typing import Any, Final, TypeVar, cast

import structlog

from broker.metrics import Metrics
from broker.plugins.logs import Outcomes

log = structlog.get_logger("broker")

BLOCKS: Final = "PLUGIN_BLOCKS"
_BLOCKS = 0.05
"""Seconds: longer than anything of the broker's own between two polls of the sockets."""
_CLEANING = 1.0
"""Seconds for which a cancelled call may clean up."""
_STANDS_STILL = 1.0
_LOOKS = 0.25

Answer = TypeVar("Answer")


class _LastCall:
    """The time that a call has after its *task* was cancelled; then it is cancelled again."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._task = task
        self._cancellations = task.cancelling()
        self._timer = asyncio.get_running_loop().call_later(_CLEANING, self._cancel)
        self.is_over = False

    def _cancel(self) -> None:
        self.is_over = self._task.cancel()

    @property
    def is_withdrawn(self) -> bool:
        """Whether it was a time-out of the call's own, which it has handled."""
        return self._task.cancelling() < self._cancellations

    def end(self) -> None:
        """Undo the second cancellation: whoever cancelled the task first counts only that one."""
        self._timer.cancel()
        if self.is_over:
            self._task.uncancel()


def _if_still(last: _LastCall | None) -> _LastCall | None:
    """Return *last*; None, and end it, if what was cancelled goes on."""
    if last is None or not last.is_withdrawn:
        return last
    last.end()
    return None


class Watch:
    """What the plugins of one broker do with the event loop."""

    def __init__(self, metrics: Metrics, outcomes: Outcomes, clock: Callable[[], float] = monotonic) -> None:
        self._metrics = metrics
        self._outcomes = outcomes
        self._clock = clock
        self._step: tuple[str, str, float] | None = None
        """The running plugin, its call, and since when; read by the thread."""
        self._told: tuple[str, str, float] | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def watched(self, plugin: str, hook: str, call: Coroutine[Any, Any, Answer]) -> Coroutine[Any, Any, Answer]:
        """Return a wrapper of *call*, a call of *hook* of *plugin*, to await in its place."""
        return cast("Coroutine[Any, Any, Answer]", self._driven(plugin, hook, call))

    @contextlib.contextmanager
    def during(self, plugin: str, what: str) -> Iterator[None]:
        """Watch what *plugin* does before anybody is served: if it lasts it is reported, and else it is no offence."""
        self._step = plugin, what, self._clock()
        try:
            yield
        finally:
            self._step = None

    @types.coroutine
    def _driven(
        self, plugin: str, hook: str, call: Coroutine[Any, Any, Answer]
    ) -> Generator[Any, Any, Answer]:  # PEP 380's ``yield from``, with a clock around each step.
        given: Any = None
        thrown: BaseException | None = None
        last: _LastCall | None = None
        task = asyncio.current_task()
        try:
            while True:
                try:
                    try:
                        waits_for = self._take_step(plugin, hook, call, given, thrown)
                    finally:
                        last = _if_still(last)
                except (Exception, SystemExit) as end:
                    if last is not None:
                        raise asyncio.CancelledError from end
                    if isinstance(end, StopIteration):
                        return cast("Answer", end.value)
                    raise
                try:
                    given, thrown = (yield waits_for), None
                except GeneratorExit:
                    call.close()
                    raise
                except BaseException as error:  # For the plugin to handle: above all a cancellation.
                    if last is not None and last.is_over:
                        with contextlib.suppress(Exception, SystemExit):
                            call.close()
                        raise
                    thrown = error
                    if last is None and task is not None and task.cancelling():
                        last = _LastCall(task)
        finally:
            if last is not None:
                last.end()

    def _take_step(
        self, plugin: str, hook: str, call: Coroutine[Any, Any, Any], given: Any, thrown: BaseException | None
    ) -> Any:
        """Return what *call* waits for next. Raises `StopIteration` with its answer, as it does."""
        begun = self._clock()
        self._step = plugin, hook, begun
        try:
            return call.send(given) if thrown is None else call.throw(thrown)
        finally:
            self._step = None
            self._judge(plugin, hook, self._clock() - begun)

    def _judge(self, plugin: str, hook: str, seconds: float) -> None:
        if seconds >= _BLOCKS:
            blocked = self._metrics.plugin_blocked
            blocked[plugin] = blocked.get(plugin, 0.0) + seconds
            text = "plugin has blocked the event loop: run such work with asyncio.to_thread"
            self._outcomes.tell(BLOCKS, plugin, text, hook=hook, milliseconds=round(seconds * 1000))

    # While it lasts

    def start(self) -> None:
        """Watch from a separate thread."""
        self._thread = threading.Thread(target=self._run, name="plugin-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def look(self) -> None:
        """Report what blocks the event loop, if it lasts too long; once per step."""
        step = self._step
        if step is None or step is self._told or self._clock() - step[2] < _STANDS_STILL:
            return
        self._told = step
        plugin, hook, begun = step
        text = "plugin is blocking the event loop: the broker is stalled"
        log.error(text, code="PLUGIN_BLOCKS", plugin=plugin, hook=hook, seconds=round(self._clock() - begun, 1))

    def _run(self) -> None:
        while not self._stop.wait(_LOOKS):
            self.look()
