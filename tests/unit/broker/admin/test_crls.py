"""The sources of revocations as operators see them: each figure is of what it says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from broker.admin.crls import crl_document, list_facts, trial_facts
from broker.admin.newcomers import admits
from broker.admission.bundle import ListTerms, OcspTerms, TrustBundle
from broker.admission.freshness import Freshness
from broker.admission.refusal import RefusalCode, unavailable
from broker.admission.trust import Trust
from broker.reload.crl_trial import Trial
from broker.settings.trust_settings import StatusPolicy
from provisioning.program.moments import rfc3339
from tests.support.crl import crl, scope
from tests.support.held_lists import SOURCE, put
from tests.support.pki import shared_pki
from tests.support.wire import MemoryBroker

PKI = shared_pki()
NOW = datetime.now(UTC).replace(microsecond=0)
URL = "http://ca.example/a.crl"


def facts(broker: MemoryBroker, wall: datetime = NOW) -> dict[str, Any]:
    return crl_document(broker.engine, wall, broker.now)


def test_a_list_is_described_by_its_own_figures(broker: MemoryBroker) -> None:
    hour, point = timedelta(hours=1), scope(URL)
    put(
        broker.engine.admission,
        PKI.issuing,
        crl(PKI.issuing, {7: None, 8: None, 9: None}, number=41, age=hour, life=4 * hour, point=point, now=NOW),
        NOW,
    )
    delta = put(
        broker.engine.admission,
        PKI.issuing,
        crl(PKI.issuing, {10: None}, number=42, base=41, age=hour / 2, life=hour, point=point, now=NOW),
        NOW,
    )
    document = facts(broker)
    late = delta.late_from
    assert NOW < late < NOW + 3 * hour
    assert document["lists"] == [
        {
            "issuer": "CN=Test Issuing CA",
            "number": 42,
            "entries": 4,
            "delta": True,
            "scope": [URL],
            "source": SOURCE,
            "this_update": rfc3339(NOW - hour / 2),
            "next_update": rfc3339(NOW + 3 * hour),
            "late_from": rfc3339(late),
            "seconds_left": 3 * 3600,
            "state": "current",
        }
    ]
    assert document["entries"]["crl"] == 4


@pytest.mark.parametrize(
    ("wait", "state", "left"),
    [("now", "current", 2700), ("late", "late", 900), ("end", "late", 0), ("after", "expired", -1)],
)
def test_a_list_is_late_before_it_expires(broker: MemoryBroker, wait: str, state: str, left: int) -> None:
    held = put(broker.engine.admission, PKI.issuing, crl(PKI.issuing, age=timedelta(minutes=15), now=NOW), NOW)
    end = NOW + timedelta(minutes=45)
    wall = {"now": NOW, "late": end - timedelta(minutes=15), "end": end, "after": end + timedelta(seconds=1)}[wait]
    shown = list_facts(held, wall)
    assert (shown["state"], shown["seconds_left"], shown["delta"], shown["scope"]) == (state, left, False, [])
    assert list_facts(held, held.late_from)["state"] == "late"
    assert list_facts(held, held.late_from - timedelta(seconds=1))["state"] == "current"


def test_each_bundle_is_shown_with_the_policy_of_each_of_its_sources(broker: MemoryBroker) -> None:
    assert (facts(broker)["policies"], facts(broker)["ocsp_policies"]) == ({}, {})
    root = PKI.root.certificate
    broker.engine.admission.believe(
        Trust(
            [
                TrustBundle("listed", [root], lists=ListTerms(StatusPolicy(60.0))),
                TrustBundle("asked", [PKI.issuing.certificate], ocsp=OcspTerms(StatusPolicy(None), "http://a.example")),
                TrustBundle("neither", [PKI.authority("Another").certificate]),
            ]
        )
    )
    assert facts(broker)["policies"] == {"listed": "grace 60s"}
    assert facts(broker)["ocsp_policies"] == {"asked": "advisory"}


def test_the_feed_is_shown_with_its_age_and_policy() -> None:
    broker = MemoryBroker(fresh=False)
    assert (facts(broker)["feed_age_seconds"], facts(broker)["feed_policy"]) == (None, None), "never read"
    assert facts(broker)["newcomers_admitted"] is False
    broker.keep_fresh()
    broker.now += 4.25
    broker.freshness.terms.policy = "grace 300s"
    broker.metrics.revocation_alarms["CRL_LATE"] += 2
    document = facts(broker)
    assert (document["feed_age_seconds"], document["feed_policy"]) == (4.2, "grace 300s")
    assert document["newcomers_admitted"] is True
    assert [each["source"] for each in document["newcomers"]] == ["feed"]
    assert document["alarms"] == {"CRL_LATE": 2}


def test_a_trial_is_told_as_data_and_in_words() -> None:
    trial = Trial(used=True, issuer="CN=Test Issuing CA", number=7, next_update=NOW, newly_revoked=3)
    shown = trial_facts(trial)
    assert (shown["text"], shown["number"], shown["newly_revoked"]) == (str(trial), 7, 3)
    assert shown["next_update"] == rfc3339(NOW)
    assert trial_facts(Trial(used=False, code="CRL_OLDER"))["next_update"] is None


@pytest.mark.parametrize("blind", [False, True])
def test_a_bundle_without_a_source_admits_its_newcomers_whatever_happens_to_the_others(
    broker: MemoryBroker, *, blind: bool
) -> None:
    """A load balancer sent its clients away too, while another bundle's feed was lost."""
    admission = broker.engine.admission
    bundles = [TrustBundle("followed", [PKI.root.certificate])]
    bundles += [TrustBundle("blind", [PKI.authority("Another").certificate], feed=False)] * blind
    admission.believe(Trust(bundles))
    admission.status.freshness = Freshness(300.0)  # Never read.
    assert facts(broker)["newcomers_admitted"] is blind
    assert any(admits(admission, broker.now).values()) is blind
    admission.shut = unavailable(RefusalCode.AUDIT_UNAVAILABLE, "the audit log cannot be written")
    assert facts(broker)["newcomers_admitted"] is False
