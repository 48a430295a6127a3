"""Who is connected is judged by another generation of trust, with the certificate that his socket still has."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from broker.admission.admission import Peer
from broker.admission.bundle import ListTerms, TrustBundle
from broker.admission.bundle_terms import BundleTerms
from broker.admission.refusal import RefusalCode, Refused
from broker.admission.trust import Trust
from broker.reload.trust_change import judge
from broker.trust_settings import REQUIRE, TrustSettings
from tests.support.pki import DOMAIN, Held, shared_device, shared_pki
from tests.support.wire import MemoryBroker, WireClient

PKI = shared_pki()
OTHER = PKI.authority("Other Root CA")
BELOW = PKI.authority("Other Issuing CA", OTHER)
ROOT = TrustBundle("root", [PKI.root.certificate])


def path(held: Held, *above: Held) -> Sequence[bytes]:
    return [each.certificate.public_bytes(Encoding.DER) for each in (held, *above)]


def connected(broker: MemoryBroker, held: Held, verified: Sequence[bytes] = ()) -> WireClient:
    client = broker.open(held, path=verified)
    client.connect(client_id="meter-1")
    return client


def judged(broker: MemoryBroker, client: WireClient, *bundles: TrustBundle) -> Peer | Refused | None:
    return judge(broker.engine.admission.judging_by(Trust(bundles)), client.connection, broker.wall)


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


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


def test_of_whose_issuer_nothing_is_known_an_anchor_must_have_signed_the_certificate(broker: MemoryBroker) -> None:
    client = connected(broker, shared_device("meter-1"))
    assert isinstance(judged(broker, client, TrustBundle("issuing", [PKI.issuing.certificate])), Peer)
    assert isinstance(judged(broker, client, ROOT), Refused)


def test_who_would_be_somebody_else_is_put_out(broker: MemoryBroker) -> None:
    held = shared_device("meter-1")
    client = connected(broker, held, path(held, PKI.issuing, PKI.root))
    source = {"source": "common-name", "group": "gas"}
    settings = TrustSettings(name="root", anchors=("x",), feed=True, trust_domain=DOMAIN, identity=[source])
    outcome = judged(broker, client, TrustBundle("root", [PKI.root.certificate], terms=BundleTerms.of(settings)))
    assert isinstance(outcome, Refused)
    assert (outcome.code, outcome.detail) == (
        RefusalCode.IDENTITY_CHANGED,
        f"the certificate names spiffe://{DOMAIN}/device/gas/meter-1 now",
    )


def test_that_a_status_is_not_known_puts_nobody_out_and_that_it_is_known_does(broker: MemoryBroker) -> None:
    held = shared_device("meter-1")
    client = connected(broker, held, path(held, PKI.issuing, PKI.root))
    listed = TrustBundle("root", [PKI.root.certificate], lists=ListTerms(REQUIRE))
    assert isinstance(judged(broker, client, listed), Peer)
    broker.engine.admission.index.add(held.revocation)
    outcome = judged(broker, client, listed)
    assert isinstance(outcome, Refused)
    assert outcome.code is RefusalCode.REVOKED


def test_who_has_no_certificate_or_no_session_is_not_judged(broker: MemoryBroker) -> None:
    held = shared_device("meter-1")
    assert judged(broker, broker.open(held, path=path(held, PKI.issuing, PKI.root)), ROOT) is None
    client = connected(broker, held, path(held, PKI.issuing, PKI.root))
    client.transport.certificate = None
    assert judged(broker, client, ROOT) is None
