"""Try cases against a target and judge each.

Rules
-----
1. An exception that a peer can cause is judged; only a bug of ours ends the run.
2. Idle cases only wait: they run together, before the others. The *last* ones come last.
3. Before the first case a good device must be admitted: otherwise no refusal would mean anything; nothing is judged.
4. After the last case a good device must still be admitted: a broker that crashed in a case has refused nobody.
5. A case in which a good device is refused, or an already connected one is disconnected, has failed, however the bad
   one was answered: a broker that crashes, or refuses everybody, has refused nobody in particular.
6. What was not delivered may still be in transit. It is checked once more after the last case.
7. A device refused as revoked must stay out. Each is tried once more after the last case.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from device_sim.attack.capabilities import Capabilities, Feature
from device_sim.attack.case import Case
from device_sim.attack.far_broker import across_this_link, unended_across_this_link
from device_sim.attack.scene import Scene, cores_of
from device_sim.attack.target import BrokenPromise, Impossible, Starved, Target, TurnedAway
from device_sim.attack.verdict import (
    BROKEN,
    DELIVERED,
    HELD_BACK,
    NEVER_CAME,
    OPEN,
    STARVED,
    TURNED_AWAY,
    UNADVISED,
    ClosedBy,
    Judgement,
    Layer,
    Outcome,
    Seen,
    Verdict,
    before_mqtt5,
    judge,
    on_this_machine,
    seen_in,
)
from device_sim.core_wait import MOST_WAITING, CoreWatch
from device_sim.link.tls_dial import NotAdmitted
from provisioning.client.est import EnrolmentRefused, EnrolmentUnavailable
from provisioning.client.operator import RequestRefused, ServiceUnavailable

ALIVE = "0-alive"
STAYS = "0-stays"
_FOREVER = 60.0
_AT_ONCE = 50
"""How many idle cases run at the same time: broker and tester share one small machine."""
_LATE = 1.0
"""How many seconds to wait for a message that should not arrive; earlier ones have had longer."""

_WORST_FIRST = (Verdict.FAIL, Verdict.INVALID, Verdict.WARN, Verdict.PASS)

Told = Callable[[Outcome], None]


async def run(
    target: Target, cases: Sequence[Case], told: Told, begun: Callable[[], None] = lambda: None
) -> list[Outcome]:
    """Try *cases*, report each as it ends, and return all outcomes in the order of the catalogue.

    *begun* is called before the first one is tried. Raises `Impossible` if nothing can be judged (rule 3).
    """
    scene = Scene(target)
    outcomes: dict[str, Outcome] = {}
    places = asyncio.Semaphore(_AT_ONCE)

    async def one(case: Case) -> None:
        watch = cores_of(target)
        outcome = replace(await _tried(scene, case), clause=case.clause)
        if not case.idle:
            outcome = _with_harm(outcome, await scene.bystander.harmed(case.name), watch)
        outcomes[case.name] = outcome
        told(outcome)

    async def one_of_many(case: Case) -> None:
        async with places:
            await one(case)

    try:
        try:
            await scene.bystander.come()
        except Impossible as why:
            raise Impossible(f"{why}; so no refusal would mean anything, and nothing was tried") from why
        begun()
        with contextlib.suppress(Starved, TurnedAway):  # The cases tell.
            await scene.bystander.look_at_the_link()
        idle = [case for case in cases if case.idle]
        async with asyncio.TaskGroup() as together:
            for case in idle:
                together.create_task(one_of_many(case), name=case.name)
        if idle:
            await scene.bystander.harmed(f"one of {', '.join(case.name for case in idle)}")
        for case in sorted((case for case in cases if not case.idle), key=lambda case: case.last):
            await one(case)
        await one(CONTROLS[0])
        outcomes |= await _late(scene, _counting(cases, outcomes, target.capabilities))
        outcomes |= await _again(scene, _counting(cases, outcomes, target.capabilities))
        await one(CONTROLS[1])
    finally:
        await scene.close()
    return [outcomes[case.name] for case in (*cases, *CONTROLS)]


def _with_harm(outcome: Outcome, harm: Seen | None, watch: CoreWatch) -> Outcome:
    """Return *outcome*, or a failure because of the *harm* to a bystander during it (rule 5).

    Where others held the cores, harm may be no verdict: it does not take away one that the case has.
    """
    if harm is None:
        return outcome
    judgement = Judgement(Verdict.FAIL, f"a good device, connected all the time, was put out meanwhile: {harm.reason}")
    judgement = on_this_machine(judgement, (), harm, watch.shares(), MOST_WAITING)
    if judgement.verdict is Verdict.INVALID and outcome.verdict is Verdict.FAIL:
        return outcome
    return replace(outcome, judgement=judgement)


def _counting(cases: Sequence[Case], outcomes: Mapping[str, Outcome], capabilities: Capabilities) -> dict[str, Outcome]:
    """Return the *outcomes* that later checks can still turn into failures for a broker with these *capabilities*."""
    unclaimed = {case.name for case in cases if capabilities.missing(case.needs - {Feature.SUBSCRIPTION_POLICY})}
    return {
        name: outcome
        for name, outcome in outcomes.items()
        if name not in unclaimed and outcome.verdict in {Verdict.PASS, Verdict.WARN}
    }


async def _again(scene: Scene, outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
    """Return the new outcome for those *outcomes* whose revoked device is admitted now (rule 7)."""
    spoilt = {}
    for name, outcome in outcomes.items():
        if outcome.seen is None or not outcome.seen.revoked:
            continue
        seen = await scene.show(scene.kept_out[outcome.seen.revoked])
        if seen.got_in and seen.code != OPEN:
            why = f"let in again when all cases had been tried: {seen.text}"
            spoilt[name] = replace(outcome, judgement=Judgement(Verdict.FAIL, why))
    return spoilt


async def _late(scene: Scene, outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
    """Return the new outcome for those *outcomes* whose message has arrived after all (rule 6)."""
    withheld = {name: outcome for name, outcome in outcomes.items() if outcome.seen and outcome.seen.withheld}
    if withheld:
        await asyncio.sleep(max(_LATE, scene.listens_until - time.monotonic()))
    return {
        name: replace(outcome, judgement=Judgement(Verdict.FAIL, "delivered after all, later than what was sent later"))
        for name, outcome in withheld.items()
        if outcome.seen and outcome.seen.withheld and scene.has_come(outcome.seen.withheld)
    }


async def _shows_itself(scene: Scene) -> Seen:
    return await scene.show(await scene.device())


async def _stays(scene: Scene) -> Seen:
    return scene.bystander.told


CONTROLS = (
    Case(ALIVE, "after all that, a good device is admitted (control)", ("mqtt CONNACK 0x00",), _shows_itself),
    Case(STAYS, "does nothing, and is connected all the time (control)", ("mqtt served",), _stays),
)
"""Tried after all cases, whichever were picked."""


async def _tried(scene: Scene, case: Case) -> Outcome:
    capabilities = scene.target.capabilities
    expected = capabilities.expected.get(case.name) or _right(case, capabilities)
    limit = case.limit(capabilities.limits)
    if Feature.MQTT5 in case.needs and Feature.MQTT5 not in capabilities.supports:
        # Its bytes would mean something else.
        return Outcome(case.name, case.description, expected, limit, Judgement(Verdict.SKIP, "not claimed: mqtt5"))
    started, watch = time.monotonic(), cores_of(scene.target)
    try:
        async with asyncio.timeout(limit * case.times + _FOREVER):
            seen = await case.attempt(scene)
    except Impossible as reason:
        return Outcome(case.name, case.description, expected, limit, Judgement(Verdict.SKIP, str(reason)))
    except NotAdmitted as error:
        seen = seen_in(error.closure)
    except (Starved, TurnedAway) as error:
        code = STARVED if isinstance(error, Starved) else TURNED_AWAY
        seen = Seen(Layer.MQTT, code, str(error), ClosedBy.NOBODY)
    except BrokenPromise as error:
        codes = (UNADVISED, HELD_BACK) if error.advised else (BROKEN, NEVER_CAME)
        code = codes[error.never]
        seen = Seen(Layer.MQTT, code, str(error), ClosedBy.NOBODY)
    except (EnrolmentRefused, EnrolmentUnavailable, RequestRefused, ServiceUnavailable) as error:
        judgement = Judgement(Verdict.FAIL, f"the enrolment service did not play its part: {error}")
        return Outcome(case.name, case.description, expected, limit, judgement, None, time.monotonic() - started)
    except TimeoutError:
        seconds = time.monotonic() - started
        unended = Judgement(Verdict.FAIL, f"the case did not come to an end within {seconds:.0f} s")
        nothing = Seen(Layer.MQTT, STARVED, "", ClosedBy.NOBODY)
        judgement = on_this_machine(unended, (), nothing, watch.shares(), MOST_WAITING)
        judgement = unended_across_this_link(judgement, seconds, scene.bystander.distance)
        return Outcome(case.name, case.description, expected, limit, judgement, None, seconds)
    seconds = time.monotonic() - started if seen.seconds is None else seen.seconds
    judgement = on_this_machine(judge(expected, limit, seen, seconds), expected, seen, watch.shares(), MOST_WAITING)
    judgement = across_this_link(judgement, expected, limit, seen, seconds, scene.bystander.distance)
    missing = capabilities.missing(_needed(case, seen))
    if missing and judgement.verdict is not Verdict.PASS and seen.code not in {STARVED, TURNED_AWAY}:
        judgement = Judgement(Verdict.SKIP, f"not claimed: {', '.join(missing)}")
    return Outcome(case.name, case.description, expected, limit, judgement, seen, seconds)


def _needed(case: Case, seen: Seen) -> frozenset[Feature]:
    """Return what must be claimed for *seen* to count against the broker."""
    # Granting a subscription on which nothing is delivered is one way to keep a topic policy. Delivering breaks it.
    return case.needs - {Feature.SUBSCRIPTION_POLICY} if seen.code == DELIVERED else case.needs


def _right(case: Case, capabilities: Capabilities) -> tuple[str, ...]:
    return case.expected if Feature.MQTT5 in capabilities.supports else before_mqtt5(case.expected)


def worst(outcomes: Iterable[Outcome]) -> Verdict:
    """Return the worst verdict; a run in which nothing was judged is a failure."""
    outcomes = tuple(outcomes)
    if not judged(outcomes):
        return Verdict.FAIL
    verdicts = {outcome.verdict for outcome in outcomes}
    return next(verdict for verdict in _WORST_FIRST if verdict in verdicts)


def judged(outcomes: Iterable[Outcome]) -> bool:
    """Whether *outcomes* say anything: controls that hold do not, where every case was skipped."""
    controls = {case.name for case in CONTROLS}
    return any(
        outcome.verdict is not Verdict.SKIP and (outcome.verdict is not Verdict.PASS or outcome.name not in controls)
        for outcome in outcomes
    )
