"""A broker with plugins: amqtt's own, and some that a test defines."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.broker_process import REPOSITORY, BrokerProcess
from tests.support.pki import Pki

POLICY = """
[role.device]
publish.allow = ["fleet/{group}/{device}/#", "$shadow/{device}/#"]
subscribe.allow = ["fleet/{group}/{device}/#", "$shadow/{device}/#"]

[role.service]
publish.allow = ["fleet/#", "$shadow/#"]
subscribe.allow = ["fleet/#", "$SYS/#", "$shadow/#"]
"""


def plugged(directory: Path, pki: Pki, plugins: str, code: str = "", **settings: object) -> BrokerProcess:
    """Return a broker with *plugins*, lines of the TOML table; *code* is the module ``fleet_plugins``."""
    directory.mkdir(exist_ok=True, parents=True)
    (directory / "policy.toml").write_text(POLICY)
    (directory / "broker.toml").write_text(f"[plugins]\n{plugins}\n")
    (directory / "fleet_plugins.py").write_text(code)
    arguments = ("--config", str(directory / "broker.toml"), "--policy-file", str(directory / "policy.toml"))
    broker = BrokerProcess.with_files(directory, pki, *arguments, **settings)
    broker.environment["PYTHONPATH"] = os.pathsep.join((str(REPOSITORY), str(directory)))
    return broker
