"""Seeds of everything that must repeat: derived, never global.

What all parties must find alike (the initial adapter, masks, frozen factors, public rows, how a
pool is dealt out) comes from the plan's seed, which they all have: `derive`. What is a site's own
(which rows a round takes, their order, dropout, rounding) comes from a secret of the site's:
`SiteRandomness`. Keys, encryption randomness and what differential privacy draws come from
neither: they come from the operating system.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_SITE = b"fedshield training 1"


def derive(seed: int, *labels: str | int) -> int:
    """A 63-bit seed for the use that `labels` name; different labels, unrelated seeds.

    >>> derive(7, "mask", 1) == derive(7, "mask", 1), derive(7, "mask", 1) == derive(7, "mask1")
    (True, False)
    """
    digest = hashlib.sha256(b"fedshield seed 1")
    digest.update(seed.to_bytes(16, "big", signed=True))
    digest.update(_parts(labels))
    return int.from_bytes(digest.digest()[:8], "big") >> 1


@dataclass(frozen=True)
class SiteRandomness:
    """What one site's training draws at random in one run, from 32 bytes: the same after a restore,
    and nothing to lose or to repeat by mistake, since nothing of it is kept.

    Whoever lacks the site's secret knows none of it, whatever else he knows of plan, data and
    adapters. Build it with `of_site` or `of_demonstration`.
    """

    key: bytes = field(repr=False)

    @classmethod
    def of_site(cls, secret: bytes, plan_sha256: str) -> SiteRandomness:
        """From the secret in the site's key file (32 bytes; `crypto.keys.SiteKey`), by HKDF-SHA256
        without salt (RFC 5869), info = label | the plan's digest. What trains never has the secret
        itself."""
        extracted = hmac.digest(bytes(32), secret, "sha256")
        info = _SITE + bytes.fromhex(plan_sha256)
        return cls(hmac.digest(extracted, info + b"\x01", "sha256"))

    @classmethod
    def of_demonstration(cls, seed: int, site: str) -> SiteRandomness:
        """From the plan's seed: no secret at all. For a run whose keys are made for the session,
        which must repeat all the same; so do plans that differ in other keys, for comparisons."""
        return cls(hashlib.sha256(b"fedshield demonstration 1" + _parts((seed, site))).digest())

    def seed(self, *labels: str | int) -> int:
        """A 63-bit seed for the use that `labels` name."""
        return int.from_bytes(self._draw(labels)[:8], "big") >> 1

    def permutation(self, size: int, *labels: str | int) -> NDArray[np.int64]:
        """An order of so many things, int64, (size,), for the use that `labels` name."""
        number = int.from_bytes(self._draw(labels), "big")
        return np.random.Generator(np.random.Philox(number)).permutation(size)

    def _draw(self, labels: tuple[str | int, ...]) -> bytes:
        return hmac.digest(self.key, _parts(labels), "sha256")


def _parts(labels: tuple[str | int, ...]) -> bytes:
    """The labels, each after its length, so that none runs into the next."""
    texts = [str(label).encode() for label in labels]
    return b"".join(len(text).to_bytes(4, "big") + text for text in texts)
