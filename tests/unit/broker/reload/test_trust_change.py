"""A reload of trust: whoever is connected is judged by another generation, with the certificate his socket has."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.admission.policy import Kind, Rules, Section, TopicPolicy
from broker.door.unsafe_plain import UnsafePeer
from broker.mqtt.codes import ReasonCode
from broker.reload.parts import ProposedAnchors, Unchanged
from broker.reload.report import Affected, Effects
from broker.reload.trust_change import record_trust
from broker.revocation.enforcement import enforce, revoke
from broker.settings.trust_settings import TrustSettings
from broker.sources.trust_files import trust_of_cafile
from provisioning.pki.identity import identity_of
from provisioning.pki.keys import key_identifier
from provisioning.pki.tls import TlsConfigurationError
from tests.support.pki import DOMAIN, pem_of, shared_device, shared_service
from tests.support.reloaded_trust import BELOW, OTHER, PKI, Scene, connected, path
from tests.support.wire import MemoryBroker, will
from tests.support.witness import Witness
from tests.unit.broker.admission.test_trust import namesake


def settings(name: str, anchors: Path) -> TrustSettings:
    return TrustSettings(name=name, anchors=(anchors,), unsafe_no_revocation=True)


async def test_who_is_vouched_for_no_more_goes_and_a_preview_changes_nothing(
    broker: MemoryBroker, tmp_path: Path
) -> None:
    scene = Scene(tmp_path, broker)
    mine, theirs = PKI.device("stays"), PKI.device("goes", issuer=BELOW)
    stays = broker.open(mine, path=path(mine, PKI.issuing, PKI.root))
    stays.connect(client_id="stays")
    goes = broker.open(theirs, path=path(theirs, BELOW, OTHER))
    goes.connect(client_id="goes")
    assert isinstance(scene.trust.load(scene.config, None), Unchanged)
    scene.believe(PKI.root)
    generation = broker.engine.admission.trust_generation
    loaded = scene.load()
    why = "UNTRUSTED_ISSUER: no trust bundle vouches for the issuer 'CN=Other Issuing CA'"
    affected = Affected("goes", f"spiffe://{DOMAIN}/device/meters/goes", why)
    effects = Effects(connected=2, disconnected=1, affected=(affected,))
    examined = stays.connection.peer
    assert await scene.trust.preview(loaded) == ("1 trust anchor", effects)
    assert stays.connection.peer is examined
    assert (broker.engine.admission.trust_generation, goes.closed) == (generation, False)
    detail, done = await scene.trust.apply(loaded)
    broker.settle()
    assert (detail, done) == (f"1 trust anchor, generation {generation + 1}", effects)
    farewell = goes.farewell()
    assert farewell.reason_code is ReasonCode.NOT_AUTHORIZED
    assert str(farewell.properties.reason_string).startswith("UNTRUSTED_ISSUER: the trust settings have changed: no ")
    assert not stays.closed
    assert isinstance(scene.trust.load(scene.config, None), Unchanged), "what counts is no news"
    assert scene.trust.files(scene.config) == [scene.anchors]


async def test_who_has_no_certificate_is_judged_by_none(broker: MemoryBroker, tmp_path: Path) -> None:
    """A listener for test tools says who comes by it (`broker.door.unsafe_plain`), whatever is trusted."""
    scene = Scene(tmp_path, broker)
    plain = broker.open(None)
    UnsafePeer(plain.connection, identity_of(shared_device("meter-1").certificate)).secured(
        None, broker.now, broker.wall, list
    )
    plain.connection.refusal = None  # Of the door with TLS, which that one stands in front of.
    plain.connect(client_id="meter-1")
    scene.believe(OTHER)
    for outcome in (scene.trust.preview, scene.trust.apply):
        _, effects = await outcome(scene.load())
        assert effects == Effects(connected=1)
    assert not plain.closed


async def test_not_all_who_have_to_go_are_named(
    broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.reload.trust_change.SHOWN", 2)
    scene = Scene(tmp_path, broker)
    for number in range(3):
        held = PKI.device(f"meter-{number}", issuer=BELOW)
        broker.open(held, path=path(held, BELOW, OTHER)).connect(client_id=f"meter-{number}")
    scene.believe(PKI.root)
    _, effects = await scene.trust.preview(scene.load())
    assert effects is not None
    assert (effects.disconnected, len(effects.affected), effects.more) == (3, 2, 1)


async def test_a_few_are_judged_at_a_time_each_once_and_others_are_served_between(
    broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.reload.trust_change._CONNECTIONS_A_STEP", 2)
    scene = Scene(tmp_path, broker)
    clients = []
    for number in range(5):
        held = PKI.device(f"meter-{number}", issuer=BELOW)
        clients.append(broker.open(held, path=path(held, BELOW, OTHER)))
        clients[-1].connect(client_id=f"meter-{number}")
    scene.believe(PKI.root)
    loaded = scene.load()
    _, expected = await scene.trust.preview(loaded)
    applying = asyncio.create_task(scene.trust.apply(loaded))
    here = [broker.engine.connected]
    while not applying.done():
        await asyncio.sleep(0)
        if here[-1:] != [broker.engine.connected]:
            here.append(broker.engine.connected)
    _, effects = await applying
    assert effects == expected
    assert effects is not None
    assert (effects.connected, effects.disconnected) == (5, 5)
    assert here == [5, 3, 1, 0]
    assert all(client.closed for client in clients)


async def test_who_goes_has_gone_before_lists_are_read(broker: MemoryBroker, tmp_path: Path) -> None:
    listed = tmp_path / "listed.crl"
    os.mkfifo(listed)  # It is read when there is something to be read.
    scene = Scene(tmp_path, broker, crlfile=listed, unsafe_no_revocation=False)
    held = PKI.device("meter-1", issuer=BELOW)
    client = connected(broker, held, path(held, BELOW, OTHER))
    scene.believe(PKI.root)
    applying = asyncio.create_task(scene.trust.apply(scene.load()))
    try:
        async with asyncio.timeout(60):
            while not client.closed:
                await asyncio.sleep(0)
        assert not applying.done()
    finally:
        await asyncio.to_thread(lambda: listed.open("wb").close())
        detail, _ = await applying
    assert "still being read" not in detail


async def test_who_is_of_our_own_trust_domain_no_more_loses_what_names_allowed_him(tmp_path: Path) -> None:
    sections = [Section(Kind.ROLE, "device", Rules(subscribe_allow=("b",)))]
    sections += [Section(Kind.DEVICE, name, Rules(subscribe_allow=("a",))) for name in ("meter-1", "meter-2")]
    broker = MemoryBroker(trust_domain=None, policy=TopicPolicy(sections))
    scene = Scene(tmp_path, broker)
    for name in ("meter-1", "meter-2"):
        held = shared_device(name)
        client = broker.open(held, path=path(held, PKI.issuing, PKI.root))
        client.connect(client_id=name, session_expiry_interval=600)
        client.subscribe("a", "b")
    client.leave()
    bundle = settings("plant", scene.anchors).model_copy(update={"trust_domain": DOMAIN})
    scene.config = scene.config.model_copy(update={"trust": (bundle,)})
    loaded = scene.load()
    _, expected = await scene.trust.preview(loaded)
    _, effects = await scene.trust.apply(loaded)
    assert effects == expected
    assert effects is not None
    assert (effects.connected, effects.disconnected, effects.subscriptions_ended) == (1, 1, 2)
    assert all(set(session.subscriptions) == {"b"} for session in broker.engine.registry.all())


async def test_a_dry_run_counts_once_whom_both_the_bundles_and_the_policy_put_out(tmp_path: Path) -> None:
    allows = Rules(publish_allow=("w",), subscribe_allow=("a",))
    sections = [Section(Kind.DEVICE, f"meter-{number}", allows) for number in range(5)]
    policy = TopicPolicy([Section(Kind.ROLE, "device", Rules()), *sections])
    broker = MemoryBroker(trust_domain=None, policy=policy)
    scene = Scene(tmp_path, broker)
    wills = {1: will("w"), 2: will("w", will_delay_interval=60), 3: will("w", will_delay_interval=60)}
    for number, group in enumerate(("meters", "meters", "meters", "meters", "stays")):
        held = shared_device(f"meter-{number}", group)
        client = broker.open(held, path=path(held, PKI.issuing, PKI.root))
        kept = 0 if number == 3 else 600
        client.connect(client_id=f"meter-{number}", session_expiry_interval=kept, will=wills.get(number))
        client.subscribe("a")
    bundle = settings("plant", scene.anchors).model_copy(update={"trust_domain": DOMAIN, "groups": ("stays",)})
    scene.config = scene.config.model_copy(update={"trust": (bundle,)})
    loaded = scene.load()
    _, expected = await scene.trust.preview(loaded)
    _, effects = await scene.trust.apply(loaded)
    assert effects is not None
    assert expected is not None
    assert (effects.connected, effects.disconnected, effects.subscriptions_ended, effects.wills_dropped) == (5, 5, 4, 3)
    assert expected == effects


async def test_a_dry_run_says_of_those_who_go_by_the_trust_no_more_than_what_the_policy_does_then(
    tmp_path: Path,
) -> None:
    allows = Rules(publish_allow=("w",), subscribe_allow=("a",))
    policy = TopicPolicy([Section(Kind.DEVICE, f"meter-{number}", allows) for number in range(3)])
    broker = MemoryBroker(trust_domain=None, policy=policy)
    broker.engine.keeps_revoked = True  # Wills are left, at once or when their delay is over.
    scene = Scene(tmp_path, broker)
    wills: tuple[dict[str, Any], ...] = ({}, {"will": will("w")}, {"will": will("w", will_delay_interval=60)})
    for number, left in enumerate(wills):
        held = shared_device(f"meter-{number}")
        client = broker.open(held, path=path(held, PKI.issuing, PKI.root))
        client.connect(client_id=f"meter-{number}", session_expiry_interval=600, **left)
    bundle = settings("plant", scene.anchors).model_copy(update={"trust_domain": DOMAIN, "groups": ("others",)})
    scene.config = scene.config.model_copy(update={"trust": (bundle,)})
    loaded = scene.load()
    _, expected = await scene.trust.preview(loaded)
    _, effects = await scene.trust.apply(loaded)
    assert effects is not None
    assert (effects.disconnected, effects.subscriptions_ended, effects.wills_dropped) == (3, 0, 1)
    assert expected == effects


@pytest.mark.parametrize(
    ("why", "keeps", "sent"),
    [
        ("its CA is trusted no more", False, False),
        ("its CA is trusted no more", True, True),
        ("it has ended by now", False, True),
    ],
)
async def test_the_will_goes_with_the_trust_and_the_session_may_be_come_back_to(
    broker: MemoryBroker, tmp_path: Path, why: str, *, keeps: bool, sent: bool
) -> None:
    scene = Scene(tmp_path, broker)
    broker.engine.keeps_revoked = keeps
    backend = shared_service("backend")
    watcher = broker.open(backend, path=path(backend, PKI.issuing, PKI.root))
    watcher.connect(client_id="backend")
    watcher.subscribe("fleet/#")
    held = PKI.device("goes", issuer=BELOW)
    goes = broker.open(held, path=path(held, BELOW, OTHER))
    goes.connect(client_id="goes", session_expiry_interval=600, will=will("fleet/meters/goes/event"))
    if why == "it has ended by now":
        ended = path(PKI.device("goes", issuer=BELOW, not_after=PKI.now - timedelta(seconds=1)), BELOW, OTHER)
        goes.transport.certificate, goes.transport.path = ended[0], ended
        scene.believe(OTHER, PKI.root)
    else:
        scene.believe(PKI.root)
    loaded = scene.load()
    _, expected = await scene.trust.preview(loaded)
    _, effects = await scene.trust.apply(loaded)
    broker.settle()
    assert effects == expected
    assert effects is not None
    assert (effects.disconnected, effects.wills_dropped) == (1, 0 if sent else 1)
    assert goes.closed
    assert watcher.payloads() == ([b"gone"] if sent else [])
    assert [session.client_id for session in broker.engine.registry.called("goes")] == ["goes"], "it may come back"


@pytest.mark.parametrize("stays", [True, False])
async def test_a_will_that_waits_goes_with_the_trust_in_its_ca_though_its_client_is_away(
    broker: MemoryBroker, tmp_path: Path, *, stays: bool
) -> None:
    witness: Any = Witness()
    broker.engine.history.witness = witness
    scene = Scene(tmp_path, broker)
    record_trust(broker.engine, trust_of_cafile(scene.config))  # As at the start.
    backend = shared_service("backend")
    watcher = broker.open(backend, path=path(backend, PKI.issuing, PKI.root))
    watcher.connect(client_id="backend")
    watcher.subscribe("fleet/#")
    held = PKI.device("away", issuer=BELOW)
    away = broker.open(held, path=path(held, BELOW, OTHER))
    delayed = will("fleet/meters/away/event", will_delay_interval=60)
    away.connect(client_id="away", session_expiry_interval=600, will=delayed)
    away.vanish()
    witness.said.clear()
    scene.believe(PKI.root, *([OTHER, BELOW] if stays else []))
    loaded = scene.load()
    await scene.trust.apply(loaded)
    assert witness.said == [
        ("trust", {"generation": broker.engine.admission.trust_generation, "anchors": loaded.judge.fingerprints})
    ]
    assert len(loaded.judge.fingerprints["cafile"]) == (3 if stays else 1)
    broker.advance(61)
    assert watcher.payloads() == ([b"gone"] if stays else [])


async def test_it_is_said_when_the_last_bundle_of_our_own_goes_and_of_what_groups_the_others_are(
    broker: MemoryBroker, tmp_path: Path
) -> None:
    broker.engine.admission.policy = TopicPolicy([Section(Kind.IDENTITY, "backend", Rules(publish_allow=("a",)))])
    scene = Scene(tmp_path, broker)
    plant = settings("plant", scene.anchors).model_copy(update={"trust_domain": "plant.example"})
    both = (settings("ours", scene.anchors), plant.model_copy(update={"groups": ("plant",)}))
    for bundles, idle, unnamed, codes in (
        (both, False, False, []),
        ((plant,), True, True, ["GROUPS_UNNAMED", "POLICY_NAMES_NOBODY"]),
    ):
        scene.config = scene.config.model_copy(update={"trust": bundles})
        loaded = scene.load()
        expected, _ = await scene.trust.preview(loaded)
        with capture_logs() as logs:
            detail, _ = await scene.trust.apply(loaded)
        for said in (expected, detail):
            assert ("a bare name matches no client here: [identity.backend]" in said) is idle
            assert ("trust bundle plant: groups: its CA is of another trust domain" in said) is unnamed
        assert sorted(entry["code"] for entry in logs if entry["log_level"] == "warning") == codes


async def test_the_end_of_whoever_stays_is_that_of_the_path_that_counts_now(
    broker: MemoryBroker, tmp_path: Path
) -> None:
    scene = Scene(tmp_path, broker)
    root = PKI.authority("Renewed Root CA")
    short = PKI.authority("Short CA", root, not_after=PKI.now + timedelta(hours=2))
    renewed = PKI.authority("Short CA", root, key=short.key, not_after=PKI.now + timedelta(hours=9))
    held = PKI.device("meter-1", issuer=short, not_after=PKI.now + timedelta(hours=20))
    client = connected(broker, held, path(held, short, root))
    before = client.connection.peer
    client.transport.path = path(held, renewed, root)
    scene.believe(root)
    await scene.trust.apply(scene.load())
    after = client.connection.peer
    assert before is not None
    assert after is not None
    assert after.ends_at - before.ends_at == timedelta(hours=7).total_seconds()
    assert (after.certificate, after.issuer) == (before.certificate, None), "judged by cafile alone, as before"


async def test_where_bundles_judge_whoever_stays_belongs_to_one(broker: MemoryBroker, tmp_path: Path) -> None:
    broker.engine.admission.fingerprints = True
    scene = Scene(tmp_path, broker)
    held = shared_device("meter-1")
    client = connected(broker, held, path(held, PKI.issuing, PKI.root))
    assert client.connection.peer is not None
    fingerprint = client.connection.peer.fingerprint
    assert fingerprint
    without = scene.config
    scene.config = scene.config.model_copy(update={"trust": (settings("ours", scene.anchors),)})
    await scene.trust.apply(scene.load())
    peer = client.connection.peer
    assert peer is not None
    assert peer.bundle == "ours"
    assert broker.engine.admission.trust is not None
    assert broker.engine.admission.trust.generation == broker.engine.admission.trust_generation
    assert scene.trust.anchors == broker.engine.admission.trust.anchors_pem(DOMAIN)
    assert broker.engine.live.of(peer.certificate) == [client.connection], "and is found when it is revoked"
    assert peer.fingerprint == fingerprint, "which subscribers are told"
    scene.config = without
    await scene.trust.apply(scene.load())
    peer = client.connection.peer
    assert (peer.bundle, peer.issuer) == ("cafile", None), "back to cafile alone"
    assert peer.verified is not None
    assert peer.verified.above == tuple(path(PKI.issuing, PKI.root))
    assert peer.fingerprint == fingerprint
    assert broker.engine.live.of(peer.certificate) == [client.connection]


@pytest.mark.parametrize("is_there", [True, False], ids=["connected", "away, with a will that waits"])
async def test_whoever_stays_is_revoked_under_the_name_that_lists_have_for_its_issuer(
    broker: MemoryBroker, tmp_path: Path, *, is_there: bool
) -> None:
    """A certificate calls its issuer's key what it likes; a list is of the key that has signed it."""
    scene = Scene(tmp_path, broker)
    unnamed = namesake(None)
    held = PKI.device("meter-1", issuer=unnamed, authority_key_id=b"as the CA's maker would have it")
    delayed = will("fleet/meters/meter-1/event", will_delay_interval=60)
    client = broker.open(held, path=path(held, unnamed))
    client.connect(client_id="meter-1", session_expiry_interval=600, will=delayed)
    watcher = broker.service()
    watcher.subscribe("fleet/#")
    assert broker.engine.live.of(held.revocation.key) == [client.connection]
    everybody = settings("ours", scene.anchors).model_copy(update={"roles": ("device", "service")})
    scene.config = scene.config.model_copy(update={"trust": (everybody,)})
    scene.believe(PKI.issuing, unnamed)
    await scene.trust.apply(scene.load())
    assert broker.engine.live.of(held.revocation.key) == []
    if not is_there:
        client.vanish()
    listed = replace(held.revocation, issuer_key_id=key_identifier(unnamed.key.public_key()))
    assert revoke(broker.engine, listed, broker.now) == is_there
    assert client.closed
    assert broker.engine.connections() == [watcher.connection]
    broker.advance(61)
    assert watcher.payloads() == []


async def test_of_whoever_stays_it_is_known_which_cas_stand_above(broker: MemoryBroker, tmp_path: Path) -> None:
    """Else nobody would be put out when the feed says that one of them is revoked, as far as they alone come by it."""
    scene = Scene(tmp_path, broker)
    held = shared_device("meter-1")
    connected(broker, held, path(held, PKI.issuing, PKI.root))
    without, with_bundles = scene.config, {"trust": (settings("ours", scene.anchors),)}
    scene.believe(PKI.root)
    for config in (without, without.model_copy(update=with_bundles), without):
        scene.config = config
        await scene.trust.apply(scene.load())
        assert broker.engine.admission.stands_above(PKI.issuing.revocation.key)
        assert not broker.engine.admission.stands_above(BELOW.revocation.key)


async def test_who_was_an_anchor_and_has_a_ca_now_goes_with_that(broker: MemoryBroker, tmp_path: Path) -> None:
    """What was known from when it had none stayed: nobody looked at the CA."""
    scene = Scene(tmp_path, broker)
    held = PKI.device("meter-1", issuer=BELOW)
    scene.believe(PKI.root, held)
    await scene.trust.apply(scene.load())
    client = connected(broker, held)  # It resumed its TLS session, so there is no path.
    for anchors in ((OTHER, BELOW), (OTHER, held), (OTHER, BELOW)):
        scene.believe(PKI.root, *anchors)
        await scene.trust.apply(scene.load())
        assert broker.engine.admission.stands_above(BELOW.revocation.key) == (BELOW in anchors)
    session = client.session
    assert broker.engine.admission.vouches(session.authorities, session.owner)
    revoke(broker.engine, BELOW.revocation, broker.now)
    assert enforce(broker.engine, client.connection, broker.now)
    assert client.closed


async def test_who_is_an_anchor_now_is_not_held_to_the_ca_that_it_had(broker: MemoryBroker, tmp_path: Path) -> None:
    scene = Scene(tmp_path, broker)
    held = PKI.device("meter-1", issuer=BELOW)
    client = connected(broker, held, path(held, BELOW, OTHER))
    scene.believe(PKI.root, held)
    await scene.trust.apply(scene.load())
    session = client.session
    assert broker.engine.admission.vouches(session.authorities, session.owner)
    scene.believe(PKI.root)
    await scene.trust.apply(scene.load())
    assert client.closed
    assert not broker.engine.admission.vouches(session.authorities, session.owner)


async def test_proposed_anchors_are_tried_in_the_place_of_those_that_are_named(
    broker: MemoryBroker, tmp_path: Path
) -> None:
    scene = Scene(tmp_path, broker)
    held = shared_device("meter-1")
    connected(broker, held, path(held, PKI.issuing, PKI.root))
    for bundle in (None, "cafile"):
        _, effects = await scene.trust.preview(scene.load(ProposedAnchors(pem_of(OTHER.certificate).decode(), bundle)))
        assert effects is not None
        assert effects.disconnected == 1
    with pytest.raises(TlsConfigurationError, match=r"^bundle: ours is unknown; there is cafile$"):
        scene.load(ProposedAnchors(pem_of(OTHER.certificate).decode(), "ours"))
    with pytest.raises(TlsConfigurationError, match=r"what is proposed") as caught:
        scene.load(ProposedAnchors("nothing"))
    assert "fleet-broker-" not in str(caught.value)
    with pytest.raises(TlsConfigurationError, match=r"^what is proposed holds 201 certificates; 200 at most$"):
        scene.load(ProposedAnchors(pem_of(OTHER.certificate).decode() * 201))
    bundles = (settings("ours", scene.anchors), settings("other", scene.anchors))
    scene.config = scene.config.model_copy(update={"trust": bundles})
    _, effects = await scene.trust.preview(scene.load(ProposedAnchors(pem_of(OTHER.certificate).decode(), "ours")))
    assert effects is not None
    assert effects.disconnected == 0, "the other bundle vouches for it still"
    loaded = scene.load(ProposedAnchors(pem_of(BELOW.certificate).decode(), "ours"))
    assert loaded.trust is not None
    has = [[each.certificate for each in bundle.anchors] for bundle in loaded.trust.bundles]
    assert has == [[BELOW.certificate], [PKI.root.certificate, OTHER.certificate]]
    for bundle, named in ((None, "none given"), ("cafile", "cafile")):
        with pytest.raises(TlsConfigurationError, match=rf"^bundle: {named}; there are ours, other$"):
            scene.load(ProposedAnchors(pem_of(OTHER.certificate).decode(), bundle))
