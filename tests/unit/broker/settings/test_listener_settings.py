"""Listeners: what each has of its own, and what is the broker's."""

from __future__ import annotations

import contextlib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from broker.settings.config import BrokerConfig
from broker.settings.config_file import ConfigError
from broker.settings.config_loading import load
from broker.settings.limits import Limits
from broker.settings.listener_settings import ListenerSettings

OWN = sorted({each.name for each in fields(Limits)} & ListenerSettings.model_fields.keys())


def loaded(path: Path | None = None, **settings: Any) -> BrokerConfig:
    return load(path, {"cafile": Path("ca.pem"), "provisioning": "https://127.0.0.1:8443"} | settings)


LISTENERS = """
[[listener]]
port = 1
[[listener]]
port = 2
host = "::1"
protocol = "wss"
max_connection_rate = 5
[limits]
max_connection_rate = 7
max_unadmitted = 9
"""


def test_listeners_are_tables_or_the_short_form(tmp_path: Path) -> None:
    path = tmp_path / "broker.toml"
    path.write_text(LISTENERS)
    config = loaded(path)
    first, second = config.listeners
    assert (first.port, first.host, first.protocol) == (1, None, "mqtts")
    assert (second.port, second.host, second.protocol) == (2, "::1", "wss")
    assert first.limits(config.limits) is config.limits
    own = second.limits(config.limits)
    assert (own.max_connection_rate, own.max_unadmitted) == (5, 9)
    assert [each.port for each in loaded().listeners] == [8883]
    short = loaded(port=3, websocket_port=4).listeners
    assert [(each.port, each.protocol) for each in short] == [(3, "mqtts"), (4, "wss")]


@pytest.mark.parametrize("name", OWN)
def test_each_limit_of_a_listener_replaces_the_broker_s_and_no_other(name: str) -> None:
    common = replace(Limits(), max_connection_rate=7)
    own: Any = {name: 3}
    assert ListenerSettings(port=1, **own).limits(common) == replace(common, **own)


def test_a_listener_without_a_limit_has_none_though_the_broker_has_one() -> None:
    common = replace(Limits(), max_connection_rate=7)
    assert ListenerSettings(port=1, max_connection_rate=0).limits(common).max_connection_rate == 0
    assert ListenerSettings(port=1).limits(common) is common


def test_whose_headers_a_listener_believes_is_its_own_affair_also_if_it_is_nobody_s() -> None:
    common = ("10.0.0.0/8",)
    assert ListenerSettings(port=1).proxies(common) == common
    assert ListenerSettings(port=1, proxy_protocol_from=()).proxies(common) == ()
    assert ListenerSettings(port=1, proxy_protocol_from=("::1",)).proxies(common) == ("::1/128",)


def test_a_listener_is_another_if_its_address_port_or_protocol_is_and_only_then() -> None:
    first = ListenerSettings(port=1, host="::1", protocol="wss")
    others = ({"port": 2}, {"host": "127.0.0.1"}, {"protocol": "mqtts"})
    assert all(first.model_copy(update=other).place != first.place for other in others)
    other = first.model_copy(update={"websocket_origins": (), "max_connection_rate": 5})
    assert other.place == first.place
    assert first.model_copy(update={"websocket_origins": (), "proxy_protocol_from": ()}).lasting == first.lasting
    assert other.lasting != first.lasting, "a limit of its own needs a restart"


def test_any_free_port_is_taken_as_often_as_it_is_asked_for() -> None:
    both = loaded(listener=[{"port": 0}, {"port": 0}], metrics_port=0, admin_port=0).listeners
    assert [each.port for each in both] == [0, 0]


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("::", "127.0.0.1", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("0.0.0.0", "::", True),
        ("::", "::1", True),
        ("localhost", "127.0.0.1", True),
        ("0.0.0.0", "::1", False),
        ("127.0.0.2", "127.0.0.1", False),
        ("::1", "127.0.0.1", False),
    ],
)
def test_a_port_at_every_address_is_taken_at_each(one: str, other: str, overlap: bool) -> None:
    """Only the start said so, as of a port that another program has."""
    listeners: dict[str, Any] = {"listener": [{"host": one, "port": 9443}, {"host": other, "port": 9443}]}
    wanted = [listeners]
    if other == "127.0.0.1":
        wanted.append({"listener": [{"host": one, "port": 9443}], "metrics_port": 9443})
    for each in wanted:
        with pytest.raises(ConfigError, match="give each a port of its own") if overlap else contextlib.nullcontext():
            loaded(**each, unsafe_public_listener=True)


def test_a_listener_without_an_address_is_at_the_broker_s() -> None:
    taken = "listener: two of them have ::1 port 9443; give each a port of its own"
    with pytest.raises(ConfigError, match=taken):
        loaded(host="::1", listener=[{"port": 9443}, {"port": 9443, "host": "::1"}])
    loaded(host="::1", listener=[{"port": 9443}, {"port": 9443, "host": "127.0.0.1"}])
