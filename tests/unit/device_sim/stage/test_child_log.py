from __future__ import annotations

import os
from pathlib import Path

import pytest
import typer

from device_sim.explanation import explained
from device_sim.stage.child_log import opened_log, reasons_from
from device_sim.view import View
from provisioning.client.est import EnrolmentUnavailable


def test_a_log_is_its_user_s_only_whatever_the_umask_and_grows(tmp_path: Path) -> None:
    path = tmp_path / "broker.log"
    before = os.umask(0)
    try:
        for line in (b"one\n", b"two\n"):
            with opened_log(path) as log:
                log.write(line)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_bytes() == b"one\ntwo\n"


def test_why_our_own_service_was_unavailable_is_said_once_with_what_its_log_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, refused = tmp_path / "provisioning.log", "answered 503: try again"
    log.write_text(
        '{"level": "warning", "event": "older"}\nno JSON\n'
        '{"code": "STORE_FAILED", "event": "store cannot be used", "detail": "disk is full", "level": "warning"}\n'
        '{"event": "enrolment refused", "level": "info"}\n{"event": "cut'
    )
    inner = ExceptionGroup("", [EnrolmentUnavailable(refused)])
    with pytest.raises(typer.Exit), explained(View()), reasons_from(log):
        raise ExceptionGroup("two", [EnrolmentUnavailable(refused), inner])
    says = "the service's log says: STORE_FAILED: store cannot be used: disk is full"
    assert capsys.readouterr().err == f"fleet-sim: {refused}\n  {says}\n"


@pytest.mark.parametrize("content", [None, '{"event": "serving", "level": "info"}\n'])
def test_where_the_log_does_not_say_why_nothing_is_added(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "log").write_text(content)
    with pytest.raises(EnrolmentUnavailable) as raised, reasons_from(tmp_path / "log"):
        raise EnrolmentUnavailable("it does not answer")
    assert not hasattr(raised.value, "__notes__")
