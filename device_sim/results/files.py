"""The report's files, made from its document."""

from __future__ import annotations

import json
from pathlib import Path

from device_sim.destination import write
from device_sim.results.document import PROGRESS, Document
from device_sim.results.page import page_of
from device_sim.results.tables import junit, timeline_csv


def write_all(document: Document, directory: Path) -> list[Path]:
    """Write JSON, HTML, CSV and JUnit XML into *directory*; return their paths; the run's progress file is removed."""
    directory.mkdir(parents=True, exist_ok=True)
    contents = {
        "report.json": json.dumps(document, indent=1) + "\n",
        "report.html": page_of(document),
        "timeline.csv": timeline_csv(document),
        "junit.xml": junit(document),
    }
    paths = []
    for name, content in contents.items():
        path = directory / name
        write(path, content)
        paths.append(path)
    (directory / PROGRESS).unlink(missing_ok=True)
    return paths
