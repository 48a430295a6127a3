"""Try cases against a target and judge each.

Rules
-----
1. A case that raises what a peer can cause is judged; only a bug of ours ends the run.
2. Idle cases only wait: they are tried together, before the others. The *last* ones come last.
3. Before the first case a good device must be let in: otherwise no refusal would mean anything, and nothing is judged.
4. After the last case a good device must still be let in: a broker that a case has killed has refused nobody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence

from device_sim.attack.capabilities import Capabilities, Feature
from device_sim.attack.case import Case
from device_sim.attack.scene import Scene
from device_sim.attack.target import Impossible, Starved, Target
from device_sim.attack.verdict import (
    DELIVERED,
    STARVED,
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
from device_sim.core_wait import MOST_WAITING, seconds_waited
from device_sim.tls_dial import NotAdmitted
from provisioning.client.est import EnrolmentRefused, EnrolmentUnavailable
from provisioning.client.operator import RequestRefused, ServiceUnavailable

ALIVE = "0-alive"
_IN = ("mqtt CONNACK 0x00",)
_LIMIT = 10.0
_FOREVER = 60.0

_WORST_FIRST = (Verdict.FAIL, Verdict.INVALID, Verdict.WARN, Verdict.PASS)

Told = Callable[[Outcome], None]


async def run(target: Target, cases: Sequence[Case], told: Told) -> list[Outcome]:
    """Try *cases*, tell of each as it ends, and return all outcomes in the order of the catalogue.

    Raises `Impossible` if nothing can be judged (rule 3).
    """
    scene = Scene(target)
    outcomes: dict[str, Outcome] = {}

    async def one(case: Case) -> None:
        outcome = outcomes[case.name] = await _tried(scene, case)
        told(outcome)

    try:
        try:
            (await scene.admitted(await scene.device())).close()
        except Impossible as why:
            raise Impossible(f"{why}; so no refusal would mean anything, and nothing was tried") from why
        async with asyncio.TaskGroup() as together:
            for case in cases:
                if case.idle:
                    together.create_task(one(case), name=case.name)
        for case in sorted((case for case in cases if not case.idle), key=lambda case: case.last):
            await one(case)
        alive = Case(ALIVE, "after all that, a good device is let in (control)", _IN, _shows_itself)
        await one(alive)
    finally:
        await scene.close()
    return [outcomes[case.name] for case in (*cases, alive)]


async def _shows_itself(scene: Scene) -> Seen:
    return await scene.show(await scene.device())


async def _tried(scene: Scene, case: Case) -> Outcome:
    capabilities = scene.target.capabilities
    expected = capabilities.expected.get(case.name) or _right(case, capabilities)
    limit = case.limit(capabilities.limits)
    if Feature.MQTT5 in case.needs and Feature.MQTT5 not in capabilities.supports:
        # Its bytes would mean something else.
        return Outcome(case.name, case.description, expected, limit, Judgement(Verdict.SKIP, "not claimed: mqtt5"))
    started, waited = time.monotonic(), seconds_waited()
    try:
        async with asyncio.timeout(limit + _FOREVER):
            seen = await case.attempt(scene)
    except Impossible as reason:
        return Outcome(case.name, case.description, expected, limit, Judgement(Verdict.SKIP, str(reason)))
    except NotAdmitted as error:
        seen = seen_in(error.closure)
    except Starved as error:
        seen = Seen(Layer.MQTT, STARVED, str(error), ClosedBy.NOBODY)
    except (EnrolmentRefused, EnrolmentUnavailable, RequestRefused, ServiceUnavailable) as error:
        judgement = Judgement(Verdict.FAIL, f"the enrolment service did not play its part: {error}")
        return Outcome(case.name, case.description, expected, limit, judgement, None, time.monotonic() - started)
    except TimeoutError:
        seconds = time.monotonic() - started
        judgement = Judgement(Verdict.FAIL, f"the case did not come to an end within {seconds:.0f} s")
        return Outcome(case.name, case.description, expected, limit, judgement, None, seconds)
    seconds = time.monotonic() - started if seen.seconds is None else seen.seconds
    waiting = (seconds_waited() - waited) / max(time.monotonic() - started, 1e-6)
    judgement = on_this_machine(judge(expected, limit, seen, seconds), expected, seen, waiting, MOST_WAITING)
    missing = capabilities.missing(_needed(case, seen))
    if missing and judgement.verdict is not Verdict.PASS:
        judgement = Judgement(Verdict.SKIP, f"not claimed: {', '.join(missing)}")
    return Outcome(case.name, case.description, expected, limit, judgement, seen, seconds)


def _needed(case: Case, seen: Seen) -> frozenset[Feature]:
    """Return what must be claimed for *seen* to count against the broker."""
    # To grant a subscription on which nothing comes is one way to keep a topic policy. To deliver is to break it.
    return case.needs - {Feature.SUBSCRIPTION_POLICY} if seen.code == DELIVERED else case.needs


def _right(case: Case, capabilities: Capabilities) -> tuple[str, ...]:
    return case.expected if Feature.MQTT5 in capabilities.supports else before_mqtt5(case.expected)


def worst(outcomes: Iterable[Outcome]) -> Verdict:
    """Return the worst verdict; a run in which nothing was tried is a failure."""
    verdicts = {outcome.verdict for outcome in outcomes} - {Verdict.SKIP}
    if not verdicts:
        return Verdict.FAIL
    return next(verdict for verdict in _WORST_FIRST if verdict in verdicts)
