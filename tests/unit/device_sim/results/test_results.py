from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console

from device_sim.latency import Latency
from device_sim.link.driver import Driver
from device_sim.results.comparison import Difference, comparison_of, comparison_page, conditions, differences
from device_sim.results.document import Document, UnreadableReport, document_of, figure_of, read, remarks
from device_sim.results.files import write_all
from device_sim.results.page import page_of
from device_sim.results.plot import Plot, log_ticks, nice_ticks, short
from device_sim.results.progress import document_so_far
from device_sim.results.summary import summary_of
from device_sim.results.tables import junit, stage_at, timeline_csv
from device_sim.run.health import HealthSample
from device_sim.run.manner import Manner
from device_sim.run.recorder import FAILED_REVOCATION, LOST_RECEIVER, PAST_DEADLINE, Recorder
from device_sim.run.result import ProcessHealth, RunResult
from device_sim.scenario.model import build
from tests.support.documents import SCENARIO, imagined

VOID = {"meta"}


class Tags(HTMLParser):
    """Fails on a tag that is closed by another; keeps the text and what would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attributes if name in {"src", "href"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_stored_document_is_read_as_it_was_written(tmp_path: Path) -> None:
    document = imagined()
    assert [path.name for path in write_all(document, tmp_path)[0]] == [
        "report.json", "report.html", "timeline.csv", "junit.xml",
    ]  # fmt: skip
    assert read(tmp_path / "report.json") == read(tmp_path) == json.loads(json.dumps(document))


def test_a_report_takes_the_place_of_what_was_known_while_the_run_went_on(tmp_path: Path) -> None:
    (tmp_path / "progress.jsonl").write_text("{}")
    write_all(imagined(), tmp_path)
    assert "progress.jsonl" not in [path.name for path in tmp_path.iterdir()]


def test_the_mean_is_what_the_library_has() -> None:
    latency = Latency()
    assert latency.mean == 0
    for count, seconds in ((1, 0.0), (7, 0.0123), (3, 1.5), (1, 100.0)):
        for _ in range(count):
            latency.record(seconds)
    merged = Latency()
    merged.add(latency.encoded())
    assert latency.mean == merged.mean == latency._histogram.get_mean_value() / 1000 > 5000


def test_histograms_can_be_merged_without_loss() -> None:
    document = imagined()
    merged = Latency()
    for _ in range(2):
        merged.add(document["durations"]["admitted"]["response"]["hdr"])
    assert merged.count == 2 * document["durations"]["admitted"]["response"]["count"]
    assert [[percent, round(value, 3)] for percent, value in merged.curve()] == document["durations"]["admitted"][
        "response"
    ]["curve"]


@pytest.mark.parametrize(("content", "words"), [
    (b"{", "is no JSON"), (b"[" * 100_000, "is no JSON: maximum recursion"),
    (b"[]", "has schema None"), (b'{"schema":"fleet-sim-run/9"}', "fleet-sim-run/9"),
])  # fmt: skip
def test_what_is_no_report_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UnreadableReport, match=words):
        read(tmp_path / "x.json")
    with pytest.raises(UnreadableReport, match="cannot be read"):
        read(tmp_path / "missing.json")
    with pytest.raises(UnreadableReport, match=r"report\.json cannot be read: No such file"):
        read(tmp_path)


@pytest.mark.parametrize("content", ["", "nonsense\n", '{"sample": {}}\n', "[]\n"])
def test_what_is_no_progress_of_a_run_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "progress.jsonl").write_text(content)
    with pytest.raises(UnreadableReport, match=r"progress\.jsonl: it does not begin as the progress of a run does"):
        read(tmp_path, document_so_far)


def test_the_page_is_well_formed_and_fetches_nothing() -> None:
    page = page_of(json.loads(json.dumps(imagined())))
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.fetched == []
    assert "@import" not in page
    assert "url(" not in page


def test_words_from_outside_are_text_on_the_page() -> None:
    page = page_of(imagined())
    assert "<b>of this</b>" not in page
    assert "Nothing &lt;b&gt;of this&lt;/b&gt; happened &amp; nobody" in page
    assert "meter-&lt;7&gt;" in page


def test_the_page_says_what_the_document_says() -> None:
    document = imagined()
    tags = Tags()
    tags.feed(page_of(document))
    words = {word.strip() for word in tags.words}
    assert {f"{item['value']:g}" for item in document["thresholds"]} <= words
    assert {f"{duration['response']['max']:.2f}" for duration in document["durations"].values()} <= words
    assert {document["verdict"], "999", "1"} <= words


@pytest.mark.parametrize("kind", ["stayed in", "readmitted", FAILED_REVOCATION, LOST_RECEIVER, PAST_DEADLINE])
def test_what_a_verdict_is_about_is_on_the_time_line(kind: str) -> None:
    document = imagined()
    document["markers"] = [{"at": 1.0, "kind": kind, "what": "meter-7"}]
    page = page_of(document)
    assert f"<title>{kind}: meter-7</title>" in page
    assert f"▲ {kind}</span>" in page


def test_a_run_in_which_nothing_was_measured_has_a_page() -> None:
    document = imagined()
    document.update(durations={}, markers=[], refusals={}, false_refusals={})
    for sample in document["timeline"]:
        sample.update(windows={}, refusals={}, received=0, published=0)
    Tags().feed(page_of(document))


def test_the_time_line_has_a_row_a_second() -> None:
    rows = list(csv.DictReader(io.StringIO(timeline_csv(imagined()))))
    assert len(rows) == 10
    assert rows[4]["stage"] == "storm 100%"
    assert float(rows[0]["admitted_p99"]) > 0
    assert rows[9]["received"] == "1000"


def test_a_time_outside_all_stages_has_none() -> None:
    assert stage_at(imagined(), 99.0) == ""


def test_each_threshold_is_a_test_case() -> None:
    suite = ET.fromstring(junit(imagined()))  # noqa: S314 - our own
    failed = [case.get("name") for case in suite if case.find("failure") is not None]
    assert failed == ["admitted p99 < 1", "lost == 0"]
    assert (suite.get("tests"), suite.get("failures")) == ("5", "2")
    assert suite[-1].get("name") == "neither the generator nor the link was the bottleneck"


def test_a_run_that_was_interrupted_is_no_success_for_junit_either() -> None:
    document = imagined()
    document["interrupted"] = "SIGINT"
    suite = ET.fromstring(junit(document))  # noqa: S314 - our own
    assert (suite.get("tests"), suite.get("failures")) == ("6", "3")
    failure = suite[-1].find("failure")
    assert failure is not None
    assert (suite[-1].get("name"), failure.get("message")) == ("the run was not interrupted", "SIGINT")


def test_a_comparison_says_what_is_better() -> None:
    found = {item.name: item for item in differences(imagined(), imagined(factor=2.0))}
    assert found["admitted p99 ms"].css == "bad"
    assert found["admitted p99 ms"].change.startswith("+")
    assert found["published"].css == "soft"
    assert found["published"].change == "="
    again = {item.css for item in differences(imagined(), imagined())}
    assert again == {"soft"}


def test_a_percentile_of_few_values_is_neither_better_nor_worse() -> None:
    """Of 12 reconnections the 99th percentile is the slowest one."""
    few = imagined(factor=2.0)
    few["durations"]["admitted"]["response"]["count"] = 12
    found = {item.shown: item.css for item in differences(imagined(), few)}
    assert found["admitted p99 ms (of 200 and 12)"] == "soft"
    assert found["admitted p50 ms"] == found["tcp p99 ms"] == "bad"
    assert "admitted p99 ms (of 200 and 12)" in comparison_page(imagined(), few)


def test_a_count_of_millions_is_written_out() -> None:
    """As 1.23457e+06 it hid how many were missing."""
    before, after = imagined(), imagined()
    before["counts"] |= {"received": 1_234_567, "lost": 0}
    after["counts"] |= {"received": 1_234_560, "lost": 1_000_007}
    page = comparison_page(before, after)
    assert all(figure in page for figure in ("1234567", "1234560", "+1000007"))
    assert figure_of({"value": 1_234_567.0}) == "1234567"


def test_what_only_one_run_has_measured_is_in_the_comparison() -> None:
    older, other = imagined(), imagined()
    del other["durations"]["revoked_closed"], older["counts"]["stayed_in"]
    other["counts"]["stayed_in"] = 3
    for before, after in ((older, other), (other, older)):
        found = {item.name: item for item in differences(before, after)}
        assert {found["revoked_closed p99 ms"].before, found["revoked_closed p99 ms"].after} > {None}
        assert {found["stayed_in"].before, found["stayed_in"].after} == {None, 3}
        assert "not measured" in comparison_page(before, after)
    assert "revoked, and not closed" in page_of(other)


@pytest.mark.parametrize(
    ("before", "after", "change", "css"),
    [
        (100.0, 150.0, "+50%", "bad"),
        (150.0, 100.0, "-33%", "good"),
        (100.0, 105.0, "+5%", "soft"),
        (100.0, 106.0, "+6%", "bad"),
        (100.0, 94.0, "-6%", "good"),
        (100.0, 100.0, "=", "soft"),
        (0.0, 3.0, "+3", "bad"),
        (None, 3.0, "", "soft"),
        (3.0, None, "", "soft"),
    ],
)
def test_a_difference_is_a_share_of_what_was_before_and_within_five_per_cent_it_is_noise(
    before: float | None, after: float | None, change: str, css: str
) -> None:
    assert (found := Difference("x", before, after, duration=True)).change == change
    assert found.css == css
    assert Difference("x", before, after, duration=False).css == "soft"


def test_a_comparison_says_how_the_runs_differ() -> None:
    other = imagined()
    other["scenario"]["devices"] = 80
    assert conditions(imagined(), imagined()) == []
    assert conditions(imagined(), other) == [("devices", "40", "80")]
    other["environment"] |= {"broker": "mosquitto 2.0.21", "load_average": 99.0, "new": 1}
    assert conditions(imagined(), other)[1:] == [
        ("broker", "unknown", "mosquitto 2.0.21"), ("new", "None", "1"),
    ]  # fmt: skip
    generated = imagined()
    generated["generator"] |= {"driver": "light", "key_exchange": "OpenSSL's default", "sources": 4}
    generated["generator"]["processes"] *= 3
    assert conditions(imagined(), generated) == [
        ("driver", "paho", "light"), ("key_exchange", "X25519", "OpenSSL's default"), ("sources", "1", "4"),
        ("processes", "1", "3"),
    ]  # fmt: skip


def summarised(document: Document) -> list[str]:
    """Return the lines of the summary on the terminal."""
    console = Console(file=io.StringIO(), width=150)
    console.print(summary_of(document))
    return [line.strip() for line in cast("io.StringIO", console.file).getvalue().splitlines()]


def test_the_summary_says_what_the_document_says() -> None:
    document = imagined()
    document["invalid"] = ["the generator's loop was late"]
    lines = summarised(document)
    assert ["metric", "condition", "value"] in [line.split() for line in lines]
    assert lines[-1].startswith("FAIL: imagined on unknown, 40 devices, 10 s (seed 42, scenario ")
    for item in document["thresholds"]:
        mark = "✓" if item["passed"] else "✗"
        assert [mark, item["metric"], *item["condition"].split(), figure_of(item)] in [line.split() for line in lines]
    assert any(line.startswith("published 1000, received 999, lost 1,") or "published 1000" in line for line in lines)
    assert any(line.startswith("refused: ") and "mqtt 0x87 Not authorized" in line for line in lines)
    assert "false refusal of meter-<7>: tls unknown_ca" in lines
    assert "the timings are void: the generator's loop was late" in lines
    assert "INVALID: the generator's loop was late" in summarised(document | {"verdict": "INVALID"})
    assert "generator: lag p99 1 ms, cpu 20% (most 20%), waited 0%, 80 MB" in lines
    assert not any(line.startswith("link:") for line in lines)
    document["generator"]["processes"][0]["memory_a_device_kb"] = 55.4
    document["generator"]["distance"] = {"round_trip": 0.5, "usual": 0.5, "timeout": 0.5, "lost": 0.0}
    far = summarised(document)
    assert "generator: lag p99 1 ms, cpu 20% (most 20%), waited 0%, 80 MB, 55 KB a device" in far
    assert any(line.startswith("link: round trip 500 ms") for line in far)
    document["refusals"] = {}
    assert not any("refused: " in line for line in summarised(document))


def test_a_document_says_of_each_process_how_it_fared() -> None:
    samples = [HealthSample(1.0, 3.0, share, 60, 20_000, 150, 28_232, memory, waiting)
               for share, memory, waiting in ((0.2, 80.0, 0.0), (0.4, 95.0, 0.3))]  # fmt: skip
    slow, quick = Latency(), Latency()
    slow.record(0.250)
    quick.record(0.001)
    processes = [ProcessHealth("worker 1", samples, quick, 150, 80.0), ProcessHealth("conductor", [], slow)]
    manner = Manner(Driver.LIGHT, 2, ("127.0.0.2", "127.0.0.3"), hybrid_key_exchange=True)
    scenario = build(SCENARIO, "imagined")
    result = RunResult(scenario, datetime.now(UTC), 10.0, Recorder(), processes, {}, {}, manner=manner)
    found = document_of(result)["generator"]
    assert found["processes"][0] == {
        "name": "worker 1", "devices": 150, "lag_p99_ms": 1.0, "processor_mean": 0.3, "processor_max": 0.4,
        "waiting_mean": 0.15, "memory_max_mb": 95.0, "memory_a_device_kb": 100.0,
    }  # fmt: skip
    nothing = {"processor_mean": 0.0, "processor_max": 0.0, "waiting_mean": 0.0, "memory_max_mb": 0.0}
    assert nothing.items() <= found["processes"][1].items()
    assert found["lag"]["max"] == pytest.approx(250, rel=0.01), "of the slowest process"
    assert (found["driver"], found["sources"], found["key_exchange"]) == ("light", 2, "OpenSSL's default")
    plain = document_of(RunResult(scenario, datetime.now(UTC), 10.0, Recorder(), processes, {}, {}))["generator"]
    assert (plain["driver"], plain["sources"], plain["key_exchange"]) == ("paho", 1, "X25519")


def test_ticks_are_round_and_few() -> None:
    assert nice_ticks(0, 100, 4) == [0, 25, 50, 75, 100]
    assert nice_ticks(0, 7, 5) == [0, 2, 4, 6]
    assert nice_ticks(3, 3, 5) == [3]
    assert log_ticks(0.1, 100) == [pytest.approx(0.1), 1, 10, 100]
    assert [short(value) for value in (0.1, 5.0, 1500.0, 25_000.0)] == ["0.1", "5", "1500", "25k"]


@pytest.mark.parametrize(("width", "headings"), [(80, 5), (50, 3)])
def test_on_a_narrow_terminal_there_are_fewer_figures_and_each_is_whole(width: int, headings: int) -> None:
    document = imagined()
    console = Console(file=io.StringIO(), width=width)
    console.print(summary_of(document))
    assert isinstance(console.file, io.StringIO)
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    for name, duration in document["durations"].items():
        assert [f"{dict(map(tuple, duration['response']['curve']))[99.0]:.2f}" in line for line in lines
                if line[:1] == [name] and len(line) == headings + 1] == [True], name  # fmt: skip
    assert "…" not in console.file.getvalue()


def test_what_is_outside_its_range_is_drawn_at_the_edge() -> None:
    plot = Plot(100, 100, (0, 10), (0, 10), name="test")
    plot.line([(-5, 5), (50, 500)], "c0")
    assert 'points="52.0,48.0 90.0,22.0"' in plot.svg()


def test_a_line_of_very_many_points_has_those_that_can_be_seen() -> None:
    """A day has 86,400 seconds, a report a dozen such lines, twice: a phone opened none of its 36 MB."""
    plot = Plot(100, 100, (0, 10_000), (0, 100), name="test")
    points = [(float(second), 50.0 + second % 2) for second in range(10_000)]
    points[3210], points[6543] = (3210.0, 99.0), (6543.0, 1.0)
    plot.line(points, "c0")
    plot.band([(x, y - 1) for x, y in points], points, "c0")
    line, band = plot.svg().split('points="')[1:]
    seen = [tuple(map(float, point.split(","))) for point in line.split('"')[0].split()]
    assert len(seen) <= 4 * 100
    assert len(band.split('"')[0].split()) <= 8 * 100
    assert (min(y for _, y in seen), max(y for _, y in seen)) == (22.5, 73.5), "one second that stands out"
    assert (seen[0][0], seen[-1][0]) == (52.0, 90.0)
    assert seen == sorted(seen, key=lambda point: point[0])


def test_each_reason_is_said_once_however_many_met_with_it() -> None:
    """Of three hundred revocations in vain, twenty lines that differed in a name had pushed the verdict away."""
    document = imagined()
    document["markers"] = [
        {"at": 1.0, "kind": "failed revocation", "what": f"meter-{number}: https://ca does not answer: too late"}
        for number in range(5)
    ]
    document["markers"] += [
        {"at": 2.0, "kind": "failed revocation", "what": "meter-9: https://ca does not answer: refused"},
        {"at": 2.0, "kind": "past the deadline", "what": "a session closed after 6.0 s, 5 near the broker"},
        *({"at": 3.0, "kind": "lost receiver", "what": "backend: tcp reset"} for _ in range(4)),
        {"at": 5.0, "kind": "ctl", "what": "storm"},
    ]
    assert remarks(document) == [
        "failed revocation, 5 times: https://ca does not answer: too late (meter-0, meter-1, meter-2, …)",
        "failed revocation: meter-9: https://ca does not answer: refused",
        "past the deadline: a session closed after 6.0 s, 5 near the broker",
        "lost receiver, 4 times: tcp reset (backend)",
    ]


@pytest.mark.parametrize(("answer", "told"), [("PUBACK 0x87", True), ("PUBREC 0x87", True), ("PUBACK 0x97", False)])
def test_a_policy_that_refuses_the_fleet_is_told_what_it_must_allow(answer: str, told: bool) -> None:
    document = imagined()
    document["refusals"] = {answer: 7}
    said = [each for each in remarks(document) if each.startswith("the broker's policy refuses messages")]
    assert bool(said) is told


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ({"lost": 7}, True),
        ({"lost": 7, "refused_messages": 6}, True),
        ({"lost": 7, "refused_messages": 7}, False),
        ({"lost": 7, "received": 1}, False),
        ({"lost": 7, "unexpected": 7}, False),
        ({"lost": 7, "altered": 7}, False),
        ({}, False),
    ],
)
def test_a_policy_that_delivers_nothing_is_told_what_it_must_allow(counts: dict[str, int], told: bool) -> None:
    """Nothing else says so: mosquitto grants the subscription."""
    document = imagined()
    document["counts"] = {**dict.fromkeys(document["counts"], 0), "published": 7, **counts}
    said = [each for each in remarks(document) if each.startswith("the broker has accepted messages and delivered")]
    assert bool(said) is told


def test_a_run_without_thresholds_and_one_whose_receiver_was_away_say_so() -> None:
    document = imagined()
    own = [item for item in document["thresholds"] if not item["security"]]
    assert own
    assert remarks(document) == []
    document["scenario"]["thresholds"] = {}
    document["markers"] = [{"at": 1.0, "kind": "lost receiver", "what": "backend: tcp <closed>"}]
    without, away = remarks(document)
    assert without == "the scenario sets no thresholds: only admission was judged"
    assert away == "lost receiver: backend: tcp <closed>"
    page, console = page_of(document), Console(file=io.StringIO(), width=60)
    console.print(summary_of(document))
    for remark in (without, away):
        assert escape(remark[:1].upper() + remark[1:]) in page
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert without in " ".join(told.split())


def test_failures_that_no_threshold_judges_are_told() -> None:
    """A latency is that of the messages that have arrived: a broker that loses the slow ones looks quick."""
    document = imagined()
    assert document["counts"]["lost"] == 1, "which the scenario judges"
    document["counts"] |= {"unreached": 2, "held_back": 30, "unexpected": 0, "reconnections": 7}
    assert remarks(document) == ["judged by no threshold: unreached 2, held_back 30"]
    assert "judged by no threshold: unreached 2, held_back 30" in summarised(document)
    assert "Judged by no threshold: unreached 2, held_back 30" in page_of(document)


def test_a_metric_is_named_whole_on_a_narrow_terminal() -> None:
    document = imagined()
    document["durations"]["revoked_refused"] = next(iter(document["durations"].values()))
    console = Console(file=io.StringIO(), width=60)
    console.print(summary_of(document))
    assert "…" not in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_page_of_somebody_else_s_document_runs_nothing() -> None:
    hostile = "<script>alert(1)</script>"
    document = imagined()
    document["counts"] |= {"admissions": hostile, hostile: hostile}
    document["scenario"] |= {"seed": hostile, "summary": hostile}
    for process in document["generator"].get("processes", []):
        process |= {"name": hostile, "devices": hostile}
    document["timeline"][-1]["health"] |= {"descriptors": hostile}
    page = page_of(document)
    assert "<script" not in page
    assert page.count(escape(hostile)) > 5
    assert "default-src 'none'" in page.partition("</head>")[0], "and what is forgotten here is not run"


@pytest.mark.parametrize("words", ["[bold green]✓[/]", "an [/ending] of nothing"])
def test_words_of_somebody_else_s_document_are_shown_as_they_are(words: str) -> None:
    """Neither is there a colour in them, nor does a mistake in them end the program."""
    document = imagined()
    for judged in document["thresholds"]:
        judged |= {"metric": words, "condition": words}
    document["durations"][words] = next(iter(document["durations"].values()))
    document["verdict"] = words
    for shown, times in ((summary_of(document), 4), (comparison_of(document, document), 4)):
        console = Console(file=io.StringIO(), width=200)
        console.print(shown)
        assert console.file.getvalue().count(words) >= times  # type: ignore[attr-defined]


@pytest.mark.parametrize(("by", "words"), [("SIGINT", "Ctrl-C or `fleet-sim ctl stop`"), ("SIGTERM", "SIGTERM")])
def test_the_page_of_a_run_that_was_ended_early_says_so_and_by_what(by: str, words: str) -> None:
    document = imagined()
    assert "ended early" not in page_of(document)
    document["interrupted"] = by
    assert f'<p class="notice">The run was ended early by {words}.</p>' in page_of(document)


def test_of_a_run_without_a_report_only_who_asks_for_it_is_given_what_is_known_so_far(tmp_path: Path) -> None:
    (tmp_path / "progress.jsonl").mkdir()
    with pytest.raises(UnreadableReport, match=r"report\.json cannot be read: No such file"):
        read(tmp_path)
    with pytest.raises(UnreadableReport, match=r"progress\.jsonl cannot be read: Is a directory"):
        read(tmp_path, document_so_far)
    (tmp_path / "progress.jsonl").rmdir()
    write_all(document := imagined(), tmp_path)
    assert read(tmp_path, document_so_far)["verdict"] == document["verdict"]
