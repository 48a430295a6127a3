"""Trust bundles of a second CA, the plant's, and an admission that judges by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from broker.admission.admission import Admission
from broker.admission.bundle import TrustBundle
from broker.admission.bundle_terms import BundleTerms
from broker.admission.check import check
from broker.admission.freshness import Freshness
from broker.admission.peer import Peer
from broker.admission.policy import TopicPolicy
from broker.admission.refusal import RefusalCode, Refused
from broker.admission.status import RevocationStatus
from broker.admission.trust import Trust
from broker.settings.trust_settings import TrustSettings
from provisioning.pki.identity import Identity
from provisioning.pki.revocation import RevocationIndex
from provisioning.pki.role import Role
from tests.support.pki import DOMAIN, Held, shared_pki
from tests.support.policies import DEFAULT_POLICY

PKI = shared_pki()
PLANT = PKI.authority("Plant CA", PKI.root)
NOW = PKI.now
PLANT_DOMAIN = "plant.example"
CN = {"source": "common-name", "group": "plant"}


def settings(**different: Any) -> TrustSettings:
    values: dict[str, Any] = {"name": "plant", "anchors": "-", "unsafe_no_revocation": True} | different
    if "identity" in values:
        values.setdefault("trust_domain", PLANT_DOMAIN)
    return TrustSettings(**values)


def bundle(*anchors: Held, **different: Any) -> TrustBundle:
    made = settings(**different)
    return TrustBundle(made.name, [each.certificate for each in anchors], terms=BundleTerms.of(made), feed=made.feed)


def admission(
    *bundles: TrustBundle,
    any_client_id: Sequence[str] = (),
    policy: TopicPolicy = DEFAULT_POLICY,
    domain: str | None = DOMAIN,
) -> Admission:
    status = RevocationStatus(RevocationIndex(), Freshness(1.0))
    status.freshness.current(0.0)
    return Admission(status, policy, domain, any_client_id, Trust(bundles))


def path(held: Held, *above: Held) -> Sequence[bytes]:
    return [each.public_bytes(Encoding.DER) for each in (held.certificate, *(ca.certificate for ca in above))]


def examine(judge: Admission, held: Held, *above: Held) -> Peer | Refused:
    return judge.examine(held.der, NOW, lambda: path(held, *above) if above else ())


def code(judge: Admission, held: Held, *above: Held) -> RefusalCode | str:
    outcome = examine(judge, held, *above)
    return outcome.code if isinstance(outcome, Refused) else outcome.bundle


def checked_policy(judge: Admission, held: Held) -> str:
    """Return what a check of *held*, from the plant's CA, says about the policy."""
    verdict = check([held.certificate], [PLANT.certificate, PKI.issuing.certificate], judge, 0.0, NOW)
    return next(step.detail for step in verdict.steps if step.name == "policy")


def foreign(
    common_name: str = "meter-1",
    names: Sequence[x509.GeneralName] = (),
    purposes: Sequence[x509.ObjectIdentifier] | None = (ExtendedKeyUsageOID.CLIENT_AUTH,),
) -> Held:
    """Return a certificate from the plant's CA, which does not know our URIs."""
    identity = Identity(DOMAIN, Role.DEVICE, "x", "x")
    return PKI.certify(identity, issuer=PLANT, common_name=common_name, uris=[], names=names, purposes=purposes)
