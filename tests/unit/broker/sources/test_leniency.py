"""What the settings forgive where revocations are not known: of the feed to the second, and of whom it is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.settings.config import BrokerConfig
from broker.settings.trust_settings import TrustSettings
from broker.sources.leniency import advisory_sources, feed_freshness, warn_of_advisory

FEED: dict[str, Any] = {"provisioning": "https://localhost:8443"}
LISTS: dict[str, Any] = {"crlfile": "lists"}
ASKED: dict[str, Any] = {"ocsp_responder": "http://localhost/"}


def config(**settings: Any) -> BrokerConfig:
    files = {} if "provisioning" in settings else {"certfile": "broker.crt", "keyfile": "broker.key"}
    given: dict[str, Any] = {"state_dir": Path("state"), "cafile": Path("anchors.pem"), **files}
    if "crlfile" not in settings and "ocsp_responder" not in settings and files and "trust" not in settings:
        given["unsafe_no_revocation"] = True
    return BrokerConfig(**given, **settings)


def bundle(**settings: Any) -> TrustSettings:
    return TrustSettings(name="plant", anchors=(Path("plant.pem"),), **settings)


@pytest.mark.parametrize(
    ("settings", "never", "fresh", "lost"),
    [
        ({}, True, float("inf"), float("inf")),
        (FEED, False, 300.0, 300.0),
        (FEED | {"revocation_grace": 7.0}, False, 7.0, 7.0),
        (FEED | {"revocation_grace": 0.0}, False, 0.0, 0.0),
        (FEED | {"feed_policy": "grace 12s"}, False, 12.0, 12.0),
        (FEED | {"feed_policy": "require"}, False, 15.0, None),
        (FEED | {"feed_policy": "advisory"}, True, float("inf"), float("inf")),
    ],
)
def test_newcomers_are_let_in_for_so_long_after_the_feed_was_current(
    settings: dict[str, Any], never: bool, fresh: float, lost: float | None
) -> None:
    """Before it ever was, within so many seconds since it was, and in those once it is lost."""
    freshness = feed_freshness(config(**settings))
    assert freshness.acceptable(100.0) is never
    freshness.current(100.0)
    for seconds in (0.0, 6.9, 7.1, 11.9, 12.1, 14.9, 15.1, 299.0, 301.0, 1e9):
        assert freshness.acceptable(100.0 + seconds) is (seconds <= fresh), seconds
    freshness.lost()
    for seconds in (0.0, 11.0, 299.0, 1e9):
        assert freshness.acceptable(100.0 + seconds) is (lost is not None and seconds <= lost), seconds


@pytest.mark.parametrize(
    ("settings", "policy"),
    [
        ({}, ""),
        (FEED | {"revocation_grace": 7.0}, "grace 7s"),
        (FEED | {"revocation_grace": 0.0}, "require"),
        (FEED | {"feed_policy": "require"}, "require"),
        (FEED | {"feed_policy": "grace 12s"}, "grace 12s"),
        (FEED | {"feed_policy": "advisory"}, "advisory"),
    ],
)
def test_the_operator_is_told_the_policy_in_his_words(settings: dict[str, Any], policy: str) -> None:
    freshness = feed_freshness(config(**settings))
    assert freshness.policy == policy
    assert freshness.has_source is bool(settings)


@pytest.mark.parametrize(
    ("settings", "sources"),
    [
        (FEED, []),
        ({"feed_policy": "advisory"}, []),
        (FEED | {"feed_policy": "advisory"}, ["feed"]),
        (LISTS, []),
        (LISTS | {"crl_policy": "advisory"}, ["CRLs"]),
        (ASKED | {"ocsp_policy": "grace 1h"}, []),
        (ASKED | {"ocsp_policy": "advisory"}, ["OCSP"]),
        (FEED | {"trust": (bundle(feed=True, feed_policy="advisory"),)}, ["trust bundle plant: feed"]),
        (FEED | {"trust": (bundle(feed=True, feed_policy="require"),)}, []),
        ({"trust": (bundle(**LISTS, crl_policy="advisory"),)}, ["trust bundle plant: CRLs"]),
        ({"trust": (bundle(**ASKED, ocsp_policy="advisory"),)}, ["trust bundle plant: OCSP"]),
        ({"trust": (bundle(**LISTS, crl_policy="require"),)}, []),
    ],
)
def test_of_which_sources_it_is_said_that_nobody_is_refused_for_want_of_them(
    settings: dict[str, Any], sources: list[str]
) -> None:
    assert advisory_sources(config(**settings)) == sources
    with capture_logs() as logs:
        warn_of_advisory(config(**settings))
    assert [(each["code"], each["sources"]) for each in logs] == ([("ADVISORY", sources)] if sources else [])
