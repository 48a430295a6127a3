"""The time that is proven, by whatever was said in whatever order, is what a reading of all of it finds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from broker.admission.proven_time import SERVICE_AHEAD, ProvenTime

START = datetime(2026, 11, 30, tzinfo=UTC)
CAS = ("one", "two")
SCOPES = ("all", "shard")
SECONDS = st.integers(0, 100_000)
MOST = 100_000_000
EITHER_WAY = st.integers(-MOST, MOST)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("beat"), SECONDS),
        st.tuples(st.just("clock"), EITHER_WAY),
        st.tuples(st.just("service"), EITHER_WAY),
        st.tuples(st.just("list"), EITHER_WAY, st.sampled_from(CAS), st.sampled_from(SCOPES)),
        st.tuples(st.just("own"), EITHER_WAY),
    ),
    max_size=40,
)


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


class Slowly:
    """Everything that was said, read from the begin each time."""

    def __init__(self) -> None:
        self.said: list[tuple[tuple[str, ...], float, float | None]] = []
        """By whom, what, and the beat from which it goes on; None: it does not."""
        self.now = 0.0
        self.clock = 0.0

    def latest(self, source: tuple[str, ...]) -> float:
        for by, at, since in reversed(self.said):
            if by == source:
                return at if since is None else at + max(0.0, self.now - since)
        return float("-inf")

    def at(self, *cas: str) -> float:
        sources = [("own",), ("service",), *(("list", ca, scope) for ca in cas for scope in SCOPES)]
        return max(self.clock, *map(self.latest, sources))


@given(STEPS)
def test_the_time_is_the_latest_that_each_source_has_said_last(steps: list[tuple[object, ...]]) -> None:
    proven, slowly = ProvenTime(), Slowly()
    standing: list[int] = []
    for kind, seconds, *where in steps:
        assert isinstance(seconds, int)
        match kind:
            case "beat":
                slowly.now += seconds
                proven.passed(slowly.now)
                for index in standing:
                    slowly.said[index] = (*slowly.said[index][:2], slowly.now)
                standing.clear()
            case "clock":
                slowly.clock = float(seconds)
            case "service":
                known = max(slowly.clock, slowly.latest(("own",)), slowly.latest(("agreed",)))
                believed = seconds <= known + SERVICE_AHEAD.total_seconds()
                assert proven.hear_service(after(seconds), slowly.now, after(slowly.clock)) is believed
                if believed:
                    slowly.said.append((("service",), float(seconds), slowly.now))
                    if seconds <= slowly.clock + SERVICE_AHEAD.total_seconds():
                        slowly.said.append((("agreed",), min(float(seconds), slowly.clock), slowly.now))
            case "list":
                ca, scope = map(str, where)
                proven.hear_list(ca.encode(), scope, after(seconds), f"CN={ca}")
                standing.append(len(slowly.said))
                slowly.said.append((("list", ca, scope), float(seconds), float("inf")))
            case _:
                proven.present(after(seconds))
                slowly.said.append((("own",), float(seconds), None))
        for cas in ((), ("one",), ("two", "one")):
            found = proven.at(after(slowly.clock), [ca.encode() for ca in cas])
            assert found == after(slowly.at(*cas))
            assert found >= after(slowly.clock), "never less than the clock"


@given(st.lists(st.tuples(st.sampled_from(["beat", "service", "list"]), SECONDS, EITHER_WAY, st.integers(0, 300))))
def test_who_is_told_the_truth_is_never_ahead_of_it_and_never_before_what_he_was_told(
    steps: list[tuple[str, int, int, int]],
) -> None:
    """By a clock that is set anywhere between two of them; what is said comes up to five minutes late."""
    proven, truth, told = ProvenTime(), 1_000_000, -MOST
    proven.passed(float(truth))
    for kind, passes, clock, late in steps:
        truth += passes
        if kind == "beat":
            proven.passed(float(truth))
        elif kind == "list":
            proven.hear_list(b"one", "all", after(truth - late), "CN=one")
            told = truth - late
        elif proven.hear_service(after(truth - late), float(truth), after(clock)):
            told = truth - late
        found = proven.at(after(clock), [b"one"])
        assert after(max(clock, told)) <= found <= after(max(clock, truth))
