"""How old revocation data may be."""

from __future__ import annotations

from broker.admission.freshness import FeedTerms, Freshness


def test_data_that_never_was_complete_is_not_acceptable() -> None:
    freshness = Freshness(10.0)
    assert freshness.age(5.0) is None
    assert not freshness.acceptable(5.0)
    assert not freshness.is_lost, "it is still to be read"


def test_data_is_acceptable_within_the_grace_time() -> None:
    freshness = Freshness(10.0)
    freshness.current(5.0)
    assert freshness.age(8.0) == 3.0
    assert freshness.acceptable(15.0)
    assert not freshness.acceptable(15.1)
    freshness.current(20.0)
    assert freshness.acceptable(30.0)


def test_data_ages_while_the_machine_sleeps() -> None:
    freshness = Freshness(10.0)
    freshness.slept(5.0)
    assert freshness.age(5.0) is None
    freshness.current(5.0)
    freshness.slept(7.0)
    assert freshness.age(6.0) == 8.0
    assert freshness.acceptable(8.0)
    assert not freshness.acceptable(8.1)
    freshness.current(9.0)
    assert freshness.age(9.0) == 0.0


def test_without_grace_only_this_moment_is_acceptable() -> None:
    freshness = Freshness(0.0)
    freshness.current(5.0)
    assert freshness.acceptable(5.0)
    assert not freshness.acceptable(5.01)


def test_under_require_nobody_comes_once_the_source_is_lost() -> None:
    freshness = Freshness(15.0, strict=True, policy="require")
    freshness.current(5.0)
    assert freshness.acceptable(6.0)
    freshness.lost()
    assert not freshness.acceptable(6.0)
    freshness.current(7.0)
    assert freshness.acceptable(22.0)
    assert not freshness.acceptable(22.1)


def test_with_a_grace_time_a_lost_source_is_forgiven_for_so_long() -> None:
    freshness = Freshness(10.0)
    freshness.current(5.0)
    freshness.lost()
    assert freshness.acceptable(15.0)
    assert not freshness.acceptable(15.1)


def test_a_clock_that_goes_back_makes_nothing_older() -> None:
    freshness = Freshness(1.0)
    freshness.current(5.0)
    assert freshness.age(4.0) == 0.0


def test_a_broker_without_revocations_is_always_fresh() -> None:
    assert Freshness(0.0, always_acceptable=True).acceptable(1e9)


def test_each_bundle_may_have_its_own_terms() -> None:
    freshness = Freshness(10.0, policy="grace 10s")
    patient, strict, careless = (
        FeedTerms(100.0, policy="grace 100s"),
        FeedTerms(15.0, strict=True, policy="require"),
        FeedTerms(0.0, always=True, policy="advisory"),
    )

    def judged(now: float) -> list[bool]:
        return [freshness.acceptable(now, each) for each in (None, patient, strict, careless)]

    assert judged(0.0) == [False, False, False, True]
    freshness.current(1000.0)
    assert judged(1012.0) == [False, True, True, True]
    freshness.lost()
    assert judged(1001.0) == [True, True, False, True]


def test_where_there_is_no_feed_no_bundle_waits_for_one() -> None:
    freshness = Freshness(0.0, always_acceptable=True)
    assert freshness.acceptable(0.0, FeedTerms(15.0, strict=True, policy="require"))


def test_where_there_is_a_feed_a_bundle_waits_for_it_though_the_broker_does_not() -> None:
    advisory = Freshness(0.0, always_acceptable=True, policy="advisory")
    require = FeedTerms(15.0, strict=True, policy="require")
    assert advisory.has_source
    assert advisory.acceptable(0.0)
    assert not advisory.acceptable(0.0, require)
    advisory.current(1.0)
    assert advisory.acceptable(16.0, require)
    assert not advisory.acceptable(16.1, require)


def test_it_is_current_from_when_all_was_read_until_the_source_is_lost() -> None:
    freshness = Freshness(10.0)
    states = [freshness.is_current]
    for _ in range(2):
        freshness.current(5.0)
        states.append(freshness.is_current)
        freshness.lost()
        states.append(freshness.is_current)
    assert states == [False, True, False, True, False]
    assert Freshness(0.0, always_acceptable=True).is_current, "there is nothing to be read"
    assert not Freshness(0.0, always_acceptable=True, policy="advisory").is_current
