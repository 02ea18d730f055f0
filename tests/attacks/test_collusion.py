"""What the coordinator and colluding sites can learn, as algebra over a live round.

What is shown exactly, on the bytes of whole rounds under the real parameters: take all that the
coordinator and c colluding sites see (uploads, the shares sealed to them, the answers sealed to
them and with these the whole polynomial of the sum, the sum of the keys, the aggregate, the group
key and so the tags). For a victim and one more honest site of the opened set there is another
pair of keys, sharings, errors and vectors, as far from the true ones as one likes, under which
every byte of that is the same. So shares, answers and sums say nothing more of the victim than
the sum does. The other keys are as short as true ones; the other errors add up to the same but
are not short. That nobody can see the difference is the ring-LWE assumption (with the sum
given, secure-aggregation.md, section 2), and that sealed boxes between honest sites are opaque
is that of X25519 and ChaCha20-Poly1305: neither can be tested. And T shares, or two sets, do
give the victim away, exactly.

The formulas are written out here, in Python's integers, not taken from the code.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from fedshield.crypto import shares as sharing
from fedshield.crypto.rlwe import sampling
from fedshield.crypto.rlwe import scheme as rlwe
from fedshield.crypto.rlwe.adder import RlweAdder
from fedshield.crypto.rlwe.layout import RlweLayout
from fedshield.crypto.rlwe.params import ETA, RING_DEGREE, RlweParameters
from fedshield.crypto.rlwe.ring import ring
from fedshield.errors import CryptoError, ProtocolError, RoundFailed
from fedshield.plan.quorum import resolve
from fedshield.protocol.contexts import aggregate_digest, contributors_digest, upload_digest
from fedshield.protocol.wire import envelope, messages
from fedshield.site.ciphers import rlwe_layout
from fedshield.site.schemes import parameters_of
from reference.ring import Ints, transformed, untransformed
from reference.shamir import P, at, packed, polynomials, rank, residue_polynomials


@dataclass(frozen=True)
class Block:
    """A one-block vector in one context: its ring, public polynomial, tags and packing."""

    layout: RlweLayout
    context: bytes
    tag_seed: bytes

    @property
    def parameters(self) -> RlweParameters:
        return self.layout.parameters

    @cached_property
    def _roots(self) -> tuple[Ints, Ints]:
        here = ring(self.parameters.q)
        return here.roots.astype(object), here.inverse_roots.astype(object)

    @cached_property
    def a(self) -> Ints:
        """The public polynomial, transformed."""
        matrix = sampling.Matrix(self.context, self.parameters.q)
        group = matrix.next_group()
        if (group.joined() >= self.parameters.q).any():
            matrix.repair()
        return group.joined()[::8].astype(object)

    @cached_property
    def rows(self) -> list[tuple[Ints, Ints]]:
        """The secret vectors v and u of the tags; rho has no part in the first block."""
        found, count = [], len(self.layout.reserved_bits)
        for repetition in range(self.layout.num_tags):
            stream = sampling.Stream(self.tag_seed, "tag", repetition)
            rho = int(sampling.accepted(stream, 1, self.parameters.q)[0])
            assert rho > 0
            v, u = (
                sampling.accepted(stream, size, self.parameters.q).astype(object)
                for size in (RING_DEGREE, count)
            )
            found.append((v, u))
        return found

    def times_a(self, s: Ints) -> Ints:
        q, (roots, inverse) = self.parameters.q, self._roots
        return untransformed(self.a * transformed(s.astype(object), q, roots) % q, q, inverse)

    def coefficients(self, digits: Ints) -> Ints:
        p, used = self.parameters, self.layout.num_coefficients
        padded = np.zeros(used * p.digits, dtype=object)
        padded[: digits.size] = digits.tolist()
        powers = [p.radix**place for place in range(p.digits)]
        m = np.zeros(RING_DEGREE, dtype=object)
        m[:used] = np.array(powers, object) @ padded.reshape(p.digits, -1)
        return m

    def residues(self, digits: Ints, reserved: Iterable[int]) -> Ints:
        """What is shared out beside the key: the reserved integers and the tags."""
        m, given = self.coefficients(digits), np.array(list(reserved), dtype=object)
        tags = [int(m @ v + given @ u) % self.parameters.q for v, u in self.rows]
        return np.array([*given, *tags], dtype=object)

    def ciphertext(self, s: Ints, e: Ints, m: Ints) -> Ints:
        """a s + e + delta m mod q, whole."""
        return (self.times_a(s) + e + self.parameters.delta * m) % self.parameters.q

    def words(self, chunk: bytes, bits: int) -> Ints:
        """The words of a chunk: word c in bit stream c % 64, of 64-bit words side by side."""
        streams = np.frombuffer(chunk, "<u8").reshape(bits, 64).T
        found = np.zeros(RING_DEGREE, dtype=object)
        for place, stream in enumerate(streams):
            whole = int.from_bytes(np.ascontiguousarray(stream).tobytes(), "little")
            found[place::64] = [(whole >> (bits * at)) % (1 << bits) for at in range(64)]
        return found


# -- a whole round, and what was seen of it ---------------------------------------------------


@dataclass(frozen=True)
class Held:
    """All that an honest site has in a sum: what would explain what it sent."""

    digits: Ints
    reserved: tuple[int, ...]
    secret: Ints
    sharing: Ints
    residue_sharing: Ints
    error: Ints

    def scaled_down(self) -> bool:
        """Whether the error is as short as a true one: what ring-LWE hides."""
        return int(np.abs(self.error).max()) <= ETA


class Observed:
    """One round over `contributors`, recorded."""

    def __init__(
        self,
        federation: Any,
        monkeypatch: pytest.MonkeyPatch,
        colluders: tuple[str, ...],
        lost: tuple[str, ...] = (),
    ) -> None:
        self.federation = federation
        self.colluders = colluders
        self.rules = federation.plan.rules()
        self.sums: dict[str, Any] = {}
        keys: list[Any] = []
        make = rlwe.one_time_key

        def recorded(values: Any, reserved: Any, *rest: Any) -> Any:
            keys.append((make(values, reserved, *rest), np.array(values), tuple(reserved)))
            return keys[-1][0]

        monkeypatch.setattr(rlwe, "one_time_key", recorded)
        federation.coordinator.start()
        for site in lost:
            federation.works[site].fault = RoundFailed("training: lost")
        federation.wire.to_site = self._watch
        self._from = len(federation.wire.log)
        outcome = federation.coordinator.round(1)
        self.contributors = outcome.contributors
        self.honest = tuple(site for site in self.contributors if site not in colluders)
        first = self.sums[self.contributors[0]]
        assert first._cipher.num_blocks(first._layout) == 1
        layout = rlwe_layout(parameters_of(federation.plan), first._layout)
        assert layout.num_blocks == 1
        context = first.binding.context
        self.block = Block(layout, context, first._cipher._tag_seed(context))
        self.shape = first._shape(first._layout)
        self.truth = {site: self._held(site, keys) for site in self.contributors}

    def _watch(self, site: str, method: str, data: bytes) -> bytes:
        current = self.federation.participants[site]._sum
        if method == "hold":
            self.sums[site] = current
        return data

    def _held(self, site: str, keys: list[Any]) -> Held:
        """From the site's own memory: not part of what is seen."""
        sealed = self.sums[site]._sealed
        ((key, digits, reserved),) = [
            one for one in keys if np.array_equal(one[0].secret(), sealed.secret)
        ]
        error = sampling.binomial(key.seed, rlwe.ERROR, 8 * RING_DEGREE)[:RING_DEGREE]
        return Held(
            digits,
            reserved,
            sealed.secret.astype(object),
            polynomials(sealed.secret.astype(object), self.rules.threshold, sealed.share_seed),
            residue_polynomials(
                np.array(sealed.residues, dtype=object),
                self.rules.threshold,
                sealed.share_seed,
                self.block.parameters.q,
            ),
            error.astype(object),
        )

    # -- what crossed, and what the colluders' keys open

    def reply(self, site: str, method: str) -> Any:
        (one,) = [
            one
            for one in self.federation.wire.log[self._from :]
            if (one.site, one.method) == (site, method)
        ]
        return self.federation.opened(one.reply)[3]

    def upload(self, site: str) -> messages.Upload:
        return messages.Upload.from_body(self.reply(site, "work"))

    def chunk(self, site: str) -> bytes:
        found: bytes = self.reply(site, "fetch")["data"]
        return found

    def index(self, site: str) -> int:
        place: int = self.federation.roster.index(site)
        return place + 1

    def share(self, dealer: str, colluder: str) -> sharing.Share:
        """A dealer's share, as sealed to a colluder."""
        assert colluder in self.colluders
        box = self.reply(dealer, "fetch-shares")["boxes"][colluder]
        about = upload_digest(self.upload(dealer))
        raw = self.sums[colluder]._channels.open_share(box, dealer, about)
        return sharing.from_bytes(raw, self.shape)

    def answer(self, holder: str) -> sharing.Share:
        """An honest holder's answer, as sealed to the first colluder."""
        box = self.reply(holder, "quorum")["boxes"][self.colluders[0]]
        vote = messages.Vote.from_body(self.reply(holder, "announce"))
        about = vote.contributors + vote.aggregate
        channels = self.sums[self.colluders[0]]._channels
        raw = channels.open_answer(box, holder, about)
        return sharing.from_bytes(raw, self.shape)

    def aggregate(self) -> bytes:
        (one,) = [
            one
            for one in self.federation.wire.log[self._from :]
            if (one.site, one.method) == (self.colluders[0], "deliver")
        ]
        found: bytes = self.federation.opened(one.command)[3]["block"]
        return found

    # -- whether an explanation fits all of it

    def fits(self, honest: Mapping[str, Held]) -> None:
        """Fails unless these explain, byte for byte, all that the coalition sees."""
        assert set(honest) == set(self.honest)
        everyone = {**self.truth, **honest}
        p, block = self.block.parameters, self.block
        # What each honest site sent, and so the aggregate.
        for site, held in honest.items():
            c = block.ciphertext(held.secret, held.error, block.coefficients(held.digits))
            assert (block.words(self.chunk(site), p.word_bits) == c >> p.dropped).all()
            limit = p.site_limit(1 / self.rules.num_sites)
            assert int(np.abs(held.digits.astype(np.int64)).max()) <= limit
            assert int(np.abs(held.secret).max()) <= ETA
            assert (at(held.sharing, 0) == packed(held.secret)).all()
            for one, bits in zip(held.reserved, block.layout.reserved_bits, strict=True):
                assert 0 <= one < 1 << bits
            residues = block.residues(held.digits, held.reserved)
            assert (at(held.residue_sharing, 0, p.q) == residues).all()
        # What it shared out to colluders.
        for site, colluder in ((s, c) for s in honest for c in self.colluders):
            given, x = self.share(site, colluder), self.index(colluder)
            assert (at(honest[site].sharing, x) == given.key.astype(object)).all()
            assert tuple(at(honest[site].residue_sharing, x, p.q)) == given.residues
        # What honest holders answered, which with the colluders' own is the sum's polynomial.
        shared = sum(held.sharing for held in everyone.values()) % P
        residues = sum(held.residue_sharing for held in everyone.values()) % p.q
        for holder in self.sums:
            if holder not in self.colluders:
                answer, x = self.answer(holder), self.index(holder)
                assert (at(shared, x) == answer.key.astype(object)).all()
                assert tuple(at(residues, x, p.q)) == answer.residues
        # The sums of keys, of residues and of vectors, and what is left over.
        opened = sum(block.residues(h.digits, h.reserved) for h in self.truth.values()) % p.q
        assert (residues[0] == opened).all()
        total = sum(held.secret for held in everyone.values())
        assert (total == sum(held.secret for held in self.truth.values())).all()
        opened = sum(block.coefficients(h.digits) for h in everyone.values())
        summed = sum(h.digits.astype(np.int64) for h in everyone.values())
        assert (summed == sum(h.digits.astype(np.int64) for h in self.truth.values())).all()
        residue = sum(held.error for held in everyone.values()) % p.q
        assert (residue == sum(held.error for held in self.truth.values()) % p.q).all()
        words = block.words(self.aggregate(), p.sum_word_bits)
        count = len(everyone)
        y = (words * 2**p.dropped + count * (2**p.dropped - 1) // 2 - block.times_a(total)) % p.q
        y = np.where(y > p.q // 2, y - p.q, y)
        assert ((y + p.delta // 2) // p.delta == opened).all()


def hidden_at(
    places: Iterable[int], at_zero: Ints, degree: int, prime: int, rng: np.random.Generator
) -> Ints:
    """Polynomials of this degree mod prime that are `at_zero` at zero and nothing at `places`:
    (degree + 1, at_zero.size) coefficients, drawn from all of them."""
    roots = list(places)
    free = degree - len(roots)
    assert free >= 0
    scale = pow(math.prod(-x for x in roots) % prime, -1, prime)
    rows = [at_zero * scale % prime]
    rows += [rng.integers(0, prime, at_zero.size).astype(object) for _ in range(free)]
    for x in roots:  # times (X - x)
        rows = [
            (before - x * row) % prime
            for before, row in zip([0 * rows[0], *rows], [*rows, 0 * rows[0]], strict=True)
        ]
    return np.stack(rows)


def explained_otherwise(
    seen: Observed, victim: str, other: str, digits: Ints, rng: np.random.Generator
) -> dict[str, Held]:
    """The honest sites' holdings with the victim's vector replaced by `digits`, its weight and
    loss and its key by others, and `other` taking up the difference; all of which is drawn
    afresh."""
    block, p, truth = seen.block, seen.block.parameters, seen.truth
    mine, theirs = truth[victim], truth[other]
    # Another short key, such that the other's stays short and the sum the same.
    low = np.maximum(-ETA, mine.secret + theirs.secret - ETA).astype(np.int64)
    high = np.minimum(ETA, mine.secret + theirs.secret + ETA).astype(np.int64)
    secret = rng.integers(low, high + 1).astype(object)
    change = secret - mine.secret
    degree = seen.rules.threshold - 1
    places = [seen.index(colluder) for colluder in seen.colluders]
    difference = hidden_at(places, packed(change), degree, P, rng)
    assert difference.shape == mine.sharing.shape
    rest = mine.digits.astype(np.int64) + theirs.digits - digits
    both = [one + two for one, two in zip(mine.reserved, theirs.reserved, strict=True)]
    reserved = tuple(
        int(rng.integers(max(0, total - (1 << bits) + 1), min(total, (1 << bits) - 1) + 1))
        for total, bits in zip(both, block.layout.reserved_bits, strict=True)
    )
    others = tuple(total - one for total, one in zip(both, reserved, strict=True))
    moved = block.residues(digits, reserved) - block.residues(mine.digits, mine.reserved)
    residue_difference = hidden_at(places, moved % p.q, degree, p.q, rng)
    # What is left over are the errors: whatever makes the same words.
    found = dict(truth)
    for site, digits_now, reserved_now, secret_now, sign in (
        (victim, digits, reserved, secret, 1),
        (other, rest, others, theirs.secret - change, -1),
    ):
        was = truth[site]
        c = block.ciphertext(was.secret, was.error, block.coefficients(was.digits))
        m = block.coefficients(digits_now)
        error = (c - block.times_a(secret_now) - p.delta * m) % p.q
        error = np.where(error > p.q // 2, error - p.q, error)
        found[site] = Held(
            digits_now,
            reserved_now,
            secret_now,
            (was.sharing + sign * difference) % P,
            (was.residue_sharing + sign * residue_difference) % p.q,
            error,
        )
    return {site: found[site] for site in seen.honest}


def ends(seen: Observed, victim: str, other: str) -> tuple[Ints, Ints]:
    """Between what the victim's digits can be, the sum given."""
    limit = seen.block.parameters.site_limit(1 / seen.rules.num_sites)
    both = seen.truth[victim].digits.astype(np.int64) + seen.truth[other].digits
    return np.maximum(-limit, both - limit), np.minimum(limit, both + limit)


def vectors(
    seen: Observed, victim: str, other: str, rng: np.random.Generator
) -> dict[str, Callable[[], Ints]]:
    """Other vectors of the victim, each drawn anew."""
    low, high = ends(seen, victim, other)
    few = rng.permutation(low.size)[:40]

    def some(base: Ints) -> Ints:
        found = base.copy()
        found[few] = rng.integers(low[few], high[few] + 1)
        return found

    return {
        "any": lambda: rng.integers(low, high + 1),
        "as large as can be": lambda: some(high),
        "as small as can be": lambda: some(low),
        "nearly nothing": lambda: some(np.clip(0, low, high)),
        "a coordinate changed": lambda: _one_changed(seen.truth[victim].digits, low, high, rng),
        "the other's": lambda: seen.truth[other].digits.astype(np.int64),
    }


def _one_changed(digits: Ints, low: Ints, high: Ints, rng: np.random.Generator) -> Ints:
    found = digits.astype(np.int64)
    place = int(rng.integers(found.size))
    found[place] = rng.integers(low[place], high[place] + 1)
    return found


SETTINGS = {
    "three sites": (3, {}, ("clinic",), ()),
    "two honest of four": (5, {"max_colluding": 2}, ("clinic", "lab"), ("surgery",)),
    "semi-honest": (4, {"max_colluding": 1, "server": "semi-honest"}, ("bank",), ("clinic",)),
}


@pytest.fixture(params=list(SETTINGS))
def seen(
    federation: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Observed:
    """A round in which as many sites collude as are tolerated, and as few take part as may."""
    sites, rules, colluders, lost = SETTINGS[request.param]
    ours = federation("rlwe", sites=sites, rules=rules)
    found = Observed(ours, monkeypatch, colluders, lost)
    assert len(found.colluders) == found.rules.max_colluding
    assert len(found.contributors) == sites - len(lost)
    return found


def test_any_other_vector_explains_all_that_was_seen(seen: Observed) -> None:
    victim, other = seen.honest[:2]
    truth = {site: seen.truth[site] for site in seen.honest}
    seen.fits(truth)  # the formulas here are those of the code
    assert all(held.scaled_down() for held in truth.values())
    rng = np.random.default_rng(1)
    for name, draw in vectors(seen, victim, other, rng).items():
        otherwise = explained_otherwise(seen, victim, other, draw(), rng)
        seen.fits(otherwise)
        mine = otherwise[victim]
        assert (mine.digits != truth[victim].digits).any(), name
        assert mine.reserved[1:] != truth[victim].reserved[1:]
        assert np.count_nonzero(mine.secret != truth[victim].secret) > RING_DEGREE / 2
        assert not mine.scaled_down()  # what only ring-LWE hides


def test_a_wrong_explanation_does_not_fit(seen: Observed) -> None:
    """Control: the least change of one part, and `fits` fails."""
    victim, other = seen.honest[:2]
    truth = {site: seen.truth[site] for site in seen.honest}
    mine = truth[victim]

    def one(values: Ints, by: int = 1) -> Ints:
        found = values.copy()
        found.flat[found.size - 1] += by
        return found

    digits = one(mine.digits.astype(np.int64), 1 if mine.digits[-1] < 0 else -1)
    p = seen.block.parameters
    for wrong in (
        replace(mine, error=one(mine.error, 1 << p.dropped)),
        replace(mine, secret=one(mine.secret, 1 if mine.secret[-1] < 0 else -1)),
        replace(mine, sharing=one(mine.sharing)),
        replace(mine, residue_sharing=one(mine.residue_sharing)),
        replace(mine, digits=digits),
        replace(mine, reserved=(mine.reserved[0], mine.reserved[1] + 1, mine.reserved[2])),
    ):
        with pytest.raises(AssertionError):
            seen.fits({**truth, victim: wrong})
    # Two sites' changes that cancel in the sum, but show in what each sent or shared.
    theirs = truth[other]
    for mine_wrong, theirs_wrong in (
        (
            replace(mine, sharing=one(mine.sharing)),
            replace(theirs, sharing=one(theirs.sharing, -1)),
        ),
        (
            replace(mine, residue_sharing=one(mine.residue_sharing)),
            replace(theirs, residue_sharing=one(theirs.residue_sharing, -1)),
        ),
        (
            replace(mine, error=one(mine.error, 1 << p.dropped)),
            replace(theirs, error=one(theirs.error, -(1 << p.dropped))),
        ),
    ):
        with pytest.raises(AssertionError):
            seen.fits({**truth, victim: mine_wrong, other: theirs_wrong})


def test_boxes_between_honest_sites_do_not_open_for_the_coalition(seen: Observed) -> None:
    """With every key that it has, under every name."""
    victim = seen.honest[0]
    boxes = seen.reply(victim, "fetch-shares")["boxes"]
    about = upload_digest(seen.upload(victim))
    for holder in set(boxes) - set(seen.colluders):
        for colluder in seen.colluders:
            for sender in (victim, holder):
                with pytest.raises(CryptoError, match="does not open"):
                    seen.sums[colluder]._channels.open_share(boxes[holder], sender, about)


# -- the same for every federation, as ranks ----------------------------------------------------


def seen_of_two_dealers(threshold: int, holders: Iterable[int]) -> Ints:
    """What is seen of one element of two honest dealers' sharings, as a matrix over their 2T
    coefficients: each one's shares at `holders`, and all of their sum."""
    powers = [[pow(holder, degree, P) for degree in range(threshold)] for holder in holders]
    nothing = [0] * threshold
    rows = [row + nothing for row in powers] + [nothing + row for row in powers]
    rows += [[int(d in (k, k + threshold)) for d in range(2 * threshold)] for k in range(threshold)]
    return np.array(rows, dtype=np.int64)


@pytest.mark.parametrize("num_sites", [*range(3, 24), 40, 64])
def test_tolerated_colluders_never_determine_a_key(num_sites: int) -> None:
    """Shares at c places and the whole of the sum leave an honest dealer's key free: it is in
    the span of nothing that was seen. With shares at T places it is determined."""
    for c in {0, 1, (num_sites - 1) // 3, num_sites - 2}:
        rules = resolve(num_sites, max_colluding=c)
        t = rules.threshold
        key = np.zeros((1, 2 * t), dtype=np.int64)
        key[0, 0] = 1
        for places in (range(1, c + 1), range(num_sites - c + 1, num_sites + 1)):
            matrix = seen_of_two_dealers(t, places)
            known = rank(matrix.copy())
            assert known == t + c
            assert rank(np.concatenate([matrix, key])) == known + 1, rules
        matrix = seen_of_two_dealers(t, range(1, t + 1))
        assert rank(matrix.copy()) == rank(np.concatenate([matrix, key])) == 2 * t


# -- beyond the rule --------------------------------------------------------------------------


def single(seen: Observed, site: str, found: sharing.OpenedShares) -> Any:
    """A single upload opened as if it were a sum of one, with what its shares open to."""
    adder = RlweAdder(seen.block.parameters)
    aggregate = adder.result(adder.add(None, seen.chunk(site)))
    return rlwe.open_sum(
        [aggregate],
        found.key_sum,
        found.residues,
        1,
        seen.block.context,
        seen.block.layout,
        seen.block.tag_seed,
    )


def test_as_many_shares_as_open_the_sum_open_a_single_update(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T colluding sites hold T shares of the victim's key: with its upload, which the
    coordinator has, its whole vector, to the last digit. With one share less they have none."""
    ours = federation("rlwe", sites=5, weights="equal")
    t = ours.plan.rules().threshold
    colluders = tuple(ours.names[1 : 1 + t])
    assert len(colluders) == t == 4
    seen = Observed(ours, monkeypatch, colluders)
    (victim,) = seen.honest
    shares = {seen.index(c) - 1: seen.share(victim, c) for c in colluders}
    opened = single(seen, victim, sharing.open_sum(shares, seen.shape, 1))
    np.testing.assert_array_equal(opened.values, seen.truth[victim].digits)
    assert opened.reserved == seen.truth[victim].reserved
    for fewer in combinations(shares, t - 1):
        given = {holder: shares[holder] for holder in fewer}
        with pytest.raises(CryptoError):
            sharing.open_sum(given, seen.shape, 1)
        # As if T were one less: a key that is none.
        with pytest.raises(CryptoError, match="larger"):
            sharing.open_sum(given, replace(seen.shape, threshold=t - 1), 1)


@dataclass
class Driven:
    """A sum that a coordinator drives as it likes, up to the votes."""

    federation: Any
    colluders: tuple[str, ...]

    def __post_init__(self) -> None:
        ours = self.federation
        ours.coordinator.start()
        self.raw = ours.work(1)
        self.uploads = {
            site: messages.Upload.from_body(ours.opened(data)[3]) for site, data in self.raw.items()
        }
        self.chunks = {site: ours.blocks(site, self.raw[site])[0] for site in ours.names}
        boxes = {site: ours.send(site, messages.FetchShares())[1]["boxes"] for site in ours.names}
        for holder in ours.names:
            shares = {dealer: boxes[dealer][holder] for dealer in ours.names if dealer != holder}
            assert ours.send(holder, messages.Hold(self.raw, shares))[1]["complaints"] == {}
        self.held = {one: dict(ours.participants[one]._sum._held) for one in self.colluders}
        spy = ours.participants[self.colluders[0]]._sum
        self.shape = spy._shape(spy._layout)
        self.parameters = parameters_of(ours.plan)

    def aggregate(self, sites: Iterable[str]) -> bytes:
        adder, total = RlweAdder(self.parameters), None
        for site in sites:
            total = adder.add(total, self.chunks[site])
        assert total is not None
        return adder.result(total)

    def vote(self, sites: tuple[str, ...]) -> messages.Vote:
        digest = hashlib.sha256(self.aggregate(sites)).digest()
        return messages.Vote(
            contributors_digest({site: self.uploads[site] for site in sites}),
            aggregate_digest((digest,)),
            self.federation.head_of(self.colluders[0]),
        )

    def answers(self, sites: tuple[str, ...], voters: Iterable[str]) -> dict[int, Any]:
        """The shares of the sum over `sites` that honest `voters` and the colluders give:
        index -> share. Raises `ProtocolError` where an honest site refuses."""
        ours, vote = self.federation, self.vote(sites)
        digest = hashlib.sha256(self.aggregate(sites)).digest()
        announce = messages.Announce({site: self.raw[site] for site in sites}, (digest,))
        votes = {
            one: envelope.seal(
                "vote",
                ours.binding,
                one,
                replace(vote, head=ours.head_of(one)).to_body(),
                ours.keys[one].sign,
            )
            for one in self.colluders
        }
        voters = list(voters)
        for site in voters:
            votes[site] = ours.participants[site].handle("announce", ours.seal(announce))
        found = {
            ours.roster.index(one): sharing.add(
                [self.held[one][site] for site in sites], self.shape
            )
            for one in self.colluders
        }
        spy = ours.participants[self.colluders[0]]._sum
        for site in voters:
            boxes = ours.send(site, messages.Quorum(votes))[1]["boxes"]
            about = vote.contributors + vote.aggregate
            box = boxes[self.colluders[0]]
            raw = spy._channels.open_answer(box, site, about)
            found[ours.roster.index(site)] = sharing.from_bytes(raw, self.shape)
        return found


def test_one_colluder_too_many_opens_two_sets(federation: Any) -> None:
    """Four sites, c = 1, T = Q = 3. Two that collude with the coordinator show one honest site
    the set of all, the other the set without it; both answer, and the difference of the two
    sums' keys opens a single upload. This is why c is what it is, and no less."""
    ours = federation("rlwe", sites=4, weights="equal")
    rules = ours.plan.rules()
    assert (rules.max_colluding, rules.threshold, rules.votes, rules.min_cohort) == (1, 3, 3, 3)
    victim, other, *colluders = ours.names
    driven = Driven(ours, tuple(colluders))
    current = ours.participants[victim]._sum
    truth = current._sealed
    whole = sharing.open_sum(driven.answers(ours.names, [other]), driven.shape, 4)
    without = tuple(site for site in ours.names if site != victim)
    rest = sharing.open_sum(driven.answers(without, [victim]), driven.shape, 3)
    key = whole.key_sum - rest.key_sum
    np.testing.assert_array_equal(key, truth.secret)
    q = driven.parameters.q
    residues = tuple(
        (one - two) % q for one, two in zip(whole.residues, rest.residues, strict=True)
    )
    assert residues == truth.residues
    adder = RlweAdder(driven.parameters)
    context = current.binding.context
    opened = rlwe.open_sum(
        [adder.result(adder.add(None, driven.chunks[victim]))],
        key,
        residues,
        1,
        context,
        rlwe_layout(driven.parameters, current._layout),
        current._cipher._tag_seed(context),
    )
    assert opened.values.any()


@pytest.mark.parametrize("asked_first", [1, 2, 3])
def test_tolerated_colluders_do_not_open_two_sets(federation: Any, asked_first: int) -> None:
    """The same with one colluder, however the honest votes are split: at most one set gets
    three votes, and no site gives two."""
    ours = federation("rlwe", sites=4, weights="equal")
    *honest, colluder = ours.names
    driven = Driven(ours, (colluder,))
    sets = (ours.names, tuple(site for site in ours.names if site != honest[0]))
    for sites, voters in zip(sets, (honest[:asked_first], honest[asked_first:]), strict=True):
        if len(voters) + 1 >= 3:
            assert len(driven.answers(sites, voters)) == len(voters) + 1
        elif voters:
            with pytest.raises(ProtocolError) as caught:
                driven.answers(sites, voters)
            assert caught.value.code == "vote"
    for site in honest:  # none votes a second time, for either set
        for sites in sets:
            digest = hashlib.sha256(driven.aggregate(sites)).digest()
            raw = {one: driven.raw[one] for one in sites}
            assert ours.refused(site, messages.Announce(raw, (digest,))) == "repeated"


# -- what a round survives ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sites", "given"),
    [
        (3, {}),
        (4, {}),
        (5, {}),
        (4, {"votes": 4, "threshold": 3}),
        (4, {"max_colluding": 0, "server": "semi-honest"}),
    ],
)
def test_the_losses_that_are_promised_are_survived_and_no_more(
    federation: Any, sites: int, given: dict[str, Any]
) -> None:
    """`Rules.in_words` against live sites: before the upload, and after it."""
    rules = federation("rlwe", sites=sites, rules=given).plan.rules()
    least = max(rules.threshold, rules.votes, rules.certificate)
    before = sites - max(rules.min_cohort, least)
    after = sites - least
    if rules.membership == "open":
        assert f"survives {before} lost before uploading and {after} lost after" in rules.in_words()
    else:
        assert before == 0
        said = f"loses {after} after the upload still ends" if after else "without one that is lost"
        assert said in rules.in_words()

    def lost(site: Any, method: str) -> None:
        def gone(_: bytes) -> messages.Message:
            raise RoundFailed("gone")

        site._commands[method] = gone

    for count, method, good in (
        (before, "work", True),
        (before + 1, "work", False),
        (after, "announce", True),
        (after + 1, "announce", False),
    ):
        ours = federation("rlwe", sites=sites, rules=given)
        ours.coordinator.start()
        for name in ours.names[:count]:
            lost(ours.participants[name], method)
        if good:
            outcome = ours.coordinator.round(1)
            assert len(outcome.contributors) == (sites - count if method == "work" else sites)
        else:
            with pytest.raises(RoundFailed, match="no answer from"):
                ours.coordinator.round(1)
