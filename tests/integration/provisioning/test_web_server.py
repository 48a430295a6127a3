"""A web server that checks the devices' certificates: nginx, configured as docs/revocation-publication.md says.

nginx asks for a CRL of every CA on the path, and brings an OCSP client of its own.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509

from device_sim.stage.foreign_process import free_port
from provisioning.pki.tls import CredentialFiles
from tests.support.broker_process import wait_until
from tests.support.curl import Curl
from tests.support.load_balancer import listening
from tests.support.needed import needed
from tests.support.openssl import OpensslDevice, openssl
from tests.support.programs import REPOSITORY
from tests.support.provisioning import ProvisioningService

_NGINX = """\
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log info;
events {{}}
http {{
access_log off;
client_body_temp_path {directory}/body;
proxy_temp_path {directory}/proxy;
fastcgi_temp_path {directory}/fastcgi;
uwsgi_temp_path {directory}/uwsgi;
scgi_temp_path {directory}/scgi;
{server}
}}
"""
_LISTS = "ssl_crl /etc/fleet/crls.pem;"


@contextlib.contextmanager
def web_server(directory: Path, bundle: Path, instead_of_lists: str = _LISTS) -> Iterator[int]:
    """Run nginx with what *directory* holds, and yield its port. *instead_of_lists*: how else it checks."""
    page = (REPOSITORY / "docs" / "revocation-publication.md").read_text(encoding="utf-8")
    documented = re.search(r"^```nginx\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert documented is not None
    server, port = documented[1], free_port()
    for old, new in (
        (_LISTS, instead_of_lists),
        ("listen 443 ", f"listen 127.0.0.1:{port} "),
        ("/etc/fleet/ca-bundle.crt", str(bundle)),
        ("/etc/fleet", str(directory)),
    ):
        assert old in server, old
        server = server.replace(old, new)
    config = directory / "nginx.conf"
    config.write_text(_NGINX.format(directory=directory, server=server))
    command = [needed("nginx"), "-e", str(directory / "nginx.log"), "-p", str(directory), "-c", str(config)]
    with listening(command, [port], directory / "output"):
        yield port


def test_nginx_refuses_a_revoked_device_by_ocsp_at_once_and_by_the_next_lists(
    service: ProvisioningService, enrolled: OpensslDevice, tmp_path: Path
) -> None:
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=web",
            "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", tmp_path / "server.key", "-out",
            tmp_path / "server.crt")  # fmt: skip
    ours = CredentialFiles(enrolled.certificate, enrolled.key)
    plain = Curl(service.http)

    serial = x509.load_pem_x509_certificate(enrolled.certificate.read_bytes()).serial_number

    def fetched_and_named() -> bool:
        issuing, root = plain.run("/crl/issuing-ca.pem").body, plain.run("/crl/root-ca.pem").body
        (tmp_path / "crls.pem").write_bytes(issuing + root)
        return x509.load_pem_x509_crl(issuing).get_revoked_certificate_by_serial_number(serial) is not None

    def served(port: int) -> tuple[int, str]:
        answer = Curl(f"https://127.0.0.1:{port}", tmp_path / "server.crt", ours).run("/")
        return answer.status, answer.text

    assert not fetched_and_named()
    by_ocsp = f"ssl_ocsp leaf; ssl_ocsp_responder {service.http}/ocsp;"
    with web_server(tmp_path, service.bundle) as port:
        assert served(port) == (200, f"CN={enrolled.name}\n")
    with web_server(tmp_path, service.bundle, by_ocsp) as port:
        assert served(port) == (200, f"CN={enrolled.name}\n")
        service.revoke(device=enrolled.name, reason="keyCompromise")
        assert served(port)[0] == 400
    assert "client SSL certificate verify error: certificate revoked" in (tmp_path / "nginx.log").read_text()
    wait_until(fetched_and_named, "the next list")
    with web_server(tmp_path, service.bundle) as port:
        assert served(port)[0] == 400
    assert "client SSL certificate verify error: (23:certificate revoked)" in (tmp_path / "nginx.log").read_text()
