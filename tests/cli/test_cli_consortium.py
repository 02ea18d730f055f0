"""Commands between organisations: what is refused before anything is made, and what is printed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from fedshield.cli import console
from fedshield.cli import consortium as commands
from fedshield.enrolment import KeyFile, SignedRoster, demonstration, keygen
from fedshield.errors import UserError
from fedshield.run.flare import provision, requests
from fedshield.run.flare.provision import Consortium, ProvisionError


def test_a_fingerprint_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """`:AB:` is not an emoji."""
    text = "SHA256:AB:CD:ID:OK"
    commands._say("fingerprint", text)
    console.out_console.print(text, markup=False)
    assert capsys.readouterr().out.count(text) == 2


@pytest.mark.parametrize(
    ("name", "host", "port", "wrong"),
    [
        ("Ward Notes", "localhost", 8502, "--name"),
        ("ward-notes", "local host", 8502, "--host"),
        ("ward-notes", "-x", 8502, "--host"),
        ("ward-notes", "localhost", 0, "--port"),
        ("ward-notes", "localhost", 65536, "--port"),
    ],
)
def test_a_consortium_that_no_certificate_can_hold_is_refused(
    name: str, host: str, port: int, wrong: str
) -> None:
    with pytest.raises(ProvisionError, match=rf"^{wrong}: expected .* got "):
        Consortium.checked(name, host, port)


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:

    def fails() -> None:
        with provision.new_folder(tmp_path / "kit") as part:
            (part / "half").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert list(tmp_path.iterdir()) == []
    with provision.new_folder(tmp_path / "kit") as part:
        (part / "all").touch()
    assert [path.name for path in (tmp_path / "kit").iterdir()] == ["all"]
    with pytest.raises(ProvisionError, match="expected no folder there yet"):
        provision.new_folder(tmp_path / "kit").__enter__()


def test_a_kit_has_one_key(tmp_path: Path) -> None:
    with pytest.raises(ProvisionError, match="got 0"):
        provision.site_name(tmp_path)
    (tmp_path / "north.key").touch()
    assert provision.site_name(tmp_path) == "north"
    (tmp_path / "south.key").touch()
    with pytest.raises(ProvisionError, match="got 2"):
        provision.site_name(tmp_path)


def test_a_site_with_a_dash_in_its_name_gets_a_request(tmp_path: Path) -> None:
    """FLARE takes no dash in an organisation's name."""
    assert provision.organisation("st-marys-2") == "st_marys_2"
    made = provision.request(tmp_path, "ward-notes", "st-marys-2")
    assert made == tmp_path / "request" / "st-marys-2.request.zip"
    assert made.stat().st_size > 0


@pytest.mark.parametrize("folder", ["absent", "empty", "odd"])
def test_a_folder_that_is_no_consortium_is_named(tmp_path: Path, folder: str) -> None:
    path = tmp_path / folder
    if folder != "absent":
        path.mkdir()
    if folder == "odd":
        (path / "consortium.yaml").write_text("name: x\nserver: []\n")
    with pytest.raises(ProvisionError, match="consortium init"):
        Consortium.read(path)


def test_request_and_card_of_two_sites_do_not_go_together(tmp_path: Path) -> None:
    consortium = Consortium("ward-notes", "localhost", 8502)
    (tmp_path / "consortium.yaml").write_text(yaml.safe_dump(consortium.profile()))
    assert Consortium.read(tmp_path) == consortium
    _, card = keygen("north", tmp_path)
    with pytest.raises(UserError, match=r"expected north\.request\.zip"):
        commands.approve(tmp_path, tmp_path / "south.request.zip", card)


# -- approvals ------------------------------------------------------------------------------------


@pytest.fixture
def consortium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A coordinator's folder with a roster that its three sites signed. FLARE's part of an approval
    is played: the tests in e2e have the true one."""
    folder = tmp_path / "coordinator"
    folder.mkdir()
    profile = Consortium("ward-notes", "localhost", 8502).profile()
    (folder / "consortium.yaml").write_text(yaml.safe_dump(profile))
    signed, keys = demonstration(["north", "south", "port"])
    roster = dataclasses.replace(signed, demo=False, countersignatures={})
    for name in roster.names():
        others = [other for other in roster.names() if other != name]
        roster = roster.countersigned(keys[name], others)
    (folder / "roster.json").write_text(roster.to_text())

    def approve(_: Path, zipped: Path, site: str, cards: object, out: Path) -> Path:
        out.write_text(f"signed {zipped.name}")
        return out

    monkeypatch.setattr(requests, "approve", approve)
    return folder


def test_approving_a_new_site_leaves_a_signed_roster_in_force(
    consortium: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (consortium / "roster.json").read_bytes()
    for name in ("west", "east"):
        _, card = keygen(name, tmp_path / name)
        commands.approve(consortium, tmp_path / f"{name}.request.zip", card)
        assert (consortium / f"{name}.signed.zip").exists()
    assert (consortium / "roster.json").read_bytes() == before
    following = SignedRoster.read(consortium / "roster.next.json")
    assert following.names() == ("east", "north", "port", "south", "west")
    assert following.countersignatures == {}
    told = " ".join(capsys.readouterr().err.split())
    assert "roster.json stays as it is, with the countersignatures of north, port, south" in told
    assert "nobody signed it: north, port, south, west each review it" in told
    # Once more changes nothing.
    commands.approve(consortium, tmp_path / "west.request.zip", tmp_path / "west/west.card.json")
    assert SignedRoster.read(consortium / "roster.next.json") == following


def test_a_renewal_changes_no_roster(consortium: Path, tmp_path: Path) -> None:
    before = (consortium / "roster.json").read_bytes()
    commands.approve(consortium, tmp_path / "north.request.zip")
    assert (consortium / "north.signed.zip").read_text() == "signed north.request.zip"
    assert (consortium / "roster.json").read_bytes() == before
    assert not (consortium / "roster.next.json").exists()
    with pytest.raises(UserError, match=r"expected 'west' among its sites.*sends its card too"):
        commands.approve(consortium, tmp_path / "west.request.zip")
    assert not (consortium / "west.signed.zip").exists()


def test_a_roster_that_is_being_signed_is_not_changed(consortium: Path, tmp_path: Path) -> None:
    key, card = keygen("west", tmp_path / "west")
    commands.approve(consortium, tmp_path / "west.request.zip", card)
    path = consortium / "roster.next.json"
    signed = SignedRoster.read(path).countersigned(KeyFile.read(key), ["north"])
    path.write_text(signed.to_text())
    _, card = keygen("east", tmp_path / "east")
    with pytest.raises(UserError, match="got one signed by west; put it in force first"):
        commands.approve(consortium, tmp_path / "east.request.zip", card)
    assert path.read_text() == signed.to_text()
    assert not (consortium / "east.signed.zip").exists()


@pytest.mark.parametrize("name", ["server", "coordinator", "admin"])
def test_a_site_with_another_partys_name_gets_no_kit(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"NAME: expected a site's own name, got '{name}'"):
        commands.request(name, "ward-notes", tmp_path / "kit")
    assert [*tmp_path.iterdir()] == []


def test_an_install_needs_a_fingerprint_and_a_request(tmp_path: Path) -> None:
    keygen("north", tmp_path / "kit")
    with pytest.raises(UserError, match="expected --fingerprint"):
        commands.install(tmp_path / "kit", tmp_path / "north.signed.zip", None)
    with pytest.raises(UserError, match="expected a request that waits"):
        commands.install(tmp_path / "kit", tmp_path / "north.signed.zip", "SHA256:00")
    with pytest.raises(UserError, match="expected an installed kit"):
        commands.renew_site(tmp_path / "kit")
