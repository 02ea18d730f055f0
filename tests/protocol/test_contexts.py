"""What both sides compute alike: rosters, joins, round keys, uploads, contexts and digests."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import Any

import pytest

from fedshield.crypto.keys import RunKey, SigningKey
from fedshield.errors import ProtocolError
from fedshield.plan.quorum import Rules, resolve
from fedshield.protocol.contexts import (
    aggregate_digest,
    contributors_digest,
    least_sites,
    read_joins,
    read_round_keys,
    read_uploads,
    round_context,
    session_context,
    setup_context,
    shares_digest,
    upload_digest,
    upload_record,
)
from fedshield.protocol.roster import COORDINATOR, Roster
from fedshield.protocol.wire import envelope, messages
from fedshield.protocol.wire.envelope import Binding

KEYS = {name: SigningKey() for name in ("bank", "clinic", "hospital")}
SERVER = SigningKey()
RULES = resolve(3)
ROSTER = Roster({name: key.public for name, key in KEYS.items()}, SERVER.public, RULES, demo=True)
SETUP = Binding(setup_context("00" * 32, ROSTER, b"session"), 0, "setup")
RUN_KEYS, SUM_KEYS = ({name: RunKey(bytes(32)).public for name in KEYS} for _ in range(2))
JOINS = {
    name: messages.Join(
        *(bytes([number]) * 32, RUN_KEYS[name].to_bytes(), 0, 10 * number),
        *(bytes(64), b"", {}, b"", 0),
    )
    for number, name in enumerate(KEYS, start=1)
}
SESSION = Binding(bytes(range(32)), 4, "round")
ROUND_KEYS = {name: messages.RoundKey(SUM_KEYS[name].to_bytes(), b"\x50" * 32, {}) for name in KEYS}
#: Another site's key in one half, and what nobody can seal to.
BAD_KEYS = {
    "the same": (lambda own, other: other.to_bytes(), "repeated"),
    "the same ML-KEM": (lambda own, other: other.mlkem + own.x25519, "repeated"),
    "the same X25519": (lambda own, other: own.mlkem + other.x25519, "repeated"),
    "low order": (lambda own, other: own.mlkem + bytes(32), "malformed"),
    "one": (lambda own, other: own.mlkem + (1).to_bytes(32, "little"), "malformed"),
    "not reduced": (lambda own, other: b"\xff" * 1184 + own.x25519, "malformed"),
    "halves swapped": (lambda own, other: own.x25519 + own.mlkem, "malformed"),
    "X25519 alone": (lambda own, other: own.x25519, "size"),
    "short": (lambda own, other: own.to_bytes()[:-1], "size"),
    "long": (lambda own, other: own.to_bytes() + b"\0", "size"),
    "none": (lambda own, other: b"", "size"),
}


def sign(name: str, message: messages.Message, binding: Binding = SETUP, by: str = "") -> bytes:
    return envelope.seal(message.kind, binding, name, message.to_body(), KEYS[by or name].sign)


def code_of(act: Callable[[], object]) -> str:
    with pytest.raises(ProtocolError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return caught.value.code


def with_changes(good: dict[str, bytes], change: dict[str, Any]) -> dict[str, bytes]:
    """`good` with other entries; None takes one out."""
    return {name: data for name, data in (good | change).items() if data is not None}


NUMBERS = ("num_sites", "max_colluding", "threshold", "votes", "min_cohort")


def test_roster_knows_its_members_only() -> None:
    assert ROSTER.names() == ("bank", "clinic", "hospital")
    assert ROSTER.public("bank") == KEYS["bank"].public
    # The coordinator is no site: what it signs in its own name counts for none.
    for name in ("stranger", COORDINATOR):
        with pytest.raises(ProtocolError) as caught:
            ROSTER.public(name)
        assert caught.value.code == "sender"


def test_no_two_parties_have_one_key() -> None:
    """One key under two names would vote twice."""
    for sites in (
        {"bank": bytes(32), "clinic": bytes(32)},
        {"bank": SERVER.public, "clinic": bytes(32)},
    ):
        with pytest.raises(ProtocolError, match="same key"):
            Roster(sites, SERVER.public, RULES, demo=True)


def test_no_site_can_be_named_like_the_coordinator() -> None:
    """Else the coordinator's key would be taken for that site's, and it could join as one."""
    with pytest.raises(ProtocolError) as caught:
        Roster({COORDINATOR: bytes(32), "bank": bytes(32)}, SERVER.public, RULES, demo=True)
    assert caught.value.code == "sender"


def test_every_part_of_a_roster_is_under_its_hash() -> None:
    sites = dict(ROSTER.sites)
    others = [
        replace(ROSTER, sites={**sites, "bank": SigningKey().public}),
        replace(ROSTER, sites={name: sites[name] for name in ("bank", "clinic")}),
        replace(ROSTER, sites={"bank": sites["clinic"], **{k: sites[k] for k in ("hospital",)}}),
        replace(ROSTER, coordinator=SigningKey().public),
        replace(ROSTER, demo=False),
        replace(ROSTER, charter=bytes(32)),
        replace(ROSTER, charter=b"\x01" * 32),
        *(replace(ROSTER, rules=replace(RULES, **{name: 9})) for name in NUMBERS),
        replace(ROSTER, rules=replace(RULES, server="semi-honest")),
        replace(ROSTER, rules=replace(RULES, membership="open")),
    ]
    assert {item.name for item in fields(Roster)} == {
        *("sites", "coordinator", "rules", "demo", "charter", "batches"),
        *("chains", "lineage"),  # both under the charter
    }
    assert {item.name for item in fields(Rules)} == {*NUMBERS, "server", "membership"}
    hashes = {roster.sha256() for roster in (ROSTER, *others)}
    assert len(hashes) == 1 + len(others)
    again = Roster(dict(reversed(sites.items())), SERVER.public, RULES, True)
    assert again.sha256() == ROSTER.sha256()


def test_the_batches_of_a_roster_are_under_its_hash() -> None:
    sites = {name: SigningKey().public for name in "abcdef"}
    rules = Rules(6, 1, 2, 3, 3, membership="batches")
    cuts = [(), (("a", "b", "d"), ("c", "e", "f")), (("a", "c", "e"), ("b", "d", "f"))]
    hashes = {Roster(sites, SERVER.public, rules, True, batches=cut).sha256() for cut in cuts}
    assert len(hashes) == len(cuts)
    backwards = Roster(sites, SERVER.public, rules, True, batches=(("f", "e", "d"), tuple("cba")))
    assert backwards.sha256() == Roster(sites, SERVER.public, rules, True).sha256()


def test_a_sites_place_is_that_of_its_name() -> None:
    """The share that a site holds is at x = index + 1, whatever order the roster was given in."""
    backwards = replace(ROSTER, sites=dict(reversed(ROSTER.sites.items())))
    for roster in (ROSTER, backwards):
        assert [roster.index(name) for name in ("bank", "clinic", "hospital")] == [0, 1, 2]


@pytest.mark.parametrize(
    ("rules", "least"),
    [
        (Rules(3, 1, 2, 2, 3), 3),
        (Rules(9, 2, 6, 6, 6), 6),
        (Rules(9, 2, 6, 8, 7), 8),
        (Rules(9, 3, 4, 0, 5, "semi-honest"), 5),
        (Rules(3, 0, 0, 3, 3), 3),
    ],
)
def test_a_sum_is_begun_with_as_many_sites_as_any_step_of_it_needs(
    rules: Rules, least: int
) -> None:
    assert least_sites(rules) == least


def test_every_part_of_a_session_is_in_its_context() -> None:
    base = session_context(SETUP, JOINS)
    join = JOINS["bank"]
    found = [base, SETUP.context]
    for changed in (
        replace(join, nonce=bytes(32)),
        replace(join, run_key=RUN_KEYS["bank"].mlkem + SUM_KEYS["bank"].x25519),
        replace(join, run_key=SUM_KEYS["bank"].mlkem + RUN_KEYS["bank"].x25519),
        replace(join, num_examples=11),
        replace(join, version=b"another"),
        replace(join, head=b"another"),
        replace(join, heads={"clinic": b"another"}),
    ):
        found.append(session_context(SETUP, {**JOINS, "bank": changed}))
    found.append(session_context(replace(SETUP, context=bytes(32)), JOINS))
    found.append(session_context(SETUP, {k: v for k, v in JOINS.items() if k != "bank"}))
    found.append(
        session_context(SETUP, {**JOINS, "bank": JOINS["clinic"], "clinic": JOINS["bank"]})
    )
    assert len(set(found)) == len(found)
    assert session_context(SETUP, dict(reversed(JOINS.items()))) == base


def test_the_setup_context_holds_plan_roster_and_session() -> None:
    other = replace(ROSTER, demo=False)
    arguments = itertools.product(("00" * 32, "01" * 32), (ROSTER, other), (b"1", b"2"))
    assert len({setup_context(*chosen) for chosen in arguments}) == 8


def test_joins_are_read() -> None:
    raw = {name: sign(name, join) for name, join in JOINS.items()}
    assert read_joins(raw, SETUP, ROSTER, 3, public=True) == JOINS
    two = {name: raw[name] for name in ("bank", "hospital")}
    assert read_joins(two, SETUP, ROSTER, 2, public=True) == {name: JOINS[name] for name in two}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"bank": None}, "cohort"),
        ({"stranger": sign("bank", JOINS["bank"])}, "sender"),
        ({COORDINATOR: sign("bank", JOINS["bank"])}, "sender"),
        ({"bank": sign("bank", JOINS["bank"], by="clinic")}, "signature"),
        ({"bank": sign("clinic", JOINS["bank"], by="bank")}, "sender"),
        ({"bank": sign("clinic", JOINS["clinic"])}, "signature"),
        ({"bank": sign("bank", JOINS["bank"], Binding(bytes(32), 0, "setup"))}, "context"),
        ({"bank": sign("bank", messages.Ready(bytes(32)))}, "kind"),
        ({"bank": sign("bank", replace(JOINS["bank"], nonce=bytes(31)))}, "size"),
        ({"bank": sign("bank", replace(JOINS["bank"], version=bytes(32)))}, "size"),
        ({"bank": sign("bank", replace(JOINS["bank"], num_examples=-1))}, "malformed"),
        ({"bank": sign("bank", replace(JOINS["bank"], completed_rounds=-1))}, "malformed"),
        ({"bank": sign("bank", replace(JOINS["bank"], nonce=JOINS["clinic"].nonce))}, "repeated"),
    ],
)
def test_joins_that_are_refused(change: dict[str, Any], code: str) -> None:
    good = {name: sign(name, join) for name, join in JOINS.items()}
    raw = with_changes(good, change)
    assert code_of(lambda: read_joins(raw, SETUP, ROSTER, 3, public=True)) == code


@pytest.mark.parametrize("what", BAD_KEYS)
def test_keys_that_nothing_may_be_sealed_to(what: str) -> None:
    """Of a session or a sum: malformed as FIPS 203, section 7.2, says, of low order, or another
    site's, each half alone."""
    change, code = BAD_KEYS[what]
    bad = change(RUN_KEYS["bank"], RUN_KEYS["clinic"])
    joins = {**JOINS, "bank": replace(JOINS["bank"], run_key=bad)}
    raw = {name: sign(name, join) for name, join in joins.items()}
    assert code_of(lambda: read_joins(raw, SETUP, ROSTER, 3, public=True)) == code
    bad = change(SUM_KEYS["bank"], SUM_KEYS["clinic"])
    keys = {name: round_key(name) for name in KEYS} | {"bank": round_key("bank", key=bad)}
    assert code_of(lambda: read_round_keys(keys, SESSION, ROSTER, 3)) == code


def round_key(name: str, binding: Binding = SESSION, by: str = "", **changes: Any) -> bytes:
    return sign(name, replace(ROUND_KEYS[name], **changes), binding, by)


def test_round_keys_are_read() -> None:
    raw = {name: round_key(name) for name in KEYS}
    assert read_round_keys(raw, SESSION, ROSTER, 3) == ROUND_KEYS
    two = {name: raw[name] for name in ("bank", "hospital")}
    assert read_round_keys(two, SESSION, ROSTER, 2) == {name: ROUND_KEYS[name] for name in two}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"bank": None}, "cohort"),
        ({"stranger": round_key("bank")}, "sender"),
        ({COORDINATOR: round_key("bank")}, "sender"),
        ({"bank": round_key("bank", by="clinic")}, "signature"),
        ({"bank": round_key("clinic")}, "signature"),
        ({"bank": round_key("clinic", by="bank")}, "sender"),
        ({"bank": round_key("bank", replace(SESSION, context=bytes(32)))}, "context"),
        ({"bank": round_key("bank", replace(SESSION, round_number=5))}, "round"),
        ({"bank": round_key("bank", replace(SESSION, phase="weights"))}, "round"),
        ({"bank": sign("bank", messages.Receipt(bytes(32), b""), SESSION)}, "kind"),
        ({"bank": round_key("bank", model_tag=b"")}, "size"),
    ],
)
def test_round_keys_that_are_refused(change: dict[str, Any], code: str) -> None:
    raw = with_changes({name: round_key(name) for name in KEYS}, change)
    assert code_of(lambda: read_round_keys(raw, SESSION, ROSTER, 3)) == code


def test_every_part_of_a_sum_is_in_its_context() -> None:
    base = round_context(SESSION, ROUND_KEYS)
    bank = ROUND_KEYS["bank"]
    found = [base, SESSION.context]
    mine, other = SUM_KEYS["bank"], RUN_KEYS["bank"]
    for change in (
        {"key": mine.mlkem + other.x25519},
        {"key": other.mlkem + mine.x25519},
        {"model_tag": bytes(32)},
    ):
        found.append(round_context(SESSION, {**ROUND_KEYS, "bank": replace(bank, **change)}))
    for change in ({"context": bytes(32)}, {"round_number": 5}, {"phase": "weights"}):
        found.append(round_context(replace(SESSION, **change), ROUND_KEYS))
    found.append(round_context(SESSION, {k: v for k, v in ROUND_KEYS.items() if k != "bank"}))
    swapped = {**ROUND_KEYS, "bank": ROUND_KEYS["clinic"], "clinic": bank}
    found.append(round_context(SESSION, swapped))
    found.append(round_context(SESSION, {**ROUND_KEYS, "dentist": bank}))
    assert len(set(found)) == len(found)
    assert round_context(SESSION, dict(reversed(ROUND_KEYS.items()))) == base
    # What a site is still bound to is advice to the coordinator, not part of the sum.
    bound = replace(bank, bound={"bank": b"", "clinic": b"", "hospital": b""})
    assert round_context(SESSION, {**ROUND_KEYS, "bank": bound}) == base


UPLOAD = messages.Upload(b"key", b"tag", (b"1", b"2"), {"clinic": b"3", "hospital": b"4"}, b"head")


def test_uploads_are_read_under_the_keys_of_their_names() -> None:
    raw = {name: sign(name, UPLOAD) for name in KEYS}
    assert read_uploads(raw, SETUP, ROSTER) == dict.fromkeys(KEYS, UPLOAD)
    two = {name: raw[name] for name in ("bank", "hospital")}
    assert set(read_uploads(two, SETUP, ROSTER)) == set(two)
    for name, data, code in (
        ("bank", raw["clinic"], "signature"),
        ("stranger", raw["bank"], "sender"),
        (COORDINATOR, raw["bank"], "sender"),
        ("bank", sign("bank", UPLOAD, SESSION), "context"),
        ("bank", sign("bank", messages.Ready(bytes(32))), "kind"),
    ):
        assert code_of(partial(read_uploads, {**raw, name: data}, SETUP, ROSTER)) == code


#: Which digest speaks of which field.
OF_BLOCKS = (
    replace(UPLOAD, key_id=b"kez"),
    replace(UPLOAD, layout_tag=b"tah"),
    replace(UPLOAD, block_digests=(b"2", b"1")),
    replace(UPLOAD, block_digests=(b"12",)),
    replace(UPLOAD, head=b"heae"),
)
OF_SHARES = (
    replace(UPLOAD, share_digests={}),
    replace(UPLOAD, share_digests={"clinic": b"3"}),
    replace(UPLOAD, share_digests={"clinic": b"4", "hospital": b"3"}),
    replace(UPLOAD, share_digests={"clinic": b"3", "hospitam": b"4"}),
)


def test_every_part_of_an_upload_is_in_its_digests() -> None:
    assert len({upload_digest(one) for one in (UPLOAD, *OF_BLOCKS)}) == 1 + len(OF_BLOCKS)
    assert {upload_digest(one) for one in OF_SHARES} == {upload_digest(UPLOAD)}
    assert len({shares_digest(one) for one in (UPLOAD, *OF_SHARES)}) == 1 + len(OF_SHARES)
    assert {shares_digest(one) for one in OF_BLOCKS} == {shares_digest(UPLOAD)}
    everything = (UPLOAD, *OF_BLOCKS, *OF_SHARES)
    assert len({upload_record(one) for one in everything}) == len(everything)


def test_every_part_of_the_set_is_in_its_digest() -> None:
    base = {"bank": UPLOAD, "clinic": OF_BLOCKS[0]}
    sets = [
        base,
        {"bank": UPLOAD},
        {"bank": OF_BLOCKS[0], "clinic": UPLOAD},
        {"bank": UPLOAD, "clinic": UPLOAD},
        {"bank": UPLOAD, "dentist": OF_BLOCKS[0]},
        {**base, "hospital": UPLOAD},
        *({**base, "bank": other} for other in (*OF_BLOCKS[1:], *OF_SHARES)),
    ]
    assert len({contributors_digest(one) for one in sets}) == len(sets)
    assert contributors_digest(dict(reversed(base.items()))) == contributors_digest(base)


def test_the_aggregate_is_its_blocks_in_order() -> None:
    found = [(b"1", b"2"), (b"2", b"1"), (b"12",), (b"1",), (b"1", b"2", b""), ()]
    assert len({aggregate_digest(one) for one in found}) == len(found)


@pytest.mark.parametrize(("public", "count"), [(False, 10), (False, 1), (True, 0)])
def test_a_count_is_in_a_join_with_public_weights_only(public: bool, count: int) -> None:
    joins = JOINS if public else {n: replace(j, num_examples=0) for n, j in JOINS.items()}
    given = {name: sign(name, join) for name, join in joins.items()}
    assert read_joins(given, SETUP, ROSTER, 3, public=public) == joins
    other = replace(joins["clinic"], num_examples=count)
    given["clinic"] = sign("clinic", other)
    assert code_of(lambda: read_joins(given, SETUP, ROSTER, 3, public=public)) == "malformed"
