"""Whom a generation of trust vouches for, of those whom another has let in, and whom it puts out."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, Never

import pytest
from cryptography import x509
from structlog.testing import capture_logs

from broker.admission.bundle import ListTerms, TrustBundle
from broker.admission.bundle_terms import BundleTerms
from broker.admission.path_again import PathsAgain
from broker.admission.path_ends import VerifiedPath
from broker.admission.peer import Peer
from broker.admission.refusal import RefusalCode, Refused
from broker.admission.trust import Trust
from broker.mqtt.codes import ReasonCode
from broker.reload.report import Effects
from broker.reload.trust_change import judge
from broker.settings.trust_settings import REQUIRE, IdentitySource, TrustSettings
from provisioning.pki.keys import key_identifier
from tests.support.panic import panic
from tests.support.pki import DOMAIN, shared_device
from tests.support.reloaded_trust import BELOW, OTHER, PKI, Scene, connected, path
from tests.support.wire import MemoryBroker, WireClient

ROOT = TrustBundle("root", [PKI.root.certificate])


def judged(broker: MemoryBroker, client: WireClient, *bundles: TrustBundle) -> Peer | Refused | None:
    admission = broker.engine.admission.judging_by(Trust(bundles))
    assert admission.trust is not None
    return judge(admission, client.connection, broker.wall, PathsAgain(admission.trust, admission.trust_domain))


def test_whom_the_new_generation_vouches_for_stays(broker: MemoryBroker) -> None:
    held = shared_device("meter-1")
    outcome = judged(broker, connected(broker, held, path(held, PKI.issuing, PKI.root)), ROOT)
    assert isinstance(outcome, Peer)
    assert outcome.identity.name == "meter-1"
    outcome = judged(
        broker, connected(broker, held, path(held, PKI.issuing, PKI.root)), TrustBundle("n", [OTHER.certificate])
    )
    assert isinstance(outcome, Refused)
    assert outcome.code is RefusalCode.UNTRUSTED_ISSUER


async def test_nobody_stays_because_another_cannot_be_judged(
    broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Never:
        raise ValueError("handshake not done yet")

    scene = Scene(tmp_path, broker)
    clients: list[WireClient] = []
    for name in ("odd", "odder", "goes"):
        held = PKI.device(name, issuer=BELOW)
        clients.append(broker.open(held, path=path(held, BELOW, OTHER)))
        clients[-1].connect(client_id=name)
    odd, odder, _ = clients
    monkeypatch.setattr(odd.transport, "presented", fail)
    monkeypatch.setattr(odder.transport, "presented", panic)
    scene.believe(PKI.root)
    with capture_logs() as logs:
        _, effects = await scene.trust.apply(scene.load())
    broker.settle()
    assert effects is not None
    assert (effects.disconnected, [each.closed for each in clients]) == (3, [True] * 3)
    told = [each.farewell() for each in clients]
    later = [ReasonCode.SERVER_BUSY] * 2
    assert [each.reason_code for each in told] == [*later, ReasonCode.NOT_AUTHORIZED], "an error of ours passes"
    for each in told[:2]:
        assert str(each.properties.reason_string).startswith("TRUST_CHANGED: ")
    assert [each["times"] for each in logs if each["event"] == "a client cannot be judged"] == [1], "once a minute"


def test_who_came_back_to_his_tls_session_is_judged_by_the_path_of_before(broker: MemoryBroker) -> None:
    held = PKI.device("meter-1", issuer=BELOW)
    broker.engine.admission.believe(Trust([TrustBundle("other", [OTHER.certificate])]))
    for verified in (path(held, BELOW, OTHER), ()):
        client = connected(broker, held, verified)
        outcome = judged(broker, client, TrustBundle("again", [OTHER.certificate]))
        assert isinstance(outcome, Peer)
        assert outcome.bundle == "again"
        outcome = judged(broker, client, ROOT)
        assert isinstance(outcome, Refused)
        assert outcome.code is RefusalCode.UNTRUSTED_ISSUER


def test_who_came_back_below_a_ca_that_is_confined_by_its_key_is_judged_by_the_path_of_before(
    broker: MemoryBroker,
) -> None:
    """The certificate that the settings name counted as one CA more, so a reload that changed nothing put him out."""
    terms = BundleTerms.of(TrustSettings(name="plant", anchors=(Path("x"),), feed=True, max_depth=0))
    works = PKI.authority("Works CA", PKI.root)
    renewed = PKI.authority("Works CA 2", PKI.root, key=works.key)
    held = PKI.device("meter-1", issuer=renewed)
    bundles = (TrustBundle("plant", [works.certificate], terms=terms), ROOT)
    broker.engine.admission.believe(Trust(bundles))
    for verified in (path(held, renewed, PKI.root), ()):
        client = connected(broker, held, verified)
        outcome = judged(broker, client, *bundles)
        assert isinstance(outcome, Peer), outcome
        assert outcome.bundle == "plant"
    outcome = judged(broker, client, ROOT)
    assert isinstance(outcome, Peer)
    assert (outcome.bundle, outcome.authorities[1]) == ("root", key_identifier(PKI.root.certificate.public_key()))


def test_who_is_below_a_ca_that_is_confined_by_its_key_has_expired_with_the_anchor_above_it(
    broker: MemoryBroker,
) -> None:
    """The bundle that judges does not go by that anchor; a handshake does."""
    root = PKI.authority("Short Root CA", not_after=PKI.now + timedelta(hours=1))
    works = PKI.authority("Works CA", PKI.root)
    renewed = PKI.authority("Works CA 2", root, key=works.key)
    held = PKI.device("meter-1", issuer=renewed)
    terms = BundleTerms.of(TrustSettings(name="plant", anchors=(Path("x"),), feed=True))
    bundles = (TrustBundle("plant", [works.certificate], terms=terms), TrustBundle("short", [root.certificate]))
    client = connected(broker, held, path(held, renewed, root))
    outcome = judged(broker, client, *bundles)
    assert isinstance(outcome, Peer)
    assert outcome.bundle == "plant"
    broker.wall = PKI.now + timedelta(hours=2)
    outcome = judged(broker, client, *bundles)
    assert isinstance(outcome, Refused)
    assert outcome.code is RefusalCode.EXPIRED


def test_the_path_that_his_own_handshake_has_verified_comes_first(broker: MemoryBroker) -> None:
    crossed = PKI.authority("Other Issuing CA", PKI.root, key=BELOW.key)
    held = PKI.device("meter-1", issuer=BELOW)
    broker.engine.admission.believe(Trust([TrustBundle("other", [OTHER.certificate])]))
    client = connected(broker, held, path(held, BELOW, OTHER))
    client.transport.path = path(held, crossed, PKI.root)
    outcome = judged(broker, client, ROOT)
    assert isinstance(outcome, Peer)
    assert outcome.bundle == "root"


def test_who_is_connected_is_judged_by_the_path_of_a_handshake_now(broker: MemoryBroker) -> None:
    """The first stayed, whose CA is a partner's now; the second was put out, whom a handshake admits."""
    plant = PKI.authority("Plant CA", PKI.root)
    crossed = PKI.authority("Plant CA", OTHER, key=plant.key)
    settings = TrustSettings(name="theirs", anchors=(Path("x"),), feed=True, trust_domain="plant.example")
    theirs = TrustBundle("theirs", [plant.certificate], terms=BundleTerms.of(settings))
    for shown, before, *now in (
        ((crossed,), crossed, TrustBundle("ours", [OTHER.certificate]), theirs),
        ((plant,), plant, TrustBundle("ours", [crossed.certificate])),
    ):
        held = PKI.device("meter-1", issuer=before)
        broker.engine.admission.believe(Trust([TrustBundle("ours", [before.certificate])]))
        client = connected(broker, held, path(held, *shown))
        outcomes = [judged(broker, client, *now)]
        client.leave()
        client = connected(broker, held)
        outcomes.append(judged(broker, client, *now))
        for outcome in outcomes:
            if before is crossed:
                assert isinstance(outcome, Refused)
                assert outcome.code is RefusalCode.WRONG_TRUST_DOMAIN
            else:
                assert isinstance(outcome, Peer), outcome


def test_an_anchor_that_constrains_names_now_is_for_a_handshake_to_judge(broker: MemoryBroker) -> None:
    elsewhere = x509.NameConstraints([x509.UniformResourceIdentifier("elsewhere.example")], None)
    plant = PKI.authority("Plant CA", PKI.root)
    narrowed = PKI.authority("Plant CA", PKI.root, key=plant.key, extensions=[elsewhere])
    for issuer, stays in ((plant, False), (narrowed, True)):  # Whether that one's handshake was fine is not asked here.
        held = PKI.device("meter-1", issuer=issuer)
        client = connected(broker, held, path(held, issuer, PKI.root))
        outcome = judged(broker, client, TrustBundle("ours", [narrowed.certificate]))
        assert isinstance(outcome, Peer) is stays
        client.leave()


def test_of_whose_issuer_nothing_is_known_an_anchor_must_have_signed_the_certificate(broker: MemoryBroker) -> None:
    client = connected(broker, shared_device("meter-1"))
    assert isinstance(judged(broker, client, TrustBundle("issuing", [PKI.issuing.certificate])), Peer)
    assert isinstance(judged(broker, client, ROOT), Refused)


@pytest.mark.parametrize("resumed", [False, True])
async def test_with_cafile_alone_whoever_is_good_under_the_new_anchors_stays_and_nobody_else(
    broker: MemoryBroker, tmp_path: Path, resumed: bool
) -> None:
    scene = Scene(tmp_path, broker)
    root = PKI.authority("Reloaded Root CA", not_after=PKI.now + timedelta(days=9))
    between = PKI.authority("Reloaded CA", root, not_after=PKI.now + timedelta(days=2))
    renewed = PKI.authority("Reloaded CA", root, key=between.key, not_after=PKI.now + timedelta(days=3))
    renewed_root = PKI.authority("Reloaded Root CA", key=root.key, not_after=PKI.now + timedelta(days=10))
    namesake = PKI.authority("Reloaded CA", root, not_after=PKI.now + timedelta(days=4))
    held = PKI.device("meter-1", issuer=between)
    shown = path(held, between, root)
    client = connected(broker, held, shown)
    if resumed:
        client.leave()
        client = connected(broker, held)
    for anchors in ((root,), (between,), (renewed,), (root, OTHER), (renewed_root,), (namesake, root)):
        scene.believe(*anchors)
        _, effects = await scene.trust.apply(scene.load())
        assert effects == Effects(connected=1, disconnected=0), anchors
    scene.believe(OTHER, namesake)
    _, effects = await scene.trust.apply(scene.load())
    assert effects is not None
    assert effects.disconnected == 1
    assert client.closed


async def test_what_a_certificate_says_of_its_issuer_vouches_for_nobody(broker: MemoryBroker, tmp_path: Path) -> None:
    scene = Scene(tmp_path, broker)
    held, other = PKI.device("meter-1"), PKI.device("meter-2", issuer=BELOW)
    client = connected(broker, held)
    peer = client.connection.peer
    assert peer is not None
    # As if its authority key identifier had named another's CA.
    peer.verified = VerifiedPath(path(other, BELOW, OTHER)[1:])
    scene.believe(OTHER)
    await scene.trust.apply(scene.load())
    assert client.closed


def test_who_would_be_somebody_else_is_put_out(broker: MemoryBroker) -> None:
    held = shared_device("meter-1")
    client = connected(broker, held, path(held, PKI.issuing, PKI.root))
    source = IdentitySource(source="common-name", group="gas")
    settings = TrustSettings(name="root", anchors=(Path("x"),), feed=True, trust_domain=DOMAIN, identity=(source,))
    outcome = judged(broker, client, TrustBundle("root", [PKI.root.certificate], terms=BundleTerms.of(settings)))
    assert isinstance(outcome, Refused)
    assert (outcome.code, outcome.detail) == (
        RefusalCode.IDENTITY_CHANGED,
        f"the certificate names spiffe://{DOMAIN}/device/gas/meter-1 now",
    )


@pytest.mark.parametrize(
    ("terms", "code"),
    [
        ({}, RefusalCode.EXPIRED),
        ({"groups": ("gas",)}, RefusalCode.WRONG_GROUP),
        ({"required_eku": ("clientAuth", "1.2.3.4")}, RefusalCode.WRONG_PURPOSE),
        ({"identity": (IdentitySource(source="common-name", group="gas"),)}, RefusalCode.IDENTITY_CHANGED),
    ],
)
@pytest.mark.parametrize("goes_by_it", [True, False])
def test_what_else_the_new_terms_have_against_who_has_expired_counts_first(
    broker: MemoryBroker, terms: dict[str, Any], code: RefusalCode, *, goes_by_it: bool
) -> None:
    """The will of an expired one is sent (decision 0143); so was that of one whom the terms refuse in any case."""
    hour, held = timedelta(hours=1), PKI.device("meter-1", issuer=BELOW)
    settings = TrustSettings(name="new", anchors=(Path("x"),), feed=True, trust_domain=DOMAIN, **terms)
    if goes_by_it:
        ended = PKI.authority("Other Issuing CA", OTHER, key=BELOW.key, not_after=PKI.now - hour)
        bundles = [TrustBundle("new", [ended.certificate], terms=BundleTerms.of(settings))]
    else:  # The CA above the one that the table names.
        named = PKI.authority("Other Issuing CA 2", PKI.root, key=BELOW.key)
        ended = PKI.authority("Other Root CA", key=OTHER.key, not_after=PKI.now - hour)
        new = TrustBundle("new", [named.certificate], terms=BundleTerms.of(settings))
        bundles = [new, TrustBundle("ended", [ended.certificate])]
    outcome = judged(broker, connected(broker, held, path(held, BELOW, OTHER)), *bundles)
    assert isinstance(outcome, Refused)
    assert outcome.code is code


def test_that_a_status_is_not_known_puts_nobody_out_and_that_it_is_known_does(broker: MemoryBroker) -> None:
    held = shared_device("meter-1")
    client = connected(broker, held, path(held, PKI.issuing, PKI.root))
    listed = TrustBundle("root", [PKI.root.certificate], lists=ListTerms(REQUIRE))
    assert isinstance(judged(broker, client, listed), Peer)
    broker.engine.admission.status.index.add(held.revocation)
    outcome = judged(broker, client, listed)
    assert isinstance(outcome, Refused)
    assert outcome.code is RefusalCode.REVOKED


def test_who_has_no_certificate_or_no_session_is_not_judged(broker: MemoryBroker) -> None:
    held = shared_device("meter-1")
    assert judged(broker, broker.open(held, path=path(held, PKI.issuing, PKI.root)), ROOT) is None
    client = connected(broker, held, path(held, PKI.issuing, PKI.root))
    client.transport.certificate = None
    assert judged(broker, client, ROOT) is None
