"""Whatever a mosquitto.conf says: settings that the broker accepts, or errors; and no line of it is passed over."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from hypothesis import event, example, given
from hypothesis import strategies as st

from broker.mosquitto.conf import UnreadableConf
from broker.mosquitto.conversion import InvalidConf, converted
from broker.settings.config_loading import load
from broker.settings.mosquitto_options import OPTIONS, Fate

LISTENER = (
    "cafile ca.crt", "certfile c.crt", "keyfile c.key", "require_certificate true", "use_identity_as_username true",
)  # fmt: skip
LEFT_OUT = [name for name, each in OPTIONS.items() if each.fate is Fate.LEFT_OUT]
TEXT = st.text(st.characters(exclude_characters="\n\0", exclude_categories=["Cs"]), max_size=20)
VALUES = st.one_of(
    st.sampled_from(["true", "0", "2", "5000", "-1", "8884", "tlsv1.3", "4, 5", "mqtt", "all", "2w"]), TEXT
)
FAULTLESS = st.one_of(
    st.builds("{} x{}".format, st.sampled_from(LEFT_OUT), TEXT),
    st.sampled_from(
        ["max_qos 2", "max_keepalive 0", "max_queued_bytes 0x10", "max_connections 5", "tls_version tlsv1.3"]
    ),
    st.sampled_from(
        ["log_type all", "log_type none", "allow_anonymous 1", "persistence 1", "max_topic_alias 3", "# x"]
    ),
    st.builds("{} x{}".format, st.sampled_from(["keyfile", "crlfile", "password_file", "persistence_location"]), TEXT),
)
ANY = st.one_of(FAULTLESS, st.builds("{} {}".format, st.sampled_from([*OPTIONS]), VALUES), TEXT)


@given(
    before=st.lists(st.sampled_from(["max_queued_bytes 7", "", "user a"])),
    after=st.one_of(st.lists(FAULTLESS), st.lists(ANY)),
)
@example(before=[], after=["log_type all", 'mount_point "\x7f', "websockets_origin https://a"])
@example(before=["per_listener_settings true"], after=["allow_anonymous true", "pid_file a\r\x85[limits]"])
def test_any_file_is_converted_into_valid_settings_or_refused(before: list[str], after: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        conf, settings = Path(directory) / "mosquitto.conf", Path(directory) / "broker.toml"
        text = "\n".join([*before, "listener 8883 127.0.0.1", *LISTENER, *after])
        conf.write_bytes(text.encode())
        try:
            told = converted(conf).settings
        except (InvalidConf, UnreadableConf):
            event("refused")
            return
        event("converted")
        settings.write_text(told)
        made = load(settings, {})
    assert made.unsafe_plain_port is None
    assert all(bundle.identity[0].source == "common-name" for bundle in made.trust)
    numbers = {
        number
        for number, line in enumerate(text.split("\n"), 1)
        if (said := line.strip(" \t\r")) and not said.startswith("#")
    }
    assert {int(number) for number in re.findall(r"\bline (\d+)", told)} >= numbers
