"""A request for a certificate is a site's own, and of a client's certificate, or nothing is signed.

FLARE's own tools make and sign here, as in a consortium.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509

from fedshield.enrolment import Card, KeyFile, keygen
from fedshield.run.flare import provision, requests
from fedshield.run.flare.provision import Consortium, ProvisionError

CONSORTIUM = Consortium("ward-notes", "fl.example.org", 8502)
PORTS = {"fed_learn_port": 8502, "admin_port": 8502}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A coordinator's folder with a certificate authority."""
    path = tmp_path_factory.mktemp("coordinator")
    profile = path / "consortium.yaml"
    profile.write_text(yaml.safe_dump(CONSORTIUM.profile()))
    provision._tool("cert", "init", "--profile", str(profile), "-o", str(path / "ca"))
    return path


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site's folder with its keys and a request."""
    path = tmp_path_factory.mktemp("north")
    keygen("north", path)
    requests.request(path, CONSORTIUM.name, "north")
    return path


def zipped_of(kit: Path) -> Path:
    return kit / "request" / "north.request.zip"


def card_of(kit: Path) -> Card:
    return Card.read(kit / "north.card.json")


def test_a_sites_own_request_becomes_its_kit(folder: Path, kit: Path, tmp_path: Path) -> None:
    assert zipped_of(kit).stat().st_mode & 0o777 == 0o600
    with zipfile.ZipFile(zipped_of(kit)) as archive:
        assert not any(b"PRIVATE" in archive.read(name) for name in archive.namelist())
    out = folder / "north.signed.zip"
    assert requests.approve(folder, zipped_of(kit), "north", [card_of(kit)], out) == out
    provision.package(kit / "request", out, provision.fingerprint(folder), tmp_path / "flare")
    assert (tmp_path / "flare" / "startup" / "fed_client.json").is_file()
    certificate = (tmp_path / "flare" / "startup" / "client.crt").read_bytes()
    subject = x509.load_pem_x509_certificate(certificate).subject.rfc4514_string()
    assert "CN=north" in subject


def test_an_installed_kit_has_no_script_that_starts_flares_own_client(
    folder: Path, tmp_path: Path
) -> None:
    kit = tmp_path / "south"
    keygen("south", kit)
    requests.request(kit, CONSORTIUM.name, "south")
    zipped, out = kit / "request" / "south.request.zip", tmp_path / "south.signed.zip"
    requests.approve(folder, zipped, "south", [Card.read(kit / "south.card.json")], out)
    told = provision.fingerprint(folder)
    provision.package(kit / "request", out, told, tmp_path / "flare")
    assert list((tmp_path / "flare" / "startup").glob("*.sh"))  # else nothing is tested
    provision.install(kit, out, told)
    assert (kit / "flare" / "startup" / "fed_client.json").is_file()
    assert not list((kit / "flare").rglob("*.sh"))


@pytest.mark.parametrize(
    "participant",
    [
        {"name": "boss@north.org", "type": "admin", "org": "north", "role": "org_admin"},
        {"name": "fl.example.org", "type": "server", "org": "north", **PORTS},
        {"name": "north", "type": "client", "org": "coordinator"},
    ],
)
def test_a_site_cannot_have_another_partys_certificate_signed(
    folder: Path, kit: Path, tmp_path: Path, participant: dict[str, Any]
) -> None:
    """What FLARE would sign without a word: the certificate of an administrator, of the server. Its
    key even signs the request, as a site that colludes can."""
    provision._request(tmp_path / "asked", CONSORTIUM.name, participant)
    (made,) = (tmp_path / "asked").glob("*.request.zip")
    members = requests._members(made)
    csr = members.pop(f"{participant['name']}.csr")
    members["north.csr"] = csr
    key = KeyFile.read(kit / "north.key").key
    asked_for = requests._key_sha256(x509.load_pem_x509_csr(csr))
    signature = key.sign(requests.statement(CONSORTIUM.name, "north", asked_for))
    members[requests.STATEMENT_FILE] = f'{{"signature": "{signature.hex()}"}}'.encode()
    path = tmp_path / "north.request.zip"
    path.write_bytes(requests._zipped(members))
    out = tmp_path / "north.signed.zip"
    with pytest.raises(ProvisionError, match="request for a client's certificate of north"):
        requests.approve(folder, path, "north", [card_of(kit)], out)
    assert not out.exists()
    # As it came from FLARE's tool, under the site's file name.
    path.write_bytes(made.read_bytes())
    with pytest.raises(ProvisionError, match=r"expected a request"):
        requests.approve(folder, path, "north", [card_of(kit)], out)
    assert not out.exists()


def test_a_request_in_anothers_name_is_not_signed(folder: Path, kit: Path, tmp_path: Path) -> None:
    """Whoever sends a renewal in a site's name has not the site's key, or only one that is no
    longer in a roster."""
    other = tmp_path / "other"
    keygen("north", other)
    forged = requests.request(other, CONSORTIUM.name, "north")
    out = tmp_path / "north.signed.zip"
    with pytest.raises(ProvisionError, match="request that north's FedShield key signed"):
        requests.approve(folder, forged, "north", [card_of(kit)], out)
    # A card of that very key, under another name.
    keygen("south", tmp_path / "south")
    with pytest.raises(ProvisionError, match="FedShield key signed"):
        requests.approve(
            folder, forged, "north", [Card.read(tmp_path / "south" / "south.card.json")], out
        )
    assert not out.exists()
    # A renewal after the key was replaced: the stolen old key signs none any more.
    keygen("north", tmp_path / "new", replaces=kit / "north.key")
    replaced = Card.read(tmp_path / "new" / "north.card.json")
    with pytest.raises(ProvisionError, match="FedShield key signed"):
        requests.approve(folder, zipped_of(kit), "north", [replaced], out)
    assert not out.exists()


def test_a_site_with_the_name_of_the_servers_host_gets_no_certificate(tmp_path: Path) -> None:
    """TLS takes a certificate of that name for the server's."""
    profile = Consortium("ward-notes", "localhost", 8502).profile()
    (tmp_path / "consortium.yaml").write_text(yaml.safe_dump(profile))
    _, card = keygen("localhost", tmp_path)
    asked = requests.request(tmp_path, CONSORTIUM.name, "localhost")
    with pytest.raises(ProvisionError, match="which is the server's host"):
        requests.approve(
            tmp_path, asked, "localhost", [Card.read(card)], tmp_path / "localhost.signed.zip"
        )


def test_a_request_of_another_consortium_is_not_signed(
    folder: Path, kit: Path, tmp_path: Path
) -> None:
    (tmp_path / "north.key").write_bytes((kit / "north.key").read_bytes())
    (tmp_path / "north.key").chmod(0o600)
    elsewhere = requests.request(tmp_path, "other-notes", "north")
    with pytest.raises(ProvisionError, match="for ward-notes, got another signature"):
        requests.approve(folder, elsewhere, "north", [card_of(kit)], tmp_path / "out.zip")


@pytest.mark.parametrize("change", ["none", "text", "unsigned", "key", "more", "large", "twice"])
def test_a_request_that_was_changed_is_not_signed(
    folder: Path, kit: Path, tmp_path: Path, change: str
) -> None:
    members = requests._members(zipped_of(kit))
    if change == "unsigned":
        del members[requests.STATEMENT_FILE]
    elif change == "key":
        provision._request(
            tmp_path / "asked",
            CONSORTIUM.name,
            {"name": "north", "type": "client", "org": "north"},
        )
        theirs = requests._members(tmp_path / "asked" / "north.request.zip")
        members |= theirs
    elif change == "more":
        members["../north.key"] = b""
    elif change == "large":
        members["site.yaml"] = b"#" * (requests.MAX_MEMBER_BYTES + 1)
    path = tmp_path / "north.request.zip"
    path.write_bytes(requests._zipped(members))
    if change == "text":
        path.write_text("no zip file")
    elif change == "none":
        path.unlink()
    elif change == "twice":
        with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("north.csr", b"")
    with pytest.raises(ProvisionError, match=r"north\.request\.zip: expected a .*request"):
        requests.approve(folder, path, "north", [card_of(kit)], tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()


def test_what_was_issued_is_looked_at(
    folder: Path, kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request has three places that name a party, and FLARE decides which it follows."""
    approve = provision.approve
    provision._request(
        tmp_path / "asked",
        CONSORTIUM.name,
        {"name": "fl.example.org", "type": "server", "org": "x", **PORTS},
    )
    (server,) = (tmp_path / "asked").glob("*.request.zip")

    def follows_another(folder: Path, zipped: Path, out: Path) -> Path:
        signed = approve(folder, server, out)
        with zipfile.ZipFile(signed) as archive:
            content = {"north.crt": archive.read("fl.example.org.crt")}
        signed.write_bytes(requests._zipped(content))
        return signed

    monkeypatch.setattr(provision, "approve", follows_another)
    with pytest.raises(ProvisionError, match="expected a request for a client's certificate"):
        requests.approve(folder, zipped_of(kit), "north", [card_of(kit)], tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()
