"""How answers are printed for people."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta

import pytest
import typer
from pydantic import BaseModel

from provisioning.commands.service_command import duration, print_facts, span
from provisioning.program.given_moment import moment
from provisioning.program.printed_table import print_table

COLUMNS = ("number", "device", "key")
ROWS = (("1", "meter-1", "a" * 64), ("2", "meter-2", "b" * 64))


def test_a_table_is_aligned_and_never_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    print_table(COLUMNS, ROWS)
    assert capsys.readouterr().out.splitlines() == [
        "number  device   key",
        f"1       meter-1  {'a' * 64}",
        f"2       meter-2  {'b' * 64}",
    ]


@pytest.mark.parametrize("width", [80, 81])
def test_on_a_narrow_terminal_each_row_is_a_block(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table(COLUMNS, ROWS)
    lines = capsys.readouterr().out.splitlines()
    if width == 81:
        assert [len(line) for line in lines[1:]] == [81, 81]
        return
    assert lines == [
        *("number  1", "device  meter-1", f"key     {'a' * 64}"),
        "",
        *("number  2", "device  meter-2", f"key     {'b' * 64}"),
    ]


def test_an_empty_table_has_its_columns_still(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table(COLUMNS, ())
    assert capsys.readouterr().out == "number  device  key\n"


class Facts(BaseModel):
    server_keys: bool
    closed: bool
    ways: list[str]
    created_at: datetime
    lifetime_seconds: int | None = None
    grace_seconds: int = 0


def test_facts_are_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    at = datetime(2027, 1, 5, 10, 15, tzinfo=UTC)
    facts = Facts(server_keys=True, closed=False, ways=["token", "claim+approval"], created_at=at)
    print_facts(facts.model_copy(update={"lifetime_seconds": 604_800}))
    assert capsys.readouterr().out.splitlines() == [
        "server keys  yes",
        "closed       no",
        "ways         token, claim+approval",
        "created at   2027-01-05 10:15:00 UTC",
        "lifetime     7d",
        "grace        0s",
    ]
    print_facts(facts, without={"created_at"})
    assert "lifetime" not in capsys.readouterr().out


def test_a_time_is_in_utc_unless_it_says_otherwise() -> None:
    ten = datetime(2026, 1, 5, 10, tzinfo=UTC)
    assert moment("2026-01-05T10:00:00") == moment("2026-01-05 10:00") == moment("2026-01-05T10:00Z") == ten
    assert moment("2026-01-05T15:00:00+05:00") == ten
    assert moment("2026-01-05") == ten.replace(hour=0)
    assert moment("2026-01-05 10:00:00 UTC") == ten, "as tables show it"
    with pytest.raises(typer.BadParameter, match="outside the years 1 to 9999"):
        moment("0001-01-01T00:00:00+05:00")


@pytest.mark.parametrize("text", ["2026", "1767607200", "gestern", ""])
def test_a_number_is_no_time(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not a time: write 2027-01-05, or"):
        moment(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("12h", 43_200), ("7d", 604_800), ("2w", 1_209_600), ("1.5h", 5400), ("3600", 3600),
     (0, 0)],
)  # fmt: skip
def test_a_span_of_time_has_a_unit_or_is_seconds(text: object, seconds: int) -> None:
    assert span(text) == seconds


@pytest.mark.parametrize("text", ["", "-1", "1y", "h", "P1D", "1e3", "9" * 5000, f"{'9' * 400}d", "²"])
def test_what_is_no_span_of_time_is_told_with_what_to_write(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not a duration: write 90s, 15m, 12h, 7d, or a number of seconds"):
        span(text)


def test_a_duration_has_its_unit_and_is_no_longer_than_a_certificate_s_life_can_be() -> None:
    assert duration(" 14d ", "--within") == timedelta(days=14)
    for text, words in (("14", "write 90m, 12h, 14d or 4w"), ("100y", "is not a duration"), ("36501d", "can live")):
        with pytest.raises(typer.BadParameter, match=words):
            duration(text, "--within")
