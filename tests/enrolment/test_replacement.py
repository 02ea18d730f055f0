"""A replaced key: what is signed, what a reviewer is shown, and what a kit remembers."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fedshield.crypto.keys import SiteKey
from fedshield.enrolment import Allowed, Asked, Card, KeyFile, SignedRoster
from fedshield.enrolment.changes import next_path, previous_path
from fedshield.enrolment.differences import differences
from fedshield.enrolment.files import RosterError
from fedshield.enrolment.replacement import ReplacedKey, statement
from fedshield.enrolment.seen import FILE, SeenKeys, put_in_force
from fedshield.run.flare import requests

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "enrolment.json").read_text())
SITES = ("bank", "clinic", "hospital")


def key_of(name: str, seeds: Sequence[int], dates: Sequence[str]) -> KeyFile:
    """A party's key after it replaced all but the last of its keys."""
    keys = [SiteKey.from_bytes(bytes((seed + k) % 256 for k in range(32)) * 2) for seed in seeds]
    chain: list[ReplacedKey] = []
    for number, (old, new) in enumerate(itertools.pairwise(keys)):
        message = statement(name, old.public, dates[number], new.public, dates[number + 1])
        chain.append(ReplacedKey(old.public, dates[number], old.sign(message)))
    return KeyFile(name, dates[len(keys) - 1], keys[-1], tuple(chain))


def keys_of(number: int) -> dict[str, KeyFile]:
    """Everyone's key when the bank had its key of this number, from 1."""
    return {
        name: key_of(name, seeds[:number], VECTORS["dates"])
        for name, seeds in VECTORS["seeds"].items()
    }


def signed(keys: dict[str, KeyFile], **changes: Any) -> SignedRoster:
    cards = tuple(keys[name].card() for name in keys if name != "coordinator")
    terms: dict[str, Any] = {"asked": Asked(), "allowed": Allowed(min_bits=8)} | changes
    roster = SignedRoster(keys["coordinator"].card(), cards, **terms)
    for name in roster.names():
        others = [other for other in roster.names() if other != name]
        roster = roster.countersigned(keys[name], others)
    return roster


FIRST, SECOND, THIRD = (signed(keys_of(number)) for number in (1, 2, 3))


def test_what_is_signed_of_a_replaced_key_is_what_the_page_says() -> None:
    """tests/vectors/enrolment.json is made from docs/roster.md, without this package."""
    card = THIRD.card("bank")
    assert [old.signature.hex() for old in card.replaces] == [
        row["signature"] for row in VECTORS["replacements"]
    ]
    old = keys_of(1)["bank"]
    new = keys_of(2)["bank"]
    message = statement("bank", old.key.public, old.created, new.key.public, new.created)
    assert message.hex() == VECTORS["replacements"][0]["statement"]
    assert card.signature.hex() == VECTORS["card_signature"]
    assert THIRD.content().hex() == VECTORS["content"]
    assert THIRD.content_sha256().hex() == VECTORS["content_sha256"]
    assert THIRD.fingerprint().replace(" ", "") == VECTORS["fingerprint"]
    given = {name: one.signature.hex() for name, one in THIRD.countersignatures.items()}
    assert given == VECTORS["countersignatures"]


def test_what_is_signed_of_a_request_is_what_the_page_says() -> None:
    message = requests.statement("ward-notes", "bank", bytes.fromhex(VECTORS["tls_key_sha256"]))
    assert message.hex() == VECTORS["request"]
    assert keys_of(3)["bank"].key.sign(message).hex() == VECTORS["request_signature"]


# -- what a reviewer is shown ----------------------------------------------------------------------


def test_a_reviewer_sees_whether_the_old_key_signed_the_new_one() -> None:
    assert differences(FIRST, FIRST) == ()
    (said,) = differences(FIRST, SECOND)
    assert "signed by its key there" in said
    # A roster was missed: the chain still leads there.
    (said,) = differences(FIRST, THIRD)
    assert "signed by its key there" in said


@pytest.mark.parametrize("forged", ["own chain", "fork", "older", "no chain"])
def test_a_reviewer_sees_a_key_that_the_old_one_did_not_sign(forged: str) -> None:
    """`verify` shows of each that it 'replaces' a key which signed it."""
    keys = keys_of(2)
    seeds = {
        "own chain": [150, 160],  # all of it by whoever wrote the roster
        "fork": [2, 90],  # the stolen first key names another successor
        "older": [2],  # the stolen first key itself
        "no chain": [90],
    }[forged]
    keys["bank"] = key_of("bank", seeds, VECTORS["dates"])
    roster = signed(keys)
    assert roster.standing().ready
    (said,) = differences(SECOND, roster)
    assert said.startswith("bank: ANOTHER KEY")
    assert "did not sign" in said


def test_a_reviewer_sees_every_other_change() -> None:
    keys = keys_of(1)
    keys["lab"] = key_of("lab", [9], VECTORS["dates"])
    del keys["clinic"]
    keys["coordinator"] = key_of("coordinator", [1, 77], VECTORS["dates"])
    other = signed(keys, asked=Asked(server="semi-honest"), allowed=Allowed(("rlwe", "plain")))
    other = dataclasses.replace(other, model_sha256=bytes(32), countersignatures={})
    told = differences(FIRST, other)
    for part in (
        *("clinic: is not in it any more", "lab: new", "coordinator: a new key"),
        *("rules: was", "allowed: was", "base model: was any; is 0000"),
    ):
        assert any(sentence.startswith(part) for sentence in told), part
    assert len(told) == 6


def test_the_roster_before_is_the_one_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "roster.json"
    assert previous_path(next_path(path)) is None
    path.touch()
    assert previous_path(next_path(path)) == path
    assert previous_path(path) is None


def test_an_old_key_does_not_come_back_as_a_lost_one() -> None:
    old = FIRST.card("bank")
    with pytest.raises(RosterError, match="got one that it replaced"):
        SECOND.with_replacement(old, key_lost=True)


# -- what a kit remembers --------------------------------------------------------------------------


def test_a_kit_takes_no_older_roster(tmp_path: Path) -> None:
    """The first roster is still ready, by everyone's own signature: with the stolen key of the bank
    whoever hands it out would be the bank."""
    assert put_in_force(tmp_path, FIRST) == ()
    kept = (tmp_path / FILE).read_bytes()
    assert put_in_force(tmp_path, FIRST) == ()
    assert (tmp_path / FILE).read_bytes() == kept
    put_in_force(tmp_path, SECOND)
    after = (tmp_path / FILE).read_bytes()
    with pytest.raises(RosterError, match=r"expected the present key of bank.*older roster"):
        put_in_force(tmp_path, FIRST)
    assert (tmp_path / FILE).read_bytes() == after
    put_in_force(tmp_path, THIRD)


def test_a_kit_that_begins_with_a_chain_takes_none_of_its_old_keys(tmp_path: Path) -> None:
    put_in_force(tmp_path, THIRD)
    for older in (FIRST, SECOND):
        with pytest.raises(RosterError, match="which was replaced"):
            put_in_force(tmp_path, older)


@pytest.mark.parametrize("forged", ["first", "second", "behind another", "a key in between"])
def test_a_kit_takes_no_fork_of_a_party_s_keys(tmp_path: Path, forged: str) -> None:
    """Signed by whoever holds an old key, and by all sites; its first key is the bank's, or what
    it has of the bank's keys would make another party of it."""
    put_in_force(tmp_path, SECOND)
    before = (tmp_path / FILE).read_bytes()
    keys = keys_of(2)
    first, second = VECTORS["seeds"]["bank"][:2]
    seeds = {
        "first": [first, 90],
        "second": [first, 90, 91],
        "behind another": [90, first, second],
        "a key in between": [second, 90],
    }[forged]
    keys["bank"] = key_of("bank", seeds, VECTORS["dates"])
    roster = signed(keys)
    assert roster.standing().ready
    with pytest.raises(RosterError, match=r"expected the card of bank to go on from the keys"):
        put_in_force(tmp_path, roster)
    assert (tmp_path / FILE).read_bytes() == before
    put_in_force(tmp_path, THIRD)


def test_a_kit_takes_no_party_under_another_s_first_key(tmp_path: Path) -> None:
    """The bank has left, and its old key signs for a name of the thief's choice."""
    put_in_force(tmp_path, SECOND)
    keys = keys_of(2)
    keys["lab"] = key_of("lab", [VECTORS["seeds"]["bank"][0], 90], VECTORS["dates"])
    del keys["bank"]
    keys["west"] = key_of("west", [91], VECTORS["dates"])
    with pytest.raises(RosterError, match="expected the card of lab to go on from the keys"):
        put_in_force(tmp_path, signed(keys))


def test_a_lost_key_does_not_come_back_with_a_successor(tmp_path: Path) -> None:
    """Whoever finds it would be the party that it was."""
    put_in_force(tmp_path, FIRST)
    keys = keys_of(1)
    keys["bank"] = key_of("bank", [150], VECTORS["dates"])
    put_in_force(tmp_path, signed(keys))
    with pytest.raises(RosterError, match="expected the card of bank to go on from the keys"):
        put_in_force(tmp_path, SECOND)
    keys["bank"] = key_of("bank", [150, 151], VECTORS["dates"])
    put_in_force(tmp_path, signed(keys))


@pytest.mark.parametrize("seeds", [[2, 90], [90, 2]], ids=["a fork", "its key in between"])
def test_a_lost_key_s_new_card_has_no_key_of_before(seeds: list[int]) -> None:
    card = key_of("bank", seeds, VECTORS["dates"]).card()
    assert VECTORS["seeds"]["bank"][0] == 2
    with pytest.raises(RosterError, match="expected a card of bank with new keys only"):
        SECOND.with_replacement(card, key_lost=True)


def test_a_memory_from_before_is_told_of(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"fedshield": "keys seen 1", "in_force": {}}')
    with pytest.raises(RosterError, match=r"got a file from before.*delete the file"):
        put_in_force(tmp_path, FIRST)


def test_a_lost_key_counts_as_replaced_too(tmp_path: Path) -> None:
    keys = keys_of(1)
    keys["bank"] = key_of("bank", [150], VECTORS["dates"])
    put_in_force(tmp_path, FIRST)
    put_in_force(tmp_path, signed(keys))
    with pytest.raises(RosterError, match="which was replaced"):
        put_in_force(tmp_path, FIRST)
    keys = keys_of(1)
    keys["coordinator"] = key_of("coordinator", [1, 77], VECTORS["dates"])
    keys["bank"] = key_of("bank", [150], VECTORS["dates"])
    put_in_force(tmp_path, signed(keys))


def test_a_roster_that_comes_back_is_told_of_once(tmp_path: Path) -> None:
    """With the same keys, and weaker rules. It may be a repair, so it is not refused."""
    weaker = signed(keys_of(1), allowed=Allowed(("plain", "rlwe")))
    assert put_in_force(tmp_path, weaker) == ()
    assert put_in_force(tmp_path, FIRST) == ()
    (said,) = put_in_force(tmp_path, weaker)
    assert f"this roster ({weaker.fingerprint()}) was in force here before" in said
    assert put_in_force(tmp_path, weaker) == ()
    (said,) = put_in_force(tmp_path, FIRST)
    assert FIRST.fingerprint() in said
    assert len(SeenKeys.read(tmp_path / FILE).rosters) == 2


@pytest.mark.parametrize("text", ["", "{}", '{"fedshield": "keys seen 2", "in_force": {}}'])
def test_a_damaged_memory_is_no_memory_of_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(RosterError, match=FILE):
        put_in_force(tmp_path, FIRST)
    assert (tmp_path / FILE).read_text() == text


def test_a_memory_is_read_as_it_was_written(tmp_path: Path) -> None:
    put_in_force(tmp_path, SECOND)
    seen = SeenKeys.read(tmp_path / FILE)
    assert set(seen.in_force) == {"coordinator", *SITES}
    assert seen.replaced == {FIRST.card("bank").public}
    old, new = (one.card("bank").public for one in (FIRST, SECOND))
    assert seen.chains[old] == (old, new)
    assert len(seen.chains) == 4
    assert seen.rosters == (SECOND.content_sha256(),)
    assert SeenKeys.read(tmp_path / "absent") == SeenKeys({}, frozenset())
    assert isinstance(SECOND.card("bank"), Card)
