"""Names of sessions and publishers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.session.name import device_of, publisher_name, session_name
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role

METER = Identity("fleet.internal", Role.DEVICE, "meter-1", "meters")
BACKEND = Identity("fleet.internal", Role.SERVICE, "meter-1")


@given(st.sampled_from(["", "/", "meter-1", "meter-2"]) | st.text(max_size=8))
def test_whatever_client_identifier_a_device_uses_it_is_that_device(client_id: str) -> None:
    own = session_name(METER, METER.name)
    assert device_of(publisher_name(METER, client_id)) == own
    assert (publisher_name(METER, client_id) == own) is (client_id == METER.name)
    other = publisher_name(Identity("fleet.internal", Role.DEVICE, "meter-2", "meters"), client_id)
    assert other != publisher_name(METER, client_id)


@pytest.mark.parametrize("client_id", ["meter-1", "meter-1-a"])
def test_a_service_is_no_device(client_id: str) -> None:
    assert publisher_name(BACKEND, client_id) == session_name(BACKEND, client_id)
    assert device_of(publisher_name(BACKEND, client_id)) == ""


@pytest.mark.parametrize(("stored", "device"), [("", ""), ("device/a", ""), ("/device/x/meter-1", "/device/x/meter-1")])
def test_what_older_brokers_have_stored_is_read_as_it_was(stored: str, device: str) -> None:
    assert device_of(stored) == device
