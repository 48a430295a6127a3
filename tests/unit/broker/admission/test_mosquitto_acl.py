"""mosquitto's ACL file as a topic policy: what each line becomes, and that no rule is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker.admission.mosquitto_acl import InvalidAcl, converted, is_acl
from broker.admission.policy import Action
from broker.admission.policy_file import PolicyError, load_policy, parse_policy
from broker.cli import app
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role

ACL = """# everybody
pattern readwrite sensors/%u/#
pattern read commands/%u/%c
pattern deny private/#
topic read announce/#

user dashboard
topic read sensors/#
topic\twrite commands/#
topic deny sensors/secret
topic shared place/%u
user a.b
topic read x
user Pump Room 3
topic readwrite pumps/#
user dashboard
topic write more/#
"""


def test_every_kind_of_line_becomes_rules() -> None:
    made = converted(ACL.replace("topic shared place", "topic readwrite shared place"), "/etc/mosquitto/acl")
    assert [line for line in made.policy.splitlines() if not line.startswith("#")] == [
        "",
        "[role.device]",
        'publish.allow = ["sensors/{device}/#"]',
        'publish.deny = ["private/#"]',
        'subscribe.allow = ["sensors/{device}/#", "commands/{device}/{client_id}"]',
        'subscribe.deny = ["private/#"]',
        "",
        "[role.service]",
        'publish.deny = ["private/#"]',
        'subscribe.deny = ["private/#"]',
        "",
        "[identity.dashboard]",
        'publish.allow = ["commands/#", "shared place/%u", "more/#"]',
        'publish.deny = ["sensors/secret"]',
        'subscribe.allow = ["sensors/#", "shared place/%u"]',
        'subscribe.deny = ["sensors/secret"]',
        "",
        '[identity."a.b"]',
        'subscribe.allow = ["x"]',
    ]
    assert [each.split(": left out: it is for ")[0] for each in made.left_out] == [
        "/etc/mosquitto/acl: line 5",
        "/etc/mosquitto/acl: line 15",
    ]
    policy = parse_policy(made.policy, "policy")
    meter = Identity("fleet.internal", Role.DEVICE, "meter-1", "meters")
    assert policy.explain(meter, "meter-1", Action.PUBLISH, "sensors/meter-1/t", ours=True).allowed
    assert not policy.explain(meter, "meter-1", Action.PUBLISH, "sensors/meter-2/t", ours=True).allowed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tpoic read a", "acl: line 1: 'tpoic read a' is no line of an ACL file"),
        ("user a\ntopic", "acl: line 2: 'topic' is no line of an ACL file"),
        ("user a\ntopic raed a", "acl: line 2: 'raed' is no access: read, write, readwrite or deny"),
        ("pattern deny a/#/b", "acl: line 1: "),
        ("user a\ntopic deny {x}", "acl: line 2: '{x}': a policy has no topics with braces"),
        ("topic read a", "acl: it has no rule for anybody who can be admitted"),
        ("", "acl: it has no rule for anybody"),
    ],
)
def test_what_cannot_be_said_is_an_error_and_no_rule_is_lost(text: str, words: str) -> None:
    with pytest.raises(InvalidAcl) as refused:
        converted(text, "acl")
    assert str(refused.value).startswith(words)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [(ACL, True), ("user a\r\ntopic b\r\n", True), ("", False), ("# nothing", False), ('user = "a"', False),
     ("[role.device]\ntopic x", False), ("topic= 1", False)],
)  # fmt: skip
def test_an_acl_file_is_told_from_others(text: str, is_one: bool) -> None:
    assert is_acl(text) is is_one


def test_an_acl_file_that_is_given_as_a_policy_is_told_how_it_becomes_one(tmp_path: Path) -> None:
    acl = tmp_path / "acl"
    acl.write_text("user a\ntopic read b\n")
    with pytest.raises(
        PolicyError, match=f"^{acl}: mosquitto's ACL file, and not TOML: fleet-broker policy convert {acl}"
    ):
        load_policy(acl)
    done = CliRunner().invoke(app, ["policy", "convert", str(acl)])
    assert (done.exit_code, done.stderr) == (0, "")
    (tmp_path / "policy.toml").write_text(done.stdout)
    load_policy(tmp_path / "policy.toml")
    acl.write_text("topic read anonymous\nuser a\ntopic raed b\n")
    done = CliRunner().invoke(app, ["policy", "convert", str(acl)])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"fleet-broker: {acl}: line 3: 'raed' is no access: read, write, readwrite or deny\n"
