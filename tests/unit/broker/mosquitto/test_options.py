"""The table of mosquitto's options is complete: the names are those that src/conf.c of mosquitto compares with."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from broker.mosquitto.conversion import InvalidConf, converted
from broker.settings.config import BrokerConfig
from broker.settings.config_hints import hint
from broker.settings.limits import Limits
from broker.settings.mosquitto_options import OPTIONS, Fate, Place, option

OF_2_0 = """
acl_file address addresses allow_anonymous allow_duplicate_messages allow_zero_length_clientid
auth_plugin auth_plugin_deny_special_chars auto_id_prefix autosave_interval autosave_on_changes
bind_address bind_interface bridge_alpn bridge_attempt_unsubscribe bridge_bind_address bridge_cafile
bridge_capath bridge_certfile bridge_identity bridge_insecure bridge_keyfile bridge_max_packet_size
bridge_outgoing_retain bridge_protocol_version bridge_psk bridge_require_ocsp bridge_tls_version
cafile capath certfile check_retain_source ciphers ciphers_tls1.3 cleansession clientid
clientid_prefixes connection connection_messages crlfile dhparamfile http_dir idle_timeout
include_dir keepalive_interval keyfile listener local_cleansession local_clientid local_password
local_username log_dest log_facility log_timestamp log_timestamp_format log_type max_connections
max_inflight_bytes max_inflight_messages max_keepalive max_packet_size max_qos max_queued_bytes
max_queued_messages max_topic_alias maximum_qos memory_limit message_size_limit mount_point
notification_topic notifications notifications_local_only password password_file
per_listener_settings persistence persistence_file persistence_location persistent_client_expiration
pid_file plugin port protocol psk_file psk_hint queue_qos0_messages remote_clientid remote_password
remote_username require_certificate restart_timeout retain_available retain_expiry_interval
retained_persistence retry_interval round_robin set_tcp_nodelay socket_domain start_type
sys_interval threshold tls_engine tls_engine_kpass_sha1 tls_keyform tls_version topic try_private
upgrade_outgoing_qos use_identity_as_username use_subject_as_username use_username_as_clientid user
username websockets_headers_size websockets_log_level
"""
"""src/conf.c of mosquitto 2.0.21, `config__read_file_core`, without auth_opt_… and plugin_opt_…"""
NEW_IN_2_1 = """
accept_protocol_versions bridge_ciphers bridge_ciphers_tls1.3 bridge_max_topic_alias
bridge_receive_maximum bridge_reload_type bridge_session_expiry_interval bridge_tcp_keepalive
bridge_tcp_user_timeout bridge_tls_use_os_certs disable_client_cert_date_checks enable_control_api
enable_proxy_protocol global_max_clients global_max_connections global_plugin
listener_allow_anonymous listener_auto_id_prefix max_topic_alias_broker packet_buffer_size
plugin_load plugin_use proxy_protocol_v2_require_tls websockets_origin
"""
"""Those that the same of 2.1.2 knows besides; it has dropped none."""

CONF = """\
listener 8883 127.0.0.1
cafile ca.crt
certfile broker.crt
keyfile broker.key
crlfile ca.crl
require_certificate true
use_identity_as_username true
"""
VALUES = {
    "accept_protocol_versions": "3,4, 5", "bind_interface": "eth0", "log_type": "all", "max_qos": "2",
    "maximum_qos": "2",
    "persistent_client_expiration": "2w", "port": "1883", "protocol": "mqtt", "socket_domain": "ipv4",
    "tls_keyform": "pem", "tls_version": "tlsv1.3", "listener": "8884", "max_packet_size": "2000",
    "message_size_limit": "2000", "max_connections": "7", "global_max_connections": "7",
}  # fmt: skip


def test_the_table_has_every_option_of_mosquitto_and_no_other() -> None:
    assert OPTIONS.keys() == {*OF_2_0.split(), *NEW_IN_2_1.split()}


@pytest.mark.parametrize("name", ["plugin_opt_config_file", "auth_opt_x", "bridge_of_a_later_version"])
def test_names_that_only_begin_alike_are_known_too(name: str) -> None:
    found = option(name)
    assert found is not None
    assert found.fate is Fate.IMPOSSIBLE
    assert option("bogus") is None


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_has_advice_for_who_writes_it_into_the_broker_s_settings(name: str) -> None:
    limits = {each.name for each in fields(Limits)}
    if OPTIONS[name].text:
        said = hint(name, BrokerConfig.model_fields, limits)
        assert "meant?" not in said
        assert "see docs/reference" not in said
    else:
        assert {name, "persistence"} & (BrokerConfig.model_fields.keys() | limits)


@pytest.mark.parametrize("name", [*OPTIONS, "plugin_opt_x"])
def test_no_line_is_lost(name: str, tmp_path: Path) -> None:
    """Whatever the option: its line is beside a setting, or in a comment, or in an error."""
    conf = tmp_path / "mosquitto.conf"
    value = VALUES.get(name, "true" if name in {"persistence", "retained_persistence"} else "1")
    (tmp_path / "acl").write_text("user a\ntopic read b\n")
    value = {"acl_file": str(tmp_path / "acl"), "include_dir": str(tmp_path / "none")}.get(name, value)
    own = "\n".join(line for line in CONF.splitlines() if line.split()[0] != name)
    number = len(own.splitlines()) + 1
    conf.write_text(f"{own}\n{name} {value}\n")
    try:
        told = converted(conf).settings
    except InvalidConf as error:
        told = str(error)
    known = option(name)
    assert known is not None
    if name != "use_subject_as_username" and known.fate is not Fate.CONVERTED:
        assert (f"line {number}: {name}: " in told) is True
        assert ("# Left out" in told) is (known.fate is Fate.LEFT_OUT)
    assert f"line {number}" in told
    assert known.place is not Place.BRIDGE or "a bridge" in told
