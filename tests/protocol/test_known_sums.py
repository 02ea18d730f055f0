"""The known answers of a whole sum: every random byte fixed, every value on the way compared."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sums import (
    NAMES,
    PACKING,
    SPEC,
    Ints,
    Sums,
    encoded,
    errors,
    update_layout,
)

from fedshield.crypto import shares as sharing
from fedshield.crypto.rlwe import scheme as rlwe
from fedshield.errors import ProtocolError
from fedshield.protocol.contexts import shares_digest, upload_digest, upload_record
from fedshield.protocol.wire import envelope, messages
from fedshield.site.ciphers import EncryptedSum, rlwe_layout
from fedshield.update.encode_integers import UPDATE_RESERVED

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "sums.json").read_text())


def sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def known(values: Ints) -> dict[str, Any]:
    raw = np.asarray(values).astype("<i8").tobytes()
    return {"first": np.asarray(values)[:8].tolist(), "sha256": sha256(raw)}


def known_boxes(found: dict[str, bytes]) -> dict[str, Any]:
    return {to: {"bytes": len(box), "sha256": sha256(box)} for to, box in found.items()}


def test_a_whole_sum_gives_the_known_answers(federation_of_sums: Sums) -> None:
    """tests/vectors/sums.json, made from the numpy reference path by scripts/make_sum_vectors.py:
    the live classes, with the same keys and random bytes, give every value of it."""
    ours, answers = federation_of_sums, VECTORS
    sites = {name: ours.site(name) for name in NAMES}
    layout = update_layout(SPEC, PACKING)
    rules = ours.roster.rules
    assert answers["rules"] == [
        rules.max_colluding, rules.threshold, rules.votes, rules.min_cohort,
    ]  # fmt: skip
    for name, value in answers["parameters"].items():
        assert getattr(PACKING, name) == value, name
    lay = rlwe_layout(PACKING, layout)
    assert answers["layout"].pop("sha256") == layout.sha256().hex()
    assert answers["layout"].pop("reserved_bits") == list(UPDATE_RESERVED.values())
    assert answers["layout"].pop("share_bytes") == sites["bank"]._shape(layout).num_bytes
    for name, value in answers["layout"].items():
        place = getattr(lay, name)
        assert (list(place) if isinstance(place, tuple) else place) == value, name
    assert answers["session_context"] == ours.session.context.hex()
    ours.begin(sites.values())
    for one in sites.values():
        assert one.binding.context.hex() == answers["context"]
        assert one.round_key().model_tag.hex() == answers["model_tag"]
    raw = {}
    for name, one in sites.items():
        expected = answers["sites"][name]
        assert sha256(one._key.public.to_bytes()) == expected["public_key_sha256"]
        digits = np.array(expected["digits"], dtype=np.int16)
        raw[name] = ours.contribute(one, encoded(digits, tuple(expected["reserved"])))
        upload, sealed = one._upload, one._sealed
        assert upload is not None
        assert sealed is not None
        seed = rlwe.derive_seed(
            bytes.fromhex(expected["random"]),
            digits,
            expected["reserved"],
            one.binding.context,
            layout.sha256(),
            bytes.fromhex(expected["site_secret"]),
        )
        digest = rlwe.message_digest(digits, expected["reserved"])
        shape = one._shape(layout)
        shares = sharing.deal(sealed.secret, sealed.residues, shape, sealed.share_seed)
        found = {
            "message_digest": digest.hex(),
            "seed": seed.hex(),
            "secret": known(sealed.secret),
            "errors": known(errors(rlwe.OneTimeKey(seed))),
            "chunk": {"first": one.fetch(0)[:16].hex(), "sha256": sha256(one.fetch(0))},
            "upload_digest": upload_digest(upload).hex(),
            "share_seed": sealed.share_seed.hex(),
            "residues": list(sealed.residues),
            "shares": [sha256(sharing.to_bytes(each)) for each in shares],
            "salt_key": hmac.digest(sealed.share_seed, b"salts", "sha256").hex(),
            "boxes": known_boxes(one.shares()),
            "shares_digest": shares_digest(upload).hex(),
            "upload_record": upload_record(upload).hex(),
        }
        for value_name, value in found.items():
            assert expected[value_name] == value, value_name
        assert upload.layout_tag.hex() == answers["layout_tag"]
    ours.hold(sites, raw)
    aggregate = ours.aggregate(sites.values())
    assert answers["aggregate"] == {
        "first": aggregate[:16].hex(),
        "sha256": sha256(aggregate),
    }
    announce = messages.Announce(raw, (hashlib.sha256(aggregate).digest(),))
    votes = {}
    for name, one in sites.items():
        vote = one.announce(announce)
        assert vote.contributors.hex() == answers["contributors_digest"]
        assert vote.aggregate.hex() == answers["aggregate_digest"]
        votes[name] = ours.signed(one, vote)
    given, tags = {}, {}
    for name, one in sites.items():
        answer = one.quorum(messages.Quorum(votes))
        given[name], tags[name] = answer.boxes, answer.tag
        found_tag = messages.AnswerTag.from_body(
            envelope.unseal(answer.tag, "answer-tag", one.binding, name, ours.roster.public(name))
        )
        assert found_tag.tag.hex() == answers["answers"][name]["tag"]
        assert known_boxes(given[name]) == answers["answers"][name]["boxes"]
        assert one._own_answer is not None
        assert sha256(sharing.to_bytes(one._own_answer)) == answers["answers"][name]["share"]
    for name, one in sites.items():
        one.deliver(messages.Deliver(0, aggregate))
        boxes = {holder: given[holder][name] for holder in NAMES if holder != name}
        opening = messages.Open(boxes, {holder: tags[holder] for holder in boxes})
        total = EncryptedSum([aggregate], layout, len(NAMES), one.binding.context)
        shares_opened = one._opened(opening, total, one._cipher)
        assert known(shares_opened.key_sum) == answers["key_sum"]
        assert list(shares_opened.residues) == answers["residue_sum"]
        steps_of_one = [(slice(0, 60), float(PACKING.max_digit))]
        opened = one.open(opening, steps_of_one)
        assert opened.values.tolist() == answers["opened"]["values"]
        ones, weight, loss = answers["opened"]["reserved"]
        assert dict(opened.reserved) == {
            "contributors": ones,
            "weight": weight * 2.0**-30,
            "loss": loss * 2.0**-20,
        }
    # The opened sum is the sum of the digits.
    total = sum(np.array(answers["sites"][name]["digits"]) for name in NAMES)
    assert total.tolist() == answers["opened"]["values"]


def test_a_changed_vote_is_refused_in_the_known_sum(federation_of_sums: Sums) -> None:
    """The same keys and bytes, one digit more at a site: no vote of the known sum fits."""
    ours = federation_of_sums
    sites = {name: ours.site(name) for name in NAMES}
    ours.begin(sites.values())
    raw = {}
    for name, one in sites.items():
        digits = np.array(VECTORS["sites"][name]["digits"], dtype=np.int16)
        digits[5] += name == "clinic"
        raw[name] = ours.contribute(one, encoded(digits, tuple(VECTORS["sites"][name]["reserved"])))
    ours.hold(sites, raw)
    aggregate = ours.aggregate(sites.values())
    vote = sites["bank"].announce(messages.Announce(raw, (hashlib.sha256(aggregate).digest(),)))
    old = messages.Vote(
        bytes.fromhex(VECTORS["contributors_digest"]),
        bytes.fromhex(VECTORS["aggregate_digest"]),
        b"",
    )
    assert vote.contributors != old.contributors
    assert vote.aggregate != old.aggregate
    votes = {
        name: envelope.seal("vote", sites[name].binding, name, old.to_body(), ours.keys[name].sign)
        for name in NAMES
    }
    with pytest.raises(ProtocolError) as caught:
        sites["bank"].quorum(messages.Quorum(votes))
    assert caught.value.code == "vote"
