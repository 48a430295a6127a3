"""Sessions judged together, by their likeness, and one by one: the same, whatever names, filters and rules there are.

All of a few are tried with each other, not drawn: names that are also levels of the rules, groups, or parts of each
other, so that what may not be taken for alike occurs all the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest

from broker.admission.policy import Kind, Rules, Section, TopicPolicy
from broker.mqtt.message import Message
from broker.mqtt.subscription import Subscription
from broker.reload import alike
from broker.reload.alike import Judge
from broker.reload.loss import judge
from broker.session.session import Session
from broker.session.will import Will
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from tests.support.wire import MemoryBroker

NAMES = ("m1", "m2", "m", "f", "g", "m1-x", "1")
GROUPS = ("g", "m1")
TEMPLATES = (
    *("f/{device}/#", "f/{group}/{device}", "f/{client_id}", "{device}/#", "{group}/#", "#", "+/{device}", "f/m1/#"),
    *("f/m", "f/m1-x", "f/{device}-x", "f/{group}-x", "f/{group}{device}", "f/{device}{device}", "g/+", "f/g"),
)
DENIED = ("f/m1-x", "{device}/#", "f/{group}/{device}", "f/m1/#", "f/{group}-x", "g/+")
FILTERS = (
    *("f/NAME", "f/NAME/#", "f/GROUP/NAME", "NAME/1", "GROUP/NAME", "GROUP/1", "#", "+/NAME", "f/+", "f/m1", "f/m2"),
    *("f/NAME-x", "f/m1-x", "f/NAMENAME", "g/m1", "$share/NAME/f/NAME", "$share/m1/f/m", "f", "NAME"),
)
TOPICS = ("f/NAME", "f/GROUP/NAME", "f/m1", "NAME/1", "f/NAME-x", "f\nNAME", "f/NAMENAME")
Kit = tuple[str, ...]


def session_of(name: str, group: str | None, domain: str = "ours", *, client_id: str = "") -> Session:
    role = Role.SERVICE if group is None else Role.DEVICE
    registry = MemoryBroker().engine.registry
    return registry.create(client_id or name, Identity(f"{domain}.example", role, name, group))


EVERYBODY = [session_of(name, group) for name in NAMES for group in GROUPS]
EVERYBODY += [session_of(name, "g", "theirs") for name in NAMES]
EVERYBODY += [session_of("m2", "g", client_id="m1"), session_of("m3", "g", client_id="m3")]


def give(session: Session, filters: Iterable[str], will: str = "") -> None:
    """Let *session* have *filters*, and a *will* if any."""

    def own(text: str) -> str:
        return text.replace("NAME", session.owner.name).replace("GROUP", session.owner.group or "g")

    session.subscriptions = {own(each): Subscription(own(each), 1) for each in filters}
    session.will = Will(Message(own(will).encode(), b""), 5) if will else None
    session.expiry_interval = 10


def compare(
    policy: TopicPolicy, kits: Iterable[Kit], sessions: Sequence[Session], will: str = "", **asked: bool
) -> int:
    """Compare what is judged together and one by one; return how many need not have been judged again."""
    together, fine = Judge(policy), 0
    for kit in kits:
        for session in sessions:
            give(session, kit, will)
            ours = session.owner.trust_domain == "ours.example"
            alone = judge(policy, session, ours=ours, **asked)
            assert together.loss(session, ours=ours, **asked) == alone, (session.owner.uri, session.client_id, kit)
            fine += alone is None
    return fine - len(together._fine)


def roles(rules: Rules) -> list[Section]:
    return [Section(Kind.ROLE, "device", rules), Section(Kind.ROLE, "service", rules)]


@pytest.mark.parametrize("order", [1, -1])
def test_rules_of_a_role_judge_all_alike_that_are(order: int) -> None:
    saved = 0
    for allowed in TEMPLATES:
        for denied in ((), *((each,) for each in DENIED)):
            policy = TopicPolicy(roles(Rules(subscribe_allow=(allowed,), subscribe_deny=denied)))
            saved += compare(policy, [(each,) for each in FILTERS], EVERYBODY[::order])
    assert saved > 1000, "or nothing is gained"


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("kind", [Kind.GROUP, Kind.DEVICE, Kind.IDENTITY])
@pytest.mark.parametrize("effect", ["allow", "deny"])
def test_rules_of_others_judge_them_by_themselves(order: int, kind: Kind, effect: str) -> None:
    for about in ("m1", "m2", "g", *(["spiffe://ours.example/device/g/m2"] if kind is Kind.IDENTITY else [])):
        for template in ("f/#", "#", "f/{device}"):
            if effect == "allow":
                common, special = Rules(subscribe_allow=("NOTHING",)), Rules(subscribe_allow=(template,))
            else:
                common, special = Rules(subscribe_allow=("#",)), Rules(subscribe_deny=(template,))
            policy = TopicPolicy([*roles(common), Section(kind, about, special)])
            compare(policy, [(each,) for each in FILTERS], EVERYBODY[::order])


@pytest.mark.parametrize("goes", [False, True])
@pytest.mark.parametrize("wills", [False, True])
def test_wills_are_judged_alike_that_are(goes: bool, wills: bool) -> None:
    for allowed in TEMPLATES:
        for denied in ((), ("f/m1",), ("{device}/1",)):
            policy = TopicPolicy(roles(Rules(publish_allow=(allowed,), publish_deny=denied, subscribe_allow=("f/#",))))
            together: list[tuple[Kit, str]] = [((), each) for each in TOPICS] + [(("f/NAME",), each) for each in TOPICS]
            judge_once = Judge(policy)
            for kit, will in together:
                for session in EVERYBODY:
                    give(session, kit, will)
                    asked = {"ours": session.owner.trust_domain == "ours.example", "goes": goes, "wills": wills}
                    assert judge_once.loss(session, **asked) == judge(policy, session, **asked)


def test_who_is_connected_must_be_known_and_others_need_not(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = TopicPolicy([Section(Kind.GROUP, "g", Rules(subscribe_allow=("#",)))])  # It admits nobody.
    together = Judge(policy)
    away, here = session_of("a", "g"), session_of("b", "g")
    monkeypatch.setattr(here, "connection", object())
    for session in (away, here):
        give(session, ["f/NAME"])
        assert together.loss(session, ours=True) == judge(policy, session, ours=True)
        assert together.loss(session, ours=True, goes=True) == judge(policy, session, ours=True, goes=True)


@pytest.mark.parametrize(
    ("fine", "other"),
    [
        (("f/NAME", "f/b\ncmd"), ("f/NAME\nf/b", "cmd")),
        (("f/a", "f/b"), ("f/a\nf/b",)),
        ((), ("cmd",)),
    ],
)
def test_filters_are_told_apart_that_make_the_same_text(fine: Kit, other: Kit) -> None:
    policy = TopicPolicy(roles(Rules(subscribe_allow=("f/+", "f/b/#"), publish_allow=("#",))))
    for kits in ((fine, other), (other, fine)):
        compare(policy, kits, EVERYBODY, will="f/NAME")


def test_roles_and_domains_are_told_apart() -> None:
    sections = [
        Section(Kind.ROLE, "device", Rules(subscribe_allow=("f/+",))),
        Section(Kind.ROLE, "service", Rules(subscribe_allow=("g/+",))),
        Section(Kind.DEVICE, "z", Rules(subscribe_allow=("z/+",))),
    ]
    sessions = [session_of(name, group) for name in ("x", "y") for group in ("h", None)]
    for order in (1, -1):
        compare(TopicPolicy(sections), [("f/NAME",), ("g/NAME",)], sessions[::order])


def test_what_it_remembers_is_bounded() -> None:
    together = Judge(TopicPolicy(roles(Rules(subscribe_allow=("#",)))))
    most = alike._MOST_REMEMBERED
    session = session_of("meter", "g")
    for number in range(most + 10):
        give(session, [f"t/{number}", *(["x" * 2000] if number == 0 else [])])
        assert together.loss(session, ours=True) is None
        assert len(together._fine) == (number if number <= most else number - most)
