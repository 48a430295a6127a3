"""Critical extensions in a CA from elsewhere: what OpenSSL or GnuTLS refuses below one is refused with it."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from provisioning.ca.issuing_ca_findings import issuing_ca_findings
from tests.support.openssl import P256, openssl

CA = "basicConstraints=critical,CA:TRUE{}\nkeyUsage=critical,keyCertSign,cRLSign\n"
LEAF = (
    "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n"
    "subjectAltName=DNS:leaf.example.org\n"
)
URL = "URI:http://ca.example.org/x"


class Chain:
    """A root, a CA below it with what a test adds, and a device's certificate."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("root", "ca", "leaf"):
            openssl("genpkey", "-algorithm", *P256, "-out", directory / f"{name}.key")
        self.sign("root", "root", CA.format("") + "subjectKeyIdentifier=hash\n")

    def sign(self, name: str, by: str, extensions: str) -> None:
        there = self.directory
        (there / "extensions").write_text(extensions)
        request = openssl("req", "-new", "-key", there / f"{name}.key", "-subj", f"/CN={name}")
        issuer = ("-signkey", there / "root.key") if name == by else (
            "-CA", there / f"{by}.crt", "-CAkey", there / f"{by}.key"
        )  # fmt: skip
        openssl("x509", "-req", *issuer, "-days", "9" if name == "root" else "5", "-extfile", there / "extensions",
                "-out", there / f"{name}.crt", data=request)  # fmt: skip

    def read(self, name: str) -> x509.Certificate:
        return x509.load_pem_x509_certificate((self.directory / f"{name}.crt").read_bytes())

    def is_accepted(self) -> dict[str, bool]:
        """Whether each implementation accepts the device's certificate for its root."""
        there = self.directory
        files = ("-CAfile", there / "root.crt", "-untrusted", there / "ca.crt", there / "leaf.crt")
        (there / "path").write_bytes((there / "leaf.crt").read_bytes() + (there / "ca.crt").read_bytes())
        gnutls = subprocess.run(
            ["certtool", "--verify", "--load-ca-certificate", there / "root.crt", "--infile", there / "path"],
            capture_output=True, check=False, timeout=60,
        )  # fmt: skip
        return {
            "OpenSSL": openssl("verify", *files, check=False).endswith(b": OK\n"),
            "GnuTLS": gnutls.returncode == 0,
        }


BOTH, NEITHER = {"OpenSSL": True, "GnuTLS": True}, {"OpenSSL": False, "GnuTLS": False}
ONLY_GNUTLS, ONLY_OPENSSL = BOTH | {"OpenSSL": False}, BOTH | {"GnuTLS": False}


@pytest.mark.parametrize(
    ("added", "accepted"),
    [
        ("nameConstraints=critical,permitted;DNS:example.org", BOTH),
        ("certificatePolicies=critical,1.2.3.4", BOTH),
        ("inhibitAnyPolicy=critical,0", BOTH),
        ("extendedKeyUsage=critical,clientAuth,serverAuth", BOTH),
        ("subjectAltName=critical,DNS:ca.example.org", BOTH),
        (f"crlDistributionPoints=critical,{URL}", BOTH),
        ("policyConstraints=critical,inhibitPolicyMapping:0", ONLY_OPENSSL),
        ("policyConstraints=critical,requireExplicitPolicy:2", ONLY_OPENSSL),
        ("certificatePolicies=1.2.3.4\npolicyMappings=critical,1.2.3.4:1.2.3.5", ONLY_OPENSSL),
        ("subjectKeyIdentifier=critical,hash", ONLY_GNUTLS),
        ("authorityKeyIdentifier=critical,keyid", ONLY_GNUTLS),
        (f"authorityInfoAccess=critical,caIssuers;{URL}", ONLY_GNUTLS),
        ("issuerAltName=critical,DNS:ca.example.org", ONLY_GNUTLS),
        (f"freshestCRL=critical,{URL}", NEITHER),
        ("tlsfeature=critical,status_request", NEITHER),
        ("1.2.3.4.5=critical,ASN1:NULL", NEITHER),
    ],
)
def test_a_ca_is_refused_for_a_critical_extension_that_some_do_not_accept(
    tmp_path: Path, added: str, accepted: dict[str, bool]
) -> None:
    """Those would refuse every device of the fleet, and the service, once that CA issues."""
    chain = Chain(tmp_path)
    usual = "".join(
        f"{each}\n" for each in ("subjectKeyIdentifier=hash", "authorityKeyIdentifier=keyid") if each[:9] not in added
    )
    chain.sign("ca", "root", f"{CA.format(',pathlen:0')}{usual}{added}\n")
    chain.sign("leaf", "ca", LEAF)
    assert chain.is_accepted() == accepted
    now = datetime.now(UTC)
    found = list(issuing_ca_findings(chain.read("ca"), chain.read("root"), now))
    assert any(" is critical, and OpenSSL or GnuTLS does not accept that" in each for each in found) is (
        accepted != BOTH
    )
    if accepted == BOTH:
        assert found == []
