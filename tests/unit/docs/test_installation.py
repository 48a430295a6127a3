"""What docs/installation.md and the systemd units tell a host to run is what the programs take."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from broker.settings.config import BrokerConfig
from tests.support.provisioning import REPOSITORY

PAGE = (REPOSITORY / "docs" / "installation.md").read_text(encoding="utf-8")
UNITS = sorted((REPOSITORY / "deploy" / "systemd").glob("*.service"))
BIN = "/opt/fleetgate/.venv/bin/"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def started(unit: Path) -> list[str]:
    """Return the arguments of its ExecStart."""
    (line,) = re.findall(r"^ExecStart=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE)
    return shlex.split(line)


def test_who_names_a_python_is_not_given_another_s_environment_in_silence(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text("#!/bin/sh\necho Python 3.9\n", encoding="utf-8")
    (tmp_path / "bin" / "python").chmod(0o755)
    for name in ("pyvenv.cfg", ".installed"):
        (tmp_path / name).touch()

    # Who runs `make PYTHON=… test` has named one to these, too.
    environment = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "PYTHON"}}

    def setup(*named: str) -> tuple[int, str]:
        command = ["make", "--silent", f"VENV={tmp_path}", *named, "setup"]
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        return done.returncode, done.stderr

    assert setup()[0] == 0
    code, said = setup(f"PYTHON={sys.executable}")
    assert code != 0
    assert said.startswith(f"{tmp_path} was made by Python 3.9, and {sys.executable} is Python 3.")


def test_what_to_do_where_pip_fails_is_said_last(tmp_path: Path) -> None:
    pip = tmp_path / "bin" / "pip"
    pip.parent.mkdir()
    pip.write_text('#!/bin/sh\necho "$@" >&2\nexit 2\n', encoding="utf-8")
    pip.chmod(0o755)
    command = [str(REPOSITORY / "deploy" / "by-pip"), str(tmp_path), "install", "a package"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    arguments, remedy = done.stderr.splitlines()
    assert (done.returncode, arguments) == (1, "install a package")
    assert "Remedy, if it reaches no package index: name a proxy (HTTPS_PROXY)" in remedy


def test_services_that_may_not_write_in_the_clone_find_byte_code_there(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    packages = [tmp_path / name for name in ("provisioning", "broker", "device_sim")]
    for package in packages:
        package.mkdir()
        (package / "__init__.py").touch()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / ".venv" / ".installed").touch()
    environment = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "PYTHON"}}
    subprocess.run(["make", "--silent", "setup"], cwd=tmp_path, env=environment, check=True, timeout=60)
    for package in packages:
        assert list((package / "__pycache__").glob("*.pyc")), package.name


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_understands_the_units(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    copy = tmp_path / unit.name
    text = unit.read_text(encoding="utf-8").replace(BIN, f"{Path(sys.executable).parent}/")
    # Users of the host to be.
    copy.write_text(re.sub(r"^User=.*$", "User=root", text, flags=re.MULTILINE), encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_passphrase_as_a_credential_starts_what_the_unit_starts(tmp_path: Path) -> None:
    (unit,) = (each for each in UNITS if each.stem == "fleet-provisioning")
    (added,) = blocks("ini")
    (command,) = re.findall(r"^ExecStart=(.+)$", added, re.MULTILINE)
    assert command.replace("${CREDENTIALS_DIRECTORY}", "/etc/fleetgate") == shlex.join(started(unit))
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    both = f"{unit.read_text(encoding='utf-8')}\n{added}".replace(BIN, f"{Path(sys.executable).parent}/")
    copy = tmp_path / unit.name
    copy.write_text(re.sub(r"^User=.*$", "User=root", both, flags=re.MULTILINE), encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_units_give_the_services_what_they_need_and_little_more(unit: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=15", unit],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout.splitlines()[-1:]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_programs_take_what_the_units_give_them(unit: Path) -> None:
    program, *arguments = started(unit)
    told = subprocess.run(
        [Path(sys.executable).parent / Path(program).name, arguments[0], "--help"],
        capture_output=True, text=True, check=True, timeout=60, env={"COLUMNS": "200", "TERM": "dumb"},
    ).stdout  # fmt: skip
    assert program.startswith(BIN)
    assert [option for option in arguments if option.startswith("--") and option not in told] == []


def test_the_settings_are_the_brokers() -> None:
    _, broker = blocks("toml")
    assert tomllib.loads(broker).keys() <= BrokerConfig.model_fields.keys()
    # What is left out is said to be left out.
    assert "allow_tls12" in BrokerConfig.model_fields


def test_the_units_and_the_page_speak_of_the_same_places() -> None:
    _, broker = map(tomllib.loads, blocks("toml"))
    texts = {unit.stem: unit.read_text(encoding="utf-8") for unit in UNITS}
    assert f"StateDirectory={Path(broker['state_dir']).name}\n" in texts["fleet-broker"]
    assert "--passphrase-file /etc/fleetgate/passphrase" in texts["fleet-provisioning"]
    assert "--passphrase-file /etc/fleetgate/passphrase" in PAGE
    limit = re.search(r"^LimitNOFILE=(\d+)$", texts["fleet-broker"], re.MULTILINE)
    assert limit is not None
    assert int(limit[1]) > 100_000  # `max_connections`


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_units_wait_for_readiness_watch_for_hangs_and_restart_for_ever(unit: Path) -> None:
    lines = unit.read_text(encoding="utf-8").splitlines()
    assert {"Type=notify", "WatchdogSec=60", "Restart=on-failure", "StartLimitIntervalSec=0"} <= set(lines)
    assert "for 60 seconds (`WatchdogSec=`)" in PAGE


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_reload_needs_no_program_that_a_small_debian_lacks(unit: Path) -> None:
    """/bin/kill is procps's, which a minimal system does not have: systemctl reload failed there."""
    (line,) = re.findall(r"^ExecReload=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE)
    with subprocess.Popen(["sleep", "60"]) as service:
        command = shlex.split(line.replace("$MAINPID", str(service.pid)))
        assert command[0] == "/bin/sh"
        subprocess.run(command, check=True, timeout=60, env={"PATH": ""})
        assert service.wait(timeout=60) == -signal.SIGHUP


def test_the_python_is_python() -> None:
    (example,) = blocks("python")
    compile(example, "installation.md", "exec")


def test_a_copy_of_the_bundle_stays_where_it_cannot_be_read(tmp_path: Path) -> None:
    """In a shell that knows no `ca`, a year later, a pipe into install left the broker without an anchor."""
    life = (REPOSITORY / "docs" / "ca-life.md").read_text(encoding="utf-8")
    commands = re.findall(r"^ca cat (?:.*&& +#.*\n)?.*$", PAGE + life, re.MULTILINE)
    assert len(commands) == 3
    (kept := tmp_path / "ca-bundle.crt").write_text("anchors", encoding="utf-8")
    for command in commands:
        here = command.replace("/etc/fleetgate", str(tmp_path))
        assert str(kept) in here
        assert subprocess.run(["sh", "-c", here], capture_output=True, check=False, timeout=60).returncode != 0
        assert kept.read_text(encoding="utf-8") == "anchors"
        subprocess.run(["sh", "-c", f"ca() {{ echo the next; }}\n{here}"], check=True, timeout=60)
        assert kept.read_text(encoding="utf-8") == "the next\n"
        kept.write_text("anchors", encoding="utf-8")
