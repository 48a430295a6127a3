"""Whether a server starts where OpenSSL does not let it bound strangers, and which copy of OpenSSL is called."""

from __future__ import annotations

import ctypes
import shutil
import ssl
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from broker.process import preflight
from broker.settings.config import BrokerConfig
from provisioning.doctor.doctor_build import openssl_findings
from provisioning.doctor.doctor_finding import Verdict
from provisioning.pki import guards, hello_bounds, key_shown, key_updates, named_curves, openssl
from provisioning.pki.openssl_library import library
from provisioning.pki.tls import ClientCertificate, TlsConfigurationError, client_context, server_context
from tests.support.pki import shared_device, shared_pki

PKI = shared_pki()
OTHER_PYTHON = """
import ssl
ssl.OPENSSL_VERSION_INFO = (1, 1, 1, 23, 15)
from provisioning.pki import guards, openssl, resumption
print(openssl.AVAILABLE, resumption.CAN_REMEMBER, openssl.WHY_NOT)
"""


def context() -> ssl.SSLContext:
    return server_context(PKI.broker().credential, PKI.anchors, client_certificate=ClientCertificate.REQUIRED)


def test_an_openssl_that_is_too_old_is_not_called() -> None:
    told = subprocess.run([sys.executable, "-c", OTHER_PYTHON], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout == "False False it has not got OpenSSL 3.0 or newer\n"


@pytest.mark.parametrize(
    ("holder", "name", "value", "remedy"),
    [
        (openssl, "WHY_NOT", "it is linked statically", "run it with a CPython 3.11 to 3.15 "),
        (hello_bounds, "CAN_BOUND", False, "allow it to have executable memory "),
        (named_curves, "CAN_LOOK", False, "allow it to have executable memory "),
        (key_updates, "CAN_COUNT", False, "allow it to have executable memory "),
    ],
)
def test_where_a_bound_is_missing_no_server_starts_and_it_is_said_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, holder: Any, name: str, value: object, remedy: str
) -> None:
    config = BrokerConfig(cafile=PKI.write_anchors(tmp_path), state_dir=tmp_path, provisioning="https://localhost:1")
    assert guards.missing() is None
    assert not list(openssl_findings())
    assert not list(preflight._openssl(config))
    monkeypatch.setattr(holder, name, value)
    why = guards.missing()
    assert why is not None
    with pytest.raises(TlsConfigurationError) as refused:
        context()
    assert [why, *preflight._openssl(config)] == [str(refused.value)] * 2
    (found,) = openssl_findings()
    assert found.verdict is Verdict.FAILED
    assert f"{found.detail}; {found.remedy}" == why
    assert found.remedy.startswith(remedy)
    assert ssl.OPENSSL_VERSION in found.detail


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
@pytest.mark.parametrize("can", [True, False])
def test_where_the_life_of_a_ticket_has_no_bound_none_is_given(
    monkeypatch: pytest.MonkeyPatch, version: ssl.TLSVersion, *, can: bool
) -> None:
    monkeypatch.setattr(key_shown, "CAN_BOUND", can)
    server = server_context(
        PKI.broker().credential, PKI.anchors, client_certificate=ClientCertificate.REQUIRED, allow_tls12=True
    )
    monkeypatch.undo()
    device = client_context(PKI.anchors, shared_device("meter-1").credential, allow_tls12=True)
    device.maximum_version = version
    resumed, ticket = [], None
    for _ in range(2):
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = device.wrap_bio(to_client, to_server, server_hostname="localhost", session=ticket)
        serving = server.wrap_bio(to_server, to_client, server_side=True)
        for _ in range(3):
            for each in (client, serving):
                try:
                    each.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        serving.write(b"a ticket comes with it")
        assert client.read(100)
        ticket = client.session
        resumed.append(serving.session_reused)
    assert resumed == [False, can]


@pytest.mark.skipif(not openssl.AVAILABLE, reason="there is no copy of OpenSSL that can be called")
def test_another_copy_of_openssl_is_not_taken_for_the_one_of_ssl(tmp_path: Path) -> None:
    """It would take the structures of `ssl` for its own, and what it is told would bound nobody."""
    ours = context()
    address = openssl.address_of_context(ours)
    assert openssl.is_of_ssl(library, address)
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libssl.so" in line}
    (path,) = loaded
    copied = ctypes.PyDLL(str(shutil.copy(path, tmp_path)))
    names = (
        "OpenSSL_version",
        "SSL_CTX_get_ssl_method",
        "TLS_server_method",
        "SSL_CTX_set_ciphersuites",
        "ERR_peek_last_error",
        "ERR_clear_error",
    )
    its = SimpleNamespace(**{name: getattr(copied, name) for name in names})
    for name in names:
        getattr(its, name).restype = getattr(library, name).restype
        getattr(its, name).argtypes = getattr(library, name).argtypes
    assert its.OpenSSL_version(0) == ssl.OPENSSL_VERSION.encode()
    assert not openssl.is_of_ssl(its, address)
