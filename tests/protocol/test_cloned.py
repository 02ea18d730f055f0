"""A cloned machine: two processes with the same memory, keys and random bytes to come.

The same input must then give the same bytes; any other vector, context, layout or answer must
come under another key, so that no two ciphertexts can be taken from one another. Last, a site
whose machine was restored from a snapshot: it can be brought to the very same session and sum, and
sends the same bytes or none.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hand import FOUR, REST, SITE, Hand, Watched, at_most_once, body_of
from hypothesis import given, settings
from hypothesis import strategies as st
from sums import (
    CONTEXT,
    LIMIT,
    NAMES,
    PACKING,
    RANDOM,
    SPEC,
    Ints,
    Sums,
    encoded,
    errors,
    fixed,
    update_layout,
    vector,
)

from fakes import RepeatingPublicKey
from fedshield.crypto import keys as keys_module
from fedshield.crypto import seal as seal_module
from fedshield.crypto import shamir
from fedshield.crypto.keys import RunKey
from fedshield.crypto.rlwe import reference
from fedshield.crypto.rlwe import scheme as rlwe
from fedshield.crypto.seal import CIPHERTEXT_BYTES
from fedshield.errors import FedShieldError, ProtocolError, RoundFailed
from fedshield.ledger.heads import place_beside
from fedshield.protocol import participant, participant_sum
from fedshield.protocol.contexts import upload_digest
from fedshield.protocol.participant_sum import Summation
from fedshield.protocol.wire import envelope, messages
from fedshield.site.ciphers import EncryptedUpdate, OneTimeKeys, rlwe_layout
from fedshield.types import AdapterSpec, EncodedIntegers, TensorSpec


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
        np.testing.assert_array_equal(key.secret(), sealed.secret)
        return sealed, key


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
    shares = [shamir.share(each.secret, 2, 3, each.share_seed) for each in (sealed, sealed_other)]
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


def clones_of(ours: Sums, count: int) -> tuple[list[Summation], dict[str, Summation]]:
    """Clones of bank, and the two others; all have begun the same sum."""
    others = {name: ours.site(name) for name in NAMES[1:]}
    clones = [ours.site("bank") for _ in range(count)]
    for clone in clones:
        ours.begin([clone], others.values())
    ours.begin(others.values(), clones[:1])
    assert len({clone.binding for clone in [*clones, *others.values()]}) == 1
    return clones, others


def test_clones_send_the_same_upload_of_the_same_vector(
    federation_of_sums: Sums, boxes: Boxes
) -> None:
    (one, other), _ = clones_of(federation_of_sums, 2)
    uploads = [federation_of_sums.contribute(each, encoded(vector(1))) for each in (one, other)]
    assert uploads[0] == uploads[1]
    assert one.fetch(0) == other.fetch(0)
    assert one.shares() == other.shares()
    assert set(one.shares()) == {"clinic", "hospital"}
    assert len(boxes.sealed) == 4
    assert boxes.reused() == 0


def test_clones_with_other_vectors_reuse_no_key(federation_of_sums: Sums, boxes: Boxes) -> None:
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


def test_clones_with_other_peers_reuse_no_key(federation_of_sums: Sums, boxes: Boxes) -> None:
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
    federation_of_sums: Sums, boxes: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: with salts that do not depend on the content, two contents go under one key."""
    monkeypatch.setattr(seal_module, "hmac", SimpleNamespace(digest=lambda *_: RANDOM))
    clones, _ = clones_of(federation_of_sums, 2)
    for number, clone in enumerate(clones):
        federation_of_sums.contribute(clone, encoded(vector(number)))
    assert boxes.reused() == 2


def test_clones_that_answer_for_other_sums_reuse_no_key(
    federation_of_sums: Sums, boxes: Boxes
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


# -- a machine restored from a snapshot --------------------------------------------------------


class Snapshot:
    """Runs of one site's machine from one snapshot: its nonce, run and round keys repeat, and where
    `all_of_it`, the bytes of its one-time keys and what it encapsulates as well. So it can be
    brought to the same session and sum again."""

    def __init__(self, ours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ours = ours
        self.current = ""
        self._keys: dict[tuple[str, str], RunKey] = {}
        fixed = SimpleNamespace(urandom=self._bytes)
        monkeypatch.setattr(participant, "os", fixed)
        monkeypatch.setattr(participant, "RunKey", lambda secret: self._key("run", secret))
        monkeypatch.setattr(participant_sum, "RunKey", lambda secret: self._key("sum", secret))
        self._monkeypatch = monkeypatch
        self._fixed = fixed
        ledger = ours.folder / f"{SITE}.ledger"
        self._peers = place_beside(ledger)
        self._ledger, self._had_peers = ledger.read_bytes(), self._peers.exists()

    def _bytes(self, count: int) -> bytes:
        return hashlib.shake_128(self.current.encode()).digest(count)

    def _key(self, use: str, secret: bytes) -> RunKey:
        return self._keys.setdefault((self.current, use), RunKey(secret))

    def all_of_it(self) -> None:
        self._monkeypatch.setattr(rlwe, "os", self._fixed)
        self._monkeypatch.setattr(seal_module, "MLKEM768PublicKey", RepeatingPublicKey)

    def again(self, hand: Hand, *, upto: str) -> bytes:
        """From the snapshot through everything that it was sent, up to this message; the reply."""
        # Its ledger is that of the snapshot, too.
        self.ours.stores[SITE].contribution = None
        self.ours.ledgers[SITE].close()
        (self.ours.folder / f"{SITE}.ledger").write_bytes(self._ledger)
        assert not self._had_peers
        self._peers.unlink(missing_ok=True)
        self.ours.participants[SITE] = self.ours.participant(SITE, self.ours.roster)
        self.current = SITE
        for one in self.ours.wire.log:
            if one.site == SITE and one.method in ("invite", "begin", "take-key"):
                self.ours.participants[SITE].handle(one.method, one.command)
        steps: dict[str, Callable[[], messages.Message]] = {
            "prepare": messages.Prepare,
            "work": lambda: messages.Work(hand.keys),
            "fetch-shares": messages.FetchShares,
            "fetch": lambda: messages.Fetch(0),
            "hold": lambda: messages.Hold(hand.uploads, hand.shares_for(SITE)),
            "announce": lambda: hand.announcement(FOUR),
        }
        for method, command in steps.items():
            early = method in ("prepare", "work")
            reply = hand.raw(SITE, command(), hand.session if early else hand.binding)
            if method == upto:
                return reply
        raise AssertionError(upto)


@pytest.fixture
def cloned(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> tuple[Snapshot, Hand, list[tuple[bytes, str, bytes]]]:
    """The site has done everything up to its shares; nobody has voted."""
    ours = federation("rlwe", sites=4, weights="equal")
    clone = Snapshot(ours, monkeypatch)

    def now(site: str, _: str, data: bytes) -> bytes:
        clone.current = site
        return data

    ours.wire.to_site = now
    ours.coordinator.start()
    left: list[tuple[bytes, str, bytes]] = []

    class Seen(Watched):
        def raw(self, site: str, *args: Any) -> bytes:
            clone.current = site
            return super().raw(site, *args)

    hand = Seen(ours, left)
    # The site's own secret is its key file's, and there after a restart.
    make = ours.participant

    def same_secret(*args: Any) -> Any:
        made = make(*args)
        made._secret = b"s" * 32
        return made

    ours.participant = same_secret
    ours.participants[SITE]._secret = b"s" * 32
    ours.participants[SITE]._cipher._site_secret = b"s" * 32
    return clone, hand, left


def test_a_clone_sends_no_second_upload(cloned: Any) -> None:
    """In the very same session and sum, with a fresh one-time key: none rather than another."""
    clone, hand, left = cloned
    hand.prepare().work()
    with pytest.raises(ProtocolError, match=r"^repeated: round 1 \(round\): another upload has"):
        clone.again(hand, upto="work")
    assert clone.ours.participants[SITE]._sum._upload is None
    for message in (messages.Fetch(0), messages.FetchShares()):
        assert hand.refused(SITE, message)[0] in ("repeated", "context")
    at_most_once(left)


def test_a_whole_clone_sends_the_same_bytes(cloned: Any) -> None:
    """Upload, blocks, shares, vote and answer: the same, or none; another vote is refused."""
    clone, hand, left = cloned
    clone.all_of_it()
    hand.prepare().work().collect().hold()
    upload, boxes, block = hand.uploads[SITE], hand.boxes[SITE], hand.blocks[SITE][0]
    assert clone.again(hand, upto="work") == upload
    assert body_of(clone.again(hand, upto="fetch-shares"))["boxes"] == boxes
    assert body_of(clone.again(hand, upto="fetch"))["data"] == block
    clone.again(hand, upto="hold")
    votes = hand.vote_on(FOUR, hand.sites)
    assert clone.again(hand, upto="announce") == votes[SITE]
    answer = hand.raw(SITE, messages.Quorum(votes))
    clone.again(hand, upto="announce")
    assert hand.raw(SITE, messages.Quorum(votes)) == answer
    clone.again(hand, upto="hold")
    for announce in (hand.announcement(REST), hand.announcement(FOUR, hand.shifted(FOUR, 0))):
        code, text = hand.refused(SITE, announce)
        assert code == "repeated"
        assert "voted for" in text or "another vote has been sent" in text
    at_most_once(left)


def test_a_clone_with_another_update_uses_another_key(cloned: Any) -> None:
    """The same random bytes, and training that came out differently: nothing leaves, and the
    one-time key would have been another."""
    clone, hand, left = cloned
    clone.all_of_it()
    hand.prepare().work()
    key = clone.ours.participants[SITE]._sum._sealed.secret
    other = clone.ours.trained("lab", clone.ours.participants["lab"].state, 1)
    clone.ours.works[SITE].fault = other
    keys: list[Any] = []
    encrypt = participant_sum.Summation._share_out

    def spy(self: Any, sealed: Any, *rest: Any) -> None:
        keys.append(sealed.secret)
        encrypt(self, sealed, *rest)

    clone._monkeypatch.setattr(participant_sum.Summation, "_share_out", spy)
    with pytest.raises(FedShieldError, match="another upload has been sent"):
        clone.again(hand, upto="work")
    assert len(keys) == 1
    assert (keys[0] != key).sum() > 3000
    at_most_once(left)
