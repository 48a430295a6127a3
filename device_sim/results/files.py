"""The report's files, made from its document."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from device_sim.destination import clear, write_each
from device_sim.results.document import PROGRESS, REPORT, Document
from device_sim.results.page import page_of
from device_sim.results.tables import junit, timeline_csv

_PAGE, _TIMELINE, _JUNIT = "report.html", "timeline.csv", "junit.xml"


def clear_all(directory: Path) -> None:
    """Remove an earlier run's files from *directory*: if this one comes to no end, they would be taken for its own."""
    for name in (REPORT, _PAGE, _TIMELINE, _JUNIT, PROGRESS):
        clear(directory / name)


def write_all(document: Document, directory: Path) -> tuple[list[Path], list[OSError]]:
    """Write JSON, HTML, CSV and JUnit XML into *directory*; return the paths of those that are there, and why not all.

    The run's progress file is removed as soon as the JSON has everything, before the others need its room.
    """
    report = directory / REPORT
    with suppress(OSError):  # Then no file can be written either, and each says so.
        directory.mkdir(parents=True, exist_ok=True)
    errors = write_each({report: json.dumps(document, indent=1) + "\n"})
    if not errors:
        clear(directory / PROGRESS)
    others = {_PAGE: page_of, _TIMELINE: timeline_csv, _JUNIT: junit}
    errors += write_each({directory / name: made(document) for name, made in others.items()})
    missing = {error.filename for error in errors}
    return [path for name in (REPORT, *others) if str(path := directory / name) not in missing], errors
