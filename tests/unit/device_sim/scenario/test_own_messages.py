"""Topics and payloads of a scenario's own: what may be written, and what is said about the rest."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from device_sim.link.tls_dial import Endpoint
from device_sim.run.dialogue import Job, line, order
from device_sim.run.manner import Manner, Share
from device_sim.scenario.groups import Group, Telemetry
from device_sim.scenario.model import InvalidScenario, Scenario, build, load, parse
from device_sim.scenario.stages import Ramp
from device_sim.telemetry.models import Model
from device_sim.telemetry.own_payload import ALWAYS

PAGE = Path(__file__).parents[4] / "docs" / "simulator.md"


def with_telemetry(directory: Path = Path(), **telemetry: Any) -> Telemetry:
    groups = [{"name": "meters", "telemetry": telemetry}]
    scenario = build({"name": "x", "stages": [{"ramp": {"rate": 1}}], "groups": groups}, "test", directory)
    built = scenario.groups[0].telemetry
    assert built is not None
    return built


@pytest.mark.parametrize(
    ("topic", "words"),
    [
        ("plant/data", r"groups\.1\.telemetry\.topic: 'plant/data' does not say which device it is: write a level {n"),
        ("plant/meter-{name}/data", "{name}: a placeholder fills a level of its own, as in plant/{name}/data"),
        ("plant/{nmae}", "{nmae}: there is no such placeholder in a topic; these exist: {name}, {group}"),
        ("plant/{name", "{: there is no such placeholder"),
        ("{name}/+", "a wildcard may only be in a topic filter"),
        ("{name}/#", "a wildcard may only be in a topic filter"),
        ("{name}/\0", "null character"),
        ("$aws/{name}", "topics that begin with [$] are the broker's own"),
        ("plant/{name}/\x7f", "has a control character"),
        ("fleet/{group}/{name}/state", "a run sends something else there"),
        ("fleet/{name}/x/cmd/y", "a run sends something else there"),
        ("fleet/x/{name}/{group}", "a run sends something else there"),
        ("{name}/" + 70_000 * "x", "65535 at most"),
        ("/".join(2_000 * ["{name}"]), "topic name: 129999 bytes, 65535 at most"),
        ("", "does not say which device it is"),
        (3, "telemetry.topic: 3 should be a valid string"),
    ],
)  # fmt: skip
def test_a_topic_that_is_none_says_why_and_what_to_write(topic: Any, words: str) -> None:
    with pytest.raises(InvalidScenario, match=words):
        with_telemetry(topic=topic)


@pytest.mark.parametrize(
    ("topic", "name", "pattern"),
    [
        ("plant/{group}/{name}/data", "plant/north/m-1/data", "plant/north/+/data"),
        ("{name}", "m-1", "+"),
        ("/{name}//{name}", "/m-1//m-1", "/+//+"),
        ("fleet/{group}/{name}/telemetry", "fleet/north/m-1/telemetry", "fleet/north/+/telemetry"),
        ("Größe %s/{name}", "Größe %s/m-1", "Größe %s/+"),
        (None, "fleet/north/m-1/telemetry", "fleet/north/+/telemetry"),
    ],
)
def test_a_topic_has_the_name_and_the_group_in_the_certificate(topic: str | None, name: str, pattern: str) -> None:
    telemetry = with_telemetry(topic=topic)
    assert (telemetry.topic_of("m-1", "north"), telemetry.pattern_of("north")) == (name, pattern)


@pytest.mark.parametrize(
    ("telemetry", "words"),
    [
        ({"payload": "{powr_w}"}, r"telemetry: payload: {powr_w}: there is no such placeholder; did you mean {power"),
        ({"payload": "{latitude}"}, "this model has {name}, {group}, {number}, {time}, {time_ms}, {hour}, {power_w}, "),
        ({"payload": "{alarm}"}, "no such placeholder"),
        ({"payload": "x", "payload_file": "reading.json"}, "there is one payload; leave one of them out"),
        ({"payload": "x", "format": "cbor"}, "format: cbor is a payload of ours, and this is another; leave it out"),
        ({"payload": "x" * 70_000}, "payload: 70000 bytes; 65536 at most"),
        ({"payload_file": "absent.json"}, "absent.json cannot be read: No such file or directory"),
        ({"payload_file": "huge.json"}, "huge.json cannot be read: .*64 KiB"),
        ({"payload_file": "wrong.json"}, "payload_file: {nmae}: there is no such placeholder; did you mean {name}"),
        ({"payload_file": "."}, "cannot be read: Is a directory"),
        ({"payload_file": 3}, "payload_file"),
    ],
)  # fmt: skip
def test_a_payload_that_is_none_says_why_and_what_to_write(
    tmp_path: Path, telemetry: dict[str, Any], words: str
) -> None:
    (tmp_path / "reading.json").write_text("{}")
    (tmp_path / "wrong.json").write_text('{"id":"{nmae}"}')
    (tmp_path / "huge.json").write_bytes(bytes(70_000))
    with pytest.raises(InvalidScenario, match=words):
        with_telemetry(tmp_path, **telemetry)


VALUES = {"power_w": 512.5, "alarm": None}


def filled(telemetry: Telemetry, values: dict[str, float | str | None] | None = None) -> bytes:
    payload = telemetry.own_payload
    assert payload is not None
    return payload.filled("m-1", "north", 7, 1_700_000_000.9876, values or {})


def test_a_text_is_a_template_whose_other_braces_are_braces() -> None:
    text = '{"id":"{name}","in":{"g":"{group}"},"n":{number},"w":{power_w},"at":"{time}","ms":{time_ms},"%s":"100 %"}'
    assert filled(with_telemetry(payload=text), {"power_w": 512.5}) == (
        b'{"id":"m-1","in":{"g":"north"},"n":7,"w":512.5,"at":"2023-11-14T22:13:20.987Z","ms":1700000000987,'
        b'"%s":"100 %"}'
    )


@pytest.mark.parametrize(("alarm", "written"), [(None, b"null"), ("vibration", b'"vibration"')])
def test_values_are_written_as_in_json(alarm: str | None, written: bytes) -> None:
    assert filled(with_telemetry(model="machine", payload="{alarm}"), {"alarm": alarm}) == written


def test_what_has_no_placeholder_is_sent_as_it_is(tmp_path: Path) -> None:
    for content in (b"", b"{}", b'{"a":{"b":1}} 100 %', b"\xff{name}\x00", "Größe".encode()):
        (tmp_path / "as.is").write_bytes(content)
        assert filled(with_telemetry(tmp_path, payload_file="as.is")) == content
    assert filled(with_telemetry(payload="")) == b""


def test_a_payload_is_beside_the_scenario_that_names_it_and_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\n[[groups]]\nname = "meters"\ntelemetry = { payload_file = "reading.bin" }\n'
        "[[stages]]\nramp = { rate = 1 }\n"
    )
    contents = (b"\xff\x00", b"\xff\x01")
    scenarios = []
    for content in contents:
        (tmp_path / "reading.bin").write_bytes(content)
        scenarios.append(load(tmp_path / "mine.toml"))
    (tmp_path / "reading.bin").unlink()
    assert scenarios[0].fingerprint != scenarios[1].fingerprint
    for scenario, content in zip(scenarios, contents, strict=True):
        job = Job(
            scenario=scenario, fleet=tmp_path, broker=Endpoint("127.0.0.1", 1, "x"), manner=Manner(), share=Share()
        )
        told = order(line(job))
        assert isinstance(told, Job)
        assert told.scenario == scenario
        telemetry = told.scenario.groups[0].telemetry
        assert telemetry is not None
        assert filled(telemetry) == content


def test_a_python_program_says_the_same(tmp_path: Path) -> None:
    (tmp_path / "reading.json").write_text('{"w":{power_w}}')
    telemetry = Telemetry(topic="plant/{name}", payload_file=tmp_path / "reading.json")  # type: ignore[arg-type]
    scenario = Scenario(name="x", groups=[Group(name="meters", telemetry=telemetry)], stages=[Ramp(rate=1)])
    assert scenario.own_topics == ["plant/{name}"]
    assert filled(telemetry, {"power_w": 1.0}) == b'{"w":1.0}'


def test_the_page_s_example_is_a_scenario_and_its_placeholders_are_those_that_exist() -> None:
    page = PAGE.read_text()
    (text,) = [found for found in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if "payload =" in found]
    telemetry = parse(text, "page").groups[0].telemetry
    assert telemetry is not None
    reading = next(telemetry.model.readings(1, "m-1")).values
    assert b'"alarm":null}}' in filled(telemetry, reading)
    listed = {
        model: set(re.findall(r"`{(\w+)}`", line))
        for model in Model
        for line in page.splitlines()
        if line.strip().startswith(f"| `{model}` |")
    }
    assert listed == {model: set(next(model.readings(0, "")).values) for model in Model}
    (always,) = [line for line in page.split("* **") if line.startswith("`payload`**")]
    assert all(f"`{{{name}}}`" in always for name in ALWAYS)
