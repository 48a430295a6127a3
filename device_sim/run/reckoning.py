"""What came of a run: what the parts report as sent, compared with what the backends have received."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from device_sim.behaviour.presence import OFFLINE, ONLINE
from device_sim.fleet.backend import Backend
from device_sim.fleet.tally import Tally, account, total
from device_sim.latency import Latency
from device_sim.run.lateness import most_unread, overfilled, proven
from device_sim.run.manner import Manner
from device_sim.run.part import PartOutcome, Strays
from device_sim.run.recorder import ALTERED_MESSAGE, SAMPLE_SECONDS, UNEXPECTED_MESSAGE, Marker, Recorder
from device_sim.scenario.metrics import Count
from device_sim.scenario.model import Scenario

_TOLD_LATE: Final = 2 * SAMPLE_SECONDS
"""What a worker says of itself each second is this old when it is sampled, at most."""


class Reckoning:
    """That of one run, whose parts have finished with these *outcomes*."""

    def __init__(
        self,
        scenario: Scenario,
        manner: Manner,
        recorder: Recorder,
        backends: Sequence[Backend],
        outcomes: Sequence[PartOutcome],
    ) -> None:
        self._scenario = scenario
        self._manner = manner
        self._recorder = recorder
        self._backends = backends
        self._outcomes = outcomes

    def count(self, strays: list[Strays], started: float) -> None:
        """Count what the parts and the receivers have seen in the run that *started* then."""
        recorder, counts = self._recorder, self._recorder.counts
        for outcome in self._outcomes:
            recorder.absorb(outcome.service, outcome.response)
            recorder.markers += outcome.markers
            counts.update(outcome.counts)
        recorder.markers += [
            Marker(at - started, kind, f"{backend.name}: {what}")
            for backend in self._backends
            for kind, examples in (
                (ALTERED_MESSAGE, backend.altered_examples),
                (UNEXPECTED_MESSAGE, backend.unexpected_examples),
            )
            for at, what in examples
        ]
        recorder.markers.sort(key=lambda marker: marker.at)
        sums = total(
            account(sent, backend.checks[name])
            for backend in self._backends
            for outcome in self._outcomes
            for name, sent in outcome.sent.items()
        )
        strange: list[Backend | Strays] = [*self._backends, *strays]
        counts.update(
            {
                Count.UNREACHED: sum(not backend.is_back for backend in self._backends),
                Count.RECEIVED: sums.received,
                Count.LOST: sums.lost,
                Count.DUPLICATED: sums.duplicated,
                Count.OUT_OF_ORDER: sums.out_of_order,
                Count.IN_FLIGHT: sums.in_flight,
                Count.PRESENCE_CHANGES: self._backends[0].presence_changes,
                Count.STALE_PRESENCE: stale(self._backends, self._outcomes),
                Count.ALTERED: sum(each.altered for each in strange),
                Count.UNEXPECTED: sum(each.unexpected for each in strange) + sums.forged,
            }
        )

    def proven(self, *, read: bool) -> Counter[Count]:
        """Return what no lateness of this generator explains (`lateness`); *read*: the receivers have read all."""
        by_qos: dict[int, Tally] = {}
        for outcome in self._outcomes:
            for name, sent in outcome.sent.items():
                published = self._scenario.group_of(name).telemetry
                qos = published.qos if published is not None else 0
                promised = replace(sent, kept_waiting=False)
                found = total(account(promised, backend.checks[name]) for backend in self._backends)
                by_qos[qos] = by_qos.get(qos, Tally()) + found
        counts = self._recorder.counts
        return proven(
            by_qos,
            altered=counts[Count.ALTERED],
            strange=sum(backend.unexpected - backend.unasked for backend in self._backends),
            refused=counts[Count.REFUSED_MESSAGES] * len(self._backends),
            stayed=not counts[Count.LOST_RECEIVERS],
            restarted=any(stage.kind == "restart" for stage in self._scenario.stages),
            read=read,
            unread=most_unread(
                self._recorder,
                max(backend.besides for backend in self._backends),
                _TOLD_LATE if self._manner.workers > 1 else 0.0,
            ),
        )

    def stood(self, lag: Latency) -> float:
        """Return for how long the receivers stood still, if a broker's queue for them may have been full then.

        *lag* is that of their process, if the devices are in others.
        """
        if self._manner.workers == 1:
            lag = Latency()
            lag.add(self._outcomes[0].lag)
        besides = max(backend.besides for backend in self._backends)
        return lag.highest / 1000 if overfilled(self._recorder, besides, lag.highest / 1000) else 0.0


def stale(backends: Iterable[Backend], outcomes: Iterable[PartOutcome]) -> int:
    """Return the number of devices whose presence one of *backends*, or the broker's retained message, has wrong."""
    believed = [known for each in backends for known in (each.presence, each.retained) if known is not None]
    return sum(
        any(known.get(name) != (ONLINE if there else OFFLINE) for known in believed)
        for outcome in outcomes
        for name, there in outcome.present.items()
    )
