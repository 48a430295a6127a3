"""Two trust domains at one broker: nobody of one can take, hold, block or see what is another's of the same name."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pytest
from structlog.testing import capture_logs

from broker.admin.sessions import OfAnotherDomain, Selection, SessionView
from broker.admission.bundle import TrustBundle
from broker.admission.bundle_terms import BundleTerms
from broker.admission.trust import Trust
from broker.mqtt.codes import ReasonCode
from broker.plugins.program import Plugins
from broker.reload.report import Affected, Effects, Outcome, Part, PartReport, ReloadReport
from broker.revocation.enforcement import revoke
from broker.settings.config_loading import load
from broker.settings.trust_settings import TrustSettings
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from tests.support.pki import DOMAIN, Held, Pki, shared_device, shared_pki
from tests.support.stored import StoredBroker
from tests.support.wire import KEPT, V5, MemoryBroker, WireClient, connect_packet, request, will

PLANT = Pki()
PLANT_DOMAIN = "plant.example"
TOPIC = "fleet/meters/meter-1/telemetry"
B = TypeVar("B", bound=MemoryBroker)


@cache
def certified(role: Role, name: str) -> Held:
    return PLANT.certify(Identity(PLANT_DOMAIN, role, name, "meters"))


def bundle(name: str, authority: Held, **different: Any) -> TrustBundle:
    anchors, roles = (Path("-"),), (Role.DEVICE, Role.SERVICE)
    settings = TrustSettings(
        name=name, anchors=anchors, roles=roles, unsafe_no_revocation=True, client_id="prefix", **different
    )
    return TrustBundle(name, [authority.certificate], terms=BundleTerms.of(settings))


def believing(broker: B) -> B:
    """Let *broker* believe our own CA and the plant's, whose devices are of our groups, as its operator has written."""
    plant = bundle("plant", PLANT.issuing, trust_domain=PLANT_DOMAIN, groups=("meters",), any_client_id=("liar",))
    broker.engine.admission.believe(Trust([bundle("ours", shared_pki().issuing, any_client_id=("meter-9",)), plant]))
    return broker


def foreign(broker: MemoryBroker, name: str = "meter-1", role: Role = Role.DEVICE, **connect: Any) -> WireClient:
    """Return a connected party of the plant."""
    client = broker.open(certified(role, name))
    client.connect(**({"client_id": name} | connect))
    return client


@pytest.fixture
def broker() -> MemoryBroker:
    return believing(MemoryBroker())


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[StoredBroker]:
    opened = believing(StoredBroker(tmp_path))
    yield opened
    opened.close()


def connect_twice(broker: MemoryBroker, **connect: Any) -> tuple[WireClient, WireClient]:
    return broker.device("meter-1", **connect), foreign(broker, **connect)


def test_who_comes_first_shuts_nobody_of_another_domain_out(broker: MemoryBroker) -> None:
    theirs = foreign(broker, session_expiry_interval=600)
    ours = broker.device("meter-1", session_expiry_interval=600)
    again = foreign(broker, **KEPT)
    assert theirs.farewell().reason_code is ReasonCode.SESSION_TAKEN_OVER, "of its own domain one client is one session"
    assert not ours.closed
    assert again.session is not ours.session
    assert len(broker.engine.registry) == 2


def test_what_is_kept_in_one_is_neither_resumed_nor_ended_in_the_other(broker: MemoryBroker) -> None:
    ours, theirs = connect_twice(broker, **KEPT)
    ours.subscribe("fleet/meters/meter-1/cmd/#", qos=1)
    kept = ours.session
    ours.leave()
    theirs.leave()
    foreign(broker, clean_start=True, session_expiry_interval=0).leave()
    assert broker.engine.registry.all() == [kept]
    broker.service().publish("fleet/meters/meter-1/cmd/go", b"go", qos=1)
    assert foreign(broker, **KEPT).received() == []
    assert broker.device("meter-1", **KEPT).payloads() == [b"go"]


def test_the_plants_session_expires_and_ours_does_not(broker: MemoryBroker) -> None:
    ours = broker.device("meter-1", session_expiry_interval=600)
    foreign(broker, session_expiry_interval=5).vanish()
    kept = ours.session
    ours.vanish()
    broker.advance(10)
    assert broker.engine.registry.all() == [kept]


def test_each_will_is_its_own(broker: MemoryBroker) -> None:
    backend = broker.service()
    backend.subscribe(TOPIC)
    delayed = will(TOPIC, b"ours", will_delay_interval=60)
    broker.device("meter-1", session_expiry_interval=600, will=delayed).vanish()
    foreign(broker, will=will(TOPIC, b"theirs")).leave()
    assert backend.received() == [], "neither sent nor cancelled by the other's coming and going"
    broker.advance(61)
    assert backend.payloads() == [b"ours"]


def test_a_revocation_puts_out_one_and_ends_its_session_alone(broker: MemoryBroker) -> None:
    ours, theirs = connect_twice(broker, session_expiry_interval=600)
    revoke(broker.engine, shared_device("meter-1").revocation, broker.now)
    assert (ours.closed, theirs.closed) == (True, False)
    assert broker.engine.registry.all() == [theirs.session]


def test_instances_and_names_that_are_assigned_are_counted_apart(broker: MemoryBroker) -> None:
    broker.engine.limit(type(broker.engine.limits)(max_instances=1))
    foreign(broker, client_id="meter-1-a")
    broker.device("meter-1").leave()
    assigned = broker.open(shared_device("meter-1")).connect(client_id="").properties.assigned_client_identifier
    assert str(assigned).startswith("meter-1-")
    assert broker.open(certified(Role.DEVICE, "meter-1")).connect(client_id="", expect=None).reason_code is (
        ReasonCode.QUOTA_EXCEEDED
    )


def test_a_foreign_ca_s_parties_have_so_many_sessions_as_its_bundle_says(broker: MemoryBroker) -> None:
    plant = bundle("plant", PLANT.issuing, trust_domain=PLANT_DOMAIN, groups=("meters",), max_sessions=2)
    broker.engine.admission.believe(Trust([bundle("ours", shared_pki().issuing, any_client_id=("meter-9",)), plant]))
    foreign(broker, **KEPT).leave()
    foreign(broker, "backend", Role.SERVICE)
    one_more = broker.open(certified(Role.DEVICE, "meter-2")).connect(client_id="meter-2", expect=None)
    assert one_more.reason_code is ReasonCode.QUOTA_EXCEEDED
    assert str(one_more.properties.reason_string) == (
        f"TOO_MANY_SESSIONS: parties of {PLANT_DOMAIN} have 2 sessions already, kept ones included"
    )
    foreign(broker, clean_start=True)
    broker.device("meter-1")
    broker.device("meter-2")
    foreign(broker).leave()
    foreign(broker, "meter-2")


def test_whoever_may_use_any_client_identifier_does_so_in_its_own_domain(broker: MemoryBroker) -> None:
    foreign(broker, "liar", client_id="meter-1")
    broker.device("meter-1")
    ours = broker.open(shared_device("meter-1"))
    ours.connect(client_id="meter-1", **KEPT)
    liar = foreign(broker, "liar", client_id=f"{DOMAIN}/meter-1")
    assert liar.session is not ours.session
    assert not ours.closed


def test_a_share_is_among_parties_of_one_domain(broker: MemoryBroker) -> None:
    shared = "$share/workers/fleet/#"
    ours = [broker.service("w", client_id=f"w-{number}", session_expiry_interval=600) for number in range(2)]
    thief = foreign(broker, "w", Role.SERVICE)
    for member in (*ours, thief):
        member.subscribe(shared, qos=1)
    meter = broker.device("meter-1")
    for number in range(4):
        meter.publish(TOPIC, b"%d" % number, qos=1)
    taken = [member.payloads() for member in ours]
    assert sorted(payload for each in taken for payload in each) == [b"0", b"1", b"2", b"3"]
    assert len(thief.messages()) == 4
    thief.leave()
    ours[0].leave()
    ours[1].unsubscribe(shared)
    meter.publish(TOPIC, b"4", qos=1)
    assert ours[1].received() == []
    assert broker.engine.routes.shared_subscription_count == 1


def test_what_a_member_leaves_goes_to_one_of_its_own_domain(broker: MemoryBroker) -> None:
    shared = "$share/workers/fleet/#"
    first, second = (broker.service("w", client_id=f"w-{number}") for number in range(2))
    first.subscribe(shared, qos=1)
    broker.device("meter-1").publish(TOPIC, b"x", qos=1)
    foreign(broker, "w", Role.SERVICE).subscribe(shared, qos=1)
    second.subscribe(shared, qos=1)
    first.vanish()
    assert second.payloads() == [b"x"]


def test_what_the_plants_device_retains_takes_no_room_of_ours_and_is_not_its_own(broker: MemoryBroker) -> None:
    broker.engine.limit(type(broker.engine.limits)(max_retained_of_device=1))
    ours, theirs = connect_twice(broker)
    theirs.publish("fleet/meters/meter-1/a", b"theirs", retain=True)
    ours.publish("fleet/meters/meter-1/b", b"ours", retain=True)
    assert len(broker.engine.retained) == 2
    foreign(broker, "backend", Role.SERVICE).publish("fleet/meters/meter-1/cmd/go", b"go", retain=True)
    backend = broker.service()
    backend.subscribe(request("fleet/+/+/cmd/#", no_local=True))
    assert backend.payloads() == [b"go"], "No Local is about one's own [MQTT-3.8.3-3]"


def test_flapping_bans_one_and_not_the_other() -> None:
    broker = believing(MemoryBroker(flapping_count=2, ban_seconds=60))
    for _ in range(2):
        foreign(broker).vanish()
    broker.device("meter-1")
    banned = broker.open(certified(Role.DEVICE, "meter-1")).connect(client_id="meter-1", expect=None)
    assert banned.reason_code is ReasonCode.BANNED


def test_both_come_back_from_the_store_with_what_is_theirs(stored: StoredBroker) -> None:
    for client in connect_twice(stored, **KEPT):
        client.subscribe("fleet/meters/meter-1/cmd/#", qos=1)
    stored.device("meter-1", **KEPT).leave()
    stored.service().publish("fleet/meters/meter-1/cmd/go", b"go", qos=1)
    after = believing(stored.killed())
    assert sorted(owners(after)) == [DOMAIN, PLANT_DOMAIN]
    ours, theirs = connect_twice(after, **KEPT)
    assert (ours.payloads(), theirs.payloads()) == ([b"go"], [b"go"])


def owners(broker: MemoryBroker) -> list[str]:
    return [session.owner.trust_domain for session in broker.engine.registry.all()]


@pytest.mark.parametrize(
    ("name", "client_id", "more"), [("meter-1", "meter-1", 0), ("meter-9", f"{PLANT_DOMAIN}/meter-1", 1)]
)
def test_a_store_of_before_is_read_and_what_was_retained_stays_its_publishers_own(
    stored: StoredBroker, name: str, client_id: str, more: int
) -> None:
    """Of who used another client identifier it did not say which device that was: it has its room once more (0248)."""

    def publishes(broker: StoredBroker, topic: str) -> None:
        client = broker.open(shared_device(name))
        client.connect(client_id=client_id, **KEPT)
        client.publish(f"fleet/meters/{name}/{topic}", b"x", retain=True, qos=1)

    publishes(stored, "one")
    stored.store._database.execute("UPDATE retained SET publisher=?", (f"device/{client_id}",))  # As it was then.
    stored.limits = {"max_retained_of_device": 1}
    after = believing(stored.killed())
    publishes(after, "other")
    assert len(after.engine.retained) == 1 + more, "it has retained as much as it may"
    publishes(after, "third")
    assert len(after.engine.retained) == 1 + more
    foreign(after).publish("fleet/meters/meter-1/other", b"3", retain=True)
    assert len(after.engine.retained) == 2 + more


def test_a_log_line_about_a_session_says_whose_it_is(broker: MemoryBroker) -> None:
    broker.engine.limit(type(broker.engine.limits)(max_queued_messages=1))
    theirs = foreign(broker, session_expiry_interval=600)
    theirs.subscribe("fleet/meters/meter-1/cmd/#", qos=1)
    theirs.vanish()
    backend = broker.service()
    with capture_logs() as logs:
        for _ in range(2):
            backend.publish("fleet/meters/meter-1/cmd/go", b"go", qos=1)
    (said,) = [each for each in logs if each.get("code") == "QUEUE_FULL"]
    assert (said["client"], said["identity"]) == ("meter-1", f"spiffe://{PLANT_DOMAIN}/device/meters/meter-1")


@pytest.mark.parametrize("field", ["client", "device", "anything"])
async def test_a_bare_name_kicks_one_of_ours_and_one_of_another_domain_is_named_with_it(
    broker: MemoryBroker, field: str
) -> None:
    ours, theirs = connect_twice(broker)
    view = SessionView(broker.engine, lambda: broker.now)
    everybody = Selection.of({field: "meter-1"})
    assert [session.owner.trust_domain for session in broker.engine.registry.all() if everybody.matches(session)] == [
        DOMAIN,
        PLANT_DOMAIN,
    ], "who looks sees both"
    kicked = await view.kick(everybody, "x", "uid 0", forget=True)
    assert [each["identity"] for each in kicked] == [f"spiffe://{DOMAIN}/device/meters/meter-1"]
    assert (ours.closed, theirs.closed) == (True, False)
    with pytest.raises(OfAnotherDomain, match=rf"of other trust domains: {PLANT_DOMAIN}/meter-1; name one of these"):
        await view.kick(everybody, "x", "uid 0", forget=True)
    for named in ({field: "meter-1", "domain": PLANT_DOMAIN}, {field: f"{PLANT_DOMAIN}/meter-1"}):
        assert len(await view.kick(Selection.of(named), "x", "uid 0", forget=True)) == 1
        assert theirs.closed
        theirs = foreign(broker)


async def test_what_a_client_is_called_reaches_an_operators_terminal_harmlessly(broker: MemoryBroker) -> None:
    hostile = "meter-1-\x1b[2J\n"
    foreign(broker, client_id=hostile)
    view = SessionView(broker.engine, lambda: broker.now)
    with pytest.raises(OfAnotherDomain) as refused:
        await view.kick(Selection(device="meter-1"), "x", "uid 0", forget=False)
    affected = (Affected(hostile, "spiffe://x", "goes"),)
    part = PartReport(Part.TRUST, Outcome.RELOADED, effects=Effects(connected=1, affected=affected))
    for said in (str(refused.value), str(ReloadReport((part,), dry_run=True))):
        assert r"meter-1-\x1b[2J\n" in said
        assert said.isprintable()


@pytest.mark.parametrize("name", [f"{PLANT_DOMAIN}/meter-1", f"spiffe://{PLANT_DOMAIN}/device/meters/meter-1"])
async def test_a_name_with_its_domain_is_one_party(broker: MemoryBroker, name: str) -> None:
    ours, theirs = connect_twice(broker)
    await SessionView(broker.engine, lambda: broker.now).kick(Selection(anything=name), "x", "uid 0", forget=False)
    assert (ours.closed, theirs.closed) == (False, True)
    known = [event for events in broker.engine.history.known() for event in events]
    assert {str(event.identity) for event in known if event.is_about(name, "")} == {
        f"spiffe://{PLANT_DOMAIN}/device/meters/meter-1"
    }


def test_spaces_of_domains_that_are_gone_are_forgotten(broker: MemoryBroker) -> None:
    registry = broker.engine.registry
    for number in range(100):
        registry.discard(registry.create("m", Identity(f"d{number}.example", Role.DEVICE, "m", "g")))
    assert registry._sessions == {}


async def until(holds: Callable[[], bool]) -> None:
    """Let the loop run until what plugins do of themselves *holds*."""
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0)


PLUGIN = """
from amqtt.plugins.base import BaseAuthPlugin, BasePlugin

told = []

class Asked(BaseAuthPlugin):
    async def authenticate(self, *, session):
        told.append(("asked", session.client_id))
        return True

class Told(BasePlugin):
    async def on_broker_client_connected(self, *, client_id, client_session):
        told.append(("connected", client_id, client_session.client_id, self.context.get_session(client_id).username))

    async def on_broker_client_subscribed(self, *, client_id, topic, qos):
        told.append(("subscribed", client_id))
        await self.context.add_subscription(client_id, topic + "/more", 1)

    async def on_broker_client_unsubscribed(self, *, client_id, topic):
        told.append(("unsubscribed", client_id))

    async def on_broker_message_received(self, *, client_id, message):
        told.append(("received", client_id))

    async def on_broker_client_disconnected(self, *, client_id, client_session):
        told.append(("disconnected", client_id))
"""


async def test_plugins_are_told_the_domain_with_the_client_identifier_of_whoever_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "domain_plugins.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    told = importlib.import_module("domain_plugins").told
    broker = believing(MemoryBroker())
    settings = {"plugins": {"domain_plugins.Asked": {}, "domain_plugins.Told": {}}, "unsafe_no_revocation": True}
    files = shared_device("meter-1").write(tmp_path)
    config = load(None, {"cafile": tmp_path, "certfile": files.certificate, "keyfile": files.key, **settings})
    broker.now = asyncio.get_running_loop().time()  # By which plugins answer.
    broker.keep_fresh()
    plugins = Plugins.attached(config, broker.engine)
    await plugins.begin()
    commands = "fleet/meters/meter-1/cmd"
    seen: dict[str, list[tuple[str, ...]]] = {}
    for holder in (certified(Role.DEVICE, "meter-1"), shared_device("meter-1")):
        client = broker.open(holder)
        client.send(connect_packet(V5, client_id="meter-1", **KEPT))
        await until(lambda: len(told) == 2)
        broker.settle()
        client.received()
        client.subscribe(commands)
        client.unsubscribe(commands)
        client.publish(TOPIC, b"x")
        client.leave()
        await until(lambda: len(told) == 6)
        seen[broker.engine.registry.all()[-1].owner.trust_domain] = list(told)
        told.clear()
    await plugins.close()
    for domain, client_id in ((PLANT_DOMAIN, f"{PLANT_DOMAIN}/meter-1"), (DOMAIN, "meter-1")):
        assert seen[domain].pop(0) == ("asked", "meter-1"), "what CONNECT says"
        assert {entry[1] for entry in seen[domain]} == {client_id}
        assert [entry[0] for entry in seen[domain]] == [
            *("connected", "subscribed", "unsubscribed", "received", "disconnected")
        ]
    assert seen[PLANT_DOMAIN][0][2:] == (f"{PLANT_DOMAIN}/meter-1", f"spiffe://{PLANT_DOMAIN}/device/meters/meter-1")
    assert [list(session.subscriptions) for session in broker.engine.registry.all()] == [[f"{commands}/more"]] * 2
