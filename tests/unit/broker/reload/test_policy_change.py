"""Another policy for those who are here already: what is asked again, what is taken away, who is disconnected."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from broker.admission.bundle import TrustBundle
from broker.admission.bundle_terms import BundleTerms
from broker.admission.policy import Kind, Rules, Section, TopicPolicy
from broker.admission.trust import Trust
from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.reload.parts import ReloadedPolicy, Unchanged
from broker.reload.policy_change import change, enforce_at_start, preview
from broker.reload.report import SHOWN, Affected, Effects
from broker.settings.config import BrokerConfig
from broker.settings.trust_settings import TrustSettings
from provisioning.pki.role import Role
from tests.support.pki import shared_device
from tests.support.stored import StoredBroker
from tests.support.wire import V5, MemoryBroker, WireClient, will

SERVICES = Rules(("#",), (), ("#", "$SYS/#"))


def policy(*devices: Rules) -> TopicPolicy:
    sections = [Section(Kind.ROLE, Role.DEVICE, rules) for rules in devices]
    return TopicPolicy([Section(Kind.ROLE, Role.SERVICE, SERVICES), *sections])


OPEN = policy(Rules(("#",), (), ("#",)))
ONLY_A = policy(Rules(("a",), (), ("a",)))
NO_DEVICES = policy()


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(policy=OPEN)


async def apply(broker: MemoryBroker, new: TopicPolicy) -> Effects:
    """Change the policy; a dry run before it says the same and does nothing."""
    before = (broker.engine.routes.subscription_count, broker.engine.connected, dict(broker.metrics.closed))
    expected = await preview(broker.engine, new)
    assert before == (broker.engine.routes.subscription_count, broker.engine.connected, dict(broker.metrics.closed))
    effects = await change(broker.engine, new, lambda: broker.now)
    broker.settle()
    assert effects == expected
    return effects


@pytest.mark.parametrize("warm", [0, 3])
async def test_publishing_is_asked_again(broker: MemoryBroker, warm: int) -> None:
    meter = broker.device("meter-1")
    for topic in ("a", "b"):
        for _ in range(warm):
            meter.publish(topic, b"", qos=1)
    assert await apply(broker, ONLY_A) == Effects(connected=1)
    assert puback(meter, "a") is ReasonCode.SUCCESS
    assert puback(meter, "b") is ReasonCode.NOT_AUTHORIZED
    await apply(broker, OPEN)
    assert puback(meter, "b") is ReasonCode.SUCCESS
    assert not meter.closed


def puback(client: WireClient, topic: str) -> ReasonCode:
    answer = client.publish(topic, b"", qos=1)
    assert answer is not None
    return answer.reason_code


@pytest.mark.parametrize("version", [V5, ProtocolVersion.V311])
async def test_who_loses_a_subscription_is_told_and_finds_its_session_without_it(
    broker: MemoryBroker, version: ProtocolVersion
) -> None:
    kept = {"session_expiry_interval": 600} if version is V5 else {"clean_start": False}
    meter = broker.device("meter-1", version=version, **kept)
    meter.subscribe("a", "b", "$share/g/b", "$share/g/a")
    effects = await apply(broker, ONLY_A)
    assert effects == Effects(
        connected=1,
        disconnected=1,
        subscriptions_ended=2,
        affected=(Affected("meter-1", meter_uri("meter-1"), "may not subscribe to 'b' and 1 more"),),
    )
    assert meter.closed
    if version is V5:
        farewell = meter.farewell()
        assert farewell.reason_code is ReasonCode.NOT_AUTHORIZED
        assert farewell.properties.reason_string == (
            "SUBSCRIPTION_NOT_PERMITTED: the topic policy has changed: meter-1 may not subscribe to 'b' and 1 more"
        )
    back = broker.device("meter-1", version=version, **(kept | {"clean_start": False}))
    assert set(back.session.subscriptions) == {"a", "$share/g/a"}
    service = broker.service()
    service.publish("b", b"not for it")
    service.publish("a", b"for it")
    assert back.payloads() == [b"for it", b"for it"], "once itself, once as the member of the group"


async def test_a_session_that_is_kept_is_judged_too(broker: MemoryBroker) -> None:
    meter = broker.device("meter-1", session_expiry_interval=600)
    meter.subscribe("a", "b", qos=1)
    meter.leave()
    effects = await apply(broker, ONLY_A)
    assert (effects.connected, effects.disconnected, effects.subscriptions_ended) == (0, 0, 1)
    assert effects.affected[0].why == "may not subscribe to 'b'"
    service = broker.service()
    service.publish("b", b"1", qos=1)
    service.publish("a", b"2", qos=1)
    assert broker.device("meter-1", clean_start=False).payloads() == [b"2"]


async def test_a_will_that_may_not_be_published_any_more_is_not(broker: MemoryBroker) -> None:
    watcher = broker.service()
    watcher.subscribe("#")
    meter = broker.device("meter-1", will=will("b"))
    other = broker.device("meter-2", will=will("a"))
    effects = await apply(broker, ONLY_A)
    assert (effects.disconnected, effects.wills_dropped) == (0, 1)
    assert not meter.closed
    meter.vanish()
    other.vanish()
    assert [message.topic for message in watcher.messages()] == ["a"]


async def test_a_delayed_will_that_waits_is_judged_too(broker: MemoryBroker) -> None:
    watcher = broker.service()
    watcher.subscribe("#")
    meter = broker.device("meter-1", will=will("b", will_delay_interval=10), session_expiry_interval=600)
    meter.vanish()
    assert (await apply(broker, ONLY_A)).wills_dropped == 1
    broker.advance(20)
    assert watcher.messages() == []


@pytest.mark.parametrize("here", [True, False])
async def test_a_will_that_was_dropped_does_not_come_back_with_a_restart_and_its_session_does(
    tmp_path: Path, here: bool
) -> None:
    broker = StoredBroker(tmp_path)
    watcher = broker.service(clean_start=False, session_expiry_interval=6000)
    watcher.subscribe("fleet/#")
    last = will("fleet/meters/meter-1/b", will_delay_interval=30)
    meter = broker.device("meter-1", will=last, clean_start=False, session_expiry_interval=600)
    if not here:
        meter.vanish()
        broker.advance(10)
    assert (await apply(broker, policy(Rules(("a",), (), ("a",))))).wills_dropped == 1
    after = broker.killed(away=20)
    watcher = after.service(clean_start=False, session_expiry_interval=6000)
    assert len(after.engine.registry) == 2
    after.advance(600 - 30 - 2 if not here else 600 - 2)
    assert len(after.engine.registry) == 2, "its time is what it was"
    after.advance(4)
    assert len(after.engine.registry) == 1
    assert watcher.messages() == []
    after.close()


async def test_who_is_away_and_has_nothing_to_lose_loses_nothing_with_his_role(broker: MemoryBroker) -> None:
    broker.device("meter-1", session_expiry_interval=600).leave()
    assert await apply(broker, NO_DEVICES) == Effects(connected=0)


async def test_a_dry_run_of_a_policy_that_takes_long_to_compare_lets_everybody_be_served(broker: MemoryBroker) -> None:
    """Any operator may have one of his own tried: five hundred rules are compared with each subscription."""
    meter = broker.device("meter-1")
    filters = [f"a/{number}" for number in range(20)]
    meter.subscribe(*filters)
    long = tuple(f"+/+/{number}" for number in range(500))
    own, every = time.thread_time(), time.process_time()
    effects = await preview(broker.engine, policy(Rules(("#",), (), ("#",), (*long, "a/19"))))
    own, every = time.thread_time() - own, time.process_time() - every
    assert (effects.disconnected, effects.subscriptions_ended, meter.closed) == (1, 1, False)
    assert own < every / 2, "most of it takes another thread's time than the event loop's"


async def test_who_has_ended_before_it_is_his_turn_is_not_judged_and_others_are_served_between(
    broker: MemoryBroker,
) -> None:
    meters = [broker.device(f"meter-{number}") for number in range(1, 151)]
    for meter in meters:
        meter.subscribe("b")
    turns = 0

    async def served() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    def clock() -> float:
        if turns == 1 and not meters[-1].closed:
            meters[-1].vanish()
        broker.now += 0.004  # So long it takes to take away what one has.
        return broker.now

    task = asyncio.create_task(served())
    await asyncio.sleep(0)
    effects = await change(broker.engine, ONLY_A, clock)
    task.cancel()
    assert (effects.connected, effects.disconnected, effects.subscriptions_ended) == (150, 149, 149)
    assert turns > 150 // 4


async def test_a_will_is_judged_by_the_new_policy_though_it_is_left_before_it_is_his_turn(broker: MemoryBroker) -> None:
    watcher = broker.service()
    watcher.subscribe("#")
    broker.device("meter-1").subscribe("b")
    late = broker.device("meter-2", will=will("b"), session_expiry_interval=600)

    def clock() -> float:
        if not late.closed:
            late.vanish()
        return broker.now

    effects = await change(broker.engine, ONLY_A, clock)
    broker.settle()
    assert (effects.connected, effects.disconnected, effects.subscriptions_ended) == (3, 1, 1)
    assert watcher.payloads() == []


@pytest.mark.parametrize("number", [SHOWN, SHOWN + 3])
async def test_those_who_are_connected_are_named_first_and_of_how_many_others_there_are_it_is_told(
    broker: MemoryBroker, number: int
) -> None:
    for each in range(1, number):
        meter = broker.device(f"away-{each}", session_expiry_interval=600)
        meter.subscribe("b")
        meter.leave()
    broker.device("here").subscribe("b")
    effects = await apply(broker, ONLY_A)
    assert [each.client_id for each in effects.affected] == ["here", *(f"away-{each}" for each in range(1, SHOWN))]
    assert (effects.disconnected, effects.subscriptions_ended, effects.more) == (1, number, number - SHOWN)


async def test_a_role_that_is_not_admitted_any_more_is_put_out(broker: MemoryBroker) -> None:
    meter, service = broker.device("meter-1"), broker.service()
    effects = await apply(broker, NO_DEVICES)
    assert (effects.connected, effects.disconnected) == (2, 1)
    assert str(meter.farewell().properties.reason_string).startswith("WRONG_ROLE: the topic policy has changed: no ")
    assert not service.closed
    assert broker.metrics.closed == {"WRONG_ROLE": 1}


async def test_who_is_at_the_door_when_the_policy_changes_is_judged_by_the_new(broker: MemoryBroker) -> None:
    waiting = broker.open(shared_device("meter-1"))
    await apply(broker, NO_DEVICES)
    waiting.connect(client_id="meter-1", expect=ReasonCode.NOT_AUTHORIZED)
    assert broker.metrics.refused == {"WRONG_ROLE": 1}


async def test_nobody_who_loses_nothing_is_disturbed(broker: MemoryBroker) -> None:
    meters = [broker.device(f"meter-{number}") for number in range(1, 251)]
    for number, meter in enumerate(meters, 1):
        meter.subscribe("b" if number % 100 == 0 else "a")
    effects = await apply(broker, ONLY_A)
    assert (effects.connected, effects.disconnected) == (250, 2)
    assert [each.client_id for each in effects.affected] == ["meter-100", "meter-200"]
    for number, meter in enumerate(meters, 1):
        assert meter.closed is (number % 100 == 0)


async def test_sessions_from_before_a_restart_are_judged_at_the_start(broker: MemoryBroker) -> None:
    for number, filters in ((1, ("a", "b")), (2, ("b", "c")), (3, ("a",))):
        meter = broker.device(f"meter-{number}", session_expiry_interval=600)
        meter.subscribe(*filters)
        meter.leave()
    broker.engine.admission.policy = ONLY_A
    for ended in ([3], []):
        with capture_logs() as logs:
            enforce_at_start(broker.engine, broker.now)
        assert [each["subscriptions"] for each in logs if each["code"] == "POLICY_ENFORCED"] == ended
    assert set(broker.device("meter-1", clean_start=False).session.subscriptions) == {"a"}


async def test_rights_of_another_domains_services_are_told_at_the_start_and_at_a_reload(broker: MemoryBroker) -> None:
    nowhere = Path("-")
    config = BrokerConfig(cafile=nowhere, certfile=nowhere, keyfile=nowhere, unsafe_no_revocation=True)
    foreign = TrustSettings(
        name="x", anchors=(nowhere,), trust_domain="x", roles=(Role.SERVICE,), unsafe_no_revocation=True
    )
    broker.engine.admission.believe(Trust([TrustBundle("x", [], terms=BundleTerms.of(foreign))]))
    part = ReloadedPolicy(broker.engine, "", lambda: broker.now)
    candidate = part.load(config, '[role.service]\npublish.allow = ["a"]\n')
    assert not isinstance(candidate, Unchanged)
    with capture_logs() as logs:
        await part.apply(candidate)
        enforce_at_start(broker.engine, broker.now)
    codes = [entry["code"] for entry in logs if entry["log_level"] == "warning"]
    assert codes == ["ROLE_SHARED", "ROLE_SHARED"]


async def test_names_that_mean_nobody_are_told_of_at_the_start_and_at_a_reload(broker: MemoryBroker) -> None:
    text = '[device.meter-1]\nsubscribe.allow = ["a"]\n[role.service]\npublish.allow = ["a"]\n'
    part = ReloadedPolicy(broker.engine, "", lambda: broker.now)
    nowhere = Path("-")
    config = BrokerConfig(cafile=nowhere, certfile=nowhere, keyfile=nowhere, unsafe_no_revocation=True)
    candidate = part.load(config, text)
    assert not isinstance(candidate, Unchanged)
    assert (await part.preview(candidate))[0] == "", "without bundles everybody is ours"
    terms = BundleTerms.of(TrustSettings(name="x", anchors=(nowhere,), trust_domain="x", unsafe_no_revocation=True))
    broker.engine.admission.believe(Trust([TrustBundle("x", [], terms=terms)]))
    said = "a bare name matches no client here: [device.meter-1]; no trust bundle is of the broker's own trust "
    for detail in ((await part.preview(candidate))[0], (await part.apply(candidate))[0]):
        assert detail.startswith(said)
    with capture_logs() as logs:
        enforce_at_start(broker.engine, broker.now)
    assert [(entry["code"], entry["detail"].startswith(said)) for entry in logs] == [("POLICY_NAMES_NOBODY", True)]


def meter_uri(name: str) -> str:
    return f"spiffe://fleet.internal/device/meters/{name}"
