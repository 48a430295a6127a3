"""The commands for the root: sign with it where it is, succeed it, retire it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from provisioning.commands.ceremony_command import (
    Another,
    Ceremony,
    Facts,
    Output,
    ceremonial,
    now,
    read_file,
    show,
)
from provisioning.commands.known_names import root_names
from provisioning.commands.new_file import expect_new, write_new
from provisioning.commands.service_command import fail, say
from provisioning.errors import ConfigurationError
from provisioning.program.command_group import command_group
from provisioning.program.json_output import print_document

if TYPE_CHECKING:
    from cryptography import x509

    from provisioning.authorities.authority_life import AuthorityLife


root_app = command_group(help="The root: sign with it, succeed it.")


@root_app.command("begin")
@ceremonial
def begin_root(
    ceremony: Ceremony,
    another: Another = False,
) -> None:
    """Create the next root, with the cross certificates between it and the previous one; all three are published.

    \b
    Example:
      fleet-provisioning ca root begin --dir /var/lib/fleet
    """
    from provisioning.authorities.root_life import RootLife

    async def work(life: AuthorityLife) -> Facts:
        name = await RootLife(life).begin(another=another)
        life.transcript.say(
            f"{name} is active: in the bundle and in /cacerts. The next issuing CA is signed by it: ca rollover begin"
        )
        return {"name": name, "state": "active"}

    ceremony.hold("ca root begin", work)


@root_app.command("retire")
@ceremonial
def retire_root(
    ceremony: Ceremony,
    name: Annotated[str, typer.Argument(help="The root.", autocompletion=root_names)],
    apart: Annotated[
        bool,
        typer.Option(
            "--apart",
            help="Even if two other roots vouch for each other by this one alone, or not all of their keys open here.",
        ),
    ] = False,
) -> None:
    """Retire a root under which no issuing CA is left; no other root vouches for its key any more.

    The roots that did sign a CRL which says so, so their keys have to be here; --passphrase-file is theirs. With
    --apart, for a root whose key was stolen, those sign whose keys open, one at least; the command fails with the name
    of each that owes its CRL still: run it again with that one's passphrase.

    \b
    Example:
      fleet-provisioning ca root retire root-ca --dir /var/lib/fleet
    """
    from provisioning.authorities.root_life import RootLife

    async def work(life: AuthorityLife) -> Facts:
        revoked = await RootLife(life).retire(name, apart=apart)
        for each in revoked:
            life.transcript.say(f"{each} is revoked: the feed says so, and its root's new CRL.")
        life.transcript.say(f"{name} is retired. Its key can be destroyed.")
        return {"name": name, "state": "retired", "revoked": revoked}

    ceremony.hold("ca root retire", work)


@root_app.command("sign")
@ceremonial
def sign(
    ceremony: Ceremony,
    request: Annotated[Path, typer.Argument(help="The issuing CA's request, PEM.")],
    output: Output,
    root: Annotated[
        str, typer.Option(help="Which root of the directory: NAME.crt with NAME.key or NAME.pkcs11.")
    ] = "root-ca",
    days: Annotated[int, typer.Option(min=1, max=3652, help="Life of the issuing CA, in days.")] = 1826,
    public_http_url: Annotated[
        str | None,
        typer.Option(
            help="Where relying parties reach the service's plain HTTP port, for the address of the root's CRL."
        ),
    ] = None,
) -> None:
    """Sign an issuing CA's request with a root, on a machine that needs no store and no network.

    \b
    Example:
      fleet-provisioning ca root sign issuing.csr --dir /media/root --output issuing.crt --witness "A. Auditor" \\
        --public-http-url http://ca.example.org:8080
    """
    from datetime import timedelta

    from provisioning.authorities.authority import urls_of_root
    from provisioning.authorities.ceremony_transcript import Transcript
    from provisioning.ca.ceremony import CeremonyRefused, CertificateAuthority, read_issuing_ca_csr, sign_issuing_ca
    from provisioning.config import load_settings
    from provisioning.directory.files import AuthorityFiles
    from provisioning.pki.pem import pem_of
    from provisioning.signers.places import SignerPlaces
    from provisioning.store.serials import new_serial

    try:
        path = output.parent / f"{output.name}.transcript.txt"
        for each in (output, path):
            expect_new(each)
        settings = load_settings(
            ceremony.directory,
            passphrase_file=ceremony.passphrase_file,
            public_http_url=public_http_url,
            pkcs11_pin_file=ceremony.pin_file,
        )
        files = AuthorityFiles(settings.directory)
        certificate = _certificate_of(files.certificate(root))
        authority = CertificateAuthority(certificate, SignerPlaces(files, settings).open_for(root, certificate))
        wanted = read_issuing_ca_csr(read_file(request))
        urls = urls_of_root(settings, root)
        transcript = Transcript("ca root sign", now, say if ceremony.as_json else show, ceremony.witness or ())
        transcript.begin()  # Before the key is used.
        signed = sign_issuing_ca(authority, wanted, new_serial(), now(), urls, timedelta(days=days))
        transcript.certificate(f"Root {root}", authority.certificate)
        transcript.certificate("Signed", signed)
        write_new(output, pem_of(signed))
        transcript.say(f"Written: {output}")
        try:
            transcript.write(path)
        except ConfigurationError as error:  # Nothing else would tell of this certificate: there is no store here.
            raise ConfigurationError(f"{error}; {_withdrawn(output)}") from error
        if ceremony.as_json:
            told = {"certificate": str(output), "transcript": str(path), "transcript_sha256": transcript.digest}
            print_document({"ceremony": "ca root sign", **told})
        transcript.check_shown()
    except (CeremonyRefused, ConfigurationError) as error:
        raise fail(error) from error


def _certificate_of(path: Path) -> x509.Certificate:
    from provisioning.directory.files import read_certificate

    if not path.is_file():
        raise ConfigurationError(
            f"there is no root's certificate {path}: say where the root is with --dir, and how its files are called "
            "with --root"
        )
    return read_certificate(path)


def _withdrawn(certificate: Path) -> str:
    """Remove the *certificate* that was signed, and return what became of it: the end of an error's sentence."""
    try:
        certificate.unlink()
    except OSError as error:
        return f"the certificate {certificate} cannot be removed ({error.strerror}): remove it, and sign again"
    return f"the certificate {certificate} was removed again: sign again when there is a place for both"
