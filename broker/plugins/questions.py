"""Questions to plugins: who is admitted, and who may use which topic; bounded in time and number, and cached.

Rules
-----
1. All plugins are asked at once. For topics, one that answers no, or nothing (None), refuses; for `authenticate` None
   is no answer, and at least one plugin must say yes. One that raises, takes too long, or returns anything else,
   refuses: it fails closed. (To Python, a coroutine that was not awaited is true, too.)
2. At most `_AT_ONCE` questions are asked at a time. A question that gets no turn in time is refused, and so is a new
   one while `limits.max_plugin_verdicts` wait. The same question is asked once, however many packets wait for it.
3. A refusal is counted and logged when it is found out, with a stable code and the plugin's name, not per message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from inspect import iscoroutine
from typing import Any, TypeVar

import structlog
from amqtt.contexts import Action as AmqttAction
from amqtt.plugins.base import BaseAuthPlugin, BasePlugin, BaseTopicPlugin

from broker.admission.inquiry import Inquiry
from broker.admission.refusal import RefusalCode
from broker.engine.extension import Action
from broker.plugins.errors import is_a_plugin_s
from broker.plugins.logs import Outcomes, resume
from broker.plugins.sessions import HostedSession
from broker.plugins.verdicts import Question, Verdicts
from broker.plugins.watch import Watch
from provisioning.program.out_of_memory import told

log = structlog.get_logger("broker")

Wanted = tuple[HostedSession, Action, str]
"""Session, action and topic."""
P = TypeVar("P", bound=BasePlugin[Any])
_AT_ONCE = 100
_FAILURE_SECONDS = 1.0
"""How long a failure counts as an answer: for the waiting packet, and not much longer."""


class Questions:
    """The questions to the plugins of one broker."""

    def __init__(
        self,
        plugins: Sequence[BasePlugin[Any]],
        most: Callable[[], int],
        outcomes: Outcomes,
        watch: Watch,
        *,
        patience: float,
        verdict_seconds: float,
    ) -> None:
        """Ask *plugins*, each for at most *patience* seconds; cache *most* verdicts for *verdict_seconds*."""
        self.auth_plugins = [each for each in plugins if isinstance(each, BaseAuthPlugin)]
        self.topic_plugins = [each for each in plugins if isinstance(each, BaseTopicPlugin)]
        self._most = most
        self._outcomes = outcomes
        self._watch = watch
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._verdicts = Verdicts(most, verdict_seconds)
        self._asked: dict[Question, list[Callable[[], None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Semaphore(_AT_ONCE)

    def known(self, hosted: HostedSession, action: Action, topic: str) -> RefusalCode | None:
        """Return the latest verdict; without one it is refused."""
        return self.known_of(hosted.standing, action, topic)

    def known_of(self, standing: object, action: Action, topic: str) -> RefusalCode | None:
        """Return the same for a client with, or formerly with, that *standing*."""
        return self._verdicts.known((standing, action, topic))

    def ask(self, wanted: Sequence[Wanted]) -> Inquiry | None:
        """Return an inquiry that is done when everything *wanted* is known; None if it is."""
        now = self._loop.time()
        missing = [each for each in wanted if not self._verdicts.fresh((each[0].standing, each[1], each[2]), now)]
        if not missing:
            return None
        inquiry = Inquiry()
        left = len(missing)

        def answered() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                inquiry.answer(None, self._loop.time())

        for hosted, action, topic in missing:
            question = hosted.standing, action, topic
            waiting = self._asked.get(question)
            if waiting is not None:
                waiting.append(answered)
            else:
                room = len(self._asked) < self._most()
                self._asked[question] = [answered]
                self.start(self._find_out(hosted, question, room=room))
        return inquiry

    async def _find_out(self, hosted: HostedSession, question: Question, *, room: bool) -> None:
        _, action, topic = question
        code: RefusalCode | None = RefusalCode.PLUGIN_FAILED
        try:
            about: dict[str, Any] = {"client": hosted.client_id, "action": str(action), "topic": topic[:200]}
            if room:
                code = await self._filter(hosted, action, topic, about)
            else:
                name = type(self.topic_plugins[0]).__name__
                text = "not asked: limits.max_plugin_verdicts questions wait already"
                self._outcomes.tell(RefusalCode.PLUGIN_FAILED, name, text, **about)
        finally:
            seconds = _FAILURE_SECONDS if code is RefusalCode.PLUGIN_FAILED else None
            self._verdicts.put(question, code, self._loop.time(), seconds)
            for answered in self._asked.pop(question):
                resume(answered)

    async def _filter(
        self, hosted: HostedSession, action: Action, topic: str, about: dict[str, Any]
    ) -> RefusalCode | None:
        asked = AmqttAction(action)
        answers = await self._answers(
            self.topic_plugins, lambda each: each.topic_filtering(session=hosted, topic=topic, action=asked), about
        )
        return self._outcome(answers, [name for name, answer in answers if not answer], about)

    async def authenticate(self, session: HostedSession) -> RefusalCode | None:
        """Return why the plugins do not admit the client of *session*, or None."""
        about = {"client": session.client_id, "action": "connect"}
        answers = await self._answers(self.auth_plugins, lambda each: each.authenticate(session=session), about)
        silent = all(answer is None for _, answer in answers)
        refusing = [name for name, answer in answers if silent or (answer is not None and not answer)]
        return self._outcome(answers, refusing, about)

    async def _answers(
        self, plugins: Sequence[P], call: Callable[[P], Coroutine[Any, Any, bool | None]], about: dict[str, Any]
    ) -> list[tuple[str, bool | RefusalCode | None]]:
        """Return each plugin's answer, by its name; a failure is logged, and counts as `PLUGIN_FAILED`."""
        hook = "authenticate" if about["action"] == "connect" else "topic_filtering"

        async def answer(plugin: P) -> tuple[str, bool | RefusalCode | None]:
            name, patience = type(plugin).__name__, asyncio.timeout(self._patience)
            try:
                async with patience:
                    return name, _verdict(await self._watch.watched(name, hook, call(plugin)))
            except BaseException as error:
                if not is_a_plugin_s(error):
                    raise
                late = f"plugin has not answered in {self._patience:g} s"
                text = late if patience.expired() else "plugin has raised"
                self._outcomes.tell(RefusalCode.PLUGIN_FAILED, name, text, error, **about)
            return name, RefusalCode.PLUGIN_FAILED

        try:
            async with asyncio.timeout(self._patience):
                await self._turn.acquire()
        except TimeoutError as error:
            names = [type(plugin).__name__ for plugin in plugins]
            text = f"no turn to ask plugins in {self._patience:g} s"
            self._outcomes.tell(RefusalCode.PLUGIN_FAILED, names[0], text, error, **about)
            return [(name, RefusalCode.PLUGIN_FAILED) for name in names]
        try:
            return await asyncio.gather(*map(answer, plugins))
        finally:
            self._turn.release()

    def _outcome(
        self, answers: Sequence[tuple[str, bool | RefusalCode | None]], refusing: Sequence[str], about: dict[str, Any]
    ) -> RefusalCode | None:
        for name in refusing:
            self._outcomes.tell(RefusalCode.REFUSED_BY_PLUGIN, name, "refused by plugin", **about)
        if refusing:
            return RefusalCode.REFUSED_BY_PLUGIN
        failed = any(answer is RefusalCode.PLUGIN_FAILED for _, answer in answers)
        return RefusalCode.PLUGIN_FAILED if failed else None

    def start(self, finding: Coroutine[Any, Any, None]) -> None:
        """Start finding something out, in the background."""
        task = told(self._loop.create_task(finding))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:  # A bug; waiting clients get an answer all the same.
            log.error("asking plugins failed", code="INTERNAL_ERROR", exc_info=task.exception())

    async def close(self) -> None:
        """Stop asking; waiting questions are refused."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _verdict(answer: object) -> bool | None:
    """Return *answer* if it is a valid one. Raises TypeError."""
    # By identity: an object that only claims to be a bool, as a mock may, is not one.
    if answer is None or answer is True or answer is False:
        return answer
    if iscoroutine(answer):
        answer.close()
    raise TypeError(f"the answer is of type {type(answer).__name__}, where True, False or None is wanted")
