"""The default policy, and that a name can never become more than one topic level."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.admission.filter_template import FilterTemplate, InvalidFilter
from broker.admission.policy import Action, Kind, Permissions, Rules, Section, TopicPolicy
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from tests.support.examples import examples
from tests.support.policies import DEFAULT_POLICY, of_roles

METER = DEFAULT_POLICY.permissions(Identity("d", Role.DEVICE, "meter-1", "meters"), "meter-1", ours=True)
BACKEND = DEFAULT_POLICY.permissions(Identity("d", Role.SERVICE, "backend"), "backend-7", ours=True)
OWN = "fleet/meters/meter-1"


@pytest.mark.parametrize("rest", ["", "/telemetry", "/event/x", "/state", "/ack", "/cmds", "/xcmd/a", "/telemetry/cmd"])
def test_a_device_publishes_under_its_own_name(rest: str) -> None:
    assert METER.may_publish(OWN + rest)


@pytest.mark.parametrize(
    "topic",
    [f"{OWN}/cmd", f"{OWN}/cmd/x", f"{OWN}/cmd/", "fleet/meters/meter-2/state", "fleet/x/meter-1/state", "fleet/meters",
     "fleet/meters/meter-10/state", "Fleet/meters/meter-1/state", f"/{OWN}/state", "$SYS/x", "fleet//meter-1/x"],
)  # fmt: skip
def test_a_device_publishes_nowhere_else(topic: str) -> None:
    assert not METER.may_publish(topic)


@pytest.mark.parametrize("topic_filter", [f"{OWN}/cmd/#", f"{OWN}/cmd/+", f"{OWN}/cmd", f"{OWN}/cmd/a/+/b"])
def test_a_device_subscribes_to_its_commands(topic_filter: str) -> None:
    assert METER.may_subscribe(topic_filter)


@pytest.mark.parametrize(
    "topic_filter", [f"{OWN}/#", f"{OWN}/+", OWN, "fleet/meters/+/cmd/#", "fleet/+/meter-1/cmd/#", "#", "+/#", "$SYS/#"]
)
def test_a_device_subscribes_to_nothing_else(topic_filter: str) -> None:
    assert not METER.may_subscribe(topic_filter)


def test_a_service_reads_the_fleet_and_commands_it() -> None:
    assert all(BACKEND.may_subscribe(each) for each in ("fleet/#", "fleet", "fleet/+/+/telemetry", OWN, "$SYS/#"))
    assert not any(BACKEND.may_subscribe(each) for each in ("#", "+/#", "fleets/#", "$SYSTEM/#", "$share/g/fleet/#"))
    assert all(BACKEND.may_publish(each) for each in (f"{OWN}/cmd", f"{OWN}/cmd/go"))
    assert not any(
        BACKEND.may_publish(each) for each in (f"{OWN}/state", "fleet/meters/cmd/x", "fleet/a/b/c/cmd", "$SYS/x")
    )


def test_an_operator_reads_everything_and_says_nothing() -> None:
    operator = DEFAULT_POLICY.permissions(Identity("d", Role.OPERATOR, "admin"), "admin", ours=True)
    assert all(operator.may_subscribe(each) for each in ("fleet/#", "$SYS/#", f"{OWN}/cmd/#"))
    assert not any(operator.may_subscribe(each) for each in ("#", "+/#"))
    assert not any(operator.may_publish(each) for each in (f"{OWN}/cmd/go", f"{OWN}/state", "$SYS/x", "x"))


def test_a_role_without_rules_may_do_nothing() -> None:
    broker = Identity("d", Role.BROKER, "x")
    assert not DEFAULT_POLICY.knows(broker, ours=True)
    permissions = DEFAULT_POLICY.permissions(broker, "x", ours=True)
    assert not permissions.may_publish("fleet/x")
    assert not permissions.may_subscribe("fleet/x")


def test_a_policy_that_says_nothing_permits_nothing() -> None:
    policy = of_roles({Role.DEVICE: Rules()})
    device = Identity("d", Role.DEVICE, "x", "g")
    assert policy.knows(device, ours=True)
    assert not policy.permissions(device, "x", ours=True).may_publish("x")
    assert not policy.permissions(device, "x", ours=True).may_subscribe("x")


NORTH = Identity("d", Role.DEVICE, "m-1", "north")
SOUTH = Identity("d", Role.DEVICE, "m-2", "south")
BRIDGE = Identity("d", Role.SERVICE, "bridge")

POLICY = TopicPolicy(
    [
        Section(
            Kind.ROLE,
            "device",
            Rules(("up/{group}/{device}/#",), ("up/+/+/raw/#",), ("down/{device}/#", "all/#"), ("all/secret/+",)),
        ),
        Section(Kind.GROUP, "north", Rules(publish_allow=("north/#",), subscribe_deny=("down/+/x",))),
        Section(Kind.DEVICE, "m-1", Rules(publish_deny=("north/pole",), subscribe_allow=("extra/a", "extra/a/+/#"))),
        Section(Kind.IDENTITY, "bridge", Rules(("{client_id}/#", "svc-{client_id}/{group}/x"), ("x/{client_id}/y",))),
        Section(Kind.IDENTITY, "spiffe://d/service/bridge", Rules(subscribe_allow=("#",), subscribe_deny=("{group}",))),
    ]
)


@pytest.mark.parametrize(
    ("identity", "topic", "allowed"),
    [
        (NORTH, "up/north/m-1/a", True),
        (NORTH, "up/north/m-1/raw/a", False),
        (NORTH, "up/north/m-1/raw", False),
        (NORTH, "up/north/m-2/a", False),
        (NORTH, "north/a", True),
        (NORTH, "north/pole", False),
        (NORTH, "north/pole/a", True),
        (SOUTH, "north/a", False),
        (SOUTH, "up/south/m-2", True),
    ],
)
def test_all_sections_that_name_a_client_count_together(identity: Identity, topic: str, allowed: bool) -> None:
    assert POLICY.permissions(identity, identity.name, ours=True).may_publish(topic) is allowed


@pytest.mark.parametrize(
    ("identity", "topic_filter", "allowed"),
    [
        (NORTH, "down/m-1/a", True),
        (NORTH, "down/m-1/#", False),  # down/m-1/x is among what it matches.
        (NORTH, "down/m-1/+", False),
        (NORTH, "down/m-1/+/y", True),
        (SOUTH, "down/m-2/#", True),
        (SOUTH, "all/#", False),
        (SOUTH, "all/+", True),
        (SOUTH, "all/+/+", False),
        (SOUTH, "all/secret", True),
        (SOUTH, "all/secret/+/a", True),
        (NORTH, "extra/#", False),
        (NORTH, "extra/a/#", True),  # Neither of the two filters covers it, both together do.
        (NORTH, "extra/a/+/b", True),
        (SOUTH, "extra/a", False),
        (BRIDGE, "#", False),  # It has no group: the deny filter takes any level.
        (BRIDGE, "a/#", False),
        (BRIDGE, "a/b/#", True),
        (BRIDGE, "$SYS/#", False),
    ],
)
def test_a_subscription_is_granted_only_whole(identity: Identity, topic_filter: str, allowed: bool) -> None:
    assert POLICY.permissions(identity, identity.name, ours=True).may_subscribe(topic_filter) is allowed


@pytest.mark.parametrize("client_id", ["a/b", "+", "#", "$SYS", "", "a\0b", "a+b"])
def test_a_client_identifier_that_is_no_safe_level_gains_nothing(client_id: str) -> None:
    permissions = POLICY.permissions(BRIDGE, client_id, ours=True)
    assert permissions.publish_allow.filters == ()
    assert permissions.publish_deny.filters == ("x/+/y",)


def test_a_client_identifier_that_is_a_safe_level_stands_for_itself() -> None:
    permissions = POLICY.permissions(BRIDGE, "bridge-7%s", ours=True)
    assert permissions.publish_allow.filters == ("bridge-7%s/#",), "no group: the other filter says nothing"
    assert permissions.publish_deny.filters == ("x/bridge-7%s/y",)


def test_a_percent_sign_in_a_filter_is_a_percent_sign() -> None:
    rules = Rules(publish_allow=("100%/{device}/50%d",), publish_deny=("%(device)s/{device}/{group}",))
    permissions = TopicPolicy([Section(Kind.ROLE, BRIDGE.role, rules)]).permissions(BRIDGE, BRIDGE.name, ours=True)
    assert permissions.publish_allow.filters == ("100%/bridge/50%d",)
    assert permissions.publish_deny.filters == ("%(device)s/bridge/+",)


def test_what_is_missing_widens_its_own_level_of_a_deny_filter_and_no_other() -> None:
    denied = Rules(publish_deny=("{device}/x-{device}/{group}/{group}-{device}/y",))
    permissions = TopicPolicy([Section(Kind.ROLE, BRIDGE.role, denied)]).permissions(BRIDGE, BRIDGE.name, ours=True)
    assert permissions.publish_deny.filters == ("bridge/x-bridge/+/+/y",)


def test_a_group_gives_rights_and_admits_nobody() -> None:
    policy = TopicPolicy([Section(Kind.GROUP, "north", Rules(("#",), (), ("#",)))])
    assert not policy.knows(NORTH, ours=True)
    assert not policy.explain(NORTH, "m-1", Action.PUBLISH, "x", ours=True).allowed


def test_a_device_section_is_not_about_a_service_of_that_name() -> None:
    policy = TopicPolicy([Section(Kind.DEVICE, "bridge", Rules(("#",)))])
    assert not policy.knows(BRIDGE, ours=True)
    assert policy.knows(Identity("d", Role.DEVICE, "bridge", "g"), ours=True)


def test_what_is_compiled_is_remembered_in_bounds() -> None:
    policy = of_roles({Role.DEVICE: Rules(("{client_id}",))})
    first = policy.permissions(NORTH, "m-1", ours=True)
    assert policy.permissions(Identity("d", Role.DEVICE, "m-1", "north"), "m-1", ours=True) is first
    for number in range(255):
        assert policy.permissions(NORTH, f"c-{number}", ours=True).may_publish(f"c-{number}")
    assert policy.permissions(NORTH, "m-1", ours=True) is first
    for number in range(255, 1000):
        assert policy.permissions(NORTH, f"c-{number}", ours=True).may_publish(f"c-{number}")
        assert len(policy._compiled) <= 256
    policy.permissions(NORTH, "x" * 1000, ours=True)
    assert (NORTH, "x" * 1000, True) not in policy._compiled


TOPICS = ("up/north/m-1/a", "up/north/m-1/raw", "north/pole", "north", "all/secret/x", "m-1/x", "$SYS/x", "x/m-1/y")
FILTERS = (*TOPICS, "#", "+/#", "all/#", "all/+", "extra/a/#", "extra/#", "down/m-1/#", "down/+/x", "down/m-2/+/y")


@pytest.mark.parametrize("identity", [NORTH, SOUTH, BRIDGE, Identity("d", Role.OPERATOR, "admin")])
@pytest.mark.parametrize("client_id", ["m-1", "a/b"])
@pytest.mark.parametrize("policy", [POLICY, DEFAULT_POLICY])
@pytest.mark.parametrize("ours", [True, False])
def test_the_explanation_agrees_with_the_decision(
    policy: TopicPolicy, identity: Identity, client_id: str, ours: bool
) -> None:
    agrees(policy, identity, client_id, ours)


def agrees(policy: TopicPolicy, identity: Identity, client_id: str, ours: bool) -> None:
    """Compare the compiled permissions with the explanation, rule by rule."""
    known, permissions = policy.knows(identity, ours=ours), policy.permissions(identity, client_id, ours=ours)
    for topic in TOPICS:
        explained = policy.explain(identity, client_id, Action.PUBLISH, topic, ours=ours)
        assert explained.allowed is (known and permissions.may_publish(topic))
    for each in FILTERS:
        explained = policy.explain(identity, client_id, Action.SUBSCRIBE, each, ours=ours)
        assert explained.allowed is (known and permissions.may_subscribe(each))


def test_what_a_bare_name_allows_is_for_our_own_trust_domain_and_what_it_denies_for_everybody() -> None:
    device = Section(Kind.DEVICE, "m-1", Rules(("a", "b"), ("b",), ("a",)))
    exact = Section(Kind.IDENTITY, "spiffe://x/device/north/m-1", Rules(("b", "c"), (), ("c",)))
    foreign = Identity("x", Role.DEVICE, "m-1", "north")
    alone, both = TopicPolicy([device]), TopicPolicy([device, exact])
    assert alone.knows(foreign, ours=True)
    assert not alone.knows(foreign, ours=False)
    assert both.knows(foreign, ours=False)
    assert alone.permissions(foreign, "m-1", ours=True).publish_allow.filters == ("a", "b"), "nothing is mixed up"
    permissions = both.permissions(foreign, "m-1", ours=False)
    assert [topic for topic in "abc" if permissions.may_publish(topic)] == ["c"]
    assert [topic for topic in "abc" if permissions.may_subscribe(topic)] == ["c"]
    denied = both.explain(foreign, "m-1", Action.PUBLISH, "a", ours=False)
    assert denied.because == (
        "no publish.allow filter matches it; device.m-1 publish.allow 'a' applies to our own trust domain: "
        "name others by their URI"
    )
    assert alone.explain(foreign, "m-1", Action.SUBSCRIBE, "a", ours=False).because.startswith(
        "no section of the policy admits "
    )
    nobody = both.explain(foreign, "m-1", Action.PUBLISH, "d", ours=False)
    assert nobody.because == "no publish.allow filter matches it", "whosever it is"


NAMES = {
    Kind.ROLE: ["device", "service"],
    Kind.GROUP: ["north"],
    Kind.DEVICE: ["m-1", "bridge"],
    Kind.IDENTITY: ["m-1", "bridge", NORTH.uri, BRIDGE.uri],
}
FEW = st.lists(st.sampled_from((*TOPICS, "#", "north/#", "{group}/#", "all/+", "x/{client_id}/y")), max_size=3)
RULES = st.builds(Rules, *[FEW.map(tuple)] * 4)
SECTIONS = st.fixed_dictionaries(
    {}, optional={(kind, name): RULES for kind, names in NAMES.items() for name in names}
)  # fmt: skip


@examples(60)
@given(SECTIONS, st.sampled_from([NORTH, SOUTH, BRIDGE]), st.booleans())
def test_whom_names_do_not_mean_has_what_the_policy_without_their_allow_filters_gives(
    written: dict[tuple[Kind, str], Rules], identity: Identity, ours: bool
) -> None:
    sections = [Section(kind, name, rules) for (kind, name), rules in written.items()]
    policy = TopicPolicy(sections)
    agrees(policy, identity, "m-1", ours)

    named = [each for each in sections if each.kind is not Kind.DEVICE and each.name not in {"m-1", "bridge"}]
    others = [each for each in sections if each not in named]
    denials = [replace(each, rules=replace(each.rules, publish_allow=(), subscribe_allow=())) for each in others]
    assert policy.knows(identity, ours=False) is TopicPolicy(named).knows(identity, ours=True)
    stripped = TopicPolicy([*named, *denials]).permissions(identity, "m-1", ours=True)
    permissions = policy.permissions(identity, "m-1", ours=False)
    for each in fields(Permissions):
        assert set(getattr(permissions, each.name).filters) == set(getattr(stripped, each.name).filters)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{name}/x", "'{name}/x': {name} is not a placeholder; the placeholders are {device}, {group}, {client_id}"),
        ("{}/x", "'{}/x': {} is not a placeholder"),
        ("{device/x", "'{device/x': a brace that belongs to no placeholder"),
        ("{device}+", "topic filter 'x+': a wildcard must be a level of its own"),
        ("#/{device}", "topic filter '#/x': '#' is only allowed as the last level"),
        ("", "topic filter: must be at least one character long"),
        ("$share/g/x", "'$share/g/x': rules apply to topics; leave $share/<name>/ out"),
    ],
)
def test_a_filter_that_cannot_be_used_says_why(text: str, complaint: str) -> None:
    with pytest.raises(InvalidFilter) as caught:
        FilterTemplate(text)
    assert str(caught.value).startswith(complaint)
