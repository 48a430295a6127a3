"""Which CAs can be registered as manufacturers, and what an odd certificate of theirs is answered with."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from provisioning.enrolment.manufacturers import ManufacturerService
from provisioning.errors import Code, Refused
from provisioning.store import audit
from provisioning.store.audit import Action
from provisioning.store.groups import NewKey
from tests.support.fleet import Fleet
from tests.support.manufacturer import Manufacturer
from tests.support.pki import pem_of
from tests.support.requests import NOON, csr_der
from tests.support.slow_keys import rsa_key
from tests.support.ways import enrol, group, is_good, nothing, refusal, register
from tests.support.weak_keys import roca
from tests.support.year_0 import SAID, since_year_0

DAY = timedelta(days=1)
UNKNOWN = x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00")


def usage(**allowed: bool) -> x509.KeyUsage:
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")  # fmt: skip
    return x509.KeyUsage(**{name: allowed.get(name, False) for name in names})


def purposes(*oids: ObjectIdentifier) -> x509.ExtendedKeyUsage:
    return x509.ExtendedKeyUsage(oids)


async def test_what_is_wrong_with_a_manufacturer_is_named(fleet: Fleet) -> None:
    acme = Manufacturer(begin=NOON)
    _, leaf = acme.idevid("SN17")
    service = ManufacturerService(fleet.database, fleet.clock, nothing)
    wrong = {"nonsense": "not one PEM", leaf.decode(): "not that of a CA", acme.pem * 2: "holds 2 certificates"}
    wrong |= {"\ud800": "not one PEM", acme.unreadable_ca(): "not one PEM"}
    for own in (fleet.authority.root_ca, fleet.authority.issuing_ca):
        wrong[pem_of(own.certificate).decode()] = "a CA of this fleet"
    for pem, words in wrong.items():
        with pytest.raises(Refused, match=words):
            await service.add(name="acme", group="line", name_prefix="", pem=pem, by="admin")
    await register(fleet, acme)
    with pytest.raises(Refused, match="NAME_EXISTS"):
        await register(fleet, acme, name="again")
    assert [each.name for each in await service.page(limit=9, after=None)] == ["acme"]
    assert await service.page(limit=9, after="acme") == await service.page(limit=0, after=None) == []


@pytest.mark.parametrize(
    ("field", "wrong"), [("name", "a b"), ("group", ""), ("name_prefix", "-a"), ("name_prefix", "a" * 33)]
)
async def test_names_are_such_as_devices_can_have(fleet: Fleet, field: str, wrong: str) -> None:
    service = ManufacturerService(fleet.database, fleet.clock, nothing)
    fields = {"name": "acme", "group": "line", "name_prefix": "a" * 32, "pem": Manufacturer(begin=NOON).pem}
    with pytest.raises(Refused, match=f"INVALID_REQUEST: {field} "):
        await service.add(**(fields | {field: wrong}), by="admin")
    await service.add(**fields, by="admin")


async def test_who_is_registered_again_comes_back_alone(fleet: Fleet) -> None:
    acme, service = Manufacturer(begin=NOON), ManufacturerService(fleet.database, fleet.clock, nothing)
    await register(fleet, acme)
    await register(fleet, Manufacturer("Other", begin=NOON), name="other")
    await service.end("acme", by="anna")
    assert (await service.find("other")).ended_at is None
    others = await service.end("other", by="anna")
    again = Manufacturer(begin=NOON, key=acme.key)
    await register(fleet, again)
    found = await service.find("acme")
    assert (found.ended_at, found.der) == (None, again.certificate.public_bytes(Encoding.DER))
    assert await service.find("other") == others


async def test_what_is_registered_and_ended_is_told_and_audited(fleet: Fleet) -> None:
    told: list[str] = []

    async def tell() -> None:
        told.append("trust")

    service, acme = ManufacturerService(fleet.database, fleet.clock, tell), Manufacturer(begin=NOON)
    added = await service.add(name="acme", group="line", name_prefix="", pem=acme.pem, by="anna")
    assert (added.fingerprint_sha256, told) == (acme.certificate.fingerprint(hashes.SHA256()).hex(), ["trust"])
    ended = await service.end("acme", by="bert")
    assert (added.ended_at, ended.ended_at, told) == (None, NOON, ["trust", "trust"])
    fleet.clock.advance(DAY)
    assert await service.end("acme", by="bert") == ended, "a second time it is as it was"
    with pytest.raises(Refused, match="MANUFACTURER_UNKNOWN"):
        await service.end("other", by="bert")
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 9))
    facts = {"fingerprint_sha256": added.fingerprint_sha256, "group": "line", "name_prefix": ""}
    assert [(each.actor, each.action, each.subject, json.loads(each.details)) for each in entries] == [
        ("anna", Action.MANUFACTURER_ADDED, "acme", facts),
        ("bert", Action.MANUFACTURER_ENDED, "acme", {}),
    ]


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"end": NOON - DAY, "begin": NOON - 2 * DAY}, "certificate expired on 2027-02-28"),
        ({"extensions": [(usage(digital_signature=True), True)]}, "lacks keyCertSign"),
        ({"extensions": [(purposes(ExtendedKeyUsageOID.SERVER_AUTH), False)]}, "lacks clientAuth"),
        # OpenSSL does not take "any" for clientAuth.
        ({"extensions": [(purposes(ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE), False)]}, "lacks clientAuth"),
        ({"extensions": [(UNKNOWN, True)]}, r"unknown critical extension, 1\.3\.6"),
        ({"key": roca()}, "ROCA"),
        ({"key": rsa_key(1024)}, "weak key, or one of a kind"),
        ({"constraints": x509.BasicConstraints(ca=False, path_length=None)}, "is not that of a CA"),
    ],
)
async def test_a_ca_whose_devices_could_never_come_in_is_refused_with_the_reason(
    fleet: Fleet, facts: dict[str, Any], words: str
) -> None:
    with pytest.raises(Refused, match=f"INVALID_REQUEST: .*{words}"):
        await register(fleet, Manufacturer(**({"begin": NOON} | facts)))


async def test_a_ca_that_may_all_that_is_needed_is_registered(fleet: Fleet) -> None:
    extensions = [
        (usage(key_cert_sign=True, crl_sign=True), True),
        (purposes(ExtendedKeyUsageOID.CLIENT_AUTH), False),
        (UNKNOWN, False),
    ]
    await group(fleet, "manufacturer")
    acme = Manufacturer(begin=NOON, extensions=extensions)
    await register(fleet, acme)
    await enrol(fleet, "SN17", certificate=acme.idevid("SN17")[0])


async def test_a_ca_whose_name_cannot_be_read_is_refused(fleet: Fleet) -> None:
    unreadable = Manufacturer(begin=NOON).unreadable().public_bytes(Encoding.PEM).decode()
    service = ManufacturerService(fleet.database, fleet.clock, nothing)
    with pytest.raises(Refused, match="INVALID_REQUEST: certificate is not one PEM certificate"):
        await service.add(name="acme", group="line", name_prefix="", pem=unreadable, by="admin")


@pytest.mark.parametrize(
    ("issuer", "code"), [(False, Code.MANUFACTURER_CERTIFICATE), (True, Code.WAY_REFUSED)], ids=["device", "issuer"]
)
async def test_a_certificate_that_cannot_be_read_names_nobody(fleet: Fleet, *, issuer: bool, code: Code) -> None:
    await group(fleet, "manufacturer")
    acme = Manufacturer(begin=NOON)
    await register(fleet, acme)
    assert await refusal(fleet, "SN17", certificate=acme.unreadable(issuer=issuer), label="line") is code


async def test_a_certificate_of_a_time_that_cannot_be_read_is_refused(fleet: Fleet) -> None:
    await group(fleet, "manufacturer")
    acme = Manufacturer(begin=NOON)
    await register(fleet, acme)
    old = since_year_0(acme.idevid("SN17")[0], acme.key)
    with pytest.raises(Refused, match=rf"^MANUFACTURER_CERTIFICATE: the certificate cannot be read \({SAID}"):
        await enrol(fleet, "SN17", certificate=old)
    ca = since_year_0(acme.certificate, acme.key).public_bytes(Encoding.PEM).decode()
    with pytest.raises(Refused, match=rf"^INVALID_REQUEST: certificate is not one PEM certificate \({SAID}"):
        await ManufacturerService(fleet.database, fleet.clock, nothing).add(
            name="old", group="line", name_prefix="", pem=ca, by="admin"
        )


async def test_a_device_s_key_that_can_be_computed_shows_nothing(fleet: Fleet) -> None:
    await group(fleet, "manufacturer", server_keys=True)
    acme = Manufacturer(begin=NOON)
    await register(fleet, acme)
    idevid, _ = acme.idevid("SN17", key=roca())
    with pytest.raises(Refused, match=r"MANUFACTURER_CERTIFICATE: the certificate that you present: .*ROCA"):
        await enrol(fleet, "SN17", certificate=idevid)
    with pytest.raises(Refused, match="ROCA"):
        await fleet.enrolment.enrol_with_server_key(csr_der(names=["SN17"]), None, None, idevid)


@pytest.mark.parametrize("label", [None, "line"])
async def test_who_shows_a_certificate_that_nobody_knows_is_told_so(fleet: Fleet, label: str | None) -> None:
    await group(fleet, "manufacturer")
    below, _ = Manufacturer(begin=NOON).idevid("SN17")
    with pytest.raises(Refused, match="the CA that has issued it is not itself registered as a manufacturer's"):
        await enrol(fleet, "SN17", certificate=below, label=label)
    with pytest.raises(Refused) as caught:
        await enrol(fleet, "SN17", label=label)
    asked = "admits devices by manufacturer; this request shows nothing" if label else "password = enrolment token"
    assert caught.value.detail.endswith(asked)


async def test_a_manufacturer_comes_again_with_its_key_and_its_devices_are_the_same(fleet: Fleet) -> None:
    await group(fleet, "manufacturer", new_key=NewKey.REPLACE)
    acme = Manufacturer(begin=NOON, end=NOON + DAY)
    await register(fleet, acme)
    idevid, _ = acme.idevid("SN17")
    await enrol(fleet, "SN17", certificate=idevid)
    service = ManufacturerService(fleet.database, fleet.clock, nothing)
    await service.end("acme", by="admin")
    assert await refusal(fleet, "SN17", certificate=idevid) is Code.TOKEN_MISSING
    await register(fleet, acme)  # It was ended by mistake.
    first = await enrol(fleet, "SN17", certificate=idevid)
    fleet.clock.advance(2 * DAY)
    assert await refusal(fleet, "SN17", certificate=idevid) is Code.MANUFACTURER_CERTIFICATE, "its CA has ended"
    await register(fleet, Manufacturer(begin=NOON, key=acme.key))
    second = await enrol(fleet, "SN17", certificate=idevid)
    assert (await is_good(fleet, first), await is_good(fleet, second)) == (False, True)


@pytest.mark.parametrize("ended", [False, True])
async def test_a_manufacturer_s_name_is_of_one_ca_group_and_prefix(fleet: Fleet, *, ended: bool) -> None:
    acme = Manufacturer(begin=NOON)
    await register(fleet, acme)
    service = ManufacturerService(fleet.database, fleet.clock, nothing)
    renewed = Manufacturer(begin=NOON, key=acme.key)
    if ended:
        await service.end("acme", by="admin")
    renamed = Manufacturer("Acme", begin=NOON, key=acme.key)  # Whom it has certified as "Acme devices" would be out.
    others = [(Manufacturer(begin=NOON), "line", ""), (renewed, "other", ""), (renewed, "line", "x")]
    others.append((renamed, "line", ""))
    for ca, group_name, prefix in others if ended else [*others, (acme, "line", "")]:
        with pytest.raises(Refused, match="NAME_EXISTS"):
            await service.add(name="acme", group=group_name, name_prefix=prefix, pem=ca.pem, by="admin")
    (known,) = await service.page(limit=9, after=None)
    assert (known.der, known.ended_at is not None) == (acme.certificate.public_bytes(Encoding.DER), ended)
