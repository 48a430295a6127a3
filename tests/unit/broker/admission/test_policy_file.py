"""A topic policy as a file: what is read, and errors that name the file, the key and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.admission.policy import DeniedPublish
from broker.admission.policy_file import PolicyError, load_policy, parse_policy, read_policy
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role

METER = Identity("fleet.internal", Role.DEVICE, "m-1", "north")
EVERYTHING = """
denied_publish = "disconnect"
[role.device]
publish.allow = ["a"]
[role.device.subscribe]
allow = ["b"]
deny = ["c"]
[group.north]
publish = { allow = ["d"], deny = ["e"] }
[device."m-1"]
publish.allow = ["f"]
[identity.m-1]
publish.allow = ["g"]
[identity."spiffe://fleet.internal/device/north/m-1"]
publish.allow = ["h"]
"""


def test_every_section_is_read(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(EVERYTHING)
    policy = load_policy(path)
    permissions = policy.permissions(METER, "m-1", ours=True)
    assert policy.denied_publish is DeniedPublish.DISCONNECT
    assert permissions.publish_allow.filters == ("a", "d", "f", "g", "h")
    assert permissions.publish_deny.filters == ("e",)
    assert permissions.subscribe_allow.filters == ("b",)
    assert permissions.subscribe_deny.filters == ("c",)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[rol.device]", "rol: no such section or key; there are denied_publish, [role.…], [group.…], [device.…]"),
        ("[role.devic]", "role.devic: no such role; there are device, broker, service, operator"),
        ("[role.device]\npublish.alow = []", "role.device.publish.alow: no such key; there are allow, deny"),
        ("[role.device]\nallow = []", "role.device.allow: no such key; there are publish.allow, publish.deny, "),
        ('[role.device]\npublish = ["x"]', "role.device.publish: expected keys below it: publish.allow, "),
        ('[role.device]\npublish.allow = "x"', "role.device.publish.allow: expected a list of topic filters"),
        ("[role.device]\npublish.allow = [1]", "role.device.publish.allow[0]: expected a topic filter in quotes"),
        (
            '[role.device]\nsubscribe.deny = ["a", "{x}"]',
            "role.device.subscribe.deny[1]: '{x}': {x} is not a placeholder",
        ),
        ("[role.device]\npublish.allow = [true]", "role.device.publish.allow[0]: expected a topic filter in quotes"),
        ("[role.device]\npublish.allow = 2026-01-01", "role.device.publish.allow: expected a list of topic filters"),
        ("[role.device]\npublish.allow = { 0 = 'x' }", "role.device.publish.allow: expected a list of topic filters"),
        ("[device]\n1 = 2", "device.1: expected keys below it: publish.allow, "),
        ("role = 1", "role: expected a table"),
        (
            f"[role.device]\nsubscribe.deny = {['x'] * 1001}",
            "role.device.subscribe.deny: more than 1000 topic filters; use wildcards and placeholders",
        ),
        (
            f"[role.device]\nsubscribe.allow = ['{'+/' * 256}+']",
            f"role.device.subscribe.allow[0]: '{'+/' * 40}'…: more than 256 levels, which no topic has",
        ),
        ('denied_publish = "ignore"', "denied_publish: input should be 'drop' or 'disconnect'"),
        ('[group."a/b"]', "group.a/b: name 'a/b': use 1 to 64 letters"),
        ('[identity."spiffe://x"]', "identity.spiffe://x: URI 'spiffe://x' is not spiffe://<trust-domain>/<role>"),
        ("[group.north]", "no client could connect: give at least one [role.…], [device.…] or [identity.…] section"),
        ("x = ", "not TOML: "),
    ],
)
def test_an_error_names_file_key_and_remedy(text: str, complaint: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "policy.toml")
    assert str(caught.value).startswith(f"policy.toml: {complaint}")


def test_all_errors_are_told_at_once() -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy('[role.device]\npublish.allow = ["{x}", "a/#/b"]\n[rol.x]\n', "policy.toml")
    assert len(str(caught.value).splitlines()) == 3


def test_an_error_names_the_file_in_which_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ours.toml"
    path.write_text("[rol.device]")
    with pytest.raises(PolicyError) as caught:
        load_policy(path)
    assert str(caught.value).startswith(f"{path}: rol: no such section")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"none\.toml cannot be read: No such file"):
        load_policy(tmp_path / "none.toml")
    (tmp_path / "binary").write_bytes(b"\xff")
    with pytest.raises(PolicyError, match="binary: line 1 is not UTF-8; save it in that encoding"):
        load_policy(tmp_path / "binary")
    with pytest.raises(PolicyError, match="cannot be read: Is a directory"):
        load_policy(tmp_path)


@pytest.mark.parametrize(
    ("section", "admits"),
    [("role.device", True), ('device."m-1"', True), ("identity.m-1", True), ("group.north", False)],
)
def test_a_policy_has_to_let_somebody_in(section: str, admits: bool) -> None:
    text = f'[{section}]\npublish.allow = ["a"]\n'
    if admits:
        assert parse_policy(text, "p").knows(METER, ours=True)
        return
    with pytest.raises(PolicyError, match="no client could connect"):
        parse_policy(text, "p")


def test_a_file_has_a_size_that_it_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "policy.toml"
    path.write_text('[role.device]\npublish.allow = ["a"]\n')
    monkeypatch.setattr("broker.admission.policy_file._LARGEST", path.stat().st_size)
    assert read_policy(path) == path.read_text()
    monkeypatch.setattr("broker.admission.policy_file._LARGEST", path.stat().st_size - 1)
    with pytest.raises(PolicyError, match="use placeholders instead of a section for each device"):
        read_policy(path)
