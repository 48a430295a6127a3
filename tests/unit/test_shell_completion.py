"""What the shells are offered by the three programs, at once and in words that the shell reads as meant."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from provisioning.revocation.reasons import AUTHORITY_REASONS
from provisioning.store.certificates import CertificateState
from provisioning.store.device_inventory import Standing
from provisioning.store.devices import DeviceState
from provisioning.store.token_inventory import TokenState
from tests.support.answering import answering
from tests.support.broker_process import wait_until
from tests.support.importtime import PACKAGES, ended
from tests.support.on_a_terminal import on_a_terminal
from tests.support.programs import REPOSITORY

REASONS = [
    *("unspecified", "keyCompromise", "affiliationChanged", "superseded", "cessationOfOperation", "privilegeWithdrawn")
]
LATE = {
    *("sqlalchemy", "alembic", "fastapi", "uvicorn", "httpx", "rich.console", "asyncio", "pydantic", "structlog"),
    *("cryptography", "broker.connection.connection", "broker.process.server"),
    *("device_sim.view", "paho", "cbor2", "hdrh"),
}
"""What no answer needs."""
COMMANDS = re.compile(
    r"(provisioning|broker|device_sim)\.(.*_commands?|(attack|bench|qualify)\.command|attack\.doctor)"
)
SHARED = {
    "provisioning.commands.ceremony_command",
    "provisioning.commands.service_command",
    "broker.commands.admin_command",
    "provisioning.program.late_commands",
}


def asking(typed: str, shell: str, action: str = "get-args") -> dict[str, str]:
    """Return the environment in which the installed script of *shell* calls the program."""
    words = re.findall(r"[=:]|[^\s=:]+", typed) if shell == "bash" else typed.split()
    words += [""] * typed.endswith(" ")
    return {
        f"_{words[0].replace('-', '_').upper()}_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "\n".join(words),
        "COMP_CWORD": str(len(words) - 1),
        "_TYPER_COMPLETE_ARGS": typed,
        "_TYPER_COMPLETE_FISH_ACTION": action,
    }


def completed(typed: str, shell: str) -> tuple[str, set[str]]:
    """Return what a *shell* gets for what was *typed* before Tab, and the modules that were imported for it."""
    return ended(typed.split(maxsplit=1)[0], [], **asking(typed, shell))


def offered(typed: str, shell: str) -> list[str]:
    """Return the words that *shell* shows for what was *typed* before Tab."""
    said, _ = completed(typed, shell)
    if shell == "zsh":
        listed = re.search(r"offered=\((.*)\); _describe", said)
        return [] if listed is None else [word.partition(":")[0] for word in shlex.split(listed[1])]
    return [line.partition("\t")[0] for line in said.splitlines()]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("program", PACKAGES)
def test_completion_waits_for_no_library_and_no_command(program: str, shell: str) -> None:
    output, modules = completed(f"{program} ver", shell)
    assert "version" in output
    assert PACKAGES[program] in modules
    assert not LATE & modules
    assert program == "fleet-broker" or "broker" not in modules
    assert {each for each in modules if COMMANDS.fullmatch(each)} <= SHARED


@pytest.mark.parametrize(
    "typed",
    [
        "revoke --reason s",
        "suspend --dev",
        "decommission --dev",
        "token create --role b",
        "token list --s",
        "ca revoke --r",
    ],
)
def test_no_option_is_completed_by_way_of_the_libraries(typed: str) -> None:
    output, modules = completed(f"fleet-provisioning {typed}", "bash")
    assert output
    assert not LATE & modules


def test_what_fish_is_offered_is_plain_text_on_one_line_each() -> None:
    """Rendered by rich, long help was wrapped, and its second line was offered as a word; ``[…]`` was left out."""
    output, _ = completed("fleet-broker run --p", "fish")
    lines = output.splitlines()
    assert [line.partition("\t")[0] for line in lines if not line.startswith("--p")] == []
    assert any(len(line) > 100 for line in lines)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("fleet-provisioning tok", ["token"]),
        ("fleet-provisioning certificate expo", ["export"]),
        ("fleet-provisioning revoke --dev", ["--device", "--devices-file"]),
        ("fleet-provisioning ca revoke --reason ", list(AUTHORITY_REASONS)),
        ("fleet-provisioning revoke --reason c", ["cessationOfOperation"]),
        ("fleet-provisioning certificate list --state ", [*CertificateState]),
        ("fleet-provisioning device list --state ", [*DeviceState]),
        ("fleet-provisioning device list --certificate ", [*Standing]),
        ("fleet-provisioning token list --state ", [*TokenState]),
        ("fleet-provisioning serve --log-level ", ["debug", "info", "warning", "error"]),
        ("fleet-broker run --log-level w", ["warning"]),
        ("fleet-broker sessions --role ", ["device", "service", "operator"]),
    ],
)
def test_it_offers_what_an_option_takes(typed: str, words: list[str]) -> None:
    assert offered(typed, "bash") == words


def test_the_cas_of_the_directory_are_offered(tmp_path: Path) -> None:
    for name in ("issuing-ca.crt", "issuing-2.crt", "issuing-2.key", "root-ca.crt", "server.crt"):
        (tmp_path / name).touch()
    assert offered(f"fleet-provisioning ca revoke --dir {tmp_path} ", "bash") == ["issuing-2", "issuing-ca"]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("fleet-provisioning revoke --reason=", REASONS),
        ("fleet-provisioning revoke --reason=key", ["keyCompromise"]),
        ("fleet-provisioning revoke --dir=/tmp --url https://ca:8443 --reason=key", ["keyCompromise"]),
        ("fleet-broker --url https://broker:9443 sess", ["sessions"]),
    ],
)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_an_equals_sign_is_as_good_as_a_space(shell: str, typed: str, words: list[str]) -> None:
    """bash and zsh are told what is behind the sign, fish the whole word."""
    before = "--reason=" if shell == "fish" and "--reason" in typed else ""
    assert offered(typed, shell) == [before + word for word in words]
    if shell == "zsh":
        assert completed(typed, shell)[0].startswith("compset -P '*='; ") == ("--reason=" in typed)


@pytest.mark.parametrize(
    ("typed", "files"),
    [
        ("fleet-broker run --config ", True),
        ("fleet-broker run --config=x", True),
        ("fleet-provisioning revoke --devices-file ", True),
        ("fleet-broker check ", True),
        ("fleet-sim run ", True),
        ("fleet-provisioning revoke --reason stolen", False),
        ("fleet-provisioning approval list --state gone", False),
        ("fleet-provisioning token void ", False),
        ("fleet-provisioning revo", False),
        ("fleet-provisioning rovo", False),
        ("fleet-broker status --x", False),
    ],
)
def test_files_are_offered_where_one_may_stand(typed: str, *, files: bool) -> None:
    said, _ = completed(typed, "zsh")
    assert said.rstrip().endswith("_files") == files
    program = typed.split(maxsplit=1)[0]
    entry = f"import sys; sys.argv[0] = {program!r}; from {PACKAGES[program]}.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", entry],
        cwd=REPOSITORY,
        env={**os.environ, **asking(typed, "fish", "is-args")},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (int(files), b"", b"")


@pytest.mark.parametrize(
    ("typed", "becomes"),
    [
        ("fleet-provisioning revoke --reason keyC", "fleet-provisioning revoke --reason keyCompromise"),
        ("fleet-provisioning revoke --reason stol", "fleet-provisioning revoke --reason stol"),
        ("fleet-provisioning revoke --devices-file stol", "fleet-provisioning revoke --devices-file stolen.csv"),
    ],
)
def test_bash_itself_offers_files_only_where_one_may_stand(tmp_path: Path, typed: str, becomes: str) -> None:
    """Of the script that is installed: what it makes of a line at Tab, said by bash."""
    (tmp_path / "stolen.csv").touch()
    assert at_tab(tmp_path, "provisioning", typed) == becomes


@pytest.mark.parametrize("begun", ["gate:", "gate:7", "gate:7@", "gate:7@si", "gate:7@site:n"])
def test_bash_itself_completes_a_name_in_which_it_breaks_words(tmp_path: Path, begun: str) -> None:
    """It became ``gate:gate:7@site:north``: of a word with a colon bash replaces what is behind that."""
    answer = json.dumps({"sessions": [{"client_id": "gate:7@site:north"}], "matched": 1, "shown": 1})
    typed = f"fleet-broker kick --admin-socket b {begun}"
    with answering(tmp_path / "b", answer, "application/json"):  # Nothing is offered if that takes two seconds.
        done = wait_until(lambda: (becomes := at_tab(tmp_path, "broker", typed)) != typed and becomes, "a name")
    assert done == "fleet-broker kick --admin-socket b gate:7@site:north"


def at_tab(tmp_path: Path, package: str, typed: str) -> str:
    """Return what *typed* becomes at Tab in bash, for the program of *package* with its script installed."""
    program = f"fleet-{package}"
    (tmp_path / program).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {package} "$@"\n')
    (tmp_path / program).chmod(0o700)
    script, _ = ended(program, ["--show-completion", "bash"], _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    (tmp_path / "profile").write_text(
        f"{script}\nPS1=ready\nexec 2>&1\nbind 'set enable-bracketed-paste off' 'set bell-style none'\n"
    )
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "TERM": "dumb",
    }
    shell = ["/bin/bash", "--noprofile", "--rcfile", "profile", "-i"]
    with on_a_terminal(shell, environment, tmp_path / "log", tmp_path) as (_, terminal):
        said = b""
        while not said.endswith(b"ready"):  # What is typed before it reads a line is the terminal's to edit.
            said += os.read(terminal, 4096)
        os.write(terminal, f"{typed}\t\x01echo said: \x05\r".encode())  # To the line's beginning, and to its end.
        while (found := re.search(rb"\r?\nsaid: (.*)\r\n", said)) is None:
            said += os.read(terminal, 4096)
    return found[1].decode().strip()


def test_zsh_reads_the_help_as_it_is_written() -> None:
    """Typer's own answer lost apostrophes and cut the help of commands at 45 characters."""
    said, _ = completed("fleet-broker ", "zsh")
    listed = re.search(r"offered=(\(.*\)); _describe", said)
    assert listed is not None
    expected = "status:Show the broker's status: listeners, connected clients, refusals, age of the revocation data."
    assert expected in shlex.split(listed[1][1:-1])
    if (zsh := shutil.which("zsh")) is not None:
        code = f"offered={listed[1]}; print -rl -- $offered"
        done = subprocess.run([zsh, "-fc", code], capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout.splitlines() == shlex.split(listed[1][1:-1])


def test_nothing_in_an_answer_is_run_by_zsh() -> None:
    """What was typed comes back in no answer, and help with a quote or a substitution is a text."""
    said, _ = completed("fleet-provisioning revoke --reason $(touch", "zsh")
    assert said == ""
    said, _ = completed("fleet-provisioning revoke --d", "zsh")
    assert "The service'\\''s directory" in said
