"""``fleet-broker policy`` as its user sees it: answers, reasons, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker.admission.policy_file import DEFAULT_POLICY_FILE
from broker.cli import app

DEVICE = "spiffe://fleet.internal/device/north/m-1"
OWN = "fleet/north/m-1"


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["policy", *arguments])
    return done.exit_code, done.stdout, done.stderr


def test_each_answer_names_its_rule() -> None:
    code, said, _ = run(
        *("test", "--identity", DEVICE, "--publish", f"{OWN}/telemetry", "--publish", f"{OWN}/cmd/x"),
        *("--subscribe", "fleet/#", "--subscribe", f"$share/g/{OWN}/cmd/#"),
    )
    assert code == 1
    assert [line.split(None, 3) for line in said.splitlines()] == [
        ["allowed", "publish", f"{OWN}/telemetry", "role.device publish.allow 'fleet/{group}/{device}/#'"],
        ["denied", "publish", f"{OWN}/cmd/x", "role.device publish.deny 'fleet/{group}/{device}/cmd/#'"],
        ["denied", "subscribe", "fleet/#", "no subscribe.allow filter covers it"],
        ["allowed", "subscribe", f"$share/g/{OWN}/cmd/#", "role.device subscribe.allow 'fleet/{group}/{device}/cmd/#'"],
    ]


def test_all_allowed_is_success_and_json_is_for_programs(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('[identity."m-1"]\nsubscribe.allow = ["a", "a/+/#"]\npublish.allow = ["{client_id}"]\n')
    code, said, _ = run(
        *("test", "--policy", str(policy), "--identity", DEVICE, "--json", "--client-id", "c"),
        *("--subscribe", "a/#", "--publish", "c"),
    )
    assert code == 0
    answers = [json.loads(line) for line in said.splitlines()]
    assert [(each["action"], each["topic"], each["allowed"]) for each in answers] == [
        ("publish", "c", True),
        ("subscribe", "a/#", True),
    ]
    assert answers[1]["because"] == "subscribe.allow 'a' and 'a/+/#' together"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["test", "--identity", DEVICE], "nothing to test: give --publish or --subscribe"),
        (["test", "--identity", "m-1", "--publish", "a"], "--identity: URI 'm-1' does not begin with spiffe://"),
        (["test", "--identity", DEVICE, "--publish", "a/#"], "--publish: topic name 'a/#': a wildcard may only be"),
        (["test", "--identity", DEVICE, "--subscribe", "$share/g"], "--subscribe: topic filter '$share/g': a topic"),
        (["test", "--identity", DEVICE, "--policy", "none", "--publish", "a"], "none cannot be read: No such file"),
        (["show", "--policy", "none"], "none cannot be read: No such file"),
        (["show", "--identity", "x"], "--identity: URI 'x' does not begin with spiffe://"),
    ],
)
def test_wrong_usage_says_what_to_do(arguments: list[str], complaint: str) -> None:
    code, said, error = run(*arguments)
    assert (code, said) == (2, "")
    assert error.startswith(f"fleet-broker: {complaint}")


def test_show_prints_the_default_policy_which_is_a_valid_one(tmp_path: Path) -> None:
    code, said, _ = run("show")
    assert (code, said) == (0, DEFAULT_POLICY_FILE.read_text(encoding="utf-8"))
    copy = tmp_path / "copy.toml"
    copy.write_text(said)
    assert run("show", "--policy", str(copy)) == (0, said, "")


def test_show_tells_what_one_identity_may_do() -> None:
    code, said, _ = run("show", "--identity", DEVICE)
    assert code == 0
    assert said.splitlines() == [
        f"{DEVICE}: [role.device]",
        f"  publish.allow    {OWN}/#",
        f"  publish.deny     {OWN}/cmd/#",
        f"  subscribe.allow  {OWN}/cmd/#",
    ]
    code, said, _ = run("show", "--identity", "spiffe://fleet.internal/broker/b")
    assert code == 1
    assert "is not admitted" in said


def test_whom_a_name_of_ours_does_not_mean_is_told_so(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('[identity.backend]\nsubscribe.allow = ["a"]\n[role.service]\npublish.allow = ["b"]\n')
    theirs = ("--policy", str(policy), "--identity", "spiffe://partner.example/service/backend")
    own = ("--trust-domain", "fleet.internal")
    assert run("test", *theirs, "--subscribe", "a")[0] == 0
    code, said, _ = run("test", *theirs, *own, "--subscribe", "a")
    assert code == 1
    assert "identity.backend subscribe.allow 'a' applies to our own trust domain: name others by their URI" in said
    assert run("show", *theirs)[1].splitlines()[1:] == ["  publish.allow    b", "  subscribe.allow  a"]
    assert run("show", *theirs, *own)[1].splitlines()[1:] == ["  publish.allow    b"]
    policy.write_text('[identity.backend]\nsubscribe.allow = ["a"]\n')
    assert run("show", *theirs, *own)[0] == 1


def test_a_broker_s_settings_say_which_policy_and_whose_it_is(tmp_path: Path) -> None:
    policy, settings = tmp_path / "policy.toml", tmp_path / "broker.toml"
    policy.write_text('[device.m-1]\npublish.allow = ["a"]\n')
    settings.write_text(f'cafile = "ca.crt"\npolicy_file = "{policy}"\ntrust_domain = "fleet.internal"\n')
    asked = ("test", "--config", str(settings), "--publish", "a", "--identity")
    assert run(*asked, DEVICE)[0] == 0
    assert run(*asked, "spiffe://else.where/device/north/m-1")[0] == 1, "a bare name is one of ours"
    assert run(*asked, "spiffe://else.where/device/north/m-1", "--trust-domain", "else.where")[0] == 0
    code, said, _ = run("show", "--config", str(settings), "--json")
    assert (code, json.loads(said)) == (0, {"device": {"m-1": {"publish": {"allow": ["a"]}}}})
    code, said, _ = run("show", "--config", str(settings), "--json", "--identity", DEVICE)
    assert (code, json.loads(said)["publish_allow"], json.loads(said)["sections"]) == (0, ["a"], ["device.m-1"])
    code, _, errors = run("show", "--config", str(tmp_path / "none"))
    told = "cannot be read: No such file or directory; name one that is there"
    assert (code, errors) == (2, f"fleet-broker: {tmp_path}/none {told}\n")
