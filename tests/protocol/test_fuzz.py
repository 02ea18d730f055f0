"""Mutated messages at every door and in every parser: only our own errors, bounded memory, and
never a wrong sum.

Valid input is cut, spliced, flipped, bent into other types and sizes, and signed or sealed again
by who would have, so that it reaches what lies behind the signature. FEDSHIELD_FUZZ_CASES is the
number of cases in all, a few thousand if not given; the same number gives the same mutations (of
keys and ciphertexts that are fresh each time).
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hand import failing

from fakes import Canned, MemoryStore
from fedshield.crypto import framing, seal, shamir
from fedshield.crypto import shares as sharing
from fedshield.crypto.adders import PlainAdder
from fedshield.crypto.keys import RunKey
from fedshield.crypto.public_keys import PublicKey
from fedshield.crypto.rlwe import scheme as rlwe
from fedshield.crypto.rlwe.adder import RlweAdder
from fedshield.crypto.rlwe.layout import RlweLayout, blocks_per_chunk
from fedshield.crypto.scheme import CKKS, rlwe_parameters
from fedshield.errors import CryptoError, ProtocolError, RoundFailed
from fedshield.protocol import coordinator as coordinator_module
from fedshield.protocol import run_keys
from fedshield.protocol.channels import ANSWER, SHARE
from fedshield.protocol.contexts import read_joins, read_round_keys, read_uploads, upload_digest
from fedshield.protocol.coordinator import Coordinator
from fedshield.protocol.journal import Journal
from fedshield.protocol.restart import Standing
from fedshield.protocol.roster import COORDINATOR
from fedshield.protocol.wire import codec, envelope, messages
from fedshield.protocol.wire.envelope import Binding
from fedshield.site.ciphers import rlwe_layout
from fedshield.site.schemes import parameters_of
from fedshield.update.quantise import quantise

#: With fewer than a thousand, some ways to end are not met.
CASES = max(1000, int(os.environ.get("FEDSHIELD_FUZZ_CASES", "4000")))
OURS = (ProtocolError, CryptoError, RoundFailed)
#: Commands that come with membership batches only.
OF_BATCHES = {"attest", "give-model", "take-model", "train"}
#: Beyond what is made of honest input, which is below it as well, and of each byte that comes in.
MEMORY_BYTES = 8 * 2**20
MEMORY_A_BYTE = 30
LONGEST_S = 30.0

pytestmark = pytest.mark.timeout(3600)

KINDS = {
    one.kind: one
    for one in vars(messages).values()
    if isinstance(one, type) and issubclass(one, messages.Message) and one.kind
}


def cases(share: float) -> int:
    """This part of all cases."""
    return max(1, round(CASES * share))


class Outcome:
    """How something ended: with nothing, or with an error of ours."""

    error: Exception | None = None

    @property
    def code(self) -> str:
        """'done', the error's code, or 'failed'."""
        return "done" if self.error is None else getattr(self.error, "code", "failed")


@contextmanager
def bounded(incoming: int, measured: bool = True) -> Iterator[Outcome]:
    """Catches an error of ours, and fails if what is done within raises any other, or takes more
    memory (where `measured`) or time than it may."""
    outcome = Outcome()
    started = time.monotonic()
    if measured:
        tracemalloc.start()
    try:
        yield outcome
    except OURS as error:
        outcome.error = error
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < MEMORY_BYTES + MEMORY_A_BYTE * incoming, (peak, incoming)
    assert time.monotonic() - started < LONGEST_S


# -- mutations ----------------------------------------------------------------------------------


INTEGERS = (-(2**63), -(2**31), -1, 0, 1, 2, 255, 2**16, 2**31 - 1, 2**32, 2**53, 2**63 - 1)
LENGTHS = (0, 1, 4, 31, 32, 33, 255, 2**16, 2**20, 2**20 + 1, 2**31 - 1, 2**31, 2**32 - 1)


class Mutator:
    """Seeded by a name, so that each test has mutations of its own."""

    def __init__(self, name: str, sign: Mapping[str, Callable[[bytes], bytes]]) -> None:
        self.random = random.Random(f"{name} {CASES}")
        self.sign = sign
        #: Seen before: to splice in.
        self.pool: list[bytes] = [b"", bytes(32), b"\xff" * 8]

    # -- bytes

    def mangled(self, data: bytes) -> bytes:
        for _ in range(self.random.choice((1, 1, 1, 2, 5))):
            data = self._mangle(bytearray(data))
        return data

    def _mangle(self, data: bytearray) -> bytes:
        r, size = self.random, len(data)
        at, end = sorted((r.randint(0, size), r.randint(0, size)))
        how = r.randrange(8)
        if how == 0 and size:
            for _ in range(r.choice((1, 1, 8))):
                data[r.randrange(size)] ^= 1 << r.randrange(8)
        elif how == 1:
            del data[r.choice((0, at, size - min(size, r.randint(0, 9)))) :]
        elif how == 2:
            data[at:at] = r.randbytes(r.choice((1, 4, 64)))
        elif how == 3:
            del data[at : min(end, at + 64)]
        elif how == 4:
            data[at:at] = data[at:end][:4096]
        elif how == 5:
            other = r.choice(self.pool)
            cut = r.randint(0, len(other))
            data[at : r.choice((at, end))] = other[cut : cut + 4096]
        elif how == 6:
            places = [
                n for n in range(min(size, 4096)) if data[n : n + 1] in (b"S", b"B", b"L", b"M")
            ]
            if places:
                place = r.choice(places)
                length = int.from_bytes(data[place + 1 : place + 5], "big")
                length = r.choice((*LENGTHS, max(length - 1, 0), min(length + 1, 2**32 - 1)))
                data[place + 1 : place + 5] = length.to_bytes(4, "big")
        elif size:
            data[r.randrange(size)] = r.choice(b"ISBLM\0\xff")
        return bytes(data)

    # -- values

    def bent(self, value: Any, depth: int = 0) -> Any:
        """One place in a value changed; a signed message within is signed again."""
        r = self.random
        inner = value if isinstance(value, dict | list) else None
        if inner and r.random() < 0.85:
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            key = r.choice(keys)
            changed: Any = copy.copy(inner)
            changed[key] = self.bent(inner[key], depth + 1)
            return changed
        if isinstance(value, bytes) and value[:4] == envelope.MAGIC and r.random() < 0.8:
            return self.bent_envelope(value)
        return self._bend(value, depth)

    def _bend(self, value: Any, depth: int) -> Any:
        r = self.random
        if r.random() < 0.25:
            return self._any(depth)
        if isinstance(value, int):
            return r.choice((*INTEGERS, max(-(2**63), value - 1), min(2**63 - 1, value + 1)))
        if isinstance(value, str):
            return r.choice((value + "x", value[:-1], "", "\0", "é" * 300, "coordinator", "lab"))
        if isinstance(value, bytes):
            return r.choice(
                (self.mangled(value), b"", value + b"\0", value[:-1], bytes(len(value)),
                 r.randbytes(len(value) % 65536), r.choice(self.pool), bytes(100_000))
            )  # fmt: skip
        changed: Any = copy.copy(value)
        how = r.randrange(4)
        if isinstance(value, dict):
            if how == 0 and value:
                del changed[r.choice(list(value))]
            elif how == 1:
                changed[r.choice(("", "lab", "coordinator", "zz", "é"))] = self._any(depth)
            elif how == 2 and len(value) > 1:
                one, other = r.sample(list(value), 2)
                changed[one], changed[other] = value[other], value[one]
            else:
                changed = {f"site-{n}": b"" for n in range(r.choice((0, 1, 300)))}
            return changed
        if how == 0 and value:
            del changed[r.randrange(len(value))]
        elif how == 1:
            changed.insert(r.randint(0, len(value)), self._any(depth))
        elif how == 2:
            r.shuffle(changed)
        else:
            changed = changed[:3] * r.choice((0, 2, 100))
        return changed

    def _any(self, depth: int) -> Any:
        nested: Any = b""
        for _ in range(self.random.randint(0, 6 - min(depth, 6))):
            nested = [nested] if self.random.random() < 0.5 else {"a": nested}
        return self.random.choice(
            (*INTEGERS, "", "bank", b"", bytes(32), [], {}, nested, [b""] * 2000, {"a": 1},
             {"bank": b"", "clinic": b"x"})
        )  # fmt: skip

    # -- signed messages

    def bent_envelope(self, data: bytes) -> bytes:
        """Its body, or anything in it, changed; signed by its sender."""
        value: Any = codec.decode(data[5 : -envelope.SIGNATURE_BYTES])
        sender = value[4]
        if self.random.random() < 0.9:
            value = [*value[:5], self.bent(value[5])]
        else:
            value = self.bent(value)
        return self.signed(envelope.MAGIC + b"\1" + self._encoded(value), sender)

    def _encoded(self, value: Any) -> bytes:
        try:
            return codec.encode(value)
        except RecursionError:
            return b""

    def signed(self, message: bytes, sender: str) -> bytes:
        return message + self.sign[sender](message)

    def mutant(self, data: bytes, sender: str) -> bytes:
        """Of a signed message: three of four are signed again."""
        self.remember(data)
        how = self.random.random()
        if how < 0.15:
            return self.mangled(data)
        if how < 0.4:
            return self.signed(self.mangled(data[: -envelope.SIGNATURE_BYTES]), sender)
        return self.bent_envelope(data)

    def remember(self, data: bytes) -> None:
        if len(self.pool) < 200:
            self.pool.append(data[:20_000])


# -- a recorded federation ------------------------------------------------------------------------


@dataclass
class Recorded:
    """A whole session of three sites: every command and reply, and what each site stood at."""

    federation: Any
    log: list[Any]
    signers: dict[str, Callable[[bytes], bytes]]

    def of(self, method: str) -> list[Any]:
        return [one for one in self.log if one.method == method]

    def mutator(self, name: str) -> Mutator:
        return Mutator(name, self.signers)


def signers_of(federation: Any) -> dict[str, Callable[[bytes], bytes]]:
    keys = {name: key.sign for name, key in federation.keys.items()}
    return {**keys, COORDINATOR: federation.server.sign}


@pytest.fixture
def batches(federation: Any) -> Any:
    """Two batches, of which one made round 1; in the next session the other takes its model."""
    ours = federation("rlwe", weights="equal", sites=6, rules={"membership": "batches"})
    failing(ours, {"lab": ("invite", "before")})
    ours.coordinator.start()
    ours.coordinator.round(1)
    ours.coordinator = ours.another_coordinator()
    ours.wire.log.clear()
    return ours


@pytest.fixture
def recorded(federation: Any, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """One round under rlwe with private weights."""
    fixed_session(monkeypatch)
    ours = federation("rlwe", weights="private").run(1)
    ours.coordinator.finish()
    return Recorded(ours, list(ours.wire.log), signers_of(ours))


def fixed_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """The coordinator's own random bytes are always the same: recorded replies fit again."""
    fixed = SimpleNamespace(urandom=lambda size: b"\7" * size)
    monkeypatch.setattr(coordinator_module, "os", fixed)


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> None:
    """Compiling takes memory of its own, once."""
    parameters = rlwe_parameters(3, 16, False)
    layout = RlweLayout(parameters, 4, (1,))
    digits = np.zeros(4, dtype=np.int16)
    quantise(np.zeros(4, dtype=np.float32), 1.0, 1, 0, out=digits, residual=np.zeros(4, np.float32))
    key = rlwe.OneTimeKey(bytes(32))
    adder = RlweAdder(parameters)
    made = rlwe.Encryption(digits, (1,), key, bytes(32), layout, bytes(32))
    (chunk,) = made.chunks()
    summed = adder.result(adder.add(None, chunk))
    rlwe.open_sum([summed], key.secret(), made.residues(), 1, bytes(32), layout, bytes(32))


# -- parsers --------------------------------------------------------------------------------------


def test_values(recorded: Recorded) -> None:
    """`codec.decode`: what is accepted is the one encoding of what it gives."""
    mutator = recorded.mutator("codec")
    found: Counter[str] = Counter()
    for _ in range(cases(0.2)):
        one = mutator.random.choice(recorded.log)
        data = mutator.random.choice((one.command, one.reply))[5:-64]
        mutator.remember(data)
        data = mutator.mangled(data)
        with bounded(len(data)) as outcome:
            value = codec.decode(data)
        found[outcome.code] += 1
        if not outcome.error:
            assert codec.encode(value) == data
    assert set(found) == {"done", "malformed"}


def test_counts_that_lie_take_no_memory() -> None:
    """A few bytes that claim a million items, and the most that a long one can be made of."""
    for tag in b"LM":
        for depth in (0, 1, 7, 8, 9):
            head = b"L\0\0\0\1" * depth + bytes([tag])
            for count in LENGTHS:
                data = head + count.to_bytes(4, "big")
                for more in (b"", bytes(100), b"I" + bytes(8), b"M\0\0\0\0" * 20):
                    with bounded(len(data)) as outcome:
                        codec.decode(data + more)
                    assert outcome.code in ("done", "malformed")
    for head in (b"L\0\0\0\1", b"M\0\0\0\1S\0\0\0\0"):
        data = head * 20_000
        with bounded(len(data)) as outcome:
            codec.decode(data)
        assert outcome.code == "malformed"
    for item in (b"M\0\0\0\0", b"L\0\0\0\0", b"S\0\0\0\0", b"I" + bytes(7) + b"\x99"):
        data = b"L" + (20_000).to_bytes(4, "big") + item * 20_000
        with bounded(len(data)):
            value = codec.decode(data)
        assert isinstance(value, list)
        assert len(value) == 20_000


def test_envelopes(recorded: Recorded) -> None:
    mutator = recorded.mutator("envelope")
    ours = recorded.federation
    public = {name: key.public for name, key in ours.keys.items()}
    public[COORDINATOR] = ours.server.public
    found: Counter[str] = Counter()
    for _ in range(cases(0.08)):
        one = mutator.random.choice(recorded.log)
        data = mutator.random.choice((one.command, one.reply))
        kind, binding, sender, _ = ours.opened(data)
        mutant = mutator.mutant(data, sender)
        with bounded(len(mutant)) as outcome:
            envelope.unseal(mutant, kind, binding, sender, public[sender])
        found[outcome.code] += 1
    assert {"done", "signature", "malformed"} <= set(found)


def test_bodies_of_every_message(recorded: Recorded, batches: Any) -> None:
    """`from_body`: what is accepted says the same when it is written again."""
    mutator = recorded.mutator("bodies")
    mutator.sign = signers_of(batches) | dict(mutator.sign)
    bodies: dict[str, list[Any]] = {}
    batches.coordinator.start()
    batches.coordinator.round(2)
    batches.coordinator.out_of_budget()
    for one in (*recorded.log, *batches.wire.log):
        for data in (one.command, one.reply):
            kind, _, _, body = recorded.federation.opened(data)
            bodies.setdefault(kind, []).append(body)
    for box in bodies["key-offer"][0]["boxes"].values():
        kind, _, _, body = recorded.federation.opened(box)
        bodies.setdefault(kind, []).append(body)
    for answer in bodies["answer"]:
        kind, _, _, body = recorded.federation.opened(answer["tag"])
        bodies.setdefault(kind, []).append(body)
    standing = Standing(frozenset({0, 1, 2}), bytes(32)).to_message(bytes(32))
    named: Any = {"bank": b"standing"}
    # What comes before a session, in which these sites are already.
    for message in (
        messages.Stand(bytes(16)),
        standing,
        messages.Compare(named),
        messages.Restart(named),
    ):
        bodies[message.kind] = [message.to_body()]
    assert set(bodies) == set(KINDS)
    accepted: Counter[str] = Counter()
    for _ in range(cases(0.2) // len(KINDS) + 1):
        for kind, known in bodies.items():
            body = mutator.bent(mutator.random.choice(known))
            with bounded(100_000) as outcome:
                message = KINDS[kind].from_body(body)
            assert outcome.code in ("done", "malformed")
            if not outcome.error:
                accepted[kind] += 1
                assert KINDS[kind].from_body(message.to_body()) == message
                assert_typed(message)
    assert len(accepted) > len(KINDS) // 3


def assert_typed(message: messages.Message) -> None:
    """Every field has the type that is written at it, all the way down."""
    for one in fields(message):
        value, wanted = getattr(message, one.name), str(one.type)
        if wanted == "tuple[bytes, ...]":
            assert type(value) is tuple
            assert {type(item) for item in value} <= {bytes}
        elif wanted == "dict[str, bytes]":
            assert type(value) is dict
            assert {(type(key), type(item)) for key, item in value.items()} <= {(str, bytes)}
        else:
            assert type(value) is {"int": int, "str": str, "bytes": bytes}[wanted]


def test_sets_of_signed_messages(recorded: Recorded) -> None:
    """The readers that both sides share: joins, round keys, uploads."""
    mutator = recorded.mutator("sets")
    ours = recorded.federation
    opened = ours.opened
    found: Counter[str] = Counter()
    readers: list[tuple[dict[str, bytes], Binding, Callable[..., Any]]] = []
    for method, field_name, reader in (
        (
            "begin",
            "joins",
            lambda raw, binding: read_joins(raw, binding, ours.roster, 3, public=False),
        ),
        ("work", "round_keys", lambda raw, binding: read_round_keys(raw, binding, ours.roster, 3)),
        ("announce", "uploads", lambda raw, binding: read_uploads(raw, binding, ours.roster)),
    ):
        raw = opened(recorded.of(method)[-1].command)[3][field_name]
        readers.append((raw, opened(next(iter(raw.values())))[1], reader))
    for raw, binding, reader in readers:
        assert len(reader(raw, binding)) == 3
    for _ in range(cases(0.05)):
        raw, binding, reader = mutator.random.choice(readers)
        mutant = mutator.bent(raw)
        if not isinstance(mutant, dict) or not all(
            isinstance(one, bytes) for one in mutant.values()
        ):
            continue
        with bounded(sum(map(len, mutant.values()))) as outcome:
            result = reader(mutant, binding)
        found[outcome.code] += 1
        if outcome.error:
            continue
        assert set(result) == set(mutant)
        for message in result.values():
            assert_typed(message)
            for name in ("nonce", "model_tag"):
                assert len(getattr(message, name, bytes(32))) == 32
            for name in ("run_key", "key"):
                if hasattr(message, name):
                    PublicKey.from_bytes(getattr(message, name)).check()
    assert {"done", "signature", "malformed", "size"} <= set(found)


def test_public_keys(recorded: Recorded) -> None:
    """What is accepted can be sealed to; the checks of FIPS 203, section 7.2, hold before."""
    mutator = recorded.mutator("public keys")
    key = RunKey(os.urandom(32))
    raw = key.public.to_bytes()
    good = 0
    for _ in range(cases(0.03)):
        mutant = mutator.mangled(raw)
        with bounded(len(mutant)) as outcome:
            PublicKey.from_bytes(mutant).check()
        if not outcome.error:
            good += 1
            names = ("bank", "clinic")
            peer = PublicKey.from_bytes(mutant)
            through = seal.encapsulate(key, peer, context=b"", names=names)
            assert len(through.ciphertext) == seal.CIPHERTEXT_BYTES
        assert outcome.code in ("done", "crypto")
    assert good


def test_boxes_and_shares(recorded: Recorded) -> None:
    """Sealed boxes never open once changed; shares are the bytes of field elements or refused."""
    mutator = recorded.mutator("boxes")
    one, other = RunKey(os.urandom(32)), RunKey(os.urandom(32))
    named: dict[str, Any] = {"context": bytes(32), "names": ("bank", "clinic")}
    shape = sharing.ShareShape(2, 3, 5, rlwe_parameters(3, 16, False).q)
    secret = np.zeros(4096, np.int64)
    content = sharing.to_bytes(sharing.deal(secret, (0,) * 5, shape, bytes(32))[0])
    sender = seal.encapsulate(one, other.public, **named)
    box = sender.ciphertext + sender.seal(content, SHARE)

    def unsealed(data: bytes, peer: PublicKey) -> bytes:
        channel, inner = seal.receive(data, other, peer, **named)
        return channel.unseal(inner, SHARE)

    assert unsealed(box, one.public) == content
    mutator.remember(content)
    for _ in range(cases(0.05)):
        mutant = mutator.mangled(box)
        if mutant != box:
            with bounded(len(mutant)) as outcome:
                unsealed(mutant, one.public)
            assert isinstance(outcome.error, CryptoError)
        share = mutator.mangled(content)
        with bounded(len(share)) as outcome:
            found = sharing.from_bytes(share, shape)
        if not outcome.error:
            assert sharing.to_bytes(found) == share
            assert int(found.key.max()) < shamir.PRIME
            assert max(found.residues) < shape.modulus
        public = mutator.mangled(one.public.to_bytes())
        with bounded(len(public)) as outcome:
            unsealed(box, PublicKey.from_bytes(public))
        # The sender's ML-KEM key is bound by the context of a sum, not by a channel.
        assert outcome.error or public[-32:] == one.public.x25519


def test_chunks(recorded: Recorded) -> None:
    """The adders: whole chunks of the plan's length or `CryptoError`; what was added fits."""
    mutator = recorded.mutator("chunks")
    parameters = rlwe_parameters(3, 16, False)
    chunks = [recorded.federation.opened(one.reply)[3]["data"] for one in recorded.of("fetch")]
    block = framing.pack([bytes(300), b"x" * 50])
    mutator.pool += [chunks[0], block]
    floats = np.arange(100, dtype="<f4").tobytes()
    added = 0
    for _ in range(cases(0.05)):
        adder, total = RlweAdder(parameters), None
        lengths = set()
        with bounded(4 * len(chunks[0])) as outcome:
            for chunk in mutator.random.sample(chunks, 3):
                again = mutator.mangled(chunk)
                whole = again + bytes(-len(again) % len(chunk))
                again = mutator.random.choice((chunk, again, whole, chunk * 2))
                total = adder.add(total, again)
                lengths.add(len(again))
            assert total is not None
            assert len(adder.result(total)) % (512 * parameters.sum_word_bits) == 0
        if not outcome.error:
            added += 1
            assert len(lengths) == 1
        plain, total = PlainAdder(), None
        with bounded(len(floats)), np.errstate(invalid="ignore"):
            for _ in range(2):
                total = plain.add(total, mutator.mangled(floats))
            plain.result(total)
        with bounded(len(block)):
            framing.unpack(mutator.mangled(block), CKKS["lean"])
    assert added
    most = blocks_per_chunk(parameters)
    with bounded(0) as outcome:
        RlweAdder(parameters).add(None, chunks[0] * (most + 1))
    assert isinstance(outcome.error, CryptoError)


def test_sums_that_were_changed_do_not_open(federation: Any) -> None:
    """The aggregate with any bytes changed: refused, or the very sum; with words added to one
    another, too. The keys are right: this is what the residue and the tags are for."""
    ours = federation("rlwe", weights="equal")
    ours.coordinator.start()
    ours.work(1)
    sums = [ours.participants[name]._sum for name in ours.names]
    parameters = parameters_of(ours.plan)
    adder, total = RlweAdder(parameters), None
    for one in sums:
        total = adder.add(total, one.fetch(0))
    assert total is not None
    honest = adder.result(total)
    key_sum = sum(one._sealed.secret for one in sums)
    residues = shamir.add_residues([one._sealed.residues for one in sums], parameters.q)
    context = sums[0].binding.context
    layout, seed = rlwe_layout(parameters, sums[0]._layout), sums[0]._cipher._tag_seed(context)

    def opened(chunk: bytes) -> rlwe.Opened:
        return rlwe.open_sum([chunk], key_sum, residues, 3, context, layout, seed)

    truth = opened(honest)
    mutator = Mutator("sums", signers_of(ours))
    mutator.pool += [honest, sums[0].fetch(0)]
    codes: Counter[str] = Counter()
    for _ in range(cases(0.03)):
        mutant = mutator.mangled(honest)
        if mutator.random.random() < 0.7:
            mutant = (mutant + bytes(len(honest)))[: len(honest)]
        with bounded(len(mutant)) as outcome:
            found = opened(mutant)
        codes[outcome.code] += 1
        if not outcome.error:
            np.testing.assert_array_equal(found.values, truth.values)
            assert found.reserved == truth.reserved
    assert {"crypto", "residual"} <= set(codes)
    assert codes["done"] < sum(codes.values()) / 2


def test_journals(recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed file is refused, or is what it was at an earlier time; records that were made
    up, with right digests, are refused or kept as they are."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    mutator = recorded.mutator("journal")
    source = recorded.federation.folder / "bank.jsonl"
    valid = source.read_bytes()
    whole = Journal(source)
    assert len(whole._left) == 6
    path = tmp_path / "journal.jsonl"
    lines = valid.splitlines(keepends=True)
    mutator.pool += lines
    found: Counter[str] = Counter()
    for _ in range(cases(0.06)):
        chained = mutator.random.random() < 0.5
        data = made_up(mutator, lines) if chained else mutator.mangled(valid)
        path.write_bytes(data)
        with bounded(len(data)) as outcome:
            journal = Journal(path)
        found[outcome.code] += data != valid
        if outcome.error:
            assert outcome.code == "journal"
            continue
        if not chained:  # then it is what it was at an earlier time
            known = list(whole._left.items())
            assert list(journal._left.items()) == known[: len(journal._left)]
        # It goes on: what is in force is known, and what is new is kept.
        with bounded(1000) as outcome:
            journal.upload(b"s", 1, "round", bytes(32))
            journal.vote(b"s", 1, "round", bytes(32), "a base", ["bank", "clinic"])
        assert outcome.code in ("done", "repeated")
        assert Journal(path)._left == journal._left
        assert Journal(path)._opened == journal._opened
    assert set(found) == {"done", "journal"}


def made_up(mutator: Mutator, lines: Sequence[bytes]) -> bytes:
    """Records that are bent, chained as a journal would chain them."""
    records: list[Any] = [json.loads(line) for line in lines]
    for record in records:
        record.pop("check")
    count = len(records)
    for _ in range(mutator.random.randint(1, 3)):
        place = mutator.random.randrange(count)
        record = records[place]
        key = mutator.random.choice([*record, "kind", "extra"])
        record[key] = mutator.random.choice(
            (None, 1.5, float("inf"), True, [], {}, [["a"]], "", "upload", 10**30, -1, "\ud800",
             ["bank", 5], "1" * 5000, {"a": [1]})
        )  # fmt: skip
        if mutator.random.random() < 0.2:
            del record[mutator.random.choice(list(record))]
    chain, out = "", []
    for record in records:
        chain = hashlib.sha256((chain + json.dumps(record, sort_keys=True)).encode()).hexdigest()
        out.append(json.dumps({**record, "check": chain}, sort_keys=True))
    if mutator.random.random() < 0.3:
        odd = ("5", "null", "[]", '"x"', "[" * 50_000, "{}", '{"check": 1}', "NaN", "\xe9", "")
        out[mutator.random.randrange(count)] = mutator.random.choice(odd)
    return ("\n".join(out) + "\n").encode("latin-1")


def test_journals_cut_anywhere_are_an_earlier_state(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    source = recorded.federation.folder / "bank.jsonl"
    valid = source.read_bytes()
    whole = Journal(source)._left
    path = tmp_path / "journal.jsonl"
    for cut in range(0, len(valid), max(1, len(valid) // cases(0.03))):
        path.write_bytes(valid[:cut])
        journal = Journal(path)
        assert journal._left == dict(list(whole.items())[: valid[:cut].count(b"\n")])


# -- a live participant ----------------------------------------------------------------------------


def fork_line(line: Any) -> Any:
    """The same rules over the same ledger, of which what is added is in memory."""
    ledger = copy.copy(line._ledger)
    for name, value in vars(ledger).items():
        if isinstance(value, dict | list):
            setattr(ledger, name, copy.copy(value))

    def append(entry: dict[str, Any]) -> None:
        read = json.loads(json.dumps(entry))
        ledger._apply(read, ledger._digest(read))

    def keep_peers(peers: Any) -> None:
        ledger.peers = dict(peers)

    ledger._append, ledger._keep_peers = append, keep_peers
    twin = copy.copy(line)
    twin._ledger = ledger
    return twin


def fork(site: Any) -> Any:
    """A participant that is just like `site` and shares nothing with it that changes. Its
    journal and its ledger are in memory."""
    twin = copy.copy(site)
    twin._commands = {
        name: MethodType(method.__func__, twin) for name, method in site._commands.items()
    }
    journal = copy.copy(site._journal)
    journal._left, journal._opened = dict(journal._left), dict(journal._opened)
    journal._append = journal._apply
    twin._journal = journal
    twin._line = fork_line(site._line)
    twin._observe = lambda _: None
    twin._model = copy.copy(site._model)
    twin._model._store = MemoryStore()
    twin._model.record = replace(site._model.record, wall_s={})
    if site._models is not None:
        twin._models = copy.copy(site._models)
        twin._models._arrived = list(site._models._arrived)
    if site._sum is not None:
        twin._sum = copy.copy(site._sum)
        for name, value in vars(site._sum).items():
            if isinstance(value, dict | list):
                setattr(twin._sum, name, copy.copy(value))
        twin._sum._member = replace(site._sum._member, journal=journal, line=twin._line)
        if site._sum._channels is not None:
            twin._sum._channels = copy.copy(site._sum._channels)
            twin._sum._channels._from = dict(site._sum._channels._from)
    return twin


@dataclass
class Door:
    """Forks of a site are tried before each command that the site gets."""

    federation: Any
    mutator: Mutator
    each: int
    codes: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)

    def __call__(self, site: str, method: str, data: bytes) -> bytes:
        participant = self.federation.participants[site]
        tried = [self.mutator.mutant(data, COORDINATOR) for _ in range(self.each)]
        for mutant in tried:
            named = method
            if self.mutator.random.random() < 0.05:
                named = self.mutator.random.choice([*participant._commands, "", "forget"])
            twin = fork(participant)
            measured = self.mutator.random.random() < 0.25
            with bounded(len(mutant), measured) as outcome:
                twin.handle(named, mutant)
            self.codes[outcome.code] += 1
            if outcome.error:
                assert len(str(outcome.error)) < 1000 + 5 * len(mutant)
                assert "\n" not in str(outcome.error)
                self.standing(participant, twin)
                continue
            self.accepted[method] += 1
            if named == "open":
                self.opened(participant, twin, data)
        return data

    def standing(self, participant: Any, twin: Any) -> None:
        """What refuses has installed nothing."""
        assert twin.state is participant.state
        assert twin.memory is participant.memory
        assert twin.completed_rounds == participant.completed_rounds

    def opened(self, participant: Any, twin: Any, data: bytes) -> None:
        """What opens is the one sum."""
        honest = fork(participant)
        honest.handle("open", data)
        assert twin.state.sha256() == honest.state.sha256()
        assert twin._weights_total == honest._weights_total


@pytest.mark.parametrize("open_to", ["peers", "server"])
def test_every_command_at_a_live_site(federation: Any, open_to: str) -> None:
    """A session of one round, with private weights; before each command each site is shown
    mutations of it. The session then goes on to the right sum as if nothing had been."""
    ours = federation("rlwe", weights="private", rules={"open_to": open_to})
    crossings = 70
    door = Door(ours, Mutator(f"door {open_to}", signers_of(ours)), cases(0.09) // crossings + 1)
    ours.wire.to_site = door
    ours.run(1)
    ours.coordinator.out_of_budget()
    ours.coordinator.finish()
    assert not ours.coordinator.lost
    ours.state()
    commands = set(ours.participants["bank"]._commands) - OF_BATCHES
    assert {one.method for one in ours.wire.log} == commands
    if CASES >= 4000:
        assert {"signature", "malformed"} <= set(door.codes)
        assert len(door.codes) >= 6
        assert door.accepted


def test_every_command_of_batches_at_a_live_site(batches: Any) -> None:
    """A session in which three sites take a model, and its round."""
    crossings = 140
    door = Door(batches, Mutator("door batches", signers_of(batches)), cases(0.09) // crossings + 1)
    batches.wire.to_site = door
    batches.coordinator.start()
    batches.coordinator.round(2)
    assert not batches.coordinator.lost
    assert {site.completed_rounds for site in batches.participants.values()} == {2}
    batches.state()
    assert {one.method for one in batches.wire.log} > OF_BATCHES


def test_every_command_under_other_schemes(federation: Any) -> None:
    """plain: a key of the run and no shares."""
    ours = federation("plain", weights="public")
    door = Door(ours, Mutator("door plain", signers_of(ours)), cases(0.03) // 40 + 1)
    ours.wire.to_site = door
    ours.run(1)
    ours.coordinator.finish()
    assert not ours.coordinator.lost


def test_shares_and_answers_from_a_malicious_site(federation: Any) -> None:
    """Contents that are mutated before they are sealed, by a site of the roster: the receiver
    complains or refuses, and never opens another sum."""
    ours = federation("rlwe", weights="equal", sites=4)
    mutator = Mutator("peers", signers_of(ours))
    rounds = 0
    complained = 0

    def content_of(site: str, box: bytes, sender: str, purpose: str, about: bytes) -> bytes:
        channels = fork(ours.participants[site])._sum._channels
        if purpose == SHARE:
            raw: bytes = channels.open_share(box, sender, about)
        else:
            raw = channels.open_answer(box, sender, about)
        mutator.remember(raw)
        return mutator.mangled(raw)

    def shares(site: str, method: str, data: bytes) -> bytes:
        nonlocal rounds, complained
        if method not in ("hold", "open"):
            return data
        participant = ours.participants[site]
        body = ours.opened(data)[3]
        for _ in range(cases(0.02) // 8 + 1):
            twin = fork(participant)
            sender = mutator.random.choice([one for one in ours.names if one != site])
            dealer = ours.participants[sender]._sum
            about = b""
            if method == "hold":
                upload = dealer._upload
                about = upload_digest(upload)
                content = content_of(site, body["shares"][sender], sender, SHARE, about)
                box = dealer._channels.seal_share(content, site, about, dealer._salt_key)
                digests = {**upload.share_digests, site: hashlib.sha256(box).digest()}
                changed = replace(upload, share_digests=digests)
                signed = envelope.seal(
                    "upload", ours.binding, sender, changed.to_body(), ours.keys[sender].sign
                )
                command: messages.Message = messages.Hold(
                    {**body["uploads"], sender: signed}, {**body["shares"], sender: box}
                )
            else:
                vote = participant._sum._vote
                about = vote.contributors + vote.aggregate
                content = content_of(site, body["answers"][sender], sender, ANSWER, about)
                # The sender's own sum is over already where it opened first.
                source = dealer or sums[sender]
                box = source._channels.seal_answer(
                    content, site, about, source._salt_key, first=False
                )
                command = messages.Open({**body["answers"], sender: box}, body["tags"])
            with bounded(len(content)) as outcome:
                reply = twin.handle(method, ours.seal(command))
            if outcome.error:
                assert twin.state is participant.state
                continue
            rounds += 1
            if method == "hold":
                complaints = ours.opened(reply)[3]["complaints"]
                assert set(complaints) <= {sender}
                complained += bool(complaints)
            else:
                honest = fork(participant)
                honest.handle(method, data)
                assert twin.state.sha256() == honest.state.sha256()
        return data

    sums: dict[str, Any] = {}

    def watched(site: str, method: str, data: bytes) -> bytes:
        if method == "hold":
            sums[site] = ours.participants[site]._sum
        return shares(site, method, data)

    ours.coordinator.start()
    ours.wire.to_site = watched
    ours.coordinator.round(1)
    assert rounds
    assert complained


def test_run_keys_from_a_malicious_maker(federation: Any) -> None:
    """The box of the run's keys: bytes and contents mutated, sealed and signed again."""
    ours = federation("rlwe", weights="equal")
    mutator = Mutator("run keys", signers_of(ours))
    names = ("bank", "clinic")
    taken = 0

    def keys(site: str, method: str, data: bytes) -> bytes:
        nonlocal taken
        if method != "take-key" or site != "clinic":
            return data
        participant, maker = ours.participants[site], ours.participants["bank"]
        box = ours.opened(data)[3]["box"]
        context = participant._session.context
        found = messages.KeyBox.from_body(ours.opened(box)[3])
        channel, inner = seal.receive(
            found.box, participant._run_key, maker._run_key.public, context=context, names=names
        )
        content = channel.unseal(inner, run_keys.PURPOSE)
        for _ in range(cases(0.02)):
            sealed = channel.seal(mutator.mangled(content), run_keys.PURPOSE)
            body = replace(found, box=channel.ciphertext + sealed).to_body()
            if mutator.random.random() < 0.2:
                body = mutator.bent(body)
            signed = envelope.seal(
                "key-box", participant._session, "bank", body, ours.keys["bank"].sign
            )
            twin = fork(participant)
            with bounded(len(signed)) as outcome:
                twin.handle("take-key", ours.seal(messages.TakeKey(signed)))
            taken += not outcome.error
            assert (twin._keys is None) == (outcome.error is not None)
        return data

    ours.wire.to_site = keys
    ours.run(1)
    assert taken


# -- a live coordinator ----------------------------------------------------------------------------


def test_every_reply_at_a_live_coordinator(recorded: Recorded) -> None:
    """A session of recorded replies, one of them mutated and signed again: it ends well, or with
    `RoundFailed` in one line. Nothing else is raised, whatever a site answers."""
    ours, mutator = recorded.federation, recorded.mutator("coordinator")
    replies: dict[tuple[str, str], list[bytes]] = {}
    for one in recorded.log:
        assert one.reply
        replies.setdefault((one.site, one.method), []).append(one.reply)
    places = [
        (site, method, number)
        for (site, method), known in replies.items()
        for number in range(len(known))
    ]
    ended: Counter[str] = Counter()
    for number in range(cases(0.05) + 1):
        place = mutator.random.choice(places)
        data = replies[place[:2]][place[2]]
        mutant = data if number == 0 else mutator.mutant(data, place[0])
        sites = Canned(replies, place, mutant)
        coordinator = Coordinator(ours.plan, ours.roster, sites, ours.server.sign)
        measured = mutator.random.random() < 0.1
        with bounded(len(mutant) + 3 * 20_000, measured) as outcome:
            coordinator.start()
            coordinator.round(1)
            coordinator.finish()
        ended[outcome.code] += 1
        if outcome.error:
            assert isinstance(outcome.error, RoundFailed)
            text = str(outcome.error)
            assert "\n" not in text
            assert len(text) < 5000 + 5 * len(mutant)
        if number == 0:
            assert (outcome.code, coordinator.lost) == ("done", {})
        assert sites.gave
    assert set(ended) == {"done", "failed"}
