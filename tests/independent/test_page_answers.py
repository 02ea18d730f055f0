"""The independent site's parts against the known answers of tests/vectors, which the page names."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import page_wire
import pytest
from page_seal import SealKey, receiving
from page_shares import Shape, add_shares, deal
from page_streams import (
    Stream,
    binomial,
    coefficients,
    matrix,
    pack,
    packing,
    roots,
    tags,
    transformed,
    unpack,
)
from page_sum import encrypt, message_of, open_sum
from page_sum_of_site import tag
from page_wire import Binding, Refused, decode, encode, sha256

VECTORS = Path(__file__).parents[1] / "vectors"


def read(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))


SUMS, RLWE, SEAL, ENVELOPE = read("sums"), read("rlwe"), read("seal"), read("envelope")
CONTEXT, GROUP_KEY = bytes.fromhex(SUMS["context"]), bytes.fromhex(SUMS["group_key"])
SHAPE = Shape(packing(3, 16, False), len(SUMS["opened"]["values"]), 3, 3, 2)


def plain(value: Any) -> Any:
    """A value of codec.json."""
    if isinstance(value, dict):
        if "bytes" in value:
            return bytes.fromhex(value["bytes"])
        return {key: plain(one) for key, one in value["map"].items()}
    return [plain(one) for one in value] if isinstance(value, list) else value


def test_encoding() -> None:
    for case in read("codec")["valid"]:
        raw = bytes.fromhex(case["hex"])
        assert (encode(plain(case["value"])), decode(raw)) == (raw, plain(case["value"]))
    for case in read("codec")["refused"]:
        with pytest.raises(Refused):
            decode(bytes.fromhex(case["hex"]))


def test_contexts_and_digests() -> None:
    given = ENVELOPE["contexts"]
    roster = bytes.fromhex(given["roster"])
    parts = [bytes.fromhex(given[name]) for name in ("plan_sha256", "session_id")]
    setup = page_wire.setup_context(parts[0], roster, parts[1])
    assert setup.hex() == given["setup"]
    joins = {site: unhexed("join", join) for site, join in given["joins"].items()}
    session = page_wire.session_context(setup, joins)
    assert session.hex() == given["session"]
    keys = {site: unhexed("round-key", key) for site, key in given["round_keys"].items()}
    of = Binding(session, given["round"], given["phase"])
    assert page_wire.sum_context(of, keys).hex() == given["sum"]
    digests = ENVELOPE["digests"]
    uploads = {site: unhexed("upload", one) for site, one in digests["uploads"].items()}
    for site, upload in uploads.items():
        assert page_wire.upload_digest(upload).hex() == digests["upload"][site]
        assert page_wire.shares_digest(upload).hex() == digests["shares"][site]
        assert page_wire.upload_record(upload).hex() == digests["record"][site]
    assert page_wire.contributors_digest(uploads).hex() == digests["contributors"]
    blocks = [bytes.fromhex(one) for one in digests["block_digests"]]
    assert page_wire.aggregate_digest(blocks).hex() == digests["aggregate"]


def unhexed(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    """A body whose bytes are in hex."""
    found: dict[str, Any] = {}
    for name, wanted in page_wire.MESSAGES[kind].items():
        value = body[name]
        if wanted is dict:
            value = {key: bytes.fromhex(one) for key, one in value.items()}
        elif wanted is list:
            value = [bytes.fromhex(one) for one in value]
        elif wanted is bytes:
            value = bytes.fromhex(value)
        found[name] = value
    return found


def test_boxes() -> None:
    keys = {
        name: SealKey(bytes.fromhex(one["random"]), bytes.fromhex(one["site_secret"]))
        for name, one in SEAL["keys"].items()
    }
    for name, one in SEAL["keys"].items():
        assert keys[name].public.hex() == one["public"]
    for box in SEAL["boxes"]:
        sender, receiver = names = tuple(box["names"])
        context, ciphertext = bytes.fromhex(box["context"]), bytes.fromhex(box["ciphertext"])
        channel = receiving(keys[receiver], names, keys[sender].public, context, ciphertext)
        purpose, associated = box["purpose"], bytes.fromhex(box["associated"])
        assert channel.open(bytes.fromhex(box["box"]), purpose, associated).hex() == box["content"]
        salt_key, content = bytes.fromhex(box["salt_key"]), bytes.fromhex(box["content"])
        assert channel.seal(content, purpose, associated, salt_key).hex() == box["box"]
        with pytest.raises(Refused):
            channel.open(bytes.fromhex(box["box"]), purpose, associated + b"\0")


def test_streams_and_ring() -> None:
    for case in RLWE["stream"]:
        stream = Stream(case["label"].encode(), bytes.fromhex(case["seed"]), case["index"])
        assert stream.numbers("<u8", 4).tolist() == case["first_words"]
    for case in RLWE["matrix"]:
        blocks = matrix(bytes.fromhex(case["context"]), case["q"], 8 * case["group"] + 8)
        numbers = np.stack(blocks[-8:], axis=1).reshape(-1).tolist()
        assert (numbers[:4], numbers[-4:]) == (case["first"], case["last"])
        again = Stream(b"matrix-again", bytes.fromhex(case["context"]), case["group"])
        assert again.residues(case["q"], 2).tolist() == case["again"]
    for case in RLWE["binomial"]:
        stream = Stream(case["label"].encode(), bytes.fromhex(case["seed"]), 0)
        numbers = binomial(stream, case["count"]).tolist()
        assert (numbers[:16], numbers[-16:]) == (case["first"], case["last"])
        assert sum(numbers) == case["sum"]
    for case in RLWE["transform"]:
        values = np.zeros(4096, dtype=np.int64)
        for place, value in case["input"]:
            values[place] = value
        found = transformed(values, case["q"])
        assert (int(roots(case["q"])[0][1]), found[:4].tolist()) == (case["root"], case["first"])
        np.testing.assert_array_equal(coefficients(found, case["q"]), values)


def test_packings() -> None:
    for case in RLWE["encrypt"]:
        found = packing(case["sites"], case["bits"], case["headroom"])
        values = [found.q, found.radix, found.digits, found.delta, found.dropped]
        assert values == case["parameters"]
    words = np.random.default_rng(1).integers(0, 2**37, 4096)
    np.testing.assert_array_equal(unpack(pack(words, 37), 37), words)


def test_shares_of_residues() -> None:
    for case in read("shamir")["residues"]:
        small = SHAPE.packing._replace(q=case["q"])
        shape = Shape(small, 0, 0, case["holders"], case["threshold"])
        none = np.zeros(4096, dtype=np.int64)
        dealt = deal(none, case["values"], shape, bytes.fromhex(case["seed"]))
        found = [np.frombuffer(one[4 * 1366 :], dtype="<u8").tolist() for one in dealt]
        if case["holders"] <= 12:
            assert found == case["shares"]


def made() -> tuple[dict[str, Any], dict[int, bytes]]:
    """Of each site of sums.json its upload; of each holder its answer."""
    uploads = {
        name: encrypt(
            np.array(site["digits"]),
            site["reserved"],
            SHAPE,
            CONTEXT,
            GROUP_KEY,
            bytes.fromhex(site["seed"]),
        )
        for name, site in SUMS["sites"].items()
    }
    dealt = [deal(one.secret, one.residues, SHAPE, one.share_seed) for one in uploads.values()]
    answers = {k + 1: add_shares([one[k] for one in dealt], SHAPE) for k in range(3)}
    return uploads, answers


def test_a_whole_sum() -> None:
    uploads, answers = made()
    for name, site in SUMS["sites"].items():
        upload = uploads[name]
        assert sha256(*upload.chunks).hex() == site["chunk"]["sha256"]
        assert list(upload.residues) == site["residues"]
        assert upload.share_seed.hex() == site["share_seed"]
        shares = deal(upload.secret, upload.residues, SHAPE, upload.share_seed)
        assert [sha256(share).hex() for share in shares] == site["shares"]
        digits = np.array(site["digits"])
        seed = bytes.fromhex(SUMS["tag_seed"])
        wanted = tags(seed, SHAPE.packing.q, message_of(digits, SHAPE), site["reserved"])
        assert wanted == site["residues"][3:]
    for k, name in enumerate(sorted(SUMS["answers"])):
        wanted = SUMS["answers"][name]
        assert sha256(answers[k + 1]).hex() == wanted["share"]
        found = tag(GROUP_KEY, "answer tag", Binding(CONTEXT, 1, "round"), answers[k + 1])
        assert found.hex() == wanted["tag"]


def chunks_summed(uploads: dict[str, Any]) -> list[bytes]:
    p = SHAPE.packing
    words = sum(unpack(one.chunks[0], p.word_bits) for one in uploads.values())
    chunk = pack(words, p.sum_bits)
    assert hashlib.sha256(chunk).hexdigest() == SUMS["aggregate"]["sha256"]
    return [chunk]


@pytest.mark.parametrize("answering", [(1, 2, 3), (1, 3), (2, 3)])
def test_opening(answering: tuple[int, ...]) -> None:
    uploads, answers = made()
    some = {x: answers[x] for x in answering}
    values, reserved = open_sum(chunks_summed(uploads), some, SHAPE, CONTEXT, GROUP_KEY, 3, 1)
    assert values.tolist() == SUMS["opened"]["values"]
    assert reserved == SUMS["opened"]["reserved"]


def test_wrong_answers() -> None:
    """A wrong key of one is found by trying; a wrong residue of one of three is only seen."""
    uploads, answers = made()
    chunks = chunks_summed(uploads)
    wrong = bytes([answers[2][0] ^ 1]) + answers[2][1:]
    given = answers | {2: wrong}
    values, _ = open_sum(chunks, given, SHAPE, CONTEXT, GROUP_KEY, 3, 1)
    assert values.tolist() == SUMS["opened"]["values"]
    last = answers[2][:-8] + bytes([answers[2][-8] ^ 1]) + answers[2][-7:]
    for bad, code in (({2: last}, "key-sum"), ({1: wrong[::-1]}, ".")):
        with pytest.raises(Refused, match=code):
            open_sum(chunks, answers | bad, SHAPE, CONTEXT, GROUP_KEY, 3, 1)
    with pytest.raises(Refused, match="residual"):
        open_sum(chunks, {1: answers[1], 2: wrong}, SHAPE, CONTEXT, GROUP_KEY, 3, 1)
    with pytest.raises(Refused, match="few"):
        open_sum(chunks, {1: answers[1]}, SHAPE, CONTEXT, GROUP_KEY, 3, 1)
