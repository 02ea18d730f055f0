"""Commands between organisations: what is refused before anything is made, and what is printed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fedshield.cli import consortium as commands
from fedshield.cli import words
from fedshield.engines.flare import provision
from fedshield.engines.flare.provision import Consortium, ProvisionError
from fedshield.enrolment import keygen
from fedshield.errors import UserError


def test_a_fingerprint_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """`:AB:` is not an emoji."""
    text = "SHA256:AB:CD:ID:OK"
    commands._say("fingerprint", text)
    words.out_console.print(text, markup=False)
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
