"""Batches in the countersigned roster: named or cut, under every signature, and compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedshield.crypto.keys import SiteKey
from fedshield.enrolment import KeyFile, RosterError, SignedRoster
from fedshield.enrolment.differences import differences
from fedshield.enrolment.terms import Asked
from fedshield.protocol.wire import codec
from fedshield.run.log_file import keep_roster, read_known_keys, read_rosters


def key_of(name: str) -> KeyFile:
    raw = bytes((sum(name.encode()) + k) % 256 for k in range(64))
    return KeyFile(name, "2026-03-01", SiteKey.from_bytes(raw))


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(RosterError) as caught:
        action()
    return str(caught.value)


NAMES = ("bank", "clinic", "hospital", "lab", "school", "ward")
KEYS = {name: key_of(name) for name in (*NAMES, "annex", "branch", "depot", "coordinator")}
CUT = (("bank", "clinic", "hospital"), ("lab", "school", "ward"))
OTHER = (("bank", "clinic", "lab"), ("hospital", "school", "ward"))


def roster(*names: str, membership: str = "batches", **changes: Any) -> SignedRoster:
    cards = tuple(KEYS[name].card() for name in names or NAMES)
    asked = Asked(max_colluding=1, membership=membership)  # type: ignore[arg-type]
    return SignedRoster(KEYS["coordinator"].card(), cards, asked, **changes)


def signed(unsigned: SignedRoster) -> SignedRoster:
    for name in unsigned.names():
        others = [other for other in unsigned.names() if other != name]
        unsigned = unsigned.countersigned(KEYS[name], others)
    return unsigned


def test_unnamed_batches_are_the_names_in_order_cut() -> None:
    assert roster().batches() == CUT
    assert roster().to_roster().batches == CUT
    assert roster().to_roster().batch("school") == ("lab", "school", "ward")
    assert roster(membership="fixed").batches() == ()
    assert roster(membership="fixed").to_roster().batch("lab") == NAMES


def test_batches_are_under_the_signatures(tmp_path: Path) -> None:
    named = roster(named_batches=(OTHER[1][::-1], OTHER[0]))
    assert named.batches() == OTHER
    assert named.content() == roster(named_batches=OTHER).content()
    assert roster(named_batches=CUT).content() == roster().content()
    content = codec.decode(named.content())
    assert isinstance(content, list)
    assert content[-1] == [[*batch] for batch in OTHER]
    fixed = codec.decode(roster(membership="fixed").content())
    assert isinstance(fixed, list)
    assert len(fixed) == len(content) - 1
    everyone = signed(named)
    with_others = "countersignature of bank: expected one over this roster"
    assert with_others in refused(lambda: dataclasses.replace(everyone, named_batches=CUT))
    path = tmp_path / "roster.json"
    path.write_text(everyone.to_text())
    assert SignedRoster.read(path) == everyone
    # Whoever moves a site in the file moves it from under the signatures.
    moved = everyone.to_text().replace('"lab"\n', '"hospital"\n', 1)
    assert moved != everyone.to_text()
    path.write_text(moved)
    assert str(path) in refused(lambda: SignedRoster.read(path))


@pytest.mark.parametrize(
    ("batches", "says"),
    [
        ((CUT[0],), "--batch: expected every site in a batch, got none for lab"),
        ((*CUT, ("x", "y", "z")), "--batch: expected only sites of the roster, got x"),
        ((("bank", "clinic"), NAMES[2:]), "--batch: expected at least c + 2 = 3 sites"),
    ],
)
def test_what_is_no_cut_has_no_content(batches: Any, says: str) -> None:
    text = refused(roster(named_batches=batches).content)
    assert text.startswith(says)


def test_batches_are_for_their_membership() -> None:
    text = refused(lambda: roster(membership="fixed", named_batches=CUT))
    assert text.startswith("--batch: expected none with membership fixed")
    five = roster("bank", "clinic", "hospital", "lab", "school")
    assert "expected at least 2 (c + 2) = 6 sites for batches" in refused(five.rules)


def test_new_sites_come_in_a_batch_of_their_own() -> None:
    """Then nobody's batch changes; where none are named, all are cut anew, and it is said whose."""
    more = [KEYS[name].card() for name in ("annex", "branch", "depot")]
    own = roster(named_batches=CUT).with_cards(more, (("annex", "branch", "depot"),))
    assert own.batches() == (("annex", "branch", "depot"), *CUT)
    assert not own.countersignatures
    anew = roster().with_cards(more)
    assert anew.batches() == (
        ("annex", "bank", "branch"),
        ("clinic", "depot", "hospital"),
        ("lab", "school", "ward"),
    )
    told = " ".join(differences(roster(), anew))
    assert "batches: was bank, clinic, hospital; lab, school, ward; is annex, bank, branch;" in told
    (only,) = differences(roster(), roster(named_batches=OTHER))
    assert only.startswith("batches: was bank, clinic, hospital; lab")


def test_a_run_keeps_the_batches_of_its_rosters(tmp_path: Path) -> None:
    """Their hash is in every log."""
    own = roster(named_batches=OTHER).to_roster()
    keep_roster(tmp_path, own)
    (kept,) = read_rosters(tmp_path / "rosters.json")
    assert (kept.batches, kept.sha256()) == (OTHER, own.sha256())
    assert own.sha256() != roster().to_roster().sha256()
    assert own.sha256().hex() in read_known_keys(tmp_path / "rosters.json")
