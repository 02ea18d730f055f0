"""What both sides compute alike: rosters, joins, uploads and contexts."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from fedshield.crypto.keys import SigningKey
from fedshield.errors import ProtocolError
from fedshield.protocol import envelope, messages
from fedshield.protocol.envelope import Binding
from fedshield.protocol.roster import COORDINATOR, Roster
from fedshield.protocol.session import (
    read_joins,
    read_uploads,
    session_context,
    setup_context,
    upload_digest,
)

KEYS = {name: SigningKey() for name in ("bank", "clinic", "hospital")}
SERVER = SigningKey()
ROSTER = Roster({name: key.public for name, key in KEYS.items()}, SERVER.public, demo=True)
SETUP = Binding(setup_context("00" * 32, ROSTER, b"session"), 0, "setup")
JOINS = {
    name: messages.Join(bytes([number]) * 32, bytes([16 + number]) * 32, 0, 10 * number)
    for number, name in enumerate(KEYS, start=1)
}


def sign(name: str, message: messages.Message, binding: Binding = SETUP, by: str = "") -> bytes:
    return envelope.seal(message.kind, binding, name, message.to_body(), KEYS[by or name].sign)


def refused(raw: dict[str, bytes]) -> str:
    with pytest.raises(ProtocolError) as caught:
        read_joins(raw, SETUP, ROSTER)
    return caught.value.code


def test_roster_knows_its_members_only() -> None:
    assert ROSTER.names() == ("bank", "clinic", "hospital")
    assert ROSTER.public("bank") == KEYS["bank"].public
    assert ROSTER.public(COORDINATOR) == SERVER.public
    with pytest.raises(ProtocolError) as caught:
        ROSTER.public("stranger")
    assert caught.value.code == "sender"


def test_no_site_can_be_named_like_the_coordinator() -> None:
    """Else the coordinator's key would be taken for that site's, and it could join as one."""
    with pytest.raises(ProtocolError) as caught:
        Roster({COORDINATOR: SigningKey().public, "bank": bytes(32)}, SERVER.public, demo=True)
    assert caught.value.code == "sender"


def test_every_part_of_a_roster_is_under_its_hash() -> None:
    sites = dict(ROSTER.sites)
    others = [
        replace(ROSTER, sites={**sites, "bank": SigningKey().public}),
        replace(ROSTER, sites={name: sites[name] for name in ("bank", "clinic")}),
        replace(ROSTER, sites={"bank": sites["clinic"], **{k: sites[k] for k in ("hospital",)}}),
        replace(ROSTER, coordinator=SigningKey().public),
        replace(ROSTER, demo=False),
    ]
    hashes = {roster.sha256() for roster in (ROSTER, *others)}
    assert len(hashes) == 1 + len(others)
    assert Roster(dict(reversed(sites.items())), SERVER.public, True).sha256() == ROSTER.sha256()


def test_every_part_of_a_session_is_in_its_context() -> None:
    base = session_context(SETUP, JOINS)
    join = JOINS["bank"]
    found = [base, SETUP.context]
    for changed in (
        replace(join, nonce=bytes(32)),
        replace(join, run_key=bytes(32)),
        replace(join, num_examples=11),
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
    assert read_joins(raw, SETUP, ROSTER) == JOINS


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"bank": None}, "not-in-set"),
        ({"stranger": sign("bank", JOINS["bank"])}, "not-in-set"),
        ({"bank": sign("bank", JOINS["bank"], by="clinic")}, "signature"),
        ({"bank": sign("clinic", JOINS["bank"], by="bank")}, "sender"),
        ({"bank": sign("clinic", JOINS["clinic"])}, "signature"),
        ({"bank": sign("bank", JOINS["bank"], Binding(bytes(32), 0, "setup"))}, "context"),
        ({"bank": sign("bank", messages.Ready(bytes(32)))}, "kind"),
        ({"bank": sign("bank", replace(JOINS["bank"], nonce=bytes(31)))}, "size"),
        ({"bank": sign("bank", replace(JOINS["bank"], run_key=bytes(33)))}, "size"),
        ({"bank": sign("bank", replace(JOINS["bank"], num_examples=-1))}, "malformed"),
        ({"bank": sign("bank", replace(JOINS["bank"], completed_rounds=-1))}, "malformed"),
        ({"bank": sign("bank", replace(JOINS["bank"], nonce=JOINS["clinic"].nonce))}, "repeated"),
    ],
)
def test_joins_that_are_refused(change: dict[str, Any], code: str) -> None:
    raw = {name: sign(name, join) for name, join in JOINS.items()} | change
    assert refused({name: data for name, data in raw.items() if data is not None}) == code


def test_uploads_are_read_under_the_keys_of_their_names() -> None:
    upload = messages.Upload(b"key", b"tag", (bytes(32),))
    raw = {name: sign(name, upload) for name in KEYS}
    assert read_uploads(raw, SETUP, ROSTER) == dict.fromkeys(KEYS, upload)
    for name, data, code in (
        ("bank", raw["clinic"], "signature"),
        ("stranger", raw["bank"], "sender"),
        (COORDINATOR, raw["bank"], "signature"),
    ):
        with pytest.raises(ProtocolError) as caught:
            read_uploads({**raw, name: data}, SETUP, ROSTER)
        assert caught.value.code == code


def test_every_part_of_an_upload_is_in_its_digest() -> None:
    upload = messages.Upload(b"key", b"tag", (b"1", b"2"))
    others = [
        replace(upload, key_id=b"kez"),
        replace(upload, layout_tag=b"tah"),
        replace(upload, block_digests=(b"2", b"1")),
        replace(upload, block_digests=(b"12",)),
    ]
    assert len({upload_digest(one) for one in (upload, *others)}) == 5
