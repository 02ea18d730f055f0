"""The sum that answers give when some of them are wrong, and whose are.

An answer is one value of each of many polynomials, all at its holder's point, so that a holder
that lies is wrong at one place of many words. The places are found in two random combinations of
the words, drawn after the answers are in: a wrong answer hides from both with probability
p^-2, about 2^-62. Then every answer that is left is compared with the polynomials, exactly. So:

- up to floor((m - T) / 2) of m answers wrong, in whatever they are wrong: the right sum, and
  exactly the wrong ones (else `CryptoError`, with that probability);
- more of them: for up to `MOST_TRIED` answers all sums that any T agree on are tried on the
  ciphertext, if there is one that tells keys apart. Residues have nothing to be tried on.
- m = T: there is nothing to compare, and whatever comes is taken.

What is mended cannot be refused as well: holders that agree on a lie, one more than half of the
m - T to spare, can put a sum of theirs within the radius and right answers outside. Where nothing
else would notice, for residues and for keys without a ciphertext, the radius is at most m - T - c,
so that c of them never have a wrong sum opened while there are c to spare. More than that is for
the keyed tags to find, which whoever has their key can forge.
(Random combinations of interleaved words: as in Ligero, CCS 2017.)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from fedshield.crypto import shamir
from fedshield.crypto.reed_solomon import Code
from fedshield.crypto.rlwe.sampling import Stream, accepted
from fedshield.crypto.shamir import PRIME, Int64, UInt64
from fedshield.errors import CryptoError

#: Of so many answers every choice of T is tried: 924 at the most.
MOST_TRIED = 12
#: Whether a sum of keys is the one that a ciphertext was made under.
KeyCheck = Callable[[Int64], bool]
#: One value for each holder, in ascending order of the holders.
Word = list[int]


def open_keys(
    keys: Mapping[int, UInt64],
    threshold: int,
    num_summed: int,
    num_holders: int,
    fits: KeyCheck | None = None,
    colluding: int = 0,
) -> tuple[Int64, frozenset[int]]:
    """The sum of the keys, int64 (4096,), and the holders whose answers are wrong.

    Args:
        keys: holder -> its answer, uint64, (shamir.elements(num_holders),), below 2^31 - 1.
        threshold: T, answers that give the sum.
        num_summed: keys in the sum, which bound its coefficients.
        num_holders: of the roster.
        fits: tells the right sum of keys; None where nothing does.
        colluding: c, holders that may agree on a lie; it bounds what is told without `fits`.

    Raises:
        CryptoError: too few answers, too many wrong ones (code `key-sum`, or `residual` where
            no choice passed `fits`), or a sum larger than its keys can make it.
    """
    if len(keys) < threshold:
        raise CryptoError(f"shamir: expected {threshold} shares, got {len(keys)}")
    holders = sorted(keys)
    code = _code(holders, threshold, PRIME, 0 if fits else colluding)
    words = _combined_keys(np.stack([keys[holder] for holder in holders]))

    def opened(places: frozenset[int]) -> Int64:
        # Compares what is left, every element of it.
        left = {holder: keys[holder] for at, holder in enumerate(holders) if at not in places}
        return shamir.reconstruct(left, threshold, num_summed, num_holders)

    def named(places: frozenset[int]) -> frozenset[int]:
        return frozenset(holders[place] for place in places)

    wrong = _wrong(code, words)
    if wrong is not None and (not wrong or fits is None):
        return opened(wrong), named(wrong)
    few = len(holders) <= MOST_TRIED
    if fits is None or (wrong is None and not few):
        raise _too_many("keys", code, words)

    def choices() -> Iterator[frozenset[int]]:
        if wrong is not None:
            yield wrong
        if few:
            yield from (places for places in _choices(code, words) if places != wrong)

    found: list[tuple[Int64, frozenset[int]]] = []
    for places in choices():
        try:
            key_sum = opened(places)
        except CryptoError:  # out of range: nobody's keys
            continue
        if fits(key_sum):
            found.append((key_sum, named(places)))
            if places == wrong:
                break  # within the radius: no search
    if len(found) != 1:
        raise CryptoError(
            f"shares: the {len(holders)} answers do not fit one another, and {len(found)} choices "
            f"of {threshold} of them give a key that the sum opens under; expected one",
            "residual",
        )
    return found[0]


def open_residues(
    residues: Mapping[int, Sequence[int]], modulus: int, threshold: int, colluding: int = 0
) -> tuple[tuple[int, ...], frozenset[int]]:
    """The sum of the residues, and the holders whose answers are wrong.

    >>> from fedshield.crypto.shamir import share_residues
    >>> shares = dict(enumerate(share_residues((3, 5), 31, 2, 4, bytes(32))))
    >>> open_residues(shares | {1: (0, 0)}, 31, 2)
    ((3, 5), frozenset({1}))

    Args:
        residues: holder -> its answer, a value in [0, modulus) for each residue.
        modulus: q, a prime.
        threshold: T, answers that give the sum.
        colluding: c, holders that may agree on a lie.

    Returns:
        Each sum in [0, modulus), and the holders.

    Raises:
        CryptoError: if there are too few, or more wrong ones than can be told (code `key-sum`).
    """
    if len(residues) < threshold:
        raise CryptoError(f"shamir: expected {threshold} shares, got {len(residues)}")
    holders = sorted(residues)
    code = _code(holders, threshold, modulus, colluding)
    words = _combined_residues([residues[holder] for holder in holders], modulus)
    wrong = _wrong(code, words)
    if wrong is None:
        raise _too_many("residues", code, words)
    left = {holder: residues[holder] for at, holder in enumerate(holders) if at not in wrong}
    found = shamir.reconstruct_residues(left, modulus, threshold)
    return found, frozenset(holders[place] for place in wrong)


# -- places --------------------------------------------------------------------------------


def _code(holders: Sequence[int], threshold: int, prime: int, colluding: int) -> Code:
    spare = len(holders) - threshold
    radius = max(0, min(spare // 2, spare - colluding))
    return Code([holder + 1 for holder in holders], threshold, prime, radius)


def _streams() -> Iterator[Stream]:
    """Two, that nobody could know before."""
    seed = os.urandom(32)
    for index in range(2):
        yield Stream(seed, "answers", index)


def _combined_keys(rows: UInt64) -> list[Word]:
    """Of rows (holders, elements) below 2^31 - 1: two words of one value for each holder."""
    words: list[Word] = []
    prime = np.uint64(PRIME)
    for stream in _streams():
        factors = accepted(stream, rows.shape[1], PRIME).astype(np.uint64)
        # Products stay below 2^62, sums of up to 2048 remainders below 2^42.
        words.append((((rows * factors) % prime).sum(axis=1) % prime).tolist())
    return words


def _combined_residues(rows: Sequence[Sequence[int]], modulus: int) -> list[Word]:
    words: list[Word] = []
    for stream in _streams():
        factors: list[int] = accepted(stream, len(rows[0]), modulus).tolist()
        words.append(
            [sum(f * one for f, one in zip(factors, row, strict=True)) % modulus for row in rows]
        )
    return words


def _wrong(code: Code, words: Sequence[Word]) -> frozenset[int] | None:
    """Places that are wrong in any word; None if there are more than can be told."""
    found: frozenset[int] = frozenset()
    for word in words:
        wrong = code.wrong(word)
        if wrong is None:
            return None
        found |= wrong
    return found if len(found) <= code.radius else None


def _choices(code: Code, words: Sequence[Word]) -> list[frozenset[int]]:
    """For each sum that at least T answers agree on: the places of the others."""
    places = range(len(code.points))
    agreeing: list[frozenset[int]] = []
    for chosen in combinations(places, code.dimension):
        if any(one.issuperset(chosen) for one in agreeing):
            continue
        used = [code.points[place] - 1 for place in chosen]
        fitting = set(chosen)
        for place in set(places) - fitting:
            weights = shamir.lagrange_weights(used, code.points[place], code.prime)
            if all(
                sum(w * word[at] for w, at in zip(weights, chosen, strict=True)) % code.prime
                == word[place]
                for word in words
            ):
                fitting.add(place)
        agreeing.append(frozenset(fitting))
    return [frozenset(places) - one for one in agreeing]


def _too_many(what: str, code: Code, words: Sequence[Word]) -> CryptoError:
    count = len(code.points)
    least = code.radius + 1
    if count <= MOST_TRIED:
        least = min(len(one) for one in _choices(code, words))
    return CryptoError(
        f"shares: at least {least} of {count} answers do not fit the others ({what}); where "
        f"{code.dimension} open the sum, {code.radius} wrong of {count} can be told",
        "key-sum",
    )
