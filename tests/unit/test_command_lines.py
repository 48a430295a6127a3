"""What the three command lines have alike: their version, and a start that waits for nothing that it does not need.

Which modules a process has imported, it tells itself: ``python -X importtime`` names each.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic_core import PydanticUndefined
from typer.testing import CliRunner

import broker.cli
import device_sim.cli
import provisioning.cli
from broker.settings.config import BrokerConfig
from device_sim.link.driver import Driver
from provisioning.program.build import build_identity
from provisioning.program.version import product_version, version_and_build
from provisioning.revocation.reasons import AUTHORITY_REASONS
from tests.support.importtime import PACKAGES, ended, imported, told
from tests.support.provisioning import REPOSITORY

OF_A_CA = ", ".join(AUTHORITY_REASONS)
OF_A_DEVICE = "unspecified, keyCompromise, affiliationChanged, superseded, cessationOfOperation, privilegeWithdrawn"
NOT_REASON = "Invalid value for '--reason': "
A_CAS = "that is for a CA: fleet-provisioning ca revoke"
PROGRAMS = {"fleet-provisioning": provisioning.cli.app, "fleet-broker": broker.cli.app, "fleet-sim": device_sim.cli.app}
HEAVY = {
    "fleet-provisioning": {"sqlalchemy", "alembic", "fastapi", "uvicorn", "httpx", "rich.console", "asyncio"},
    "fleet-broker": {
        *("broker.connection.connection", "broker.process.server"),
        *("structlog", "cryptography", "httpx", "asyncio"),
    },
    "fleet-sim": {"asyncio", "broker", "cryptography", "device_sim.view", "httpx", "paho", "cbor2", "hdrh"},
}
COMMANDS = re.compile(
    r"(provisioning|broker|device_sim)\.(.*_commands?|(attack|bench|qualify)\.command|attack\.doctor)"
)
"""The modules of commands, those that several commands share among them."""
SHARED = {
    "provisioning.commands.ceremony_command",  # `init` and `serve` have its options.
    "provisioning.commands.service_command",
    "broker.commands.admin_command",
    "provisioning.program.late_commands",
}
ALONE = [
    ("fleet-provisioning version", None),
    ("fleet-provisioning --version", None),
    ("fleet-provisioning serve --help", None),
    ("fleet-provisioning doctor --help", "provisioning.commands.doctor_command"),
    ("fleet-provisioning status --help", "provisioning.commands.operator_commands"),
    ("fleet-provisioning group list --help", "provisioning.commands.group_commands"),
    ("fleet-provisioning audit show --help", "provisioning.commands.audit_commands"),
    ("fleet-provisioning revoke --help", "provisioning.commands.lifecycle_commands"),
    ("fleet-provisioning token create --help", "provisioning.commands.token_commands"),
    ("fleet-broker version", None),
    ("fleet-broker run --help", None),
    ("fleet-broker status --help", "broker.commands.admin_commands"),
    ("fleet-broker policy show", "broker.commands.policy_commands"),
    ("fleet-sim version", None),
    ("fleet-sim scenarios", "device_sim.commands.run_command"),
    ("fleet-sim doctor --help", "device_sim.attack.doctor"),
    ("fleet-sim bench pub --help", "device_sim.bench.command"),
]
CLIENTS = {"httpx", "paho", "hdrh"}
# What its answer has, and what it can do without.
FREE_OF = {
    "scenarios": ("smoke", CLIENTS | {"device_sim.run.runner", "device_sim.demo.demo", "device_sim.attack.catalogue"}),
    "doctor --devices 1": ("ports", CLIENTS | {"asyncio", "cryptography", "broker", "device_sim.attack.catalogue"}),
    "attack --list": ("1-good", {"paho", "cbor2", "hdrh", "device_sim.attack.nats_target", "device_sim.demo.demo"}),
    "delivery --list": ("5-receive-maximum-qos1", {"paho", "cbor2", "hdrh", "device_sim.attack.nats_target"}),
    "qualify --list": (
        "server-expired",
        {"paho", "cbor2", "hdrh", "device_sim.attack.catalogue", "device_sim.demo.demo"},
    ),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_program_says_its_version(program: str) -> None:
    done = CliRunner().invoke(PROGRAMS[program], ["--version"])
    assert (done.exit_code, done.output) == (0, f"{program} {version_and_build()}\n")


@pytest.mark.parametrize("flag", ["--help", "--version"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_help_and_version_wait_for_no_heavy_library(program: str, flag: str) -> None:
    output, modules = ended(program, [flag])
    assert program in output
    assert PACKAGES[program] in modules
    assert not (HEAVY[program] | {"pydantic"}) & modules


@pytest.mark.parametrize(("line", "own"), ALONE)
def test_a_command_imports_no_other_command(line: str, own: str | None) -> None:
    program, *words = line.split()
    _, modules = ended(program, words)
    assert {each for each in modules if COMMANDS.fullmatch(each)} - SHARED == ({own} if own else set())
    assert not {"pydantic", "asyncio", "httpx", "cryptography"} & modules or words[0] in {"policy", "scenarios"}


@pytest.mark.parametrize("line", ["fleet-broker status", "fleet-broker sessions", "fleet-broker trust show"])
def test_a_command_that_asks_the_admin_socket_needs_no_settings_and_no_certificates(line: str, tmp_path: Path) -> None:
    """Nothing answers there: what it has imported by then is all that it needs, since it has asked."""
    program, *words = line.split()
    entry = f"import sys; sys.argv[0] = {program!r}; from broker.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", entry, *words],
        cwd=REPOSITORY,
        env={**os.environ, "FLEET_BROKER_STATE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, "no broker answers" in done.stderr) == (1, True), done.stderr
    assert not {"asyncio", "cryptography", "pydantic_settings", "broker.settings.config"} & imported(done.stderr)


@pytest.mark.parametrize("command", FREE_OF)
def test_a_command_of_the_simulator_imports_what_it_needs_itself(command: str) -> None:
    word, others = FREE_OF[command]
    output, modules = ended("fleet-sim", command.split())
    assert word in output.split()
    assert not others & modules


@pytest.mark.parametrize(("driver", "other"), [(Driver.PAHO, "device_sim.link.light_client"), (Driver.LIGHT, "paho")])
def test_a_worker_of_a_run_imports_what_a_worker_needs(driver: Driver, other: str) -> None:
    code = f"import device_sim.run.worker; from device_sim.link.driver import Driver; Driver({driver.value!r}).load()"
    _, modules = told(code)
    assert {"device_sim.run.part", "httpx"} <= modules
    conductor = {
        "device_sim.cli",
        "device_sim.run.runner",
        "device_sim.results",
        "device_sim.stage.stage",
        "device_sim.view",
    }
    assert modules & (conductor | {"rich.console", "pygments.util", "typer", other}) == set()


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("unbuffered", ["", "1"])  # The disk is found full when all is written, or at the first line.
@pytest.mark.parametrize("argument", ["version", "--help"])
def test_output_that_cannot_be_written_is_said_in_one_line(program: str, unbuffered: str, argument: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", PACKAGES[program], argument],
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.stderr == f"{program}: the output cannot be written: No space left on device\n"
    assert done.returncode == 1


def test_a_character_that_the_encoding_lacks_is_shown_escaped(tmp_path: Path) -> None:
    """Of a policy file, of a certificate: such as no terminal of this encoding could show."""
    policy = tmp_path / "policy.toml"
    policy.write_text('[role.device]\npublish.allow = ["straße/…"]\n')
    done = subprocess.run(
        [sys.executable, "-m", "broker", "policy", "show", "--policy", str(policy)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, b"stra\xdfe/\\u2026" in done.stdout) == (0, True), done


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_module_that_is_run_says_what_can_be_typed(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", PACKAGES[program], "--bogus"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"Usage: {program} [OPTIONS] COMMAND")
    assert f"Try '{program} --help' for help." in done.stderr


def commands_of(program: str) -> Iterator[tuple[list[str], Any]]:
    """Yield every command and group of *program*, with the words that name it."""
    waiting: list[tuple[list[str], Any]] = [([], typer.main.get_command(PROGRAMS[program]))]
    while waiting:
        words, command = waiting.pop()
        yield words, command
        waiting += [([*words, name], each) for name, each in getattr(command, "commands", {}).items()]


@pytest.mark.parametrize(("program", "least"), [("fleet-provisioning", 200), ("fleet-broker", 12), ("fleet-sim", 12)])
def test_an_option_of_which_one_value_counts_is_taken_once(program: str, least: int) -> None:
    tried = 0
    whole = typer.main.get_command(PROGRAMS[program])
    for words, command in commands_of(program):
        needed = ["1" for each in command.params if each.param_type_name == "argument"]
        for each in command.params:
            if each.param_type_name != "option" or each.is_flag or each.multiple or each.name.endswith("completion"):
                continue
            flag = max(each.opts, key=len)
            twice = [*words, *needed, flag, "1", f"{flag}=2"]
            if hasattr(command, "commands"):  # Of a group they are before the command's name.
                twice = [*words, flag, "1", f"{flag}=2", next(iter(command.commands))]
            with pytest.raises(Exception, match=f"^{flag} is there more than once, and takes one value$") as refused:
                whole.main(twice, program, standalone_mode=False)
            assert refused.value.exit_code == 2  # type: ignore[attr-defined]
            tried += 1
            if program != "fleet-provisioning":  # Whose are many, and do the most harm; of the others one a command.
                break
    assert tried > least


def test_an_option_of_which_several_values_count_is_taken_again(tmp_path: Path) -> None:
    both = ["revoke", "--device", "a", "--device", "b", "--dir", str(tmp_path)]
    done = CliRunner().invoke(PROGRAMS["fleet-provisioning"], both)
    said = "ca-bundle.crt cannot be read: No such file or directory; give --dir, or --cafile, --cert and --key\n"
    assert (done.exit_code, said in done.stderr) == (1, True), done.stderr


EMPTY = "is empty; name a file or a directory, or leave it out"
PATHS = [
    ("fleet-provisioning", ["status", "--dir", ""], "Invalid value for '--dir'"),
    ("fleet-provisioning", ["serve", "--passphrase-file="], "Invalid value for '--passphrase-file'"),
    ("fleet-provisioning", ["manufacturer", "crl", "acme", ""], "Invalid value for 'file'"),
    ("fleet-provisioning", ["revoke", "--devices-file", ""], "Invalid value for '--devices-file'"),
    ("fleet-broker", ["run", "--state-dir", ""], "Invalid value for '--state-dir'"),
    ("fleet-broker", ["--url", "https://localhost:1", "--cafile", "", "status"], "Invalid value for '--cafile'"),
    ("fleet-broker", ["crl", "try", "a.crl", ""], "Invalid value for 'FILE'"),
    ("fleet-sim", ["demo", "--dir", ""], "Invalid value for '--dir'"),
]


@pytest.mark.parametrize(("program", "words", "named"), PATHS)
def test_a_path_that_is_empty_is_refused_and_named(program: str, words: list[str], named: str) -> None:
    done = CliRunner().invoke(PROGRAMS[program], words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert EMPTY in " ".join(done.stderr.split()), done.stderr
    assert f"Error: {named}: " in done.stderr, done.stderr


@pytest.mark.parametrize("variable", ["FLEET_BROKER_STATE_DIR", "FLEET_BROKER_ADMIN_SOCKET"])
def test_a_path_that_is_empty_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "")
    done = CliRunner().invoke(PROGRAMS["fleet-broker"], ["status"])
    assert (done.exit_code, f"Error: {variable} {EMPTY}\n" in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("revoke meter-17", "'meter-17' without an option: is --device meter-17 meant?"),
        ("revoke --reason superseded m-1 m-2", "'m-1' without an option: is --device m-1 --device m-2 meant?"),
        ("token create meter-2 --group north", "'meter-2' without an option: is --device meter-2 meant?"),
        ("device list north south", "'north' without an option: is --group north meant?"),
        ("status now", "Got unexpected extra argument(s) (now)"),
        ("token show abc", "Invalid value for 'number': give a whole number, without a unit"),
        ("serve --port 8443/tcp", "Invalid value for '--port': give a whole number, without a unit"),
        (
            "certificate list --state gone",
            "Invalid value for '--state': 'gone' is not one of active, suspended, revoked, ",
        ),
        (
            "approval list --state gone",
            "Invalid value for '--state': 'gone' is not one of pending, approved, denied, used, lapsed\n",
        ),
        ("certificate export --format xml", "Invalid value for '--format': 'xml' is not one of csv, json\n"),
        ("device list --state expired", "Invalid value for '--state': 'expired' is not one of active, suspended, "),
        ("certificate expiring --within 14", "Invalid value for '--within': '14' is not a duration: write 90m, "),
        ("audit verify --head x", "Invalid value for '--head': write NUMBER:HEXADECIMAL, as audit verify prints it"),
        ("revoke", "give exactly one of --device, --serial, "),
        ("group set north", "give at least one rule to change, for example --way token or --closed"),
        ("ca rolover", "No such command 'rolover'. Did you mean 'rollover'?"),
        ("listed buy", "No such command 'buy'. There are "),
        ("expiring", "No such command 'expiring'. Did you mean certificate expiring?\n"),
        ("ca revoke x --reason stolen", f"{NOT_REASON}'stolen' is not one of {OF_A_CA}\n"),
        ("ca revoke x --reason keyCompromise", f"{NOT_REASON}'keyCompromise' is not one of {OF_A_CA}\n"),
        ("revoke --device x --reason CACompromise", f"{NOT_REASON}'CACompromise' is not one of {OF_A_DEVICE}; {A_CAS}"),
    ],
)
def test_a_value_that_cannot_be_is_told_with_what_to_write(words: str, said: str) -> None:
    done = CliRunner().invoke(PROGRAMS["fleet-provisioning"], words.split())
    assert (done.exit_code, f"Error: {said}" in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "crl try a.crl --show-completion",
            "--show-completion goes before the command: fleet-broker --show-completion … crl try",
        ),
        ("policy show --url https://broker:9443", "No such option: --url"),
        ("sessions --gruop north", "No such option: --gruop (Possible options: --group, --role)"),
    ],
)
def test_an_option_of_the_program_behind_the_command_is_told_its_place(words: str, said: str) -> None:
    """Of fleet-provisioning it is behind the command, where each has its own."""
    with pytest.raises(Exception, match=r".") as refused:
        typer.main.get_command(PROGRAMS["fleet-broker"]).main(words.split(), "fleet-broker", standalone_mode=False)
    assert refused.value.format_message() == said  # type: ignore[attr-defined]


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_cuts_nothing_off_and_explains_every_option(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for words, command in commands_of(program):
        text = command.get_help(command.make_context(" ".join([program, *words]), [], resilient_parsing=True))
        said = " ".join(text.split())
        assert "<list[" not in said, "what may be given more than once is shown as one of it"
        assert [line for line in text.splitlines() if len(line) > 80 or re.search(r"--\w[\w-]*-$", line)] == []
        for each in getattr(command, "commands", {}).values():
            assert " ".join((each.help or "").split("\n\n")[0].split()) in said
        for each in command.params:
            if getattr(each, "hidden", False):
                continue
            assert each.help, (words, each.name)
            assert all(name in said for name in each.opts if name.startswith("-")), (words, each.opts)


OBVIOUS = {"version", "status", "trust show", "crl status", "scenarios"}
"""Commands that need no example: they are called as they are named."""


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_shows_an_example_of_what_can_be_typed(program: str) -> None:
    for words, command in commands_of(program):
        if hasattr(command, "commands") or " ".join(words) in OBVIOUS:
            continue
        _, found, shown = f"{command.help} {command.epilog}".partition("Example:")
        assert found, words
        assert " ".join([program, *words]) in shown, words


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_is_called_alike_is_one_thing(program: str) -> None:
    """`--json` prints, or names a file where a command's output is for people meanwhile."""
    flags = {name: each for _, command in commands_of(program) for each in command.params for name in each.opts}
    assert flags["--version"] is not None
    for words, command in commands_of(program):
        for each in command.params:
            if "--json" in each.opts:
                assert each.is_flag or "file" in each.help, words
            if "--yes" in each.opts:
                assert (each.is_flag, "ask" in each.help) == (True, True), words


def test_a_reason_is_taken_in_capitals_too(tmp_path: Path) -> None:
    asked = ["revoke", "--device", "a", "--reason", "KEYCOMPROMISE", "--dir", str(tmp_path)]
    done = CliRunner().invoke(PROGRAMS["fleet-provisioning"], asked)
    assert (done.exit_code, "ca-bundle.crt cannot be read" in done.stderr) == (1, True), done.stderr


def test_the_help_names_why_a_ca_may_be_revoked() -> None:
    said = " ".join(CliRunner().invoke(PROGRAMS["fleet-provisioning"], ["ca", "revoke", "--help"]).output.split())
    assert f"Why: {', '.join(AUTHORITY_REASONS)}." in said


@pytest.mark.parametrize(
    ("program", "words", "named"),
    [
        ("fleet-provisioning", "token create --device", "'--device'"),
        ("fleet-provisioning", "ca rollover begin --witness", "'--witness'"),
        ("fleet-provisioning", "audit show", "'about'"),
        ("fleet-broker", "why", "'about'"),
        ("fleet-sim", "ctl", "'order'"),
    ],
)
def test_what_is_no_text_is_refused_before_anything_is_done(program: str, words: str, named: str) -> None:
    """Of a ceremony with such a witness the CA was made, and then no transcript could be written."""
    done = CliRunner().invoke(PROGRAMS[program], [*words.split(), b"m\xff".decode(errors="surrogateescape")])
    assert done.exit_code == 2
    assert f"Invalid value for {named}: 'm\\udcff' is not UTF-8 text" in done.stderr


def test_a_path_may_hold_whatever_the_file_system_takes() -> None:
    path = b"/nowhere/m\xff".decode(errors="surrogateescape")
    done = CliRunner().invoke(PROGRAMS["fleet-provisioning"], ["audit", "verify", "--dir", path])
    assert done.exit_code == 1
    assert "is not UTF-8" not in done.stderr


def test_a_flag_of_the_broker_says_its_setting_s_default() -> None:
    (run,) = [command for words, command in commands_of("fleet-broker") if words == ["run"]]
    helps = {each.name: each.help for each in run.params}
    told = 0
    for name, field in BrokerConfig.model_fields.items():
        default = field.default
        if name not in helps or default in (None, False, (), PydanticUndefined):
            continue
        shown = "on" if default is True else f"{default:g}" if isinstance(default, float) else default
        assert f"(default: {shown})" in helps[name], name
        told += 1
    assert told > 8


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_a_stream_that_is_closed_is_no_crash_and_no_other_file_s(
    program: str, closed: tuple[int, ...], tmp_path: Path
) -> None:
    entry = (
        f"import os, sys; sys.argv[0] = {program!r}\n"
        f"from {PACKAGES[program]}.__main__ import main\n"
        "try:\n    main()\n"
        "finally:\n"
        f"    told = ' '.join(os.readlink(f'/proc/self/fd/{{number}}') for number in {closed})\n"
        f"    open({str(tmp_path / 'told')!r}, 'w').write(told)\n"
    )
    redirections = " ".join(f"{number}>&-" for number in closed)
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, "-c", entry, "version"],
        cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert set((tmp_path / "told").read_text().split()) == {os.devnull}
    assert product_version() in done.stdout or 1 in closed


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_says_whose_version_it_tells(program: str) -> None:
    told = CliRunner().invoke(PROGRAMS[program], ["version"], prog_name=program).stdout
    assert told.startswith(f"{program} {version_and_build()}")
    document = json.loads(CliRunner().invoke(PROGRAMS[program], ["version", "--json"], prog_name=program).stdout)
    assert (document["name"], document["version"]) == (program, product_version())
    assert document["build"] == build_identity()


@pytest.mark.parametrize(
    ("program", "first"),
    [("fleet-provisioning", ["init", "serve"]), ("fleet-broker", ["run"]), ("fleet-sim", ["demo"])],
)
def test_help_begins_with_what_one_begins_with(program: str, first: list[str]) -> None:
    told = CliRunner().invoke(PROGRAMS[program], ["--help"], prog_name=program, env={"COLUMNS": "200"}).stdout
    names = [line.split()[0] for line in told.partition("Commands:\n")[2].splitlines() if line[2:3].strip()]
    assert names[: len(first)] == first
