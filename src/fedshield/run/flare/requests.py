"""A site's request for a certificate, and what the coordinator signs of it.

FLARE signs whatever a request asks for: a certificate of another site, of the server, of an
administrator. So a request is taken only for a client's certificate of the site that it is of, and
only with a statement that this site's FedShield key signed, over the TLS key that it asks for:

    statement = encode(["fedshield certificate request 1", consortium, site,
                SHA-256 of the TLS public key (DER)])

The statement travels in the request's own file, beside what FLARE's tools put there.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from fedshield.disk import write_atomic
from fedshield.enrolment import Card, KeyFile
from fedshield.enrolment.replacement import is_signed
from fedshield.protocol.wire import codec
from fedshield.run.flare import provision
from fedshield.run.flare.provision import Consortium, ProvisionError

#: The member of the request's file that holds the signature; the others are FLARE's.
STATEMENT_FILE = "fedshield.json"
#: Bytes of a request's file, and of each member of it.
MAX_BYTES, MAX_MEMBER_BYTES = 256 * 1024, 64 * 1024
_SPKI = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def statement(consortium: str, site: str, tls_key_sha256: bytes) -> bytes:
    """What the site's FedShield key signs. `tls_key_sha256`: 32 bytes."""
    return codec.encode(["fedshield certificate request 1", consortium, site, tls_key_sha256])


def request(kit: Path, consortium: str, site: str) -> Path:
    """A new TLS key in the kit, and the request for its certificate, signed by the kit's FedShield
    key: the path of what to send. Raises `RosterError` for a key file that cannot be used."""
    key_file = KeyFile.read(kit / f"{site}.key")
    path = provision.request(kit, consortium, site)
    members = _members(path)
    csr = _csr(path, members, site)
    signature = key_file.key.sign(statement(consortium, site, _key_sha256(csr)))
    members[STATEMENT_FILE] = (json.dumps({"signature": signature.hex()}) + "\n").encode()
    write_atomic(path, _zipped(members))
    path.chmod(0o600)
    return path


def approve(folder: Path, zipped: Path, site: str, cards: Iterable[Card], out: Path) -> Path:
    """The coordinator signs a site's request: what goes back to the site, in `out`.

    Args:
        folder: the consortium's folder.
        zipped: the request's file.
        site: whose request it has to be.
        cards: the site's, of the rosters that name it or as it came along.
        out: the file for what goes back, in place of what went there for an earlier request.

    Raises:
        ProvisionError: a request for anything but a client's certificate of this site, or one that
            the key of none of the cards signed. Nothing is signed then.
    """
    consortium = Consortium.read(folder)
    if site == consortium.host.lower():
        raise ProvisionError(
            f"{zipped}: expected a site with a name of its own, got {site!r}, which is the "
            "server's host: its certificate could pass for the server's; it takes another name"
        )
    members = _members(zipped)
    csr = _csr(zipped, members, site)
    _check_subject(zipped, csr.subject, site)
    message = statement(consortium.name, site, _key_sha256(csr))
    signature = _signature(zipped, members)
    if not any(is_signed(message, signature, card.public) for card in cards if card.name == site):
        raise ProvisionError(
            f"{zipped}: expected a request that {site}'s FedShield key signed, for "
            f"{consortium.name}, got another signature: it may be anyone's; ask the "
            f"operator of {site} to make it anew"
        )
    with tempfile.TemporaryDirectory(dir=out.resolve().parent) as elsewhere:
        plain = Path(elsewhere) / f"{site}.request.zip"
        # What was checked is what FLARE gets, whatever else a reader may see in the file.
        plain.write_bytes(_zipped({name: members[name] for name in _flare_members(site)}))
        signed = provision.approve(folder, plain, Path(elsewhere) / out.name)
        _check_issued(signed, site, _key_sha256(csr))
        os.replace(signed, out)
    return out


def _flare_members(site: str) -> tuple[str, ...]:
    return ("request.json", "site.yaml", f"{site}.csr")


def _members(path: Path) -> dict[str, bytes]:
    """What is in a request's file: name -> bytes. Raises `ProvisionError`."""
    expected = f"{path}: expected a site's request (NAME.request.zip)"
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ProvisionError(f"{expected}, got more than {MAX_BYTES} bytes; ask for it again")
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if len({entry.filename for entry in entries}) < len(entries):
                raise ProvisionError(f"{expected}, got one with a name twice; ask for it again")
            members: dict[str, bytes] = {}
            for entry in entries:
                with archive.open(entry) as member:
                    members[entry.filename] = member.read(MAX_MEMBER_BYTES + 1)
    except OSError as error:
        raise ProvisionError(f"{expected}, but {error.strerror}; check the path") from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError):
        raise ProvisionError(f"{expected}, got a damaged file; ask for it again") from None
    if any(len(content) > MAX_MEMBER_BYTES for content in members.values()):
        raise ProvisionError(f"{expected}, got too large a one; ask for it again")
    return members


def _csr(path: Path, members: Mapping[str, bytes], site: str) -> x509.CertificateSigningRequest:
    missing = [name for name in _flare_members(site) if name not in members]
    if missing or set(members) - {*_flare_members(site), STATEMENT_FILE}:
        raise ProvisionError(
            f"{path}: expected a request of {site}, got one with {', '.join(sorted(members))[:200]}"
            "; give the file that fedshield site request or site renew made there"
        )
    try:
        csr = x509.load_pem_x509_csr(members[f"{site}.csr"])
        if csr.is_signature_valid:
            return csr
    except (ValueError, TypeError):
        pass
    raise ProvisionError(f"{path}: expected a request for a certificate in it, got none; ask again")


def _check_subject(path: Path, subject: x509.Name, site: str) -> None:
    """FLARE keeps the kind of a party in the subject, and asks nothing else for it."""
    wanted = {
        NameOID.COMMON_NAME: site,
        NameOID.ORGANIZATION_NAME: provision.organisation(site),
        NameOID.UNSTRUCTURED_NAME: "client",
    }
    got = {attribute.oid: attribute.value for attribute in subject}
    if len(list(subject)) != len(wanted) or got != wanted:
        raise ProvisionError(
            f"{path}: expected a request for a client's certificate of {site}, got one for "
            f"{subject.rfc4514_string()[:120]!r}; sign nothing, and ask the operator of {site}"
        )


def _signature(path: Path, members: Mapping[str, bytes]) -> bytes:
    if STATEMENT_FILE not in members:
        raise ProvisionError(
            f"{path}: expected a request that the site's FedShield key signed, got none; the site "
            "makes it with this version: fedshield site request, or site renew"
        )
    try:
        return bytes.fromhex(json.loads(members[STATEMENT_FILE])["signature"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ProvisionError(
            f"{path}: expected the signature of a request in it, got something else; ask for it "
            "again"
        ) from None


def _check_issued(signed: Path, site: str, tls_key_sha256: bytes) -> None:
    """Of the certificate itself: a request has more than one place that names a party."""
    try:
        with zipfile.ZipFile(signed) as archive:
            certificate = x509.load_pem_x509_certificate(archive.read(f"{site}.crt"))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError):
        raise ProvisionError(f"{signed.name}: expected {site}'s certificate in it") from None
    _check_subject(signed, certificate.subject, site)
    if hashlib.sha256(certificate.public_key().public_bytes(*_SPKI)).digest() != tls_key_sha256:
        raise ProvisionError(f"{signed.name}: expected a certificate of the key in the request")


def _key_sha256(csr: x509.CertificateSigningRequest) -> bytes:
    return hashlib.sha256(csr.public_key().public_bytes(*_SPKI)).digest()


def _zipped(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()
