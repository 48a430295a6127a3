"""A scenario that a Python program builds is the one that a file says; the page's example works."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from device_sim.scenario.catalogue import find
from device_sim.scenario.model import GeneratorLimits, InvalidScenario, parse

PAGE = Path(__file__).parents[4] / "docs" / "simulator.md"
IMPORTS = "from device_sim.scenario.model import Scenario\nfrom device_sim.scenario.stages import Hold, Ramp\n"
IN_A_FILE = """
name = "steps"
devices = 200
[[groups]]
name = "meters"
telemetry = { every = "2s", jitter = "20%" }
[[stages]]
ramp = { to = "25%", rate = 50 }
[[stages]]
hold = "10s"
[[stages]]
ramp = { to = "50%", rate = 50 }
[[stages]]
hold = "10s"
[[stages]]
ramp = { rate = 50 }
[[stages]]
hold = "10s"
[[stages]]
revoke = { select = "5%", rate = 10 }
[thresholds]
lost = ["== 0"]
unreached = ["== 0"]
revoked_closed = ["p99 < 1000"]
"""


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.py"
    path.write_text(text)
    return str(path)


def test_the_page_s_program_builds_what_a_file_says(tmp_path: Path) -> None:
    programs = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (program,) = [text for text in programs if "Scenario(" in text]
    built = find(written(tmp_path, program))
    assert built == parse(IN_A_FILE, "test")
    assert built.fingerprint == parse(IN_A_FILE, "test").fingerprint


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("x = 1", "it has no `scenario"),
        ("scenario = 1", "it has no `scenario"),
        (
            IMPORTS + "scenario = Scenario(name='x', stages=[Hold(seconds=1)])",
            "the first must be a ramp",
        ),
        (
            IMPORTS + "scenario = Scenario(name='x', stages=[Ramp(rate=1)], thresholds={'speed': ['< 1']})",
            "speed",
        ),
        (IMPORTS + "stages = [Hold(seconds='5x')]", r"mine\.py:3: Hold: seconds: '5x' is no duration: write '500ms'"),
        (IMPORTS + "stages = [Hold(second=5)]", r"mine\.py:3: Hold: second: there is no such field; did you mean 'sec"),
        ("x =", r"mine\.py: SyntaxError: invalid syntax .*line 1"),
        ("\nimport nowhere", r"mine\.py:2: ModuleNotFoundError: No module named 'nowhere'"),
        ("open('/nonexistent')", r"mine\.py:1: FileNotFoundError"),
        ("raise SystemExit(0)", r"mine\.py:1: SystemExit: 0"),
    ],
)
def test_a_program_that_builds_no_scenario_is_told_why(tmp_path: Path, program: str, words: str) -> None:
    with pytest.raises(InvalidScenario, match=words):
        find(written(tmp_path, program))


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidScenario, match=r"nowhere\.py cannot be read"):
        find(str(tmp_path / "nowhere.py"))


def test_what_the_page_says_of_the_generator_holds_where_a_scenario_says_nothing() -> None:
    (block,) = re.findall(r"^\[generator\].*?(?=```)", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert tomllib.loads(block)["generator"] == GeneratorLimits().model_dump()
