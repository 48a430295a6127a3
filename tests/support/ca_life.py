"""A service's CA commands, as an operator types them, and what relying parties see of them."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

from cryptography import x509

from tests.support.broker_process import wait_until
from tests.support.curl import Curl
from tests.support.openssl import openssl
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


def wait_for_state(service: ProvisioningService, name: str, state: str) -> None:
    """Wait until the running service has noticed that the CA called *name* is in *state*."""
    word = f'"{name.replace("-", "_")}": "{state}"'
    wait_until(lambda: any("CAs taken over" in line and word in line for line in service.log.splitlines()),
               f"the service hears that {name} is {state}")  # fmt: skip


def roll_over(service: ProvisioningService, name: str) -> None:
    """Begin and activate the next issuing CA, which will be called *name*."""
    ca(service, "rollover", "begin")
    wait_for_state(service, name, "announced")
    ca(service, "rollover", "activate", "--without-waiting")
    wait_for_state(service, name, "active")
