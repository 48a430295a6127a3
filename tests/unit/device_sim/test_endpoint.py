from __future__ import annotations

import pytest

from device_sim.endpoint import address_in


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost", ("localhost", 8883)),
        ("localhost:1", ("localhost", 1)),
        ("127.0.0.1:65535", ("127.0.0.1", 65535)),
        ("mqtts://127.0.0.1:8884", ("127.0.0.1", 8884)),
        ("mqtts://broker.lab/", ("broker.lab", 8883)),
        ("::1", ("::1", 8883)),
        ("[::1]", ("::1", 8883)),
        ("[::1]:1883", ("::1", 1883)),
    ],
)
def test_a_broker_is_called_as_people_do_and_as_it_calls_itself(text: str, address: tuple[str, int]) -> None:
    assert address_in(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "", ":8883", "localhost:0", "localhost:65536", "localhost:-1", "localhost:mqtt", "mqtt://localhost:1883",
        "https://localhost:8443", "[::1", "localhost:8883/path", "me@localhost", "localhost:8883?x=1",
    ],
)  # fmt: skip
def test_what_is_no_address_is_told_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match="write HOST or HOST:PORT"):
        address_in(text)
