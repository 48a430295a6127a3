"""What the user sees while a scenario runs: the stages, the fleet, latencies, refusals, and the generator itself."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from device_sim.fitting import Fitting, row
from device_sim.how_often import each_time
from device_sim.run.recorder import Sample, StageSpan
from device_sim.run.runner import Run
from device_sim.run.stages import label_of
from device_sim.scenario.metrics import Duration

_MOST_REASONS = 5
_BAR = 28
_GOOD_LAG, _BAD_LAG = 100.0, 200.0


@dataclass(frozen=True, slots=True)
class RunState:
    """The state of a run at one moment."""

    elapsed: float
    stages: tuple[StageSpan, ...]
    upcoming: tuple[str, ...]
    done: float
    devices: int
    sample: Sample | None
    rate: float
    revoked: int
    lost_connections: int
    refusals: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, run: Run) -> RunState:
        """Return the state of *run* now."""
        samples = run.recorder.samples
        states = [process.state for process in run.processes if process.state is not None]
        refused = sum((Counter(state.refused) for state in states), Counter[str]())
        rate = float(samples[-1].received - samples[-2].received) if len(samples) > 1 else 0.0
        return cls(
            elapsed=time.monotonic() - run.started,
            stages=tuple(run.recorder.stages),
            upcoming=tuple(label_of(stage) for stage in run.scenario.stages[run.number :]),
            done=sum(state.done for state in states) / max(len(states), 1),
            devices=run.scenario.devices,
            sample=samples[-1] if samples else None,
            rate=rate,
            revoked=sum(state.revoked for state in states),
            lost_connections=sum(state.lost_connections for state in states),
            refusals=tuple(refused.most_common(_MOST_REASONS)),
        )

    def line(self) -> str:
        """Return the state in one line."""
        stage = self.stages[-1].label if self.stages else "connecting the backend"
        if self.sample is None:
            return f"{self.elapsed:5.1f} s  {stage}"
        text = (
            f"{self.elapsed:5.1f} s  {stage}  connected {self.sample.connected}/{self.devices}  {self.rate:.0f} msg/s  "
        )
        end_to_end = self.sample.windows.get(Duration.END_TO_END)
        if end_to_end is not None:  # Where nothing arrives, no latency is 0 ms.
            text += f"latency ms p50 {end_to_end.p50:.1f} p99 {end_to_end.p99:.1f}  "
        if self.refusals:
            text += "refused " + each_time(self.refusals) + "  "
        return text + f"lag {self.sample.health.lag_p99_ms:.0f} ms cpu {self.sample.health.processor:.0%}"

    def picture(self) -> RenderableType:
        """Return the state as a picture."""
        parts: list[RenderableType] = [self._stages()]
        if self.sample is not None:
            parts += [self._fleet(self.sample), self._latencies(self.sample)]
        if self.refusals:
            reasons = Text("  refused: ", style="dim")
            reasons.append(each_time(self.refusals), style="default")
            parts.append(reasons)
        if self.sample is not None:
            lag = self.sample.health.lag_p99_ms
            style = "green" if lag < _GOOD_LAG else "yellow" if lag < _BAD_LAG else "red"
            parts.append(Text(f"  {self.sample.health.line()}", style=style))
        return Group(*parts)

    def _stages(self) -> RenderableType:
        grid = Table.grid(padding=(0, 1))
        for span in self.stages:
            ended = span.end is not None
            completed = 1.0 if ended else self.done
            seconds = (span.end if span.end is not None else self.elapsed) - span.start
            grid.add_row(
                "  ✓" if ended else "  ▸", span.label, ProgressBar(1.0, completed, width=_BAR), f"{seconds:.1f} s"
            )
        for label in self.upcoming:
            grid.add_row("   ", Text(label, style="dim"), "", "")
        return grid

    def _fleet(self, sample: Sample) -> RenderableType:
        figures = {
            "connected": f"{sample.connected}/{self.devices}",
            "told": str(sample.told),
            "messages/s": f"{self.rate:.0f}",
            "published": str(sample.published),
            "received": str(sample.received),
            "revoked": str(self.revoked),
            "connections lost": str(self.lost_connections),
        }
        some = {name: figures[name] for name in ("connected", "messages/s", "received", "revoked")}
        few = {name: figures[name] for name in ("connected", "messages/s")}
        return Fitting(row(figures), row(some), row(few))

    def _latencies(self, sample: Sample) -> RenderableType:
        table = Table(box=None, padding=(0, 1), pad_edge=True)
        for heading in ("last second, ms", "count", "p50", "p95", "p99"):
            table.add_column(heading, justify="left" if heading[0] == "l" else "right", header_style="dim")
        for metric, seen in sample.windows.items():
            table.add_row(metric, str(seen.count), f"{seen.p50:.1f}", f"{seen.p95:.1f}", f"{seen.p99:.1f}")
        return table
