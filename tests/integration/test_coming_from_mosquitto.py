"""docs/coming-from-mosquitto.md tells the truth: its commands are run, and its settings are those the broker knows."""

from __future__ import annotations

import re
from pathlib import Path

from broker.settings.mosquitto_options import OPTIONS, Place
from tests.support.page import Terminal, free_ports, read_page
from tests.support.provisioning import REPOSITORY

PAGE = REPOSITORY / "docs" / "coming-from-mosquitto.md"


def test_every_command_on_the_page_does_what_the_page_shows(tmp_path: Path) -> None:
    steps = read_page(PAGE)
    assert len(steps) == 7
    with Terminal(tmp_path, free_ports()) as terminal:
        for step in steps:
            terminal.follow(step)


def test_the_page_has_each_of_mosquitto_s_options() -> None:
    table = PAGE.read_text().split("## Each setting\n")[1]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    theirs = {name for row in rows for name in re.findall(r"`([\w.]+)`", row[0])}
    of_bridges = {name for name, option in OPTIONS.items() if option.place is Place.BRIDGE}
    assert OPTIONS.keys() - of_bridges - theirs == set()
    assert theirs - OPTIONS.keys() == set()
