"""``fleet-broker config convert``: where the result goes, and that an error leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker.cli import app
from tests.support.small_volume import full, small_volume
from tests.support.somebody_else import as_somebody_else, place_for_all

CONF = """\
listener 8883 127.0.0.1
cafile ca.crt
certfile broker.crt
keyfile broker.key
require_certificate true
use_identity_as_username true
acl_file {acl}
"""


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    path = tmp_path / "mosquitto.conf"
    (tmp_path / "acl").write_text("topic read anonymous\npattern read a/%u\n")
    path.write_text(CONF.format(acl=tmp_path / "acl"))
    return path


def test_settings_and_policy_are_printed_one_by_one(conf: Path) -> None:
    done = CliRunner().invoke(app, ["config", "convert", str(conf)])
    assert done.exit_code == 0
    assert f"fleet-broker config convert {conf} --policy > policy.toml" in done.stdout
    assert 'policy_file = "policy.toml"' in done.stdout
    assert "line 1: left out: it is for an anonymous client" in done.stderr
    done = CliRunner().invoke(app, ["config", "convert", str(conf), "--policy"])
    assert 'subscribe.allow = ["a/{device}"]' in done.stdout
    assert CliRunner().invoke(app, ["policy", "convert", str(conf.with_name("acl"))]).stdout == done.stdout


def test_both_are_written_or_neither(conf: Path, tmp_path: Path) -> None:
    line = ["config", "convert", str(conf), "--output", str(tmp_path / "broker.toml")]
    (tmp_path / "policy.toml").write_text("mine")
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 2
    assert f"{tmp_path}/policy.toml cannot be written: File exists; move it away, or name another" in done.stderr
    assert not (tmp_path / "broker.toml").exists()
    assert (tmp_path / "policy.toml").read_text() == "mine"
    (tmp_path / "policy.toml").unlink()
    done = CliRunner().invoke(app, line)
    assert (done.exit_code, done.stdout) == (0, "")
    assert f'policy_file = "{tmp_path}/policy.toml"' in (tmp_path / "broker.toml").read_text()
    assert "[role.device]" in (tmp_path / "policy.toml").read_text()


def test_what_cannot_be_written_is_told_with_a_remedy(conf: Path, tmp_path: Path) -> None:
    def told(output: Path) -> str:
        done = CliRunner().invoke(app, ["config", "convert", str(conf), "--output", str(output)])
        assert done.exit_code == 2
        return " ".join(done.stderr.split()).partition("cannot be written: ")[2]

    assert told(tmp_path / "away" / "b.toml") == "No such file or directory; make its directory, or name another"
    assert told(tmp_path / ("b" * 300)) == "File name too long; name a shorter one"
    with small_volume("size=1m") as volume, full(volume):
        assert told(volume / "b.toml") == "No space left on device; free some, or name a place on another disk"
        assert not (volume / "b.toml").exists()
    with place_for_all() as place:
        (closed := place / "closed").mkdir(0o500)
        for each in (conf, conf.with_name("acl")):
            (place / each.name).write_text(each.read_text().replace(str(tmp_path), str(place)))
        conf = place / conf.name
        with as_somebody_else():
            said = told(closed / "b.toml")
    assert said == "Permission denied; let this user write there, or name another place"


def test_nothing_is_written_for_a_configuration_that_cannot_be_converted(conf: Path, tmp_path: Path) -> None:
    conf.write_text("listener 1883\nallow_anonymous true\n")
    done = CliRunner().invoke(app, ["config", "convert", str(conf), "--output", str(tmp_path / "broker.toml")])
    assert (done.exit_code, done.stdout) == (2, "")
    assert [line.rpartition("mosquitto.conf: ")[2].split(": ")[:2] for line in done.stderr.splitlines()] == [
        ["line 1", "listener"],
        ["line 2", "allow_anonymous"],
    ]
    assert not (tmp_path / "broker.toml").exists()


def test_wrong_usage(conf: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["config", "convert", str(conf), "--policy", "--output", str(tmp_path / "b.toml")])
    assert done.exit_code == 2
    assert "give one of them" in done.stderr
    done = CliRunner().invoke(app, ["config", "convert", str(conf), "--listener", "7"])
    assert done.exit_code == 2
    assert done.stderr == "fleet-broker: --listener 7: no listener has this port; there are 8883\n"


def test_settings_in_toml_are_no_mosquitto_conf_and_that_is_all_that_is_said(conf: Path, tmp_path: Path) -> None:
    """Each of its lines was complained about as an option that mosquitto does not have."""
    settings, included = tmp_path / "broker.toml", tmp_path / "conf.d"
    settings.write_text('# the broker\nport = 8883\ncafile = "ca.crt"\n')
    done = CliRunner().invoke(app, ["config", "convert", str(settings)])
    said = f"{settings} is TOML, as the broker's own files are, and no mosquitto.conf: name that"
    assert (done.exit_code, " ".join(done.stderr.split())) == (2, f"fleet-broker: {said}")
    included.mkdir()
    (included / "broker.conf").write_text(settings.read_text())
    conf.write_text(f"include_dir {included}\n")
    done = CliRunner().invoke(app, ["config", "convert", str(conf)])
    assert "is TOML" in done.stderr
    conf.write_text("# nothing = 1\n")
    assert "listener: there is none" in CliRunner().invoke(app, ["config", "convert", str(conf)]).stderr
