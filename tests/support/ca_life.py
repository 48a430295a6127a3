"""A service's CA commands, as an operator types them, and what relying parties see of them."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning.pki.crl import distribution_points
from tests.support.broker_process import wait_until
from tests.support.curl import Curl
from tests.support.openssl import OpensslDevice, certificate_facts, openssl
from tests.support.provisioning import ProvisioningService


def ca(service: ProvisioningService, *arguments: str, directory: Path | None = None) -> str:
    """Run ``fleet-provisioning ca`` and return what it printed."""
    done = ca_attempt(service, *arguments, directory=directory)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ca_attempt(
    service: ProvisioningService, *arguments: str, directory: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return service.command("ca", *arguments, "--dir", str(directory or service.dir))


def states(service: ProvisioningService) -> dict[str, str]:
    listed: list[dict[str, Any]] = json.loads(ca(service, "list", "--json"))
    return {each["name"]: each["state"] for each in listed}


def told(service: ProvisioningService, label: str = "") -> list[x509.Certificate]:
    """Return the certificates from ``/cacerts``, with a label or without one, unwrapped by openssl."""
    answer = Curl(service.https, service.bundle).run(f"/.well-known/est/{label and f'{label}/'}cacerts")
    pem = openssl("pkcs7", "-inform", "DER", "-print_certs", data=base64.b64decode(answer.body))
    return x509.load_pem_x509_certificates(pem)


def wait_for_state(service: ProvisioningService, name: str, state: str, *, processes: int = 1) -> None:
    """Wait until so many *processes* of the running service have noticed that the CA called *name* is in *state*."""
    word = f'"{name.replace("-", "_")}": "{state}"'

    def heard() -> bool:
        return sum("CAs taken over" in line and word in line for line in service.log.splitlines()) >= processes

    wait_until(heard, f"the service hears that {name} is {state}")


def issuer_of(device: OpensslDevice) -> str:
    return certificate_facts(device.certificate, "-issuer").strip().rpartition("CN=")[2]


def named_lists(path: Path) -> Path:
    """Return a file with the CRLs that the certificates in the PEM file *path* name, fetched from where they say."""
    named = [distribution_points(each) for each in x509.load_pem_x509_certificates(path.read_bytes())]
    assert all(named), "each names one"
    lists = [x509.load_der_x509_crl(Curl(url).run("").body) for urls in named for url in urls]
    fetched = path.with_suffix(".crls")
    fetched.write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in lists))
    return fetched


def roll_over(service: ProvisioningService, name: str) -> None:
    """Begin and activate the next issuing CA, which will be called *name*."""
    ca(service, "rollover", "begin")
    wait_for_state(service, name, "announced")
    ca(service, "rollover", "activate", "--without-waiting")
    wait_for_state(service, name, "active")


def enrol(service: ProvisioningService, directory: Path, name: str) -> OpensslDevice:
    device = OpensslDevice(directory, name)
    user = f"{name}:{service.token(device=name, group='north')}"
    answer = Curl(service.https, service.bundle).est("simpleenroll", device.request(), "--user", user)
    assert answer.status == 200, answer.text
    device.take(answer.body)
    return device


def renewed(service: ProvisioningService, device: OpensslDevice) -> str:
    """Renew with the same key; return the first word of a refusal, or the issuer."""
    csr = device.renewal(f"URI:spiffe://fleet.internal/device/north/{device.name}", new_key=False)
    answer = Curl(service.https, service.bundle, device.credential).est("simplereenroll", csr)
    if answer.status != 200:
        return answer.text.partition(":")[0]
    device.take(answer.body)
    return issuer_of(device)


def ocsp_status(service: ProvisioningService, device: OpensslDevice, issuer: str) -> str:
    out = openssl(
        "ocsp", "-issuer", service.dir / f"{issuer}.crt", "-cert", device.certificate, "-url", f"{service.http}/ocsp",
        "-CAfile", service.bundle, "-no_nonce",
    )  # fmt: skip
    return out.decode().partition(": ")[2].split()[0]
