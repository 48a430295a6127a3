"""The outcomes of one run: a table for people, JSON and JUnit XML for machines, Markdown for the documentation."""

from __future__ import annotations

import json
import platform
import ssl
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree as ET

from rich.console import Console
from rich.table import Table
from rich.text import Text

from device_sim.attack.run import worst
from device_sim.attack.verdict import Outcome, Verdict
from device_sim.terminal import ReaderLeft, WordsOnly
from provisioning.program.given_file import LIST_BYTES, text_of
from provisioning.program.printable import printable
from provisioning.program.version import version_and_build

SCHEMA = 1
_WIDTH = 200
_NAME_WIDTH = 38  # The longest is staple-other-certificate.sends-nothing, of `qualify`.
_STYLE = {
    Verdict.PASS: "green",
    Verdict.WARN: "yellow",
    Verdict.FAIL: "bold red",
    Verdict.SKIP: "dim",
    Verdict.INVALID: "yellow",
}


_LEAST_COLUMN = 20
"""Characters that a column of sentences needs to be read; on a narrower terminal each case has lines of its own."""
_BESIDE = 18
"""What verdict, milliseconds and the spaces between columns take."""

_CONSPICUOUS = (Verdict.FAIL, Verdict.WARN, Verdict.INVALID)
"""Verdicts that are explained, and named once more at the end."""


def console(file: IO[str]) -> Console:
    """Return a console on *file*, wide if that is not a terminal."""
    return WordsOnly(file=file, width=None if file.isatty() else _WIDTH)


def environment() -> dict[str, str]:
    """Return the facts about this machine that a reader of the outcome needs."""
    return {
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "fleet_sim": version_and_build(),
    }


def line(outcome: Outcome) -> str:
    """Return one outcome in one line of plain text: what was wrong there, and what would have been right."""
    if outcome.verdict in {Verdict.FAIL, Verdict.WARN} and not outcome.clause and outcome.expected:
        return f"{_line(outcome)}; expected: {' or '.join(outcome.expected)}"
    return _line(outcome)


def _line(outcome: Outcome) -> str:
    seen = outcome.seen
    answer = seen.text if seen is not None else "-"
    if seen is not None and outcome.seconds:
        answer += f"  {outcome.seconds * 1000:.0f} ms"
    if seen is not None and seen.figures:
        answer += f"  {seen.figures}"
    why = f"  ({_promised(outcome)})" if outcome.judgement.why else ""
    return f"{outcome.verdict.value.upper():7}  {outcome.name:{_NAME_WIDTH}}  {answer}{why}"


def _promised(outcome: Outcome) -> str:
    """Return the reason for the verdict, and where the standard promises otherwise."""
    why, verdict = outcome.judgement.why, outcome.verdict
    return f"{why}; {outcome.clause}" if outcome.clause and verdict in {Verdict.FAIL, Verdict.WARN} else why


def totals(outcomes: Sequence[Outcome]) -> str:
    """Return the number of cases per verdict."""
    return _in_words(_counted(outcomes))


def _counted(outcomes: Sequence[Outcome]) -> dict[str, int]:
    count = Counter(outcome.verdict for outcome in outcomes)
    return {verdict.value: count[verdict] for verdict in Verdict}


def _in_words(totals: Mapping[str, int]) -> str:
    # Usually every case can be judged on the machine on which it is tried.
    return ", ".join(f"{n} {verdict}" for verdict, n in totals.items() if n or verdict != Verdict.INVALID)


def show(
    console: Console,
    title: str,
    outcomes: Sequence[Outcome],
    headings: tuple[str, str] = ("the device …", "was answered"),
) -> None:
    """Print a table on a terminal, on a narrow one a paragraph for each; lines elsewhere; and the totals."""
    if not console.is_terminal:
        for outcome in outcomes:
            console.print(line(outcome), soft_wrap=True, highlight=False, markup=False)
        console.print(f"{title}: {totals(outcomes)}", soft_wrap=True, highlight=False, markup=False)
        return
    longest = max((len(outcome.name) for outcome in outcomes), default=0)
    if console.width < _BESIDE + longest + 2 * _LEAST_COLUMN:
        console.print(_paragraphs(title, outcomes), highlight=False)
    else:
        console.print(_table(title, outcomes, headings), highlight=False)
    console.print(f"\n{totals(outcomes)}", highlight=False)
    for verdict in _CONSPICUOUS:  # The table is longer than a screen.
        if names := [outcome.name for outcome in outcomes if outcome.verdict is verdict]:
            console.print(Text(f"{verdict.value}: {', '.join(names)}", style=_STYLE[verdict]), highlight=False)


def _table(title: str, outcomes: Sequence[Outcome], headings: tuple[str, str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    for heading in ("", "case", *headings, "ms"):
        # A case's name stays whole: it is what --only takes. So does the verdict.
        is_whole = heading in {"", "case"}
        table.add_column(heading, justify="right" if heading == "ms" else "left", overflow="fold", no_wrap=is_whole)
    for outcome in outcomes:
        table.add_row(_verdict_of(outcome), outcome.name, outcome.description, _answer(outcome), _figure(outcome))
    return table


def _paragraphs(title: str, outcomes: Sequence[Outcome]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for outcome in outcomes:
        figure = f"  {_figure(outcome)} ms" if _figure(outcome) else ""
        table.add_row(_verdict_of(outcome), f"{outcome.name}{figure}")
        table.add_row("", outcome.description)
        table.add_row("", _answer(outcome))
    return table


def _verdict_of(outcome: Outcome) -> Text:
    return Text(outcome.verdict.value, style=_STYLE[outcome.verdict])


def _answer(outcome: Outcome) -> Text:
    """Return what was seen, and below it what is said of that."""
    answer = Text(outcome.seen.text if outcome.seen is not None else "")
    for words in _explained(outcome):
        answer.append(f"\n{words}" if answer else words, style="dim")
    return answer


def _figure(outcome: Outcome) -> str:
    """Return the milliseconds that it took, if that is known."""
    return f"{outcome.seconds * 1000:.0f}" if outcome.seen is not None and outcome.seconds else ""


def show_stopped(console: Console, title: str, outcomes: Sequence[Outcome], how_far: str) -> None:
    """Print what was judged before the tester stopped the run; on a terminal it is there already."""
    judged = totals(outcomes) if outcomes else "nothing judged"
    lines = [] if console.is_terminal else list(map(line, outcomes))
    with suppress(OSError, ReaderLeft):  # What the tester has stopped ends by that.
        for each in (*lines, f"{title}, stopped {how_far}: {judged}"):
            console.print(each, soft_wrap=True, highlight=False, markup=False)


def _explained(outcome: Outcome) -> list[str]:
    """Return what is said of an answer: the reason for the verdict, the peer's own words, and the right answer."""
    why, seen = outcome.judgement.why, outcome.seen
    figures = [seen.figures] if seen is not None and seen.figures else []
    if outcome.verdict not in _CONSPICUOUS:
        return [*([why] if why else []), *figures]
    said = [f"it said: {seen.reason}"] if seen is not None and seen.reason and seen.reason not in why else []
    right = f"promised by {outcome.clause}" if outcome.clause else f"expected: {' or '.join(outcome.expected)}"
    return [why, *figures, *said, right]


def as_dict(kind: str, name: str, outcomes: Sequence[Outcome], environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the whole run for a JSON document."""
    return {
        "schema": SCHEMA,
        "kind": kind,
        "target": name,
        "environment": dict(environment),
        "verdict": worst(outcomes).value,
        "totals": _counted(outcomes),
        "cases": [outcome.as_dict() for outcome in outcomes],
    }


def json_of(document: Mapping[str, Any]) -> str:
    """Return the text of the JSON document."""
    return json.dumps(document, indent=2) + "\n"


def read_json(path: Path) -> Mapping[str, Any]:
    """Return the document whose text was `json_of`; raise `ValueError` if it is something else."""
    try:
        document = json.loads(text_of(path, LIST_BYTES))
    except RecursionError:
        raise ValueError("there is too much in it, one within the other") from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA or "cases" not in document:
        raise ValueError(f"it has no cases, or is not of schema {SCHEMA}")
    return document


def junit_of(kind: str, name: str, outcomes: Sequence[Outcome], seconds: float) -> str:
    """Return JUnit XML of a run that took *seconds*.

    A failure is a failure, a skip a skip, and what could not be judged an error. A warning passes, with its text in the
    output.
    """
    count = Counter(outcome.verdict for outcome in outcomes)
    suite = ET.Element(
        "testsuite",
        name=f"fleet-sim {kind} {name}",
        tests=str(len(outcomes)),
        failures=str(count[Verdict.FAIL]),
        errors=str(count[Verdict.INVALID]),
        skipped=str(count[Verdict.SKIP]),
        time=f"{seconds:.3f}",
    )
    for outcome in outcomes:
        row = ET.SubElement(
            suite, "testcase", classname=f"{kind}.{name}", name=outcome.name, time=f"{outcome.seconds:.3f}"
        )
        told = f"{_line(outcome)}\nexpected: {' or '.join(outcome.expected)} within {outcome.limit:g} s"
        if outcome.seen is not None and outcome.seen.reason:
            told += f"\nsaid: {outcome.seen.reason}"
        if outcome.verdict is Verdict.FAIL:
            ET.SubElement(row, "failure", message=_xml(outcome.judgement.why)).text = _xml(told)
        elif outcome.verdict is Verdict.INVALID:
            ET.SubElement(row, "error", message=_xml(outcome.judgement.why)).text = _xml(told)
        elif outcome.verdict is Verdict.SKIP:
            ET.SubElement(row, "skipped", message=_xml(outcome.judgement.why))
        ET.SubElement(row, "system-out").text = _xml(told)
    written: bytes = ET.tostring(suite, encoding="utf-8", xml_declaration=True)
    return written.decode()


_Rows = dict[str, list[Mapping[str, Any] | None]]


def markdown(documents: Sequence[Mapping[str, Any]], *, every: bool = False) -> str:
    """Return a table that compares runs of the same catalogue, each read from its JSON document.

    Where cases are judged by clauses of a standard (`delivery`), it has a row for each clause that some broker breaks,
    and one that counts the others; with *every*, a row for each.
    """
    names = [str(document["target"]) for document in documents]
    rows: _Rows = {}
    for position, document in enumerate(documents):
        for case in document["cases"]:
            rows.setdefault(case["case"], [None] * len(documents))[position] = case
    if any("clause" in case for document in documents for case in document["cases"]):
        return _promises(documents, rows, every=every)
    lines = [
        f"| case | the device … | right answer | {' | '.join(names)} |",
        "|---|---|---|" + "---|" * len(names),
    ]
    for name, cases in rows.items():
        first = next(case for case in cases if case is not None)
        expected = " or ".join(first["expected"]["any_of"])
        cells = " | ".join(_cell(case) for case in cases)
        lines.append(f"| {name} | {_escaped(first['description'])} | {expected} | {cells} |")
    lines.append("| **total** | | | " + " | ".join(_in_words(document["totals"]) for document in documents) + " |")
    return "\n".join(lines) + "\n"


_KEPT = frozenset({Verdict.PASS, Verdict.SKIP})


def _promises(documents: Sequence[Mapping[str, Any]], rows: _Rows, *, every: bool) -> str:
    names = [f"{document['target']} {document.get('target_version', '')}".rstrip() for document in documents]
    lines = [f"| case | the device … | promised by | {' | '.join(names)} |", "|---|---|---|" + "---|" * len(names)]
    others = [Counter[str]() for _ in documents]
    for name, cases in rows.items():
        if not every and all(case is None or case["verdict"] in _KEPT for case in cases):
            for counted, case in zip(others, cases, strict=True):
                counted.update([] if case is None else [str(case["verdict"])])
            continue
        first = next(case for case in cases if case is not None)
        cells = " | ".join("" if case is None else _verdict(case) for case in cases)
        lines.append(f"| {name} | {_escaped(first['description'])} | {first.get('clause', '')} | {cells} |")
    if not every:
        counts = (", ".join(f"{number} {verdict}" for verdict, number in counted.items()) for counted in others)
        lines.append(f"| all others | | | {' | '.join(counts)} |")
    lines.append("| **total** | | | " + " | ".join(_in_words(document["totals"]) for document in documents) + " |")
    return "\n".join(lines) + "\n"


def _verdict(case: Mapping[str, Any]) -> str:
    verdict, why = case["verdict"], _escaped(case["why"])
    shown = verdict if verdict in _KEPT else f"**{verdict}**"
    return f"{shown}: {why}" if why else shown


def _cell(case: Mapping[str, Any] | None) -> str:
    if case is None:
        return ""
    seen = case["observed"]
    answer = f"{seen['answer']}, {seen['ms']:.0f} ms" if seen is not None else ""
    why = _escaped("; ".join(part for part in ((seen or {}).get("figures", ""), case["why"]) if part))
    return f"**{case['verdict']}** " + "; ".join(part for part in (answer, why) if part)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("$", "\\$")


def _xml(text: str) -> str:
    # XML 1.0 cannot represent most control characters, and the peer chose some of this text.
    return printable(text, also="\n\t")
