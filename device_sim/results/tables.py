"""The reports that other programs read: the time line as CSV, the thresholds as JUnit XML."""

from __future__ import annotations

import csv
import io
import xml.etree.ElementTree as ET

from device_sim.results.document import Document, figure_of

_HEALTH = ("lag_p99_ms", "lag_max_ms", "processor", "descriptors", "ports", "memory_mb")
_WINDOWS = ("admitted", "puback", "end_to_end", "probe_end_to_end")
_FIGURES = ("count", "p50", "p95", "p99")


def timeline_csv(document: Document) -> str:
    """Return a row a second; latencies in milliseconds, empty where nothing was measured."""
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow([
        "at", "stage", "connected", "told", "published", "received", "refused",
        *(f"{metric}_{figure}" for metric in _WINDOWS for figure in _FIGURES), *_HEALTH,
    ])  # fmt: skip
    for sample in document["timeline"]:
        windows = [sample["windows"].get(metric, {}).get(figure, "") for metric in _WINDOWS for figure in _FIGURES]
        writer.writerow([
            sample["at"], stage_at(document, sample["at"]), sample["connected"], sample["told"], sample["published"],
            sample["received"], sum(sample["refusals"].values()), *windows, *(sample["health"][key] for key in _HEALTH),
        ])  # fmt: skip
    return output.getvalue()


def stage_at(document: Document, at: float) -> str:
    """Return the label of the stage that ran *at* seconds after the start."""
    for span in document["stages"]:
        if span["start"] <= at and (span["end"] is None or at <= span["end"]):
            return str(span["label"])
    return ""


def junit(document: Document) -> str:
    """Return a test case for each threshold, and one for the generator."""
    name = document["scenario"]["name"]
    cases = [
        (f"{item['metric']} {item['condition']}", None if item["passed"] else f"it is {figure_of(item)}")
        for item in document["thresholds"]
    ]
    cases.append(("neither the generator nor the link was the bottleneck", "; ".join(document["invalid"]) or None))
    if document["interrupted"]:
        cases.append(("the run was not interrupted", document["interrupted"]))
    failed = sum(failure is not None for _, failure in cases)
    suite = ET.Element(
        "testsuite",
        name=f"fleet-sim {name}", tests=str(len(cases)), failures=str(failed), errors="0",
        time=f"{document['seconds']:.3f}", timestamp=document["started"],
    )  # fmt: skip
    for case_name, failure in cases:
        case = ET.SubElement(suite, "testcase", classname=f"fleet-sim.{name}", name=case_name)
        if failure is not None:
            ET.SubElement(case, "failure", message=failure)
    ET.indent(suite)
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
