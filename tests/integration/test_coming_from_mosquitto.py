"""docs/coming-from-mosquitto.md tells the truth: its commands are run, and its settings are those the broker knows."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from broker.settings.config import BrokerConfig
from broker.settings.config_hints import MOSQUITTO
from broker.settings.limits import Limits
from tests.support.page import Terminal, free_ports, read_page
from tests.support.provisioning import REPOSITORY

PAGE = REPOSITORY / "docs" / "coming-from-mosquitto.md"


def test_every_command_on_the_page_does_what_the_page_shows(tmp_path: Path) -> None:
    steps = read_page(PAGE)
    assert len(steps) == 7
    with Terminal(tmp_path, free_ports()) as terminal:
        for step in steps:
            terminal.follow(step)


def test_the_page_names_each_setting_that_the_broker_has_a_word_for() -> None:
    table = PAGE.read_text().split("## Each setting\n")[1]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    theirs = {name for row in rows for name in re.findall(r"`([\w.]+)`", row[0])}
    limits = {each.name for each in fields(Limits)}
    assert MOSQUITTO.keys() - theirs == set()
    assert theirs - MOSQUITTO.keys() - BrokerConfig.model_fields.keys() - limits == {"connection"}
