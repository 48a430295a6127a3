"""The report's files, made from its document."""

from __future__ import annotations

import json
from pathlib import Path

from device_sim.destination import clear, write
from device_sim.results.document import PROGRESS, REPORT, Document
from device_sim.results.page import page_of
from device_sim.results.tables import junit, timeline_csv

_PAGE, _TIMELINE, _JUNIT = "report.html", "timeline.csv", "junit.xml"


def clear_all(directory: Path) -> None:
    """Remove an earlier run's files from *directory*: if this one comes to no end, they would be taken for its own."""
    for name in (REPORT, _PAGE, _TIMELINE, _JUNIT, PROGRESS):
        clear(directory / name)


def write_all(document: Document, directory: Path) -> list[Path]:
    """Write JSON, HTML, CSV and JUnit XML into *directory*; return their paths; the run's progress file is removed."""
    directory.mkdir(parents=True, exist_ok=True)
    contents = {
        REPORT: json.dumps(document, indent=1) + "\n",
        _PAGE: page_of(document),
        _TIMELINE: timeline_csv(document),
        _JUNIT: junit(document),
    }
    paths = []
    for name, content in contents.items():
        path = directory / name
        write(path, content)
        paths.append(path)
    (directory / PROGRESS).unlink(missing_ok=True)
    return paths
