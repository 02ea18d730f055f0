"""The sums of three sites, driven step by step with every random byte fixed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes import NoLedger, RepeatingPublicKey
from fedshield.crypto import seal as seal_module
from fedshield.crypto.keys import SigningKey
from fedshield.crypto.rlwe import sampling
from fedshield.crypto.rlwe import scheme as rlwe
from fedshield.crypto.rlwe.adder import RlweAdder
from fedshield.crypto.rlwe.params import RING_DEGREE, RlweParameters
from fedshield.crypto.scheme import rlwe_parameters
from fedshield.plan.quorum import resolve
from fedshield.protocol.journal import Journal
from fedshield.protocol.participant_sum import Member, Summation
from fedshield.protocol.roster import Roster
from fedshield.protocol.wire import envelope, messages
from fedshield.protocol.wire.envelope import Binding
from fedshield.site.ciphers import OneTimeKeys
from fedshield.types import AdapterSpec, EncodedIntegers, Layout, Selection, TensorSpec
from fedshield.update import encode_integers

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


def errors(key: rlwe.OneTimeKey) -> Ints:
    return sampling.binomial(key.seed, rlwe.ERROR, 8 * RING_DEGREE)[:RING_DEGREE]


def fixed(label: str) -> bytes:
    return hashlib.sha256(b"fedshield sum vectors " + label.encode()).digest()


class Sums:
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


@pytest.fixture
def federation_of_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sums:
    return Sums(tmp_path, monkeypatch)
