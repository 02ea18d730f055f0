"""Write the known answers of one whole sum under rlwe to tests/vectors/sums.json.

    python scripts/make_sum_vectors.py

Three sites, every key and every random byte fixed, composed step by step from the numpy
reference path; tests/protocol/test_known_sums.py has live sums give the same. Run it only when the
format changes on purpose: a change of this file is a change of protocol.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fedshield.crypto import shares as sharing
from fedshield.crypto.rlwe import sampling
from fedshield.crypto.rlwe import scheme as rlwe
from fedshield.crypto.rlwe.adder import RlweAdder
from fedshield.crypto.rlwe.layout import RlweLayout
from fedshield.crypto.rlwe.params import RING_DEGREE
from fedshield.crypto.scheme import rlwe_parameters
from fedshield.plan.quorum import resolve
from fedshield.protocol.channels import ANSWER, SHARE
from fedshield.protocol.contexts import (
    aggregate_digest,
    contributors_digest,
    round_context,
    shares_digest,
    upload_digest,
    upload_record,
)
from fedshield.protocol.participant_sum import tag
from fedshield.protocol.wire import messages
from fedshield.protocol.wire.envelope import Binding
from fedshield.site.schemes import share_shape
from fedshield.types import AdapterSpec, Selection, TensorSpec
from fedshield.update.encode_integers import UPDATE_RESERVED, update_layout

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))

from reference.seal import Keys, sealed  # noqa: E402

OUT = TESTS / "vectors" / "sums.json"
SITES = ("bank", "clinic", "hospital")
SPEC = AdapterSpec((TensorSpec("a", (6, 7)), TensorSpec("b", (6, 3))), "00" * 32, 2.0)
EVERYTHING = Selection(np.arange(SPEC.num_values, dtype=np.int64), SPEC)
#: What the sites agree on before a sum, in place of a model and its clips.
AGREED = b"a model and its clips"
#: What every site encapsulates, in place of random bytes.
MESSAGE = b"\7" * 32


def fixed(label: str) -> bytes:
    """32 bytes that a label names."""
    return hashlib.sha256(b"fedshield sum vectors " + label.encode()).digest()


def sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def box(made: bytes) -> dict[str, Any]:
    return {"bytes": len(made), "sha256": sha256(made)}


def integers(values: Any) -> dict[str, Any]:
    """The first few, and SHA-256 over all as little-endian 64-bit integers."""
    return {"first": values[:8].tolist(), "sha256": sha256(values.astype("<i8").tobytes())}


def known_sum() -> dict[str, Any]:
    rules = resolve(len(SITES))
    packing = rlwe_parameters(len(SITES), 16, False)
    layout = update_layout(EVERYTHING.sha256(), EVERYTHING.size, packing)
    lay = RlweLayout(packing, layout.num_values, tuple(UPDATE_RESERVED.values()))
    limit = packing.site_limit(1 / len(SITES))
    shape = share_shape(packing, layout, rules)
    group_key = fixed("group key")
    session = Binding(fixed("session"), 1, "round")
    model_tag = tag(group_key, session, b"model", AGREED)
    random_of = {site: fixed(f"round key {site}") + fixed(f"more {site}") for site in SITES}
    keys = {site: Keys.derived(random_of[site], fixed(f"site secret {site}")) for site in SITES}
    context = round_context(
        session, {site: messages.RoundKey(keys[site].public, model_tag, {}) for site in SITES}
    )

    def through(sender: str, receiver: str, content: bytes, purpose: str, about: bytes) -> Any:
        return sealed(
            keys[sender],
            keys[receiver],
            MESSAGE,
            content,
            purpose=purpose,
            context=context,
            names=(sender, receiver),
            associated=about,
            salt_key=salt_keys[sender],
        )

    binding = Binding(context, 1, "round")
    tag_seed = hmac.digest(group_key, b"fedshield tag 1" + context, "sha256")
    layout_tag = tag(group_key, binding, b"layout", layout.sha256())

    sites: dict[str, Any] = {}
    uploads: dict[str, messages.Upload] = {}
    chunks: dict[str, bytes] = {}
    shares: dict[str, list[sharing.Share]] = {}
    salt_keys: dict[str, bytes] = {}
    secrets: dict[str, Any] = {}
    for number, site in enumerate(SITES):
        place = np.arange(layout.num_values)
        digits = ((7919 * place * (number + 1) + place * place) % (2 * limit + 1)) - limit
        digits[:2] = limit, -limit
        digits = digits.astype(np.int16)
        reserved = (1, (1 << 30) // 3, 1000 + number)
        random, site_secret = fixed(f"random {site}"), fixed(f"site secret {site}")
        seed = rlwe.derive_seed(random, digits, reserved, context, layout.sha256(), site_secret)
        key = rlwe.OneTimeKey(seed)
        secrets[site] = key.secret(fast=False)
        errors = sampling.binomial(seed, rlwe.ERROR, 8 * RING_DEGREE, fast=False)[:RING_DEGREE]
        made = rlwe.Encryption(digits, reserved, key, context, lay, tag_seed, fast=False)
        (chunks[site],) = made.chunks()
        residues = made.residues()
        unshared = messages.Upload(
            key_id=bytes(16),
            layout_tag=layout_tag,
            block_digests=(hashlib.sha256(chunks[site]).digest(),),
            share_digests={},
            head=fixed(f"head {site}"),
        )
        share_seed = hmac.digest(seed, b"fedshield shares 2", "sha256")
        shares[site] = sharing.deal(secrets[site], residues, shape, share_seed)
        salt_keys[site] = hmac.digest(share_seed, b"salts", "sha256")
        boxes: dict[str, bytes] = {}
        for index, to in enumerate(SITES):
            if to != site:
                share = sharing.to_bytes(shares[site][index])
                sent = through(site, to, share, SHARE, upload_digest(unshared))
                boxes[to] = sent.ciphertext + sent.box
        uploads[site] = messages.Upload(
            unshared.key_id,
            unshared.layout_tag,
            unshared.block_digests,
            {to: hashlib.sha256(one).digest() for to, one in boxes.items()},
            unshared.head,
        )
        sites[site] = {
            "key_random": random_of[site].hex(),
            "public_key_sha256": sha256(keys[site].public),
            "random": random.hex(),
            "site_secret": site_secret.hex(),
            "head": unshared.head.hex(),
            "digits": digits.tolist(),
            "reserved": reserved,
            "message_digest": rlwe.message_digest(digits, reserved).hex(),
            "seed": seed.hex(),
            "secret": integers(secrets[site]),
            "errors": integers(errors),
            "chunk": {"first": chunks[site][:16].hex(), "sha256": sha256(chunks[site])},
            "upload_digest": upload_digest(uploads[site]).hex(),
            "residues": residues,
            "share_seed": share_seed.hex(),
            "shares": [sha256(sharing.to_bytes(one)) for one in shares[site]],
            "salt_key": salt_keys[site].hex(),
            "boxes": {to: box(one) for to, one in boxes.items()},
            "shares_digest": shares_digest(uploads[site]).hex(),
            "upload_record": upload_record(uploads[site]).hex(),
        }

    adder, total = RlweAdder(packing, fast=False), None
    for site in SITES:
        total = adder.add(total, chunks[site])
    assert total is not None
    aggregate = adder.result(total)
    vote = messages.Vote(
        contributors_digest(uploads), aggregate_digest((hashlib.sha256(aggregate).digest(),)), b""
    )
    answers: dict[str, Any] = {}
    held: dict[int, sharing.Share] = {}
    for index, holder in enumerate(SITES):
        held[index] = sharing.add([shares[dealer][index] for dealer in SITES], shape)
        content = sharing.to_bytes(held[index])
        answers[holder] = {
            "share": sha256(content),
            "tag": tag(group_key, binding, b"answer", content).hex(),
            "boxes": {
                to: box(
                    through(
                        holder,
                        to,
                        content,
                        ANSWER,
                        vote.about,
                    ).box
                )
                for to in SITES
                if to != holder
            },
        }
    found = sharing.open_sum(held, shape, len(SITES))
    key_sum = found.key_sum
    assert np.array_equal(key_sum, sum(secrets.values()))
    opened = rlwe.open_sum(
        [aggregate], key_sum, found.residues, 3, context, lay, tag_seed, fast=False
    )
    return {
        "rules": [rules.max_colluding, rules.threshold, rules.votes, rules.min_cohort],
        "parameters": {
            "name": packing.name,
            "q": packing.q,
            "radix": packing.radix,
            "digits": packing.digits,
            "delta": packing.delta,
            "dropped": packing.dropped,
            "word_bits": packing.word_bits,
            "sum_word_bits": packing.sum_word_bits,
        },
        "layout": {
            "sha256": layout.sha256().hex(),
            "reserved_bits": lay.reserved_bits,
            "num_coefficients": lay.num_coefficients,
            "num_tags": lay.num_tags,
            "share_bytes": shape.num_bytes,
        },
        "session_context": session.context.hex(),
        "group_key": group_key.hex(),
        "agreed": AGREED.hex(),
        "encapsulated": MESSAGE.hex(),
        "model_tag": model_tag.hex(),
        "context": context.hex(),
        "tag_seed": tag_seed.hex(),
        "layout_tag": layout_tag.hex(),
        "sites": sites,
        "aggregate": {"first": aggregate[:16].hex(), "sha256": sha256(aggregate)},
        "contributors_digest": vote.contributors.hex(),
        "aggregate_digest": vote.aggregate.hex(),
        "answers": answers,
        "key_sum": integers(key_sum),
        "residue_sum": found.residues,
        "opened": {"values": opened.values.tolist(), "reserved": opened.reserved},
    }


def main() -> None:
    text = json.dumps(known_sum(), indent=1)
    # Lists of numbers on one line each.
    text = re.sub(r"\[[-\d,\s]+\]", lambda found: json.dumps(json.loads(found[0])), text)
    OUT.write_text(text + "\n", encoding="utf-8")
    print(OUT.name)


if __name__ == "__main__":
    main()
