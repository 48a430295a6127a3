"""mosquitto's ACL file as a topic policy: what each line becomes, and that no rule is lost."""

from __future__ import annotations

import json
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
    ("topic", "publishable"),
    [
        ("$SYS/#", "$SYS/broker/connection/+/state"),
        ("$SYS/+/+/%u/#", "$SYS/broker/connection/{device}/state"),
        ("$SYS/broker/connection/%c/state", "$SYS/broker/connection/{client_id}/state"),
        ("$SYS/broker/connection/+/state/#", "$SYS/broker/connection/+/state"),
        ("$SYS/broker/presence/#", ""),
        ("$SYS/broker/+/x/alarm", ""),
        ("$SYS", ""),
        ("$SYSTEM/x", ""),
        ("$aws/things/%u/#", "$aws/things/{device}/#"),
    ],
)
def test_nobody_may_publish_where_mosquitto_lets_nobody(topic: str, publishable: str) -> None:
    """A `readwrite $SYS/#` let every device forge the broker's figures, and who is connected."""
    made = converted(f"pattern readwrite {topic}\npattern write a\n", "acl")
    allowed = parse_policy(made.policy, "policy")
    meter = Identity("fleet.internal", Role.DEVICE, "meter-1", "meters")
    assert f"publish.allow = {json.dumps([*filter(None, [publishable]), 'a'])}" in made.policy.splitlines()
    assert allowed.permissions(meter, "meter-1", ours=True).may_publish("a")
    narrowed = publishable != topic.replace("%u", "{device}").replace("%c", "{client_id}")
    assert [each.startswith("acl: line 1: mosquitto lets nobody publish to ") for each in made.left_out] == (
        [True] * narrowed
    )


def test_that_a_denied_pattern_is_stronger_than_in_mosquitto_is_said() -> None:
    said = "a user's own topic lines come first"
    assert said in converted("pattern deny a\nuser m\ntopic write a\n", "acl").policy
    assert said not in converted("pattern deny a\nuser m\ntopic deny b\n", "acl").policy
    assert said not in converted("pattern read a\nuser m\ntopic write a\ntopic deny b\n", "acl").policy


def test_a_line_ends_where_mosquitto_ends_it_and_a_topic_is_as_it_stands() -> None:
    """A comment with U+2028 began a rule, and a tab in a topic was another topic."""
    text = "# a\u2028pattern write #\n# b\x0cpattern write #\nuser m\ntopic \t deny  a\tb \r\ntopic read \x7f\u0085\n"
    made = converted(text, "acl")
    rules = [line for line in made.policy.split("\n") if " = " in line]
    assert rules == [
        r'publish.deny = ["a\tb"]',
        'subscribe.allow = ["\\u007f\u0085"]',
        r'subscribe.deny = ["a\tb"]',
    ]
    m = Identity("fleet.internal", Role.DEVICE, "m", "meters")
    assert parse_policy(made.policy, "policy").permissions(m, "m", ours=True).may_subscribe("\x7f\u0085")


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
     ("[role.device]\ntopic x", False), ("topic= 1", False), ("topic = 1", False),
     ("\u00a0", False), ("user a\n\x1f", False)],
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
