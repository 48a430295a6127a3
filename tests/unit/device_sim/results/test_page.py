"""What the page of a run shows of its document, and what it leaves out if there is nothing to show."""

from __future__ import annotations

import json
import re
from html import unescape

import pytest

from device_sim.results.page import page_of, table
from tests.support.documents import imagined

_OPTIONAL = {
    "Messages a second", "Device to backend", "Probe devices to backend, under the others' load",
    "Due to connect, to admitted", "Revocation: how soon closed, how soon refused", "Refusals by reason",
    "Latency by percentile",
}  # fmt: skip


def section(page: str, heading: str) -> str:
    """Return what is below *heading*."""
    return page.partition(f"<h2>{heading}</h2>")[2].partition("<h2>")[0]


def rows(page: str, heading: str) -> list[list[tuple[str, str]]]:
    """Return the rows of the table below *heading*: the class of each cell, and its text."""
    return [
        [(css, unescape(re.sub("<[^>]+>", "", text)).strip()) for css, text in cells]
        for row in re.findall("<tr>(.*?)</tr>", section(page, heading), re.DOTALL)
        if (cells := re.findall(r'<t[hd] class="(\w+)">(.*?)</t[hd]>', row, re.DOTALL))
    ]


def headings(page: str) -> set[str]:
    return {unescape(each) for each in re.findall("<h2>(.*?)</h2>", page)}


def test_what_was_measured_has_a_chart_and_what_was_not_has_none() -> None:
    document = imagined()
    assert headings(page_of(document)) >= _OPTIONAL
    document.update(durations={}, markers=[], refusals={}, false_refusals={})
    for sample in document["timeline"]:
        sample.update(windows={}, refusals={}, received=0, published=0)
    assert headings(page_of(document)).isdisjoint(_OPTIONAL)


def test_durations_are_a_table_of_their_percentiles() -> None:
    document = imagined()
    head, *found = rows(page_of(document), "All durations")
    figures = ["count", "p50", "p95", "p99", "p99.9", "max"]
    assert head == [("key", "milliseconds, from when due"), *(("n", each) for each in figures)]
    for row, duration in zip(found, document["durations"].values(), strict=True):
        curve = dict(map(tuple, duration["response"]["curve"]))
        percentiles = [f"{curve[percent]:.2f}" for percent in (50.0, 95.0, 99.0, 99.9)]
        assert [text for _, text in row[2:-1]] == percentiles
        assert [css for css, _ in row] == ["key"] + ["n"] * 6
    document["durations"]["tls"]["response"]["curve"] = [[50.0, 1.25]]
    (tls,) = (row for row in rows(page_of(document), "All durations") if row[0][1].startswith("TLS handshake"))
    assert [text for _, text in tls[2:-1]] == ["1.25", "0.00", "0.00", "0.00"]


def test_a_threshold_says_whether_it_holds_and_whether_it_is_about_security() -> None:
    document = imagined()
    shown = re.findall("<tr>(<td.*?)</tr>", section(page_of(document), "Thresholds"), re.DOTALL)
    for row, item in zip(shown, document["thresholds"], strict=True):
        assert ('<span class="good">✓</span>' in row, '<span class="bad">✗</span>' in row) == (
            item["passed"], not item["passed"],
        )  # fmt: skip
        assert ('<span class="soft">security</span>' in row) is item["security"]
    assert {item["passed"] for item in document["thresholds"]} == {True, False}
    assert {item["security"] for item in document["thresholds"]} == {True, False}


def test_the_tiles_show_the_figures_that_matter_first() -> None:
    def tiles(document: dict[str, object]) -> dict[str, str]:
        found = re.findall(r'<div class="tile"><b>(.*?)</b><span>(.*?)</span>', page_of(document))
        return {label: value for value, label in found}

    document = imagined()
    shown = tiles(document)
    for metric, label in (
        ("admitted", "admitted"),
        ("end_to_end", "end to end"),
        ("revoked_closed", "revoked to closed"),
    ):
        p99 = dict(map(tuple, document["durations"][metric]["response"]["curve"]))[99.0]
        assert shown[f"{label}, p99 ms"] == f"{p99:.1f}"
    assert (shown["messages received"], shown["messages lost"], shown["revoked"]) == ("999", "1", "4")
    document["counts"]["stayed_in"] = 2
    assert tiles(document)["revoked, and not closed"] == "2"
    del document["counts"]["stayed_in"], document["durations"]["admitted"]
    assert not {"revoked, and not closed", "admitted, p99 ms"} & tiles(document).keys()


@pytest.mark.parametrize(
    ("metric", "words"), [("revoked_closed", "call to session closed"), ("revoked_refused", "attempt to refusal")]
)
def test_a_chart_of_revocations_has_a_key_for_each_curve(metric: str, words: str) -> None:
    document = imagined()
    heading = "Revocation: how soon closed, how soon refused"
    assert f"</i> {words}</span>" in section(page_of(document), heading)
    del document["durations"][metric]
    assert f"</i> {words}</span>" not in section(page_of(document), heading)


def test_refusals_are_counted_in_the_key_of_their_chart() -> None:
    document = imagined()
    (reason,) = document["refusals"]
    assert f"</i> {document['refusals'][reason]} times {reason}</span>" in section(
        page_of(document), "Refusals by reason"
    )
    document["refusals"] = {}
    assert f"</i> 0 times {reason}</span>" in section(page_of(document), "Refusals by reason")


def test_the_generator_shows_how_each_process_fared() -> None:
    document = imagined()
    heading = "The generator itself"
    process = document["generator"]["processes"][0]
    process["waiting_mean"] = 0.25
    _, shown = rows(page_of(document), heading)
    assert [text for _, text in shown] == ["generator", "40", "1.0", "20%", "20%", "25%", "80", ""]
    del process["waiting_mean"]  # Older reports have no such figure.
    assert rows(page_of(document), heading)[1][5] == ("n", "0%")
    document["generator"]["processes"] = []
    assert rows(page_of(document), heading) == []
    document["generator"]["lag"]["curve"] = [[50.0, 1.0], [99.0, 7.5]]
    assert "Lag of the whole run: p99 7.5 ms." in section(page_of(document), heading)


def test_the_scenario_is_shown_without_what_the_page_shows_elsewhere() -> None:
    document = imagined()
    page = page_of(document)
    assert {css for row in rows(page, "Environment") for css, _ in row} == {"key"}
    text = unescape(page.partition("<pre>")[2].partition("</pre>")[0])
    shown = json.loads(text)
    assert shown == {
        key: value
        for key, value in document["scenario"].items()
        if key not in {"thresholds", "name", "summary", "fingerprint"}
    }
    assert text.startswith('{\n "')


def test_a_table_has_a_cell_below_each_heading() -> None:
    with pytest.raises(ValueError, match="zip"):
        table(("one", "two"), [("1",)])
    assert table(("one", "two"), []).count("<th ") == 2
