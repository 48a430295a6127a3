"""What is known of a running run, saved on disk: a day-long run that is cut off was not for nothing.

Theory
------
A report is made at the end, or after one Ctrl-C, but not after a kill -9, a crash or a reboot. So with ``--output``
each second of the time line is written as a line of JSON as soon as it is over, and each minute the histograms that
this process has; `document_so_far` makes from it what can be shown, without judging.

Rules
-----
1. A line is written once and never rewritten, and holds only what is new: each second of a day-long run costs as much
   as in a short one. This process may be the one whose lateness counts against the run.
2. The file is removed when the report is written; while it exists, it is the newer of the two.
3. What a full disk did not accept waits, and is written first when there is room again.
4. A truncated line is left out; so is what no process of ours can know before the devices are asked at the end: what
   was lost, and the durations that the devices measure.

Does not handle: resuming such a run. A fleet that was cut off has a different history from one that was not, and the
combined figures would describe neither.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from device_sim.latency import Latency
from device_sim.repeating import repeating
from device_sim.results.document import PROGRESS, Document, document_of, durations_of, sample_of
from device_sim.run.recorder import Recorder
from device_sim.run.result import ProcessHealth, RunResult
from device_sim.run.runner import Run
from device_sim.scenario.metrics import Count
from provisioning.program.given_file import LIST_BYTES, contents_of

_SECONDS = 1.0
_DURATIONS_SECONDS = 60.0
_MORE = "more_markers"


class Progress:
    """The file of one run."""

    def __init__(self, path: Path, run: Run) -> None:
        """Start a new file; raise OSError if it cannot be written."""
        self._run = run
        self._written = self._marked = 0
        self._stages: list[dict[str, Any]] = []
        self._durations_at = time.monotonic()
        self._waiting = bytearray()
        """What the disk did not accept, perhaps from mid-line on: a file's own buffer would lose some of it."""
        self._line({"head": _head(run)})
        self._file = path.open("wb", buffering=0)
        try:
            self._write()
        except OSError as error:
            self._file.close()
            error.filename = str(path)
            raise

    def add(self, *, last: bool = False) -> None:
        """Write what is new; also the histograms if a minute has passed, or if this is the *last* time.

        Then the markers are written as they are: what the devices have told at the end is in between.

        Raises OSError if the disk does not accept it: then it is written next time.
        """
        recorder = self._run.recorder
        for sample in recorder.samples[self._written :]:
            self._line({"sample": sample_of(sample)})
        self._written = len(recorder.samples)
        stages = [asdict(each) for each in recorder.stages]
        if stages != self._stages:
            self._stages = stages
            self._line({"stages": stages})
        if last:
            self._line({"markers": [asdict(each) for each in recorder.markers]})
        elif new := recorder.markers[self._marked :]:
            self._line({_MORE: [asdict(each) for each in new]})
        self._marked = len(recorder.markers)
        if last or time.monotonic() - self._durations_at >= _DURATIONS_SECONDS:
            self._durations_at = time.monotonic()
            self._line({"durations": durations_of(recorder)})
        self._write()

    def close(self) -> None:
        """Close the file, which stays on disk."""
        self._file.close()

    def _line(self, content: dict[str, Any]) -> None:
        self._waiting += f"{json.dumps(content)}\n".encode()

    def _write(self) -> None:
        while self._waiting:
            del self._waiting[: self._file.write(self._waiting)]


@asynccontextmanager
async def kept(directory: Path | None, run: Run) -> AsyncIterator[None]:
    """While the context is open, keep what is known of *run* in *directory*, if given."""
    if directory is None:
        yield
        return
    progress = Progress(directory / PROGRESS, run)

    def add() -> None:
        with suppress(OSError):  # A full disk ends no run: the report will fail if it is still full.
            progress.add()

    try:
        async with repeating(_SECONDS, add):
            yield
    finally:
        with suppress(OSError), closing(progress):
            progress.add(last=True)


def document_so_far(path: Path) -> Document:
    """Return what the file at *path* says about its run. Raises OSError, and ValueError if it is no such file."""
    lines = []
    for text in contents_of(path, LIST_BYTES).decode(errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except (ValueError, RecursionError):  # The line being written when the run was cut off.
            break
    if not lines or not isinstance(lines[0], dict) or "head" not in lines[0]:
        raise ValueError("it does not begin as the progress of a run does")
    document: Document = lines[0]["head"]
    refusals: Counter[str] = Counter()
    for line in lines[1:]:
        if "sample" in line:
            document["timeline"].append(line["sample"])
            refusals.update(line["sample"]["refusals"])
        elif _MORE in line:
            document["markers"] += line[_MORE]
        else:
            document.update(line)
    if document["timeline"]:
        last = document["timeline"][-1]
        document["seconds"] = last["at"]
        document["counts"] |= {str(Count.PUBLISHED): last["published"], str(Count.RECEIVED): last["received"]}
    document["refusals"] = dict(refusals)
    document["unfinished"] = (
        f"the run was cut off after {document['seconds']:.0f} s, or goes on: nothing is judged, and what the devices "
        "measure themselves is not here"
    )
    return document


def _head(run: Run) -> Document:
    nobody = [ProcessHealth("generator", [], Latency())]
    result = RunResult(
        run.scenario, run.wall, 0.0, Recorder(), nobody, {}, {}, manner=run.manner, broker=run.target.broker_name
    )
    return document_of(result) | {"verdict": "INTERRUPTED", "exit_code": 1}
