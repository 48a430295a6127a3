"""What had expired by a time that others have proven has expired, by whatever the broker's clock says."""

from __future__ import annotations

from datetime import timedelta

import pytest

from broker.admission.admission import Admission
from broker.admission.check import check
from broker.admission.freshness import Freshness
from broker.admission.peer import Peer
from broker.admission.proven_time import SERVICE_AHEAD, ProvenTime
from broker.admission.refusal import RefusalCode, Refused
from broker.admission.status import RevocationStatus
from provisioning.pki.keys import key_identifier
from provisioning.pki.revocation import RevocationIndex
from tests.support.bundles import PLANT, bundle, path
from tests.support.bundles import admission as judging
from tests.support.pki import DOMAIN, shared_pki
from tests.support.policies import DEFAULT_POLICY

PKI = shared_pki()
NOW = PKI.now
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
BRIEF = PKI.device("brief", not_before=NOW - 30 * DAY, not_after=NOW - HOUR)
BACK = NOW - DAY
"""What a clock says that was set back: the certificate is valid by it."""


@pytest.fixture
def admission() -> Admission:
    freshness = Freshness(300.0)
    freshness.current(0.0)
    return Admission(RevocationStatus(RevocationIndex(), freshness), DEFAULT_POLICY, DOMAIN)


def test_what_has_expired_by_the_feed_has_expired_by_a_clock_that_is_set_back(admission: Admission) -> None:
    assert isinstance(admission.examine(BRIEF.der, BACK), Peer), "nothing else tells"
    assert admission.status.proven.hear_service(NOW, 0.0, NOW)
    refused = admission.examine(BRIEF.der, BACK)
    assert isinstance(refused, Refused)
    assert refused.code is RefusalCode.EXPIRED
    ended, said = (f"{each:%Y-%m-%d %H:%M:%S}" for each in (NOW - HOUR, BACK))
    assert refused.detail == f"the certificate expired on {ended} UTC; the broker's clock is behind: it says {said}"
    assert refused.identity.endswith("/brief")


def test_a_certificate_has_as_long_as_it_has_by_what_is_proven(admission: Admission) -> None:
    held = PKI.device("long", not_before=NOW - 30 * DAY, not_after=NOW + HOUR)
    admission.status.proven.hear_service(NOW, 0.0, NOW)
    peer = admission.examine(held.der, BACK)
    assert isinstance(peer, Peer)
    assert peer.seconds_left == 3600


def test_what_has_not_begun_has_not_begun_by_the_clock_alone(admission: Admission) -> None:
    held = PKI.device("new", not_before=NOW - HOUR)
    admission.status.proven.hear_service(NOW, 0.0, NOW)
    refused = admission.examine(held.der, BACK)
    assert isinstance(refused, Refused)
    assert refused.code is RefusalCode.NOT_YET_VALID


def test_a_check_says_what_admission_would(admission: Admission) -> None:
    admission.status.proven.hear_service(NOW, 0.0, NOW)
    verdict = check([BRIEF.certificate], [PKI.issuing.certificate], admission, 0.0, BACK)
    assert (verdict.admitted, verdict.code) == (False, "EXPIRED")
    assert verdict.detail.startswith("the certificate expired on "), "TLS would let it through"
    assert "the broker's clock is behind" in verdict.detail
    assert [step.name for step in verdict.steps if step.passed is False] == ["validity"]
    by_clock = check([BRIEF.certificate], [PKI.issuing.certificate], admission, 0.0, NOW)
    assert by_clock.detail.startswith("TLS alert: expired on ")


def test_the_time_goes_on_from_what_was_said() -> None:
    proven = ProvenTime()
    proven.hear_service(NOW, 1000.0, NOW)
    proven.passed(1060.0)
    assert proven.at(BACK) == NOW + MINUTE
    assert proven.at(NOW + HOUR) == NOW + HOUR, "the clock is ahead of it, as it is of every proof"


def test_one_wrong_time_puts_nobody_out() -> None:
    """The service's clock is set two years ahead, while the feed lasts: the broker's is right, and knows it."""
    proven = ProvenTime()
    assert not proven.hear_service(NOW + 730 * DAY, 0.0, NOW)
    assert proven.at(NOW) == NOW
    assert proven.hear_service(NOW, 5.0, NOW)
    assert not proven.hear_service(NOW + 730 * DAY, 10.0, NOW)
    assert proven.at(BACK) == NOW + timedelta(seconds=5), "what it said before counts still"


def test_a_time_that_all_agreed_on_is_taken_back_by_the_next_word() -> None:
    """Both run on one machine, whose clock was two years ahead and is set right."""
    proven = ProvenTime()
    ahead = NOW + 730 * DAY
    assert proven.hear_service(ahead, 0.0, ahead)
    assert proven.at(NOW) == ahead
    assert proven.hear_service(NOW, 5.0, NOW)
    assert proven.at(NOW) == NOW


def test_a_service_that_is_a_little_ahead_is_believed_and_no_other() -> None:
    assert ProvenTime().hear_service(NOW + SERVICE_AHEAD, 0.0, NOW)
    assert not ProvenTime().hear_service(NOW + SERVICE_AHEAD + timedelta(seconds=1), 0.0, NOW)


def test_a_service_whose_clock_runs_too_fast_takes_nobody_with_it() -> None:
    """Each of its words is a little later than the last: together they would have been a day, and then a year."""
    proven = ProvenTime()
    for beat in range(1000):
        clock = NOW + timedelta(seconds=beat)
        proven.hear_service(clock + beat * 30 * MINUTE, float(beat), clock)
        assert proven.at(clock) <= clock + SERVICE_AHEAD
    assert proven.hear_service(NOW + 20 * MINUTE, 1000.0, NOW + 20 * MINUTE)
    assert proven.at(NOW) == NOW + 20 * MINUTE


def test_nor_does_it_by_a_clock_that_is_set_back() -> None:
    proven = ProvenTime()
    assert proven.hear_service(NOW, 0.0, NOW)
    for beat in range(1000):
        proven.hear_service(NOW + beat * 30 * MINUTE, float(beat), BACK)
        assert proven.at(BACK) <= NOW + timedelta(seconds=beat) + SERVICE_AHEAD
    assert proven.hear_service(NOW + 20 * MINUTE, 1200.0, BACK), "the truth, as before"


def test_a_list_counts_from_its_date_until_the_next_beat() -> None:
    """When it came is not known exactly: what is proven may not be later than the truth."""
    proven = ProvenTime()
    proven.hear_list(b"ca", "", NOW, "CN=ca")
    assert proven.at(BACK, [b"ca"]) == NOW, "before any beat"
    proven.passed(50_000.0)
    assert proven.at(BACK, [b"ca"]) == NOW
    proven.passed(50_060.0)
    assert proven.at(BACK, [b"ca"]) == NOW + MINUTE
    assert proven.latest().by == "a CRL of CN=ca"


def test_a_list_counts_for_its_ca_alone_and_until_it_gives_way() -> None:
    proven = ProvenTime()
    proven.hear_list(b"ca", "all", NOW + 730 * DAY, "CN=ca")
    assert proven.at(NOW, [b"other"]) == NOW
    assert proven.at(NOW) == NOW
    proven.hear_list(b"ca", "all", NOW, "CN=ca")
    assert proven.at(BACK, [b"other", b"ca"]) == NOW
    proven.hear_list(b"ca", "a shard", NOW - HOUR, "CN=ca")
    assert proven.at(BACK, [b"ca"]) == NOW, "the latest of its lists"


def test_a_partner_s_list_ends_no_certificate_of_ours() -> None:
    """Nor does ours end one of a partner's: each bundle is judged as if there were no other."""
    judge = judging(bundle(PKI.root, name="ours"), bundle(PLANT))
    ours = PKI.device("ours", not_before=NOW - 30 * DAY, not_after=NOW + HOUR)
    key = key_identifier(PLANT.certificate.public_key())
    judge.status.proven.hear_list(key, "", NOW + DAY, "CN=Plant CA")
    admitted = judge.examine(ours.der, NOW, lambda: path(ours, PKI.issuing, PKI.root))
    assert isinstance(admitted, Peer), admitted
    ours_by = key_identifier(PKI.issuing.certificate.public_key())
    judge.status.proven.hear_list(ours_by, "", NOW + DAY, "CN=Issuing CA")
    refused = judge.examine(ours.der, NOW, lambda: path(ours, PKI.issuing, PKI.root))
    assert isinstance(refused, Refused)
    assert refused.code is RefusalCode.EXPIRED


def test_it_is_not_before_the_broker_s_own_certificate_begins() -> None:
    proven = ProvenTime()
    proven.present(NOW)
    proven.passed(1e6)
    assert proven.at(BACK) == NOW, "when it began is known, not when it was presented first"
    proven.present(NOW - HOUR)
    assert proven.at(BACK) == NOW - HOUR, "another one"
    proven.present(None)
    assert proven.at(BACK) == BACK


@pytest.mark.parametrize(("seconds", "much"), [(119, False), (121, True), (-9999, False)])
def test_a_clock_is_behind_when_it_is_by_more_than_clocks_differ(*, seconds: int, much: bool) -> None:
    proven = ProvenTime()
    assert not proven.is_behind(0.0)
    proven.hear_service(NOW, 0.0, NOW)
    clock = NOW.timestamp() - seconds
    assert proven.behind(clock) == max(0, seconds)
    assert proven.is_behind(clock) is much
