"""Of bare names that mean nobody, an operator is told the first three and how many more there are."""

from __future__ import annotations

import pytest

from broker.admission.bare_names import idle_names
from broker.admission.policy_file import parse_policy

THEIRS = ["plant.example"]


def told(sections: int, own: str | None = "fleet.internal") -> str:
    text = "".join(f'[device.d{number}]\npublish.allow = ["a"]\n' for number in range(sections))
    return idle_names(parse_policy(text, "policy"), own, THEIRS)


@pytest.mark.parametrize(
    ("sections", "shown"),
    [
        (1, "here: [device.d0]; "),
        (3, "here: [device.d0], [device.d1], [device.d2]; "),
        (4, "here: [device.d0], [device.d1], [device.d2] and 1 more; "),
    ],
)
def test_so_many_are_named(sections: int, shown: str) -> None:
    assert shown in told(sections)


def test_whose_they_would_be_is_said() -> None:
    assert "is of the broker's own trust domain, fleet.internal. " in told(1)
    assert "is of the broker's own trust domain: it has none. " in told(1, own=None)


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ('publish.allow = ["a"]', True),
        ('subscribe.allow = ["a"]', True),
        ('publish.allow = ["a"]\npublish.deny = ["b"]', True),
        ('subscribe.allow = ["a"]\nsubscribe.deny = ["b"]', True),
        ("", True),
        ('publish.deny = ["a"]', False),
        ('subscribe.deny = ["a"]', False),
    ],
)
def test_a_section_that_only_denies_means_everybody_of_that_name(rules: str, named: bool) -> None:
    policy = parse_policy(f"[device.d0]\n{rules}\n", "policy")
    assert [str(section) for section in policy.for_ours_only] == (["device.d0"] if named else [])


def test_a_name_is_quoted_where_toml_wants_that() -> None:
    policy = parse_policy('[identity."a.b"]\npublish.allow = ["a"]\n', "policy")
    assert [str(section) for section in policy.for_ours_only] == ['identity."a.b"']


def test_of_none_nothing_is_said() -> None:
    assert idle_names(parse_policy('[role.device]\npublish.deny = ["#"]\n', "policy"), "fleet.internal", THEIRS) == ""
