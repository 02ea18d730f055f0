"""A cloned machine: two processes with the same memory, keys and random bytes to come.

The same input must then give the same bytes; any other vector, context, layout or answer must
come under another key, so that no two ciphertexts can be taken from one another. Last, the known
answers of a whole sum: every random byte fixed, every value on the way compared.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import NoLedger, RepeatingPublicKey
from fedshield.crypto import keys as keys_module
from fedshield.crypto import seal as seal_module
from fedshield.crypto import shamir
from fedshield.crypto import shares as sharing
from fedshield.crypto.keys import RunKey, SigningKey
from fedshield.crypto.rlwe import reference, sampling
from fedshield.crypto.rlwe import scheme as rlwe
from fedshield.crypto.rlwe.adder import RlweAdder
from fedshield.crypto.rlwe.params import RING_DEGREE, RlweParameters
from fedshield.crypto.scheme import rlwe_parameters
from fedshield.crypto.seal import CIPHERTEXT_BYTES
from fedshield.errors import ProtocolError, RoundFailed
from fedshield.plan.quorum import resolve
from fedshield.protocol.contexts import shares_digest, upload_digest, upload_record
from fedshield.protocol.journal import Journal
from fedshield.protocol.participant_sum import Member, Summation
from fedshield.protocol.roster import Roster
from fedshield.protocol.wire import envelope, messages
from fedshield.protocol.wire.envelope import Binding
from fedshield.site.schemes import EncryptedUpdate, OneTimeKeys, rlwe_layout
from fedshield.types import AdapterSpec, EncodedIntegers, Layout, Selection, TensorSpec
from fedshield.update import encode_integers
from fedshield.update.encode_integers import UPDATE_RESERVED

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "sums.json").read_text())
NAMES = ("bank", "clinic", "hospital")
SPEC = AdapterSpec((TensorSpec("a", (6, 7)), TensorSpec("b", (6, 3))), "00" * 32, 2.0)
PACKING = rlwe_parameters(3, 16, False)
LIMIT = PACKING.site_limit(1 / 3)
CONTEXT = hashlib.sha256(b"one context").digest()
RANDOM = hashlib.sha256(b"the clones' random bytes").digest()

Ints = np.ndarray[Any, Any]


def update_layout(spec: AdapterSpec, packing: RlweParameters) -> Layout:
    """Of an update of which all coordinates travel."""
    all_of_it = Selection(np.arange(spec.num_values, dtype=np.int64), spec)
    return encode_integers.update_layout(all_of_it.sha256(), spec.num_values, packing)


def vector(number: int, size: int = SPEC.num_values) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.random.default_rng(number).integers(-LIMIT, LIMIT + 1, size).astype(np.int16)


def encoded(
    digits: Ints, reserved: tuple[int, ...] = (1, 2**28, 7), layout: Layout | None = None
) -> EncodedIntegers:
    zeros = np.zeros(digits.size, dtype=np.float32)
    return EncodedIntegers(digits, reserved, layout or update_layout(SPEC, PACKING), 0, zeros)


@pytest.fixture
def same_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator of every clone gives the same bytes, whenever it is asked."""
    monkeypatch.setattr(os, "urandom", lambda size: (RANDOM * (size // 32 + 1))[:size])


# -- one-time keys ----------------------------------------------------------------------------


class Clone(OneTimeKeys):
    """A site's cipher, which also shows the key of an upload."""

    def __init__(self, site_secret: bytes = b"s" * 32) -> None:
        super().__init__(PACKING, bytes(32), site_secret)

    def upload(
        self, made: EncodedIntegers, context: bytes = CONTEXT
    ) -> tuple[EncryptedUpdate, rlwe.OneTimeKey]:
        sealed = self.encrypt(made, context)
        key = rlwe.one_time_key(
            made.digits, made.reserved, context, made.layout.sha256(), self._site_secret
        )
        assert sealed.secret is not None
        np.testing.assert_array_equal(key.secret(), sealed.secret)
        return sealed, key


def errors(key: rlwe.OneTimeKey) -> Ints:
    return sampling.binomial(key.seed, rlwe.ERROR, 8 * RING_DEGREE)[:RING_DEGREE]


def opened_by_difference(one: bytes, other: bytes, digits: Ints, other_digits: Ints) -> float:
    """The share of coefficients in which the difference of two uploads is delta times the
    difference of their vectors, as it is under one key: what gives it away."""
    p = PACKING
    stride = -(-digits.size // p.digits)
    words = [
        reference.unpack_words(np.frombuffer(raw, "<u8"), p.word_bits)[:stride]
        for raw in (one, other)
    ]
    packed = np.zeros((p.digits, stride), dtype=np.int64)
    difference = digits.astype(np.int64) - other_digits
    packed.reshape(-1)[: digits.size] = difference
    message = sum(int(p.radix) ** k * packed[k] for k in range(p.digits))
    left = ((words[0] - words[1]) * 2**p.dropped - p.delta * message) % p.q
    left = np.minimum(left, p.q - left)
    return float(np.mean(left <= 2 ** (p.dropped + 1) + 84))


def assert_unrelated(
    one: tuple[EncryptedUpdate, rlwe.OneTimeKey], other: tuple[EncryptedUpdate, rlwe.OneTimeKey]
) -> None:
    """Seeds, keys, errors, polynomials, salts: none the same, and no part of one in the other."""
    (sealed, key), (sealed_other, key_other) = one, other
    assert key.seed != key_other.seed
    assert sealed.share_seed != sealed_other.share_seed
    assert sealed.secret is not None
    assert sealed_other.secret is not None
    # Binomial integers of variance 21 agree in one of 16 places.
    for mine, theirs in (
        (sealed.secret, sealed_other.secret),
        (errors(key), errors(key_other)),
        (sealed.secret, errors(key_other)),
        (sealed.secret, -sealed_other.secret),
    ):
        assert np.mean(mine == theirs) < 0.12
    assert (
        np.mean(
            np.frombuffer(sealed.blocks[0], "u1") == np.frombuffer(sealed_other.blocks[0], "u1")
        )
        < 0.02
    )
    shares = [
        shamir.share(each.secret, 2, 3, each.share_seed)
        for each in (sealed, sealed_other)
        if each.secret is not None
    ]
    # Had the sharings the same other coefficients, their difference at every holder would be the
    # difference of the keys.
    keys = [(each[0] * 2 + (shamir.PRIME - each[1])) % shamir.PRIME for each in shares]
    for mine, theirs in zip(*shares, strict=True):
        assert np.count_nonzero(mine == theirs) <= 2
        change = (mine + shamir.PRIME - theirs) % shamir.PRIME
        assert np.count_nonzero(change == (keys[0] + shamir.PRIME - keys[1]) % shamir.PRIME) <= 2


@pytest.mark.usefixtures("same_random")
def test_the_same_input_gives_the_same_bytes() -> None:
    (one, key), (other, key_other) = (Clone().upload(encoded(vector(1))) for _ in range(2))
    assert key.seed == key_other.seed
    assert one.blocks == other.blocks
    assert one.share_seed == other.share_seed
    np.testing.assert_array_equal(one.secret, other.secret)


def wider() -> EncodedIntegers:
    """The same numbers in another layout of as many values."""
    spec = AdapterSpec((TensorSpec("a", (60,)),), "00" * 32, 2.0)
    return encoded(vector(1), layout=update_layout(spec, PACKING))


@pytest.mark.usefixtures("same_random")
@pytest.mark.parametrize(
    ("made", "context", "clone"),
    [
        (encoded(vector(2)), CONTEXT, Clone()),
        (encoded(np.concatenate([vector(1)[:-1], [LIMIT]]).astype(np.int16)), CONTEXT, Clone()),
        (encoded(-vector(1)), CONTEXT, Clone()),
        (encoded(vector(1), (1, 2**28, 8)), CONTEXT, Clone()),
        (encoded(vector(1), (1, 2**28 + 1, 7)), CONTEXT, Clone()),
        (encoded(vector(1)), hashlib.sha256(b"another").digest(), Clone()),
        (encoded(vector(1)), CONTEXT[:-1] + bytes([CONTEXT[-1] ^ 1]), Clone()),
        (wider(), CONTEXT, Clone()),
        (encoded(vector(1)), CONTEXT, Clone(site_secret=b"t" * 32)),
    ],
    ids=["vector", "digit", "sign", "loss", "weight", "context", "bit", "layout", "site"],
)
def test_anything_else_gives_unrelated_keys(
    made: EncodedIntegers, context: bytes, clone: Clone
) -> None:
    first, again = Clone().upload(encoded(vector(1))), clone.upload(made, context)
    assert_unrelated(first, again)
    found = opened_by_difference(first[0].blocks[0], again[0].blocks[0], vector(1), made.digits)
    assert found < 0.2


def test_one_key_for_two_vectors_would_give_the_difference_away() -> None:
    """Control: what the derivation of the seed is for."""
    key = rlwe.OneTimeKey(RANDOM)
    layout = rlwe_layout(PACKING, update_layout(SPEC, PACKING))
    one, other = (
        b"".join(rlwe.Encryption(vector(n), (1, 2, 3), key, CONTEXT, layout, bytes(32)).chunks())
        for n in (1, 2)
    )
    assert opened_by_difference(one, other, vector(1), vector(2)) == 1.0


@settings(deadline=None, max_examples=150)
@given(
    first=st.lists(st.integers(-5, 5), min_size=0, max_size=6),
    second=st.lists(st.integers(-5, 5), min_size=0, max_size=6),
    reserved=st.tuples(
        st.lists(st.integers(0, 3), max_size=3), st.lists(st.integers(0, 3), max_size=3)
    ),
    contexts=st.tuples(st.binary(max_size=3), st.binary(max_size=3)),
    layouts=st.tuples(st.binary(max_size=3), st.binary(max_size=3)),
)
def test_seeds_are_equal_exactly_where_all_input_is(
    first: list[int],
    second: list[int],
    reserved: tuple[list[int], list[int]],
    contexts: tuple[bytes, bytes],
    layouts: tuple[bytes, bytes],
) -> None:
    """Nothing runs into its neighbour: parts of every length, in every place."""
    seeds = [
        rlwe.derive_seed(RANDOM, np.array(values, dtype=np.int16), each, context, layout, b"s" * 32)
        for values, each, context, layout in zip(
            (first, second), reserved, contexts, layouts, strict=True
        )
    ]
    alike = first == second and reserved[0] == reserved[1]
    alike = alike and contexts[0] == contexts[1] and layouts[0] == layouts[1]
    assert (seeds[0] == seeds[1]) == alike


def test_good_random_bytes_alone_are_enough() -> None:
    """And the site's secret alone as well: either makes a seed that nobody else can find."""
    parts = (vector(1), (1, 2, 3), CONTEXT, bytes(32))
    seeds = {
        rlwe.derive_seed(random, *parts, site_secret)
        for random in (bytes(32), RANDOM)
        for site_secret in (bytes(32), b"s" * 32, b"s" * 33)
    }
    assert len(seeds) == 6


# -- a sum, cloned ----------------------------------------------------------------------------


class Boxes:
    """Every key, nonce and content with which something was sealed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sealed: list[tuple[bytes, bytes, bytes, bytes]] = []
        boxes = self

        class Watched:
            def __init__(self, key: bytes) -> None:
                self._key = key
                self._real = ChaCha20Poly1305(key)

            def encrypt(self, nonce: bytes, data: bytes, associated: bytes) -> bytes:
                boxes.sealed.append((self._key, nonce, data, associated))
                return self._real.encrypt(nonce, data, associated)

            def decrypt(self, nonce: bytes, data: bytes, associated: bytes) -> bytes:
                return self._real.decrypt(nonce, data, associated)

        monkeypatch.setattr(seal_module, "ChaCha20Poly1305", Watched)

    def reused(self) -> int:
        """Pairs of a key and a nonce under which more than one content was sealed."""
        contents: dict[tuple[bytes, bytes], set[tuple[bytes, bytes]]] = {}
        for key, nonce, data, associated in self.sealed:
            contents.setdefault((key, nonce), set()).add((data, associated))
        return sum(len(found) > 1 for found in contents.values())


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> Boxes:
    return Boxes(monkeypatch)


def fixed(label: str) -> bytes:
    return hashlib.sha256(b"fedshield sum vectors " + label.encode()).digest()


class Federation:
    """The sums of three sites, driven step by step; every site may have clones. Every draw
    repeats, also what a site encapsulates: clones share ML-KEM secrets with their peers."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(seal_module, "MLKEM768PublicKey", RepeatingPublicKey)
        self._folder = folder
        self._monkeypatch = monkeypatch
        self.keys = {name: SigningKey(fixed(f"sign {name}")) for name in NAMES}
        self.roster = Roster(
            {name: key.public for name, key in self.keys.items()},
            bytes(32),
            resolve(3),
            demo=True,
        )
        self.group_key = fixed("group key")
        self.session = Binding(fixed("session"), 1, "round")
        self._made = 0

    def site(self, name: str, ephemeral: bytes | None = None) -> Summation:
        """A process of the site: all with the same keys, each with a disk of its own."""
        self._made += 1
        random = ephemeral or fixed(f"round key {name}") + fixed(f"more {name}")
        line: Any = NoLedger(fixed(f"head {name}"))
        member = Member(
            name,
            self.roster,
            "peers",
            Journal(self._folder / f"{self._made}.jsonl"),
            line,
            self.keys[name].sign,
            self.group_key,
            fixed(f"site secret {name}"),
        )
        cipher = OneTimeKeys(PACKING, self.group_key, member.secret)
        with self._monkeypatch.context() as patch:
            patch.setattr(os, "urandom", lambda size: random[:size])
            return Summation(member, cipher, self.session, "base", b"a model and its clips")

    def signed(
        self, one: Summation, message: messages.Message, binding: Binding | None = None
    ) -> bytes:
        name, bound = one._member.name, binding or one.binding
        return envelope.seal(message.kind, bound, name, message.to_body(), self.keys[name].sign)

    def begin(self, sites: Iterable[Summation], peers: Iterable[Summation] = ()) -> None:
        """`sites` begin with the round keys of each other and of `peers`, one a name."""
        sites = list(sites)
        raw = {
            one._member.name: self.signed(one, one.round_key(), self.session)
            for one in [*peers, *sites]
        }
        assert len(raw) == 3
        for one in sites:
            one.begin(messages.Work(raw))

    def contribute(self, one: Summation, made: EncodedIntegers) -> bytes:
        """Under this site's own random bytes; the signed upload."""
        random = fixed(f"random {one._member.name}")
        with self._monkeypatch.context() as patch:
            patch.setattr(os, "urandom", lambda size: random[:size])
            return self.signed(one, one.contribute(made))

    def hold(self, sites: dict[str, Summation], raw: dict[str, bytes]) -> None:
        for holder, one in sites.items():
            shares = {d: sites[d].shares()[holder] for d in sites if d != holder}
            assert one.hold(messages.Hold(raw, shares)).complaints == {}

    def aggregate(self, sites: Iterable[Summation]) -> bytes:
        adder, total = RlweAdder(PACKING), None
        for one in sites:
            total = adder.add(total, one.fetch(0))
        assert total is not None
        return adder.result(total)


MakeFederation = Callable[[], Federation]


@pytest.fixture
def federation_of_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Federation:
    return Federation(tmp_path, monkeypatch)


def clones_of(ours: Federation, count: int) -> tuple[list[Summation], dict[str, Summation]]:
    """Clones of bank, and the two others; all have begun the same sum."""
    others = {name: ours.site(name) for name in NAMES[1:]}
    clones = [ours.site("bank") for _ in range(count)]
    for clone in clones:
        ours.begin([clone], others.values())
    ours.begin(others.values(), clones[:1])
    assert len({clone.binding for clone in [*clones, *others.values()]}) == 1
    return clones, others


def test_clones_send_the_same_upload_of_the_same_vector(
    federation_of_sums: Federation, boxes: Boxes
) -> None:
    (one, other), _ = clones_of(federation_of_sums, 2)
    uploads = [federation_of_sums.contribute(each, encoded(vector(1))) for each in (one, other)]
    assert uploads[0] == uploads[1]
    assert one.fetch(0) == other.fetch(0)
    assert one.shares() == other.shares()
    assert set(one.shares()) == {"clinic", "hospital"}
    assert len(boxes.sealed) == 4
    assert boxes.reused() == 0


def test_clones_with_other_vectors_reuse_no_key(
    federation_of_sums: Federation, boxes: Boxes
) -> None:
    """Neither the one-time key nor any key of a box, though every random byte is the same."""
    clones, _ = clones_of(federation_of_sums, 3)
    for number, clone in enumerate(clones):
        federation_of_sums.contribute(clone, encoded(vector(number)))
    assert len(boxes.sealed) == len({key for key, *_ in boxes.sealed}) == 6
    assert boxes.reused() == 0
    for (n, one), (m, other) in combinations(enumerate(clones), 2):
        assert one._sealed is not None
        assert other._sealed is not None
        assert np.mean(one._sealed.secret == other._sealed.secret) < 0.12
        assert opened_by_difference(one.fetch(0), other.fetch(0), vector(n), vector(m)) < 0.2
        sent = [[*each.shares().values()] for each in (one, other)]
        # The same ciphertexts, hence the same ML-KEM secrets: salts keep the keys apart.
        assert {box[:CIPHERTEXT_BYTES] for box in sent[0]} == {
            box[:CIPHERTEXT_BYTES] for box in sent[1]
        }
        assert len({box[CIPHERTEXT_BYTES:][:32] for box in sent[0] + sent[1]}) == 4
        assert one._upload is not None
        assert other._upload is not None
        assert upload_digest(one._upload) != upload_digest(other._upload)


def test_clones_with_other_peers_reuse_no_key(federation_of_sums: Federation, boxes: Boxes) -> None:
    """The coordinator shows one clone other round keys of its peers: another context."""
    ours = federation_of_sums
    (one,), _ = clones_of(ours, 1)
    others = [ours.site(name, ephemeral=fixed(f"other {name}") * 2) for name in NAMES[1:]]
    clone = ours.site("bank")
    ours.begin([clone], others)
    assert clone.binding != one.binding
    for each in (one, clone):
        ours.contribute(each, encoded(vector(1)))
    assert len({key for key, *_ in boxes.sealed}) == 4
    assert boxes.reused() == 0
    assert one._sealed is not None
    assert clone._sealed is not None
    assert np.mean(one._sealed.secret == clone._sealed.secret) < 0.12
    assert opened_by_difference(one.fetch(0), clone.fetch(0), vector(1), vector(1)) < 0.2


def test_salts_that_repeat_would_reuse_keys(
    federation_of_sums: Federation, boxes: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: with salts that do not depend on the content, two contents go under one key."""
    monkeypatch.setattr(seal_module, "hmac", SimpleNamespace(digest=lambda *_: RANDOM))
    clones, _ = clones_of(federation_of_sums, 2)
    for number, clone in enumerate(clones):
        federation_of_sums.contribute(clone, encoded(vector(number)))
    assert boxes.reused() == 2


def test_clones_that_answer_for_other_sums_reuse_no_key(
    federation_of_sums: Federation, boxes: Boxes
) -> None:
    """Two clones of a holder, shown different aggregates: both answer (each has a disk of its
    own), with the same share, under keys that differ because what the answer is about does. And
    shown different uploads of a dealer, their answers differ as well."""
    ours = federation_of_sums
    (one, other, third), others = clones_of(ours, 3)
    raws: list[dict[str, bytes]] = []
    clinic = ours.site("clinic")
    ours.begin([clinic], [one, others["hospital"]])
    for dealer in (others["clinic"], clinic):
        ours.contribute(dealer, encoded(vector(10 + len(raws))))
        raws.append({"clinic": ours.signed(dealer, dealer._upload)})  # type: ignore[arg-type]
    hospital = ours.contribute(others["hospital"], encoded(vector(20)))
    answers = []
    for clone, dealer, raw, digest in (
        (one, others["clinic"], raws[0], b"1" * 32),
        (other, others["clinic"], raws[0], b"2" * 32),
        (third, clinic, raws[1], b"1" * 32),
    ):
        mine = ours.contribute(clone, encoded(vector(1)))
        uploads = {"bank": mine, "hospital": hospital, **raw}
        shares = {
            "clinic": dealer.shares()["bank"],
            "hospital": others["hospital"].shares()["bank"],
        }
        assert clone.hold(messages.Hold(uploads, shares)).complaints == {}
        vote = clone.announce(messages.Announce(uploads, (digest,)))
        votes = {
            name: envelope.seal("vote", clone.binding, name, vote.to_body(), ours.keys[name].sign)
            for name in NAMES
        }
        answers.append(clone.quorum(messages.Quorum(votes)))
    assert len({one.boxes["clinic"] for one in answers}) == 3
    assert len({one.boxes["clinic"][:32] for one in answers}) == 3
    assert boxes.reused() == 0
    assert len(boxes.sealed) == 3 * 2 + 4 + 2 + 3 * 2


def test_an_ephemeral_key_seals_each_content_under_a_key_of_its_own() -> None:
    """`seal` with a salt key: another sender, receiver, purpose, context, thing spoken of or
    content is another salt; the same is the same box."""
    key, peer = RunKey(fixed("one")), RunKey(fixed("two")).public
    base: dict[str, Any] = {
        "purpose": "share",
        "context": CONTEXT,
        "names": ("bank", "clinic"),
        "associated": b"about",
        "salt_key": bytes(32),
    }
    through = seal_module.encapsulate(key, peer, context=CONTEXT, names=("bank", "clinic"))

    def box(content: bytes, **bound: Any) -> bytes:
        kept = {name: bound.pop(name) for name in ("context", "names")}
        return replace(through, **kept).seal(content, bound.pop("purpose"), **bound)

    changes: list[dict[str, Any]] = [
        {},
        {"purpose": "answer"},
        {"context": bytes(32)},
        {"names": ("bank", "lab")},
        {"names": ("bankc", "linic")},
        {"names": ("lab", "clinic")},
        {"associated": b"abou"},
        {"associated": b""},
        {"salt_key": bytes([1]) + bytes(31)},
    ]
    found = [box(b"secret", **(base | change)) for change in changes]
    found += [box(content, **base) for content in (b"secre", b"tsecret")]
    assert len({one[:32] for one in found}) == len(changes) + 2
    assert box(b"secret", **base) == found[0]


# -- a whole federation under a broken generator -------------------------------------------------


def test_no_key_is_used_twice_while_a_generator_gives_zeros(
    federation: Any, monkeypatch: pytest.MonkeyPatch, boxes: Boxes
) -> None:
    """Every draw for keys is zeros and every encapsulation the same, at every site, in every sum:
    seeds still differ between sites, sums and rounds, no box has another's key, and the sums are
    right."""
    ours = federation("rlwe", weights="private")
    for module in (rlwe, keys_module):
        monkeypatch.setattr(module, "os", SimpleNamespace(urandom=bytes))
    monkeypatch.setattr(seal_module, "MLKEM768PublicKey", RepeatingPublicKey)
    seeds: list[bytes] = []
    derive = rlwe.derive_seed

    def recorded(random: bytes, *rest: Any) -> bytes:
        assert random == bytes(32)
        seeds.append(derive(random, *rest))
        return seeds[-1]

    monkeypatch.setattr(rlwe, "derive_seed", recorded)
    ours.run(2)
    assert ours.coordinator.completed_rounds == 2
    assert len(seeds) == len(set(seeds)) == 3 * 3
    assert boxes.reused() == 0
    assert len({key for key, *_ in boxes.sealed}) == len(boxes.sealed)


def test_two_sites_with_one_generator_are_noticed(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sites from one image draw the same nonce: no session begins."""
    ours = federation("rlwe")
    monkeypatch.setattr(os, "urandom", lambda size: (RANDOM * 2)[:size])
    with pytest.raises(RoundFailed, match="same nonce"):
        ours.coordinator.start()


# -- known answers --------------------------------------------------------------------------------


def sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def known(values: Ints) -> dict[str, Any]:
    raw = np.asarray(values).astype("<i8").tobytes()
    return {"first": np.asarray(values)[:8].tolist(), "sha256": sha256(raw)}


def known_boxes(found: dict[str, bytes]) -> dict[str, Any]:
    return {to: {"bytes": len(box), "sha256": sha256(box)} for to, box in found.items()}


def test_a_whole_sum_gives_the_known_answers(federation_of_sums: Federation) -> None:
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
        assert sealed.secret is not None
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
        shares_opened = one._opened(opening, [aggregate], layout)
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


def test_a_changed_vote_is_refused_in_the_known_sum(federation_of_sums: Federation) -> None:
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
