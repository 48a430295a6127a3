"""A key that the service makes, for a device that an operator has to approve first: it is made when it is handed out.

RFC 7030 §4.4 with §4.2.3; curl and openssl are the device.
"""

from __future__ import annotations

import base64
from email.message import Message
from email.parser import BytesParser

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs7

from provisioning.pki.keys import generate_key, spki_fingerprint
from tests.support.curl import Curl, CurlAnswer
from tests.support.key_envelope import DECRYPT_KEY_IDENTIFIER, key_request
from tests.support.openssl import OpensslDevice
from tests.support.provisioning import ProvisioningService


def group(service: ProvisioningService, name: str, **rules: object) -> None:
    answer = service.post("/v1/groups", name=name, ways=["approval"], server_keys=True, **rules)
    assert answer.status_code == 201, answer.text


def parts_of(answer: CurlAnswer) -> list[Message]:
    head = f"Content-Type: {answer.headers['Content-Type']}\r\n\r\n".encode()
    parts = BytesParser().parsebytes(head + answer.body).get_payload()
    assert isinstance(parts, list)
    return [part for part in parts if isinstance(part, Message)]


def waiting(service: ProvisioningService, name: str) -> dict[str, object]:
    with service.api() as api:
        (item,) = api.get("/v1/approvals", params={"group": name, "state": "pending"}).json()["items"]
    found: dict[str, object] = item
    return found


def decide(service: ProvisioningService, number: object, decision: str) -> None:
    assert service.post(f"/v1/approvals/{number}/decision", decision=decision).status_code == 200


def ask(service: ProvisioningService, device: OpensslDevice, name: str) -> CurlAnswer:
    """Send a request that is signed anew, with the same key, as a device without memory for the first one would."""
    again = device.key.exists()
    csr = device.another(subject=f"/CN={name}") if again else device.request(subject=f"/CN={name}")
    return Curl(service.https, service.bundle).est(f"{name}/serverkeygen", csr)


def test_the_key_is_made_when_it_is_handed_out_and_a_decision_is_worth_one(
    service: ProvisioningService, device: OpensslDevice
) -> None:
    name = device.name[:60]
    group(service, name, same_key_seconds=0)
    csr = device.request(subject=f"/CN={name}")
    stranger = Curl(service.https, service.bundle)
    for _ in range(2):  # The repeated request is the same one (RFC 7030 §4.2.3).
        answer = stranger.est(f"{name}/serverkeygen", csr)
        assert (answer.status, answer.headers["Retry-After"]) == (202, "30")
        assert "waits for an operator's decision" in answer.text
    request = waiting(service, name)
    own = serialization.load_pem_private_key(device.key.read_bytes(), None).public_key()
    assert isinstance(own, ec.EllipticCurvePublicKey)
    assert request["key_sha256"] == spki_fingerprint(own).hex()
    assert request["evidence"] == "nothing; the service makes the key"
    with service.api() as api:
        assert api.get(f"/v1/devices/{name}").status_code == 404, "nothing is made for who waits"

    decide(service, request["id"], "approve")
    answer = stranger.est(f"{name}/serverkeygen", csr)
    assert answer.status == 200, answer.text
    private, issued = parts_of(answer)
    key = serialization.load_der_private_key(base64.b64decode(str(private.get_payload())), None)
    (certificate,) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(str(issued.get_payload())))
    assert certificate.public_key() == key.public_key()
    assert certificate.public_key() != own
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    secret = key.private_numbers().private_value.to_bytes(32)
    for path in service.dir.iterdir():
        assert path.is_dir() or secret not in path.read_bytes(), path
    # Again, where a request is answered once: the key is gone, and another one takes another decision.
    again = stranger.est(f"{name}/serverkeygen", csr)
    assert again.status == 202, again.text
    assert waiting(service, name)["key_sha256"] == request["key_sha256"]
    with service.api() as api:
        assert api.get(f"/v1/devices/{name}").json()["certificates"] == 1


def test_a_lost_answer_is_made_up_for_by_another_key_and_no_decision(
    service: ProvisioningService, device: OpensslDevice
) -> None:
    name = device.name[:60]
    group(service, name)
    assert ask(service, device, name).status == 202
    decide(service, waiting(service, name)["id"], "approve")
    serials = []
    for answer in (ask(service, device, name), ask(service, device, name)):  # Nobody read the first one.
        assert answer.status == 200, answer.text
        private, issued = parts_of(answer)
        key = serialization.load_der_private_key(base64.b64decode(str(private.get_payload())), None)
        (certificate,) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(str(issued.get_payload())))
        assert certificate.public_key() == key.public_key()
        serials.append(f"{certificate.serial_number:x}")
    with service.api() as api:
        lost, held = (api.get("/v1/certificates", params={"serial": each}).json()["items"][0] for each in serials)
        assert (lost["state"], lost["reason"], held["state"]) == ("revoked", "superseded", "active")
        items = api.get("/v1/approvals", params={"group": name}).json()["items"]
        assert [each["state"] for each in items] == ["used"]
    # Another key under the same name is another request.
    other = OpensslDevice(device.directory / "other", name)
    other.directory.mkdir()
    assert ask(service, other, name).status == 202


def test_who_does_not_hold_the_request_s_key_gets_nothing(service: ProvisioningService, device: OpensslDevice) -> None:
    name = device.name[:60]
    group(service, name)
    genuine = base64.b64decode(device.request(subject=f"/CN={name}"))
    forged = genuine[:-1] + bytes((genuine[-1] ^ 1,))
    stranger = Curl(service.https, service.bundle)
    assert stranger.est(f"{name}/serverkeygen", base64.encodebytes(genuine)).status == 202
    decide(service, waiting(service, name)["id"], "approve")
    refused = stranger.est(f"{name}/serverkeygen", base64.encodebytes(forged))
    assert (refused.status, refused.text.partition(":")[0]) == (403, "SERVER_KEYS_REFUSED")
    assert "is recognised by its own key: sign it with a strong key of its own" in refused.text
    # Another key under the same name is another request.
    other = OpensslDevice(device.directory / "other", name)
    other.directory.mkdir()
    assert ask(service, other, name).status == 202
    assert ask(service, device, name).status == 200


@pytest.mark.parametrize("weak", ["rsa:1024"])
def test_a_weak_key_is_nobody_s(service: ProvisioningService, device: OpensslDevice, weak: str) -> None:
    name = device.name[:60]
    group(service, name)
    csr = device.request(subject=f"/CN={name}", algorithm=(weak,))
    refused = Curl(service.https, service.bundle).est(f"{name}/serverkeygen", csr)
    assert (refused.status, refused.text.partition(":")[0]) == (403, "SERVER_KEYS_REFUSED")


def test_a_denied_request_is_denied(service: ProvisioningService, device: OpensslDevice) -> None:
    name = device.name[:60]
    group(service, name)
    assert ask(service, device, name).status == 202
    decide(service, waiting(service, name)["id"], "deny")
    refused = ask(service, device, name)
    assert (refused.status, refused.text.partition(":")[0]) == (403, "APPROVAL_DENIED")


def test_a_key_under_a_shared_secret_is_refused_at_once_with_what_helps(
    service: ProvisioningService, device: OpensslDevice
) -> None:
    """RFC 7030 §4.4.1.1: without a secret key of that name, the request is ended with an error."""
    name = device.name[:60]
    group(service, name)
    wish = key_request(name, generate_key(), b"factory-key-7", oid=DECRYPT_KEY_IDENTIFIER)
    refused = Curl(service.https, service.bundle).est(f"{name}/serverkeygen", wish)
    assert (refused.status, refused.headers["Content-Type"].partition(";")[0]) == (400, "text/plain")
    assert refused.text == (
        "KEY_ENCRYPTION: DecryptKeyIdentifier asks for encryption with a secret key, and this service shares none: "
        "name a public key with AsymmetricDecryptKeyIdentifier, or make the key on the device\n"
    )
    with service.api() as api:
        assert api.get("/v1/approvals", params={"group": name}).json()["items"] == [], "nobody is asked about it"
