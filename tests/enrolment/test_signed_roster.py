"""Enrolment: cards, key files, and rosters that are changed, forged, exchanged or incomplete."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedshield.crypto.keys import SigningKey, SiteKey
from fedshield.enrolment import (
    Allowed,
    Asked,
    Card,
    Countersignature,
    KeyFile,
    SignedRoster,
    demonstration,
    files,
    keygen,
    write_demonstration,
)
from fedshield.enrolment.files import write_new
from fedshield.enrolment.replacement import ReplacedKey
from fedshield.enrolment.terms import SCHEMES, SERVERS
from fedshield.errors import UserError
from fedshield.plan.quorum import resolve
from fedshield.plan.sections import SCHEMES as PLAN_SCHEMES
from fedshield.protocol.wire import codec

NAMES = ("bank", "clinic", "hospital", "school")
#: Worked out from docs/roster.md without this package.
CONTENT_SHA256 = "150c543f088d8ef2903444dfcd6ec9758c7c6b7fa792238ba58dfd370ac82980"
FINGERPRINT = "eded f76b 0579 d2dc a0f5 9f10 b94c c7dc"


def key_of(name: str, start: int | None = None) -> KeyFile:
    """The same in every run: known answers depend on it."""
    first = sum(name.encode()) if start is None else start
    raw = bytes((first + k) % 256 for k in range(64))
    return KeyFile(name, "2026-03-01", SiteKey.from_bytes(raw))


KEYS = {name: key_of(name) for name in (*NAMES, "coordinator")}
CARDS = {name: key_file.card() for name, key_file in KEYS.items()}


def unsigned(*names: str, **changes: Any) -> SignedRoster:
    sites = tuple(CARDS[name] for name in names or NAMES)
    return SignedRoster(CARDS["coordinator"], sites, **changes)


def signed(roster: SignedRoster | None = None, keys: dict[str, KeyFile] = KEYS) -> SignedRoster:
    """Everyone confirms everyone."""
    roster = roster or unsigned()
    for name in roster.names():
        others = [other for other in roster.names() if other != name]
        roster = roster.countersigned(keys[name], others)
    return roster


def written(tmp_path: Path, roster: SignedRoster) -> Path:
    path = tmp_path / "roster.json"
    path.write_text(roster.to_text())
    return path


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    return path


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    assert text.isprintable()
    assert "expected" in text or "unknown key" in text
    assert ";" in text or ":" in text
    return text


# -- cards and key files -------------------------------------------------------------------------


def test_keygen_makes_a_private_key_file_and_a_card(tmp_path: Path) -> None:
    key_path, card_path = keygen("hospital", tmp_path / "keys")
    assert (key_path.name, card_path.name) == ("hospital.key", "hospital.card.json")
    assert stat.S_IMODE(key_path.stat().st_mode) == 0o600
    assert sorted(path.name for path in key_path.parent.iterdir()) == [
        "hospital.card.json",
        "hospital.key",
    ]
    key_file, card = KeyFile.read(key_path), Card.read(card_path)
    assert key_file.card() == card
    assert card.public == key_file.key.public
    raw = key_file.key.to_bytes()
    for secret in (raw.hex(), raw[:32].hex(), raw[32:].hex()):
        assert secret not in card_path.read_text()
        assert secret not in repr(key_file) + repr(card) + str(key_file)


def test_the_key_is_private_from_its_first_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mode is given when it is made, not after, whatever the umask lets through."""
    opened: list[tuple[str, int, int]] = []
    really = os.open

    def watch(path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        handle = really(path, flags, mode, **more)
        if str(path).endswith(".key"):
            opened.append((str(path), flags, stat.S_IMODE(os.fstat(handle).st_mode)))
        return handle

    monkeypatch.setattr(os, "open", watch)
    before = os.umask(0)
    try:
        keygen("bank", tmp_path)
    finally:
        os.umask(before)
    ((_, flags, mode),) = opened
    assert mode == 0o600
    assert flags & os.O_EXCL
    assert flags & os.O_CREAT


@pytest.mark.parametrize("there", ["bank.key", "bank.card.json"])
def test_keygen_never_overwrites(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("mine")
    assert f"{there}: expected no file there yet" in refused(lambda: keygen("bank", tmp_path))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {there: "mine"}


def test_keygen_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "bank.key").symlink_to(tmp_path / "elsewhere")
    refused(lambda: keygen("bank", tmp_path))
    assert not (tmp_path / "elsewhere").exists()


def test_write_new_itself_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "bank.key"
    write_new(path, "first", 0o600)
    assert "never overwritten" in refused(lambda: write_new(path, "second", 0o600))
    assert path.read_text() == "first"


@pytest.mark.parametrize("fails_at", [1, 2, 3])
@pytest.mark.parametrize("made", [True, False])
def test_keygen_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int, made: bool
) -> None:
    folder = tmp_path / "keys"
    if made:
        folder.mkdir()
    count = 0
    really = os.fsync

    def full(handle: int) -> None:
        nonlocal count
        count += 1
        if count == fails_at:
            raise OSError(28, "No space left on device")
        really(handle)

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in refused(lambda: keygen("bank", folder))
    assert [*tmp_path.iterdir()] == ([folder] if made else [])
    assert not made or not [*folder.iterdir()]


def test_a_file_system_without_modes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = os.fstat

    def wide(handle: int) -> os.stat_result:
        mode, *rest = really(handle)
        return os.stat_result((mode | 0o777, *rest))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", wide)
        assert "keeps file modes" in refused(lambda: keygen("bank", tmp_path))
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    "name", ["", "Bank", "bank/../x", "-bank", "bank\n", "a" * 32, "bänk", "bank key", "."]
)
def test_bad_names_are_refused(tmp_path: Path, name: str) -> None:
    assert "NAME: expected a name" in refused(lambda: keygen(name, tmp_path))
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660, 0o666, 0o700, 0o644])
def test_a_wide_key_file_is_refused_with_the_command_to_run(tmp_path: Path, mode: int) -> None:
    path, _ = keygen("bank", tmp_path)
    path.chmod(mode)
    assert f"got {mode:04o}; run: chmod 600 {path}" in refused(lambda: KeyFile.read(path))
    path.chmod(0o400)
    assert KeyFile.read(path).name == "bank"


def test_another_users_key_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = keygen("bank", tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    text = refused(lambda: KeyFile.read(path))
    assert f"got one of user {os.getuid()}; run: sudo chown {os.getuid() + 1}" in text


def edited_key(**changes: Any) -> Callable[[Path], object]:
    return lambda path: changed(path, lambda value: value.update(changes))


KEY_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda path: path.write_text(path.read_text()[:150]), "damaged JSON"),
    "empty": (lambda path: path.write_text(""), "damaged JSON"),
    "other name": (edited_key(name="Bank"), "expected a name"),
    "short": (edited_key(private_key="00" * 63), "private_key: expected 128 digits"),
    "another key": (edited_key(private_key="00" * 64), "the key of its public_key, got another"),
    "number": (edited_key(private_key=7), "private_key: expected 128 digits"),
    "more": (edited_key(note="x"), "'note': unknown key"),
    "date": (edited_key(created="20260301"), "created: expected a date"),
    "version": (edited_key(fedshield="key 2"), "expected version 'key 1', got 'key 2'"),
}


@pytest.mark.parametrize("what", KEY_DAMAGE)
def test_a_damaged_key_file_is_refused_without_showing_it(tmp_path: Path, what: str) -> None:
    path, _ = keygen("bank", tmp_path)
    secret = KeyFile.read(path).key.to_bytes().hex()
    damage, says = KEY_DAMAGE[what]
    damage(path)
    text = refused(lambda: KeyFile.read(path))
    assert text.startswith(f"{path}: ")
    assert says in text
    assert not any(secret[at : at + 16] in text for at in range(len(secret) - 16))


def test_a_key_file_in_the_place_of_a_card_is_refused_without_showing_it(tmp_path: Path) -> None:
    path, card_path = keygen("bank", tmp_path)
    text = refused(lambda: Card.read(path))
    assert "got a private key file; never send it" in text
    assert KeyFile.read(path).key.to_bytes().hex()[:16] not in text
    card_path.chmod(0o600)
    assert "expected a key file (NAME.key), got a card" in refused(lambda: KeyFile.read(card_path))


def edited_card(**changes: Any) -> Callable[[Path], object]:
    return lambda path: changed(path, lambda value: value.update(changes))


CARD_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda path: path.write_text(path.read_text()[:99]), "damaged JSON"),
    "renamed": (edited_card(name="clinic"), "expected its own key's signature"),
    "redated": (edited_card(created="2026-03-02"), "expected its own key's signature"),
    "another key": (
        edited_card(public_key=CARDS["clinic"].public.hex()),
        "expected its own key's signature",
    ),
    "no point": (edited_card(public_key="02" + "00" * 31), "expected its own key's signature"),
    "bad name": (edited_card(name="Bank "), "expected a name"),
    "capitals": (
        edited_card(public_key=CARDS["bank"].public.hex().upper()),
        "public_key: expected 64 digits",
    ),
    "null": (edited_card(signature=None), "signature: expected 128 digits"),
    "list": (lambda path: path.write_text("[1]"), "got something else"),
    "nested": (lambda path: path.write_text("[" * 3000), "damaged JSON"),
    "number name": (edited_card(name=7), "name: expected text"),
    "unknown key": (edited_card(colour="red"), "'colour': unknown key"),
    "large": (edited_card(colour="r" * 17000), "at most 16384 bytes"),
    "no UTF-8": (lambda path: path.write_bytes(b'{"fedshield": "\xff"}'), "not UTF-8"),
    "UTF-16": (
        lambda path: path.write_bytes(path.read_text().encode("utf-16")),
        "damaged JSON (not UTF-8)",
    ),
    "missing key": (
        lambda path: changed(path, lambda value: value.pop("created")),
        "created: expected text, found none",
    ),
    "key twice": (
        lambda path: path.write_text(path.read_text().replace("{", '{"name": "x",')),
        "the key 'name' is there twice",
    ),
}


@pytest.mark.parametrize("what", CARD_DAMAGE)
def test_a_damaged_or_changed_card_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "bank.card.json"
    path.write_text(CARDS["bank"].to_text())
    assert Card.read(path) == CARDS["bank"]
    damage, says = CARD_DAMAGE[what]
    damage(path)
    assert says in refused(lambda: Card.read(path))


@pytest.mark.parametrize("created", ["20260301", "2026-02-30", "2026-3-1", "today", "\u0662" * 10])
def test_a_card_has_a_date_however_well_it_is_signed(created: str) -> None:
    text = refused(dataclasses.replace(KEYS["bank"], created=created).card)
    assert text.startswith("created: expected a date such as 2026-03-01")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "got no regular file" in refused(lambda: Card.read(tmp_path / "pipe"))
    assert "got no regular file" in refused(lambda: Card.read(tmp_path))
    assert "No such file" in refused(lambda: Card.read(tmp_path / "none"))


# -- content and fingerprint ---------------------------------------------------------------------


def test_known_answers() -> None:
    """Another implementation can check itself against these."""
    roster = unsigned("bank", "clinic", "hospital", model_sha256=bytes(range(32)))
    sites = [[name, CARDS[name].public, "2026-03-01"] for name in ("bank", "clinic", "hospital")]
    assert codec.decode(roster.content()) == [
        "fedshield signed roster 2",
        0,
        ["coordinator", CARDS["coordinator"].public, "2026-03-01"],
        sites,
        [3, 1, 2, 3, 3, "malicious", "fixed"],
        bytes(range(32)),
        [["rlwe"], 0, 0],
        2,
    ]
    assert roster.content_sha256().hex() == CONTENT_SHA256
    assert roster.fingerprint() == FINGERPRINT
    again = roster.countersigned(KEYS["bank"], ["hospital", "clinic", "clinic"])
    given = again.countersignatures["bank"]
    assert given.confirmed == ("clinic", "hospital")
    part = ["fedshield countersignature 1", roster.content_sha256(), "bank", ["clinic", "hospital"]]
    assert given.signature == KEYS["bank"].key.sign(codec.encode(part))


def test_signatures_do_not_change_the_fingerprint_and_anything_else_does() -> None:
    roster = unsigned()
    assert signed().content() == roster.content()
    redated = dataclasses.replace(KEYS["bank"], created="2026-03-02").card()
    others = [
        unsigned("bank", "clinic", "hospital"),
        unsigned(demo=True),
        unsigned(model_sha256=bytes(32)),
        unsigned(asked=Asked(threshold=4)),
        unsigned(asked=Asked(max_colluding=0)),
        unsigned(asked=Asked(server="semi-honest")),
        unsigned(allowed=Allowed(("rlwe", "ckks"))),
        unsigned(allowed=Allowed(min_bits=8)),
        unsigned(allowed=Allowed(max_examples=8)),
        dataclasses.replace(roster, coordinator=key_of("coordinator", 1).card()),
        dataclasses.replace(roster, sites=(key_of("bank", 1).card(), *roster.sites[1:])),
        dataclasses.replace(roster, sites=(redated, *roster.sites[1:])),
        dataclasses.replace(roster, sites=(*roster.sites[1:], key_of("zoo", 1).card())),
    ]
    everyone = [roster, *others]
    assert len({one.fingerprint() for one in everyone}) == len(everyone)
    assert len({one.content_sha256() for one in everyone}) == len(everyone)
    for one in everyone:
        assert len(one.fingerprint()) == 39
        assert [len(group) for group in one.fingerprint().split(" ")] == [4] * 8


def test_the_order_of_cards_and_schemes_means_nothing() -> None:
    allowed = [Allowed(("rlwe", "ckks")), Allowed(("ckks", "rlwe"))]
    one = unsigned(*NAMES, allowed=allowed[0])
    other = unsigned(*reversed(NAMES), allowed=allowed[1])
    assert one.content() == other.content()
    assert other.names() == NAMES


def test_the_rules_in_force_are_signed_not_the_way_to_ask_for_them() -> None:
    assert unsigned(asked=Asked(max_colluding=1, threshold=2)).content() == unsigned().content()


def test_what_the_coordinator_is_taken_for_is_signed_where_the_numbers_are_the_same() -> None:
    one, other = (unsigned(asked=Asked(threshold=3, votes=3, server=server)) for server in SERVERS)
    assert dataclasses.replace(one.rules(), server="semi-honest") == other.rules()
    assert one.content() != other.content()


def test_to_roster_is_bound_to_the_signed_content() -> None:
    roster = signed().to_roster()
    assert roster.names() == NAMES
    assert roster.sites == {name: CARDS[name].public for name in NAMES}
    assert roster.coordinator == CARDS["coordinator"].public
    assert roster.rules == resolve(4)
    assert roster.charter == signed().content_sha256()
    assert not roster.demo
    other = unsigned(allowed=Allowed(min_bits=8)).to_roster()
    assert other.sha256() != roster.sha256()


def test_every_scheme_of_a_plan_can_be_allowed() -> None:
    assert set(PLAN_SCHEMES) <= set(SCHEMES)
    assert "ONE site" in Allowed(("ckks",)).in_words()
    assert "NO protection" in Allowed(("plain",)).in_words()


# -- what a roster refuses -----------------------------------------------------------------------


def test_a_name_a_key_and_a_party_are_there_once() -> None:
    twice = key_of("bank", 3).card()
    assert "second card of bank" in refused(lambda: unsigned().with_cards([twice]))
    assert "second card of bank" in refused(lambda: unsigned().with_cards([CARDS["bank"]]))
    other = dataclasses.replace(KEYS["bank"], name="zoo").card()
    assert "same for bank and zoo" in refused(lambda: unsigned().with_cards([other]))
    other = dataclasses.replace(KEYS["coordinator"], name="zoo").card()
    assert "same for coordinator and zoo" in refused(lambda: unsigned().with_cards([other]))
    other = key_of("coordinator", 3).card()
    assert "second card of coordinator" in refused(lambda: unsigned().with_cards([other]))
    assert "expected a card named coordinator" in refused(lambda: SignedRoster(CARDS["bank"]))
    many = tuple(KeyFile.make(f"s{k}").card() for k in range(65))
    assert "at most 64 sites" in refused(lambda: SignedRoster(CARDS["coordinator"], many))


def test_too_few_sites_have_no_content() -> None:
    for roster in (SignedRoster(CARDS["coordinator"]), unsigned("bank")):
        assert "at least 2 sites" in refused(roster.content)
        assert "at least 2 sites" in refused(roster.check_ready)
        assert "at least 2 sites" in refused(roster.fingerprint)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"max_colluding": 3}, "--max-colluding: expected 0 to 2"),
        ({"threshold": 1}, "--threshold: expected 2 to 4"),
        ({"votes": 2}, "--votes: expected 3 to 4"),
        ({"min_cohort": 3}, "--min-cohort: expected 4 to 4 with membership fixed"),
        ({"membership": "open", "threshold": 2}, "--threshold: expected 3 to 4"),
        ({"membership": "open", "votes": 2}, "--votes: expected 3 to 4"),
        ({"membership": "open", "min_cohort": 2}, "--min-cohort: expected 3 to 4"),
        ({"membership": "any"}, "--membership: expected fixed, batches or open, got 'any'"),
        ({"min_cohort": 1}, "--min-cohort: expected 2 to 64"),
        ({"threshold": 0}, "--threshold: expected 1 to 64"),
        ({"server": "evil"}, "--server: expected malicious or semi-honest, got 'evil'"),
    ],
)
def test_unsafe_rules_are_refused_by_the_name_of_their_option(
    asked: dict[str, Any], says: str
) -> None:
    text = refused(lambda: unsigned(asked=Asked(**asked)).rules())
    assert text.startswith(says)
    assert "scheme." not in text


def test_two_sites_must_say_that_they_accept_it() -> None:
    assert "--max-colluding: expected 0 to 0" in refused(unsigned("bank", "clinic").rules)
    assert unsigned("bank", "clinic", asked=Asked(max_colluding=0)).rules().max_colluding == 0


# -- signatures ----------------------------------------------------------------------------------


def test_a_signed_roster_comes_back_from_its_file(tmp_path: Path) -> None:
    for roster in (
        SignedRoster(CARDS["coordinator"]),
        unsigned(asked=Asked(2, 4, 4, 4), allowed=Allowed(("ckks", "rlwe"), 8, 10**6)),
        signed(unsigned(model_sha256=bytes(range(32)), demo=True)),
    ):
        assert SignedRoster.read(written(tmp_path, roster)) == roster


def test_only_a_site_of_the_roster_signs_and_only_with_its_own_key() -> None:
    roster = unsigned("bank", "clinic", "hospital")
    text = refused(lambda: roster.countersigned(KEYS["school"], []))
    assert "expected your own key" in text
    assert "a roster without it" in text
    stranger = key_of("bank", 3)
    text = refused(lambda: roster.countersigned(stranger, []))
    assert "another key under the name bank: the card was exchanged" in text
    renamed = dataclasses.replace(KEYS["bank"], name="lab")
    assert "it under the name bank" in refused(lambda: roster.countersigned(renamed, []))
    text = refused(lambda: roster.countersigned(KEYS["coordinator"], []))
    assert "expected a site's key, got the coordinator's" in text


@pytest.mark.parametrize("name", ["bank", "coordinator", "school", "", "x" * 99, "\x1b[2J"])
def test_only_other_sites_can_be_confirmed(name: str) -> None:
    roster = unsigned("bank", "clinic", "hospital")
    text = refused(lambda: roster.countersigned(KEYS["bank"], ["clinic", name]))
    assert text.startswith("--confirm: expected other sites of the roster (clinic, hospital), got")


def by(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda value: value["countersignatures"][name]


def move(value: dict[str, Any], name: str, other: str) -> None:
    value["countersignatures"][other] = value["countersignatures"].pop(name)


FORGED = "expected one over this roster, got another"
CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "site left out": (
        lambda value: value["sites"].pop(),
        "countersignature of bank: expected other sites",
    ),
    "site left out, with its signature": (
        lambda value: (value["sites"].pop(), value["countersignatures"].pop("school")),
        "countersignature of bank: expected other sites",
    ),
    "site put in": (lambda value: value["sites"].append(key_of("zoo", 1).card().fields()), FORGED),
    "card exchanged": (
        lambda value: value["sites"].__setitem__(0, key_of("bank", 1).card().fields()),
        FORGED,
    ),
    "card changed": (
        lambda value: value["sites"][0].update(created="2026-03-02"),
        "card of bank: expected its own key's signature",
    ),
    "coordinator exchanged": (
        lambda value: value.update(coordinator=key_of("coordinator", 1).card().fields()),
        FORGED,
    ),
    "c raised": (lambda value: value["rules"].update(max_colluding=0), FORGED),
    "T raised": (lambda value: value["rules"].update(threshold=4), FORGED),
    "server": (lambda value: value["rules"].update(server="semi-honest"), FORGED),
    "scheme allowed": (lambda value: value["allowed"]["schemes"].append("plain"), FORGED),
    "floor moved": (lambda value: value["allowed"].update(min_bits=2), FORGED),
    "cap moved": (lambda value: value["allowed"].update(max_examples=2), FORGED),
    "model": (lambda value: value.update(model_sha256="00" * 32), FORGED),
    "made a demonstration": (lambda value: value.update(demonstration=True), FORGED),
    "confirmed taken away": (lambda value: by("bank")(value)["confirmed"].pop(), FORGED),
    "confirmed reordered": (
        lambda value: by("bank")(value)["confirmed"].reverse(),
        "each site once, in order",
    ),
    "confirmed twice": (
        lambda value: by("bank")(value)["confirmed"].insert(0, "clinic"),
        "each site once, in order",
    ),
    "confirmed surrogate": (
        lambda value: by("bank")(value)["confirmed"].append("\ud800"),
        "damaged JSON (not UTF-8)",
    ),
    "signature of another": (
        lambda value: by("bank")(value).update(signature=by("clinic")(value)["signature"]),
        FORGED,
    ),
    "signature zero": (lambda value: by("bank")(value).update(signature="00" * 64), FORGED),
    "signature by the coordinator": (
        lambda value: move(value, "bank", "coordinator"),
        "expected only sites of the roster, got 'coordinator'",
    ),
    "signature by a stranger": (
        lambda value: move(value, "bank", "zoo"),
        "expected only sites of the roster, got 'zoo'",
    ),
    "sites no list": (lambda value: value.update(sites={}), "sites: expected a list"),
    "site no card": (lambda value: value.update(sites=[7]), "sites.0: expected an object"),
    "two cards of one name": (
        lambda value: value["sites"].append(value["sites"][0]),
        "second card of bank",
    ),
    "number as text": (lambda value: value["rules"].update(threshold="3"), "rules.threshold:"),
    "number as truth": (lambda value: value["rules"].update(votes=True), "rules.votes: expected"),
    "number as float": (lambda value: value["rules"].update(votes=3.0), "rules.votes: expected"),
    "huge number": (lambda value: value["rules"].update(votes=10**4000), "--votes: expected 0"),
    "unknown server": (
        lambda value: value["rules"].update(server="x\x1b[2K"),
        "--server: expected",
    ),
    "unknown scheme": (lambda value: value["allowed"].update(schemes=["x"]), "--allow-scheme: "),
    "no scheme": (lambda value: value["allowed"].update(schemes=[]), "--allow-scheme: expected"),
    "scheme twice": (lambda value: value["allowed"].update(schemes=["rlwe"] * 2), "each once"),
    "schemes of numbers": (lambda value: value["allowed"].update(schemes=[1]), "a list of texts"),
    "demonstration as number": (lambda value: value.update(demonstration=1), "true or false"),
    "model as number": (lambda value: value.update(model_sha256=1), "model_sha256: expected 64"),
    "unknown key": (lambda value: value.update(x=1), "'x': unknown key"),
    "unknown rule": (lambda value: value["rules"].update(x=1), "'rules.x': unknown key"),
    "unknown allowed": (lambda value: value["allowed"].update(x=1), "'allowed.x': unknown key"),
    "unknown in a card": (lambda value: value["sites"][0].update(x=1), "sites.0.x': unknown key"),
    "unknown in a signature": (lambda value: by("bank")(value).update(x=1), "bank.x': unknown"),
    "rule missing": (lambda value: value["rules"].pop("votes"), "rules.votes: expected a whole"),
    "version": (lambda value: value.update(fedshield="roster 3"), "expected version 'roster 2'"),
    "less sealing": (lambda value: value.update(sealing=1), "sealing: expected 2 (ML-KEM-768 and"),
    "more sealing": (lambda value: value.update(sealing=3), "got 3; all parties need the same"),
    "huge sealing": (lambda value: value.update(sealing=10**4000), "got 10000000000000000000; all"),
    "no sealing": (lambda value: value.pop("sealing"), "sealing: expected a whole number"),
    "sealing as truth": (lambda value: value.update(sealing=True), "sealing: expected a whole"),
    "sealing as text": (lambda value: value.update(sealing="2"), "sealing: expected a whole"),
    "many sites": (lambda value: value.update(sites=[{}] * 65), "sites: expected at most 64"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_roster_is_refused(tmp_path: Path, what: str) -> None:
    change, says = CHANGES[what]
    path = changed(written(tmp_path, signed()), change)
    text = refused(lambda: SignedRoster.read(path))
    assert text.startswith(f"{path}: ")
    assert says in text


def test_a_roster_from_before_is_refused_and_says_what_to_do(tmp_path: Path) -> None:
    """Signed for X25519 alone, well, by every site: nobody signed for less here. With the new head
    its signatures do not fit."""
    roster = signed()
    value: Any = codec.decode(roster.content())
    content = codec.encode(["fedshield signed roster 1", *value[1:-1]])
    digest = hashlib.sha256(content).digest()

    def age(raw: dict[str, Any]) -> None:
        raw.update(fedshield="roster 1")
        del raw["sealing"]
        for name, given in raw["countersignatures"].items():
            message = ["fedshield countersignature 1", digest, name, given["confirmed"]]
            given["signature"] = KEYS[name].key.sign(codec.encode(message)).hex()

    path = changed(written(tmp_path, roster), age)
    text = refused(lambda: SignedRoster.read(path))
    assert "got one from before, for X25519 alone ('roster 1')" in text
    assert "fedshield roster add) and have every site sign it" in text
    changed(path, lambda raw: raw.update(fedshield="roster 2", sealing=2))
    assert FORGED in refused(lambda: SignedRoster.read(path))


def test_what_means_the_same_is_read_the_same(tmp_path: Path) -> None:
    path = written(tmp_path, signed())
    changed(path, lambda value: value["sites"].reverse())
    changed(path, lambda value: value.update(coordinator=value.pop("coordinator")))
    assert SignedRoster.read(path) == signed()


@pytest.mark.parametrize("part", range(1, 20))
def test_a_cut_roster_is_refused(tmp_path: Path, part: int) -> None:
    path = written(tmp_path, signed())
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) * part // 20])
    assert "damaged JSON" in refused(lambda: SignedRoster.read(path))


def test_a_large_roster_is_refused_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, signed())
    path.write_bytes(path.read_bytes() + b" " * files.MAX_BYTES["roster 2"])
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("parsed"))
    assert "at most 8388608 bytes" in refused(lambda: SignedRoster.read(path))


def test_the_largest_roster_fits(tmp_path: Path) -> None:
    names = [f"site-{k:02d}-with-a-name-of-31-chars"[:31] for k in range(64)]
    roster, _ = demonstration(names)
    assert SignedRoster.read(written(tmp_path, roster)) == roster


def test_signatures_of_one_roster_count_for_no_other(tmp_path: Path) -> None:
    old = signed(unsigned("bank", "clinic", "hospital"))
    given = old.countersignatures
    assert FORGED in refused(lambda: dataclasses.replace(unsigned(), countersignatures=given))
    grown = old.with_cards([CARDS["school"]])
    assert grown.countersignatures == {}
    assert grown.standing().unsigned == NAMES


def test_a_card_or_message_signature_is_no_countersignature() -> None:
    """Labels keep what one key signs apart."""
    card = CARDS["bank"]
    for signature in (card.signature, KEYS["bank"].key.sign(unsigned().content())):
        given = {"bank": Countersignature((), signature)}
        assert FORGED in refused(lambda given=given: unsigned(countersignatures=given))


# -- when it may be used -------------------------------------------------------------------------


def test_a_roster_that_everyone_confirmed_is_ready() -> None:
    standing = signed().check_ready(KEYS["bank"].key)
    assert standing.ready
    assert (standing.worst, standing.remaining, standing.missing()) == (0, 1, ())
    assert standing.in_words() == (
        "ready: every site confirmed every other: of c=1, 1 site may collude with the "
        "coordinator; 2 with its help can open single updates"
    )


def test_every_site_must_have_signed() -> None:
    roster = unsigned()
    for name in NAMES:
        text = refused(roster.check_ready)
        assert f"no countersignature of {', '.join(roster.standing().unsigned)}" in text
        assert not roster.standing().ready
        assert "NOT READY" in roster.standing().in_words()
        roster = roster.countersigned(KEYS[name], [other for other in NAMES if other != name])
    roster.check_ready()


@pytest.mark.parametrize("c", [0, 1, 2])
def test_unconfirmed_keys_count_towards_c(c: int) -> None:
    """From the viewpoint of the site that confirmed fewest: others' do not help it."""
    for left_out in range(4):
        roster = signed(unsigned(asked=Asked(max_colluding=c)))
        confirmed = ["bank", "clinic", "school"][left_out:]
        roster = roster.countersigned(KEYS["hospital"], confirmed)
        standing = roster.standing()
        assert standing.worst == left_out
        assert standing.remaining == c - left_out
        assert standing.ready is (left_out <= c)
        if left_out <= c:
            roster.check_ready()
            assert f"of c={c}, {c - left_out} " in standing.in_words()
            assert f"{c - left_out + 1} " in standing.in_words()
        else:
            text = refused(roster.check_ready)
            assert "hospital did not confirm bank" in text
            assert f"more than c={c}" in text
            assert "a channel that the coordinator does not carry" in text


def test_a_tolerance_that_is_used_up_is_said() -> None:
    roster = signed().countersigned(KEYS["hospital"], ["bank", "clinic"])
    assert roster.check_ready().in_words() == (
        "ready, with 1 site key unconfirmed at hospital (school), counted as colluding: of c=1, "
        "0 more sites may collude with the coordinator; 1 more with its help can open single "
        "updates"
    )


def test_signing_again_takes_the_place_of_the_first() -> None:
    roster = signed().countersigned(KEYS["bank"], [])
    assert roster.countersignatures["bank"].confirmed == ()
    assert not roster.standing().ready
    assert roster.countersigned(KEYS["bank"], NAMES[1:]) == signed()


# -- a coordinator that exchanges cards ----------------------------------------------------------


@pytest.fixture
def attack() -> tuple[SignedRoster, dict[str, KeyFile]]:
    """What a coordinator hands the clinic: everyone's key but its own exchanged, all signed."""
    fake = {name: key_of(name, 3 + at) for at, name in enumerate(NAMES)}
    sites = tuple(fake[name].card() for name in NAMES)
    return signed(SignedRoster(CARDS["coordinator"], sites), fake), fake


def test_exchanged_cards_with_fitting_signatures_are_caught_by_key_and_fingerprint(
    tmp_path: Path, attack: tuple[SignedRoster, dict[str, KeyFile]]
) -> None:
    roster, _ = attack
    # By itself all is well: signatures by keys inside the roster prove nothing.
    again = SignedRoster.read(written(tmp_path, roster))
    assert again.check_ready().remaining == 1
    # The people's comparison and the site's own key show it.
    assert again.fingerprint() != signed().fingerprint()
    assert again.to_roster().sha256() != signed().to_roster().sha256()
    for name in NAMES:
        text = refused(lambda name=name: again.check_ready(KEYS[name].key))
        assert "expected your own key" in text
        assert "do not sign or run with it" in text
        text = refused(lambda name=name: again.check_own(KEYS[name].key, name))
        assert "another key under the name" in text
    assert "another roster" in refused(lambda: again.check_fingerprint(signed().fingerprint()))


def test_all_keys_exchanged_but_ones_own_is_not_ready_without_ones_signature(
    attack: tuple[SignedRoster, dict[str, KeyFile]],
) -> None:
    """Own card found: what is left to the attacker is to forge this site's confirmation."""
    _, fake = attack
    sites = tuple(CARDS[name] if name == "clinic" else fake[name].card() for name in NAMES)
    roster = SignedRoster(CARDS["coordinator"], sites)
    for name in ("bank", "hospital", "school"):
        roster = roster.countersigned(fake[name], [other for other in NAMES if other != name])
    assert roster.check_own(KEYS["clinic"].key, "clinic") == "clinic"
    assert roster.fingerprint() != signed().fingerprint()
    text = refused(lambda: roster.check_ready(KEYS["clinic"].key))
    assert "no countersignature of clinic" in text
    # What the clinic signed over the true roster does not fit this one.
    true = signed().countersignatures["clinic"]
    given = {**roster.countersignatures, "clinic": true}
    assert FORGED in refused(lambda: dataclasses.replace(roster, countersignatures=given))
    # A clinic that signs without comparing gets no more than it confirmed.
    careless = roster.countersigned(KEYS["clinic"], [])
    assert "clinic did not confirm bank, hospital, school" in refused(careless.check_ready)


def test_fingerprints_are_compared_without_regard_to_spacing() -> None:
    fingerprint = unsigned().fingerprint()
    for text in (
        fingerprint,
        fingerprint.upper(),
        fingerprint.replace(" ", "-"),
        f" {fingerprint}",
    ):
        unsigned().check_fingerprint(text)
    for text in ("", fingerprint[:-1], fingerprint[:-1] + "g", fingerprint.split(" ")[0]):
        refused(lambda text=text: unsigned().check_fingerprint(text))


def test_check_own_finds_each_party_by_its_key() -> None:
    for name, key_file in KEYS.items():
        assert signed().check_own(key_file.key) == name
        assert signed().check_own(key_file.key, name) == name
    assert "a roster without it" in refused(lambda: signed().check_own(SigningKey()))


# -- merging -------------------------------------------------------------------------------------


def test_copies_that_sites_signed_are_put_together() -> None:
    roster = unsigned()
    for name in NAMES:
        others = [other for other in NAMES if other != name]
        roster = roster.merged(unsigned().countersigned(KEYS[name], others))
    assert roster == signed()
    less = unsigned().countersigned(KEYS["bank"], ["clinic"])
    assert roster.merged(less) == roster
    assert less.merged(roster) == roster


def test_a_copy_of_another_roster_is_refused() -> None:
    other = signed(unsigned(allowed=Allowed(min_bits=8)))
    text = refused(lambda: unsigned().merged(other))
    assert unsigned().fingerprint() in text
    assert other.fingerprint() in text


# -- demonstration -------------------------------------------------------------------------------


def test_a_demonstration_says_so_under_the_signatures(tmp_path: Path) -> None:
    roster = write_demonstration(tmp_path / "demo", ["bank", "clinic", "lab"])
    again = SignedRoster.read(tmp_path / "demo" / "roster.json")
    assert again == roster
    assert again.check_ready(KeyFile.read(tmp_path / "demo" / "lab.key").key).ready
    assert again.demo
    assert again.to_roster().demo
    assert FORGED in refused(lambda: dataclasses.replace(again, demo=False))
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    parties = ("bank", "clinic", "lab", "coordinator")
    assert names == {"roster.json"} | {
        f"{name}.{kind}" for name in parties for kind in ("key", "card.json")
    }
    assert [*tmp_path.iterdir()] == [tmp_path / "demo"]


@pytest.mark.parametrize(
    "sites", [["bank"], ["bank", "bank", "clinic"], ["coordinator", "a", "b"], ["A", "b", "c"], []]
)
def test_a_demonstration_that_cannot_be_leaves_nothing(tmp_path: Path, sites: list[str]) -> None:
    refused(lambda: write_demonstration(tmp_path / "demo", sites))
    assert [*tmp_path.iterdir()] == []


def test_a_demonstration_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").mkdir()
    text = refused(lambda: write_demonstration(tmp_path / "taken", ["a", "b", "c"]))
    assert "expected no folder there yet" in text
    text = refused(lambda: write_demonstration(tmp_path / "no" / "demo", ["a", "b", "c"]))
    assert "No such file" in text
    monkeypatch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_demonstration(tmp_path / "demo", ["a", "b", "c"])
    assert [*tmp_path.iterdir()] == [tmp_path / "taken"]


# -- a key in place of another -------------------------------------------------------------------


def replaced(old: KeyFile, start: int) -> KeyFile:
    """A new key of `old`'s party, signed by the old one; the same in every run."""
    made = KeyFile.make(old.name, old)
    fresh = SiteKey.from_bytes(bytes((start + k) % 256 for k in range(64)))
    link = old.key.sign(
        codec.encode(
            [
                *("fedshield replacement 1", old.name, old.key.public, old.created),
                *(fresh.public, made.created),
            ]
        )
    )
    chain = (*old.replaces, ReplacedKey(old.key.public, old.created, link))
    return KeyFile(old.name, made.created, fresh, chain)


def test_a_card_names_every_key_from_the_first_on() -> None:
    """What the old key signs is as docs/roster.md has it."""
    second = replaced(KEYS["bank"], 20)
    third = replaced(second, 40)
    card = third.card()
    assert card.first_public() == CARDS["bank"].public == CARDS["bank"].first_public()
    assert [old.public for old in card.replaces] == [KEYS["bank"].key.public, second.key.public]
    assert card.follows(CARDS["bank"])
    assert card.follows(second.card())
    assert not card.follows(card)
    assert not second.card().follows(card)
    assert not card.follows(CARDS["clinic"])


def test_a_key_file_and_a_card_keep_what_they_replace(tmp_path: Path) -> None:
    old, _ = keygen("bank", tmp_path / "old")
    key_path, card_path = keygen("bank", tmp_path / "new", old)
    again, last = keygen("bank", tmp_path / "third", key_path)
    first = KeyFile.read(old)
    assert KeyFile.read(key_path).card() == Card.read(card_path)
    assert Card.read(last).first_public() == first.key.public
    assert len(KeyFile.read(again).replaces) == 2
    # A card of a first key is what it was before there were replacements.
    assert "replaces" not in json.loads(first.card().to_text())
    before = sorted(tmp_path.rglob("*"))
    assert "expected a key file of clinic" in refused(lambda: keygen("clinic", tmp_path / "x", old))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("what", ["signature", "order", "other name", "itself", "date", "dropped"])
def test_a_chain_of_keys_that_does_not_hold_is_refused(what: str) -> None:
    third = replaced(replaced(KEYS["bank"], 20), 40)
    card = third.card()
    first, second = card.replaces
    chains = {
        "signature": (first, dataclasses.replace(second, signature=first.signature)),
        "order": (second, first),
        "other name": replaced(replaced(KEYS["clinic"], 20), 40).replaces,
        "itself": (first, dataclasses.replace(second, public=first.public)),
        "date": (dataclasses.replace(first, created="2026-3-1"), second),
        "dropped": (first,),
    }
    refused(lambda: dataclasses.replace(third, replaces=chains[what]).card())


def test_a_replaced_key_takes_its_partys_place_and_all_sign_again() -> None:
    new = replaced(KEYS["bank"], 20)
    roster = signed().with_replacement(new.card())
    assert roster.countersignatures == {}
    assert roster.names() == signed().names()
    assert roster.content_sha256() != signed().content_sha256()
    again = signed(roster, KEYS | {"bank": new})
    assert again.check_ready(new.key).ready
    assert again.to_roster().sites["bank"] == new.key.public
    assert "your own key" in refused(lambda: again.check_own(KEYS["bank"].key, "bank"))
    # Two at once, as for a site that missed a roster.
    assert signed().with_replacement(replaced(new, 40).card()).card("bank").replaces


def test_the_coordinators_key_is_replaced_too() -> None:
    new = replaced(KEYS["coordinator"], 20)
    roster = signed().with_replacement(new.card())
    assert roster.coordinator == new.card()
    assert roster.countersignatures == {}


def test_only_the_old_key_names_the_new_one() -> None:
    roster = signed()
    stranger = key_of("bank", 150).card()
    text = refused(lambda: roster.with_replacement(stranger))
    assert "that the key in the roster" in text
    assert "--key-lost" in text
    came = roster.with_replacement(stranger, key_lost=True)
    assert came.card("bank") == stranger
    assert came.countersignatures == {}
    assert "got the one that is in the roster" in refused(
        lambda: roster.with_replacement(CARDS["bank"])
    )
    assert "a new site is added by" in refused(
        lambda: roster.with_replacement(key_of("school2", 3).card())
    )
    # Nor may the old key come back, and nobody else may come with it.
    new = replaced(KEYS["bank"], 20)
    after = roster.with_replacement(new.card())
    refused(lambda: after.with_replacement(CARDS["bank"]))
    thief = KeyFile("thief", "2026-03-01", KEYS["bank"].key).card()
    assert "a key of its own" in refused(lambda: after.with_cards([thief]))


@pytest.mark.parametrize("name", ["server", "admin", "client", "all"])
def test_a_name_of_another_party_is_refused(tmp_path: Path, name: str) -> None:
    assert f"got {name!r}, which is" in refused(lambda: keygen(name, tmp_path))
    assert [*tmp_path.iterdir()] == []
