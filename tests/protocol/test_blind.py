"""The coordinator is blind: what it sees, holds and has in memory opens nothing.

Three views, each with a control that shows that the search would have found something:
every byte that crossed, every object that can be reached from the `Coordinator`, and the whole
writable memory of a coordinator that runs in a process of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import struct
import subprocess
import sys
import types
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tenseal
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fedshield.crypto import framing, shamir
from fedshield.crypto.adders import CkksAdder
from fedshield.crypto.ckks import CkksScheme
from fedshield.crypto.keys import RunKey, SigningKey
from fedshield.crypto.public_keys import PUBLIC_KEY_BYTES
from fedshield.crypto.rlwe import scheme as rlwe
from fedshield.crypto.rlwe.adder import RlweAdder
from fedshield.crypto.scheme import CKKS
from fedshield.crypto.seal import Channel, receive
from fedshield.errors import CryptoError
from fedshield.protocol import channels, participant_sum, run_keys
from fedshield.protocol.contexts import aggregate_digest, contributors_digest, upload_digest
from fedshield.protocol.run_keys import PURPOSE, RunKeys
from fedshield.protocol.wire import codec, messages
from fedshield.site.ciphers import EncryptedUpdate, OneTimeKeys

HEAD = 128  # the serialised contexts begin alike: parameters
WINDOW = 64
ROUNDS = 2


def windows(secret: bytes) -> Iterator[bytes]:
    """Pieces of a long secret: any run of two windows' length holds one of them whole."""
    for start in range(0, len(secret) - WINDOW + 1, WINDOW):
        yield secret[start : start + WINDOW]


def value_windows(values: np.ndarray[Any, Any]) -> Iterator[bytes]:
    """Eight values at every eighth place, as float32 and as float64, in both byte orders: any 16
    neighbouring values hold one of these whole."""
    for kind in ("<f4", "<f8", ">f4", ">f8"):
        raw = values.astype(kind)
        for start in range(0, raw.size - 7, 8):
            piece = raw[start : start + 8].tobytes()
            if distinct(piece):
                yield piece


def integer_windows(values: np.ndarray[Any, Any]) -> Iterator[bytes]:
    """The same of integers: 32 bytes and more at a time, in every width that holds them."""
    for size in (1, 2, 4, 8):
        if np.abs(values).max(initial=0) >= 2 ** (8 * size - 1):
            continue
        for order in "<>" if size > 1 else "|":
            raw, count = values.astype(f"{order}i{size}"), max(8, 32 // size)
            for start in range(0, raw.size - count + 1, count):
                piece = raw[start : start + count].tobytes()
                if distinct(piece):
                    yield piece


#: Weights of four neighbouring words in a number that stands for all of them: a needle may begin
#: with a word that memory is full of.
ODD = np.array(
    [0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93], np.uint64
)
SHIFT = np.uint64(44)
PIECE = 1 << 22


def mixed(words: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    count = words.size - 3
    total = words[:count] * ODD[0]
    for place in (1, 2, 3):
        total += words[place : place + count] * ODD[place]
    return total


def distinct(needle: bytes) -> bool:
    """Whether its beginning is not one that memory is full of anyway, such as zeros."""
    return len(set(needle[:32])) > 4


class Index:
    """`needles` (32 bytes or longer each), to be looked for."""

    def __init__(self, needles: Iterable[bytes]) -> None:
        unique = list(set(needles))
        assert min(map(len, unique)) >= 32
        assert all(map(distinct, unique)), "a needle that memory is full of anyway"
        self.longest = max(map(len, unique))
        heads = np.frombuffer(b"".join(needle[:32] for needle in unique), dtype="<u8")
        starts = (heads.reshape(-1, 4) * ODD).sum(axis=1, dtype=np.uint64)
        self.by_start: dict[int, list[bytes]] = {}
        for start, needle in zip(starts.tolist(), unique, strict=True):
            self.by_start.setdefault(start, []).append(needle)
        self.starts = np.unique(starts)
        self.likely = np.zeros(1 << 20, dtype=np.bool_)
        self.likely[self.starts >> SHIFT] = True

    def found_in(self, haystack: bytes) -> set[bytes]:
        """Which of them occur, at whatever place."""
        found = set()
        for begin in range(0, len(haystack), PIECE):
            piece = haystack[begin : begin + PIECE + self.longest]
            for offset in range(8):
                count = (len(piece) - offset) // 8
                if count < 4:
                    continue
                words = np.frombuffer(piece, dtype="<u8", count=count, offset=offset)
                sums = mixed(words)
                (places,) = np.nonzero(self.likely[sums >> SHIFT])
                places = places[np.isin(sums[places], self.starts)]
                if not places.size:
                    continue
                places = places[np.argsort(sums[places], kind="stable")]
                starts, first = np.unique(sums[places], return_index=True)
                groups = np.split(places, first[1:])
                for start, group in zip(starts.tolist(), groups, strict=True):
                    for needle in self.by_start[start]:
                        if needle not in found and _occurs(piece, offset, words, group, needle):
                            found.add(needle)
        return found


def _occurs(
    piece: bytes,
    offset: int,
    words: np.ndarray[Any, Any],
    places: np.ndarray[Any, Any],
    needle: bytes,
) -> bool:
    """Whether `needle` begins at one of `places`, of which there may be very many."""
    for at, word in enumerate(np.frombuffer(needle[: len(needle) // 8 * 8], dtype="<u8")):
        places = places[places + at < words.size]
        places = places[words[places + at] == word]
    return any(piece.startswith(needle, offset + 8 * place) for place in places.tolist())


def found_in(haystack: bytes, needles: Iterable[bytes]) -> set[bytes]:
    return Index(needles).found_in(haystack)


def raw_secret_key(context: Any) -> bytes:
    """SEAL's secret polynomial as it lies in memory: one 64-bit word for each coefficient."""
    plaintext = context.secret_key().data.data()
    words = [plaintext.data(index) for index in range(plaintext.coeff_count())]
    return struct.pack(f"<{len(words)}Q", *words)


class Watched:
    """Fills with what the sites make in the sums of a run and tell nobody: name -> needles."""

    def __init__(self, federation: Any, patch: pytest.MonkeyPatch) -> None:
        self.named: dict[str, list[bytes]] = {}
        self.federation = federation
        for name, one in federation.participants.items():
            one._model.contribution = self._contribution(name, one._model.contribution)

        def keep(what: str, values: Any) -> None:
            self.named.setdefault(what, []).extend(integer_windows(values))

        class Ephemeral(RunKey):
            def __init__(ephemeral, secret: bytes) -> None:
                super().__init__(secret)
                self.named.setdefault("the ephemeral keys", []).extend(private_halves(ephemeral))

        def encapsulate(*arguments: Any, **bound: Any) -> Any:
            channel = send(*arguments, **bound)
            halves = channel.secret[:32], channel.secret[32:]
            self.named.setdefault("the secrets of boxes", []).extend(halves)
            return channel

        def one_time_key(*arguments: Any) -> Any:
            key = make(*arguments)
            self.named.setdefault("the one-time seeds", []).append(key.seed)
            return key

        def share(secret: Any, threshold: int, holders: int, seed: bytes) -> Any:
            shares = deal(secret, threshold, holders, seed)
            self.named.setdefault("the share seeds", []).append(seed)
            keep("the one-time keys", secret)
            for one in shares:
                keep("the shares", one)
            return shares

        def share_residues(residues: Any, *rest: Any) -> Any:
            rows = deal_residues(residues, *rest)
            kept = self.named.setdefault("the residues and their shares", [])
            kept += [np.array(row, dtype="<u8").tobytes() for row in (residues, *rows)]
            return rows

        def add_shares(shares: Any) -> Any:
            found = add(shares)
            keep("the answers", found)
            return found

        def reconstruct(*arguments: Any) -> Any:
            found = combine(*arguments)
            keep("the sums of keys", found)
            return found

        make, deal, add = rlwe.one_time_key, shamir.share, shamir.add_shares
        combine, deal_residues = shamir.reconstruct, shamir.share_residues
        send = channels.encapsulate
        patch.setattr(channels, "encapsulate", encapsulate)
        patch.setattr(run_keys, "encapsulate", encapsulate)
        patch.setattr(participant_sum, "RunKey", Ephemeral)
        patch.setattr(rlwe, "one_time_key", one_time_key)
        patch.setattr(shamir, "share", share)
        patch.setattr(shamir, "share_residues", share_residues)
        patch.setattr(shamir, "add_shares", add_shares)
        patch.setattr(shamir, "reconstruct", reconstruct)

    def _contribution(self, name: str, real: Any) -> Any:
        def contribution(round_number: int, cipher: Any, weight: float, *more: Any) -> Any:
            encoded = real(round_number, cipher, weight, *more)
            what = f"{name}'s numbers, round {round_number}"
            if self.federation.plan.scheme.name == "rlwe":
                self.named[what] = list(integer_windows(encoded.digits))
                residual = np.array(encoded.residual)
                self.named[f"{name}'s residual, round {round_number}"] = list(
                    value_windows(residual)
                )
            else:
                self.named[what] = list(value_windows(encoded.slots))
            return encoded

        return contribution


def private_halves(key: RunKey) -> list[bytes]:
    """X25519, and both halves of the ML-KEM seed."""
    seed = key.mlkem.private_bytes_raw()
    return [key.x25519.private_bytes_raw(), seed[:32], seed[32:]]


class Secrets:
    """What the sites of a federation know and nobody else may, as needles by name."""

    def __init__(self, federation: Any, watched: Watched, first: Any) -> None:
        self.named: dict[str, list[bytes]] = dict(watched.named)
        for name, one in federation.participants.items():
            signing = federation.keys[name]._private.private_bytes_raw()
            self.named[f"{name}'s run key"] = private_halves(one._run_key)
            self.named[f"{name}'s signing key"] = [signing]
            self.named[f"{name}'s own secret"] = [one._secret]
        keys = federation.participants["bank"]._keys
        self.named["the group key"] = [keys.group_key]
        if isinstance(keys.scheme, CkksScheme):
            middle = keys.scheme.secret()[HEAD:-WINDOW]
            self.named["the secret context"] = list(windows(middle))
            raw = raw_secret_key(keys.scheme._context)
            self.named["the secret polynomial"] = list(windows(raw))
        numbers = [name for name in watched.named if "numbers" in name]
        assert len(numbers) == ROUNDS * len(federation.names)
        values = {"the first adapter": first.values}
        for number in range(1, ROUNDS + 1):
            for name in federation.names:
                trained = federation.trained(name, first, number)
                values[f"{name}'s adapter, round {number}"] = trained
                values[f"{name}'s difference, round {number}"] = trained - first.values
            first = federation.stores["bank"].saved[number]
            values[f"the adapter after round {number}"] = first.values
        for name, array in values.items():
            self.named[name] = list(value_windows(array))

    @cached_property
    def index(self) -> Index:
        return Index(one for needles in self.named.values() for one in needles)

    def found_in(self, haystack: bytes) -> list[str]:
        hits = self.index.found_in(haystack)
        return sorted(name for name, needles in self.named.items() if hits & set(needles))


def run_and_collect(federation: Any, patch: pytest.MonkeyPatch) -> Secrets:
    watched, first = Watched(federation, patch), federation.state()
    federation.run(ROUNDS)
    return Secrets(federation, watched, first)


BLIND = {"ckks": {}, "rlwe": {}, "rlwe to the server": {"open_to": "server"}}


@pytest.fixture(params=BLIND)
def blind(
    federation: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, Secrets]:
    scheme, rules = request.param.split()[0], BLIND[request.param]
    ours = federation(scheme, weights="private", rules=rules)
    return ours, run_and_collect(ours, monkeypatch)


@pytest.fixture
def blind_ckks(federation: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Secrets]:
    ours = federation("ckks", weights="private")
    return ours, run_and_collect(ours, monkeypatch)


def known_to(federation: Any) -> list[str]:
    """What a plan that opens to the server shows it: the shares of the *sum's* key."""
    return ["the answers"] if federation.plan.scheme.open_to == "server" else []


# -- what crosses ----------------------------------------------------------------------------


def traffic(federation: Any) -> bytes:
    return b"".join(one.command + one.reply for one in federation.wire.log)


def test_no_byte_that_crosses_is_a_sites_secret(blind: tuple[Any, Secrets]) -> None:
    federation, secrets = blind
    recorded = traffic(federation)
    one_time = {"the shares", "the one-time keys", "the one-time seeds", "the share seeds"}
    if federation.plan.scheme.name == "rlwe":
        assert one_time <= set(secrets.named)
        assert {"the ephemeral keys", "the answers", "the sums of keys"} <= set(secrets.named)
    assert len(recorded) > 500_000
    assert secrets.found_in(recorded) == known_to(federation)


def test_the_search_finds_the_values_that_plain_sends(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: without encryption the same search finds every site's numbers in every round."""
    ours = federation("plain", weights="private")
    hits = run_and_collect(ours, monkeypatch).found_in(traffic(ours))
    assert [name for name in hits if "numbers" in name] == sorted(
        f"{name}'s numbers, round {number}" for name in ours.names for number in (1, 2)
    )
    assert not [name for name in hits if "key" in name]


def test_the_search_finds_shares_that_are_not_sealed(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: where boxes are only framed, every share and answer and the group key is found in
    them."""
    ours = federation("rlwe", weights="private")
    monkeypatch.setattr(Channel, "seal", lambda _, content, *__, **___: bytes(48) + content)
    monkeypatch.setattr(Channel, "unseal", lambda _, box, *__, **___: box[48:])
    hits = run_and_collect(ours, monkeypatch).found_in(traffic(ours))
    assert hits == [
        "the answers",
        "the group key",
        "the residues and their shares",
        "the shares",
    ]


@pytest.mark.parametrize("blind", ["ckks", "rlwe"], indirect=True)
def test_the_search_finds_needles_at_every_offset(blind: tuple[Any, Secrets]) -> None:
    """Control: one needle of each kind, in noise, at places that no word boundary helps with."""
    _, secrets = blind
    for offset in range(8):
        kinds = sorted(secrets.named)[offset::2]
        noise = [os.urandom(offset) + secrets.named[name][-1] + os.urandom(5) for name in kinds]
        assert secrets.found_in(b"".join(noise)) == kinds


def ciphertexts(federation: Any) -> list[bytes]:
    """Every block that crossed, each way."""
    blocks = []
    for one in federation.wire.log:
        if one.method == "fetch":
            blocks.append(federation.opened(one.reply)[3]["data"])
        if one.method == "deliver":
            blocks.append(federation.opened(one.command)[3]["block"])
    return blocks


# -- what can be reached ---------------------------------------------------------------------


def reachable(root: object, stop: object) -> list[object]:
    """Every object that `root` leads to by attributes, items, closures and bound methods; not
    through classes, modules or `stop` (the wire: behind it are other machines)."""
    seen: dict[int, object] = {id(stop): stop}
    todo = [root]
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, type | types.ModuleType):
            continue
        seen[id(thing)] = thing
        if isinstance(thing, dict):
            todo += [*thing.keys(), *thing.values()]
        elif isinstance(thing, list | tuple | set | frozenset):
            todo += thing
        elif isinstance(thing, types.MethodType):
            todo += [thing.__self__, thing.__func__]
        elif isinstance(thing, types.FunctionType):
            todo += [cell.cell_contents for cell in thing.__closure__ or ()]
            todo += thing.__defaults__ or ()
        todo += vars(thing).values() if hasattr(thing, "__dict__") else ()
        for kind in type(thing).__mro__:
            slots = kind.__dict__.get("__slots__", ())
            for slot in [slots] if isinstance(slots, str) else slots:
                if hasattr(thing, slot):
                    todo.append(getattr(thing, slot))
    del seen[id(stop)]
    return list(seen.values())


def contexts_in(things: Iterable[object]) -> list[Any]:
    return [thing for thing in things if hasattr(thing, "has_secret_key")]


def test_nothing_that_the_coordinator_holds_is_secret(blind: tuple[Any, Secrets]) -> None:
    federation, secrets = blind
    things = reachable(federation.coordinator, stop=federation.wire)
    adder = CkksAdder if federation.plan.scheme.name == "ckks" else RlweAdder
    assert any(isinstance(thing, adder) for thing in things)  # the walk gets there

    contexts = contexts_in(things)
    assert bool(contexts) == (adder is CkksAdder)
    assert not any(context.has_secret_key() for context in contexts)
    forbidden = (CkksScheme, RunKeys, RunKey, np.ndarray, X25519PrivateKey, MLKEM768PrivateKey)
    forbidden += (Channel, channels.Channels)
    forbidden += (
        OneTimeKeys,
        EncryptedUpdate,
        rlwe.OneTimeKey,
        participant_sum.Summation,
        participant_sum.Member,
    )
    assert [thing for thing in things if isinstance(thing, forbidden)] == []
    signing = [thing for thing in things if isinstance(thing, SigningKey)]
    assert signing == [federation.server]

    held = [bytes(thing) for thing in things if isinstance(thing, bytes | bytearray | memoryview)]
    texts = [thing.encode() for thing in things if isinstance(thing, str)]
    assert sum(map(len, held)) > 500
    assert secrets.found_in(b"|".join(held + texts)) == []


def test_the_walk_finds_a_secret_context(blind_ckks: tuple[Any, Secrets]) -> None:
    """Control: hidden in an attribute, a closure and a list of a dict, it is found each time."""
    federation, _ = blind_ckks
    scheme = federation.participants["bank"]._keys.scheme
    coordinator = federation.coordinator
    hidden = {"attribute": scheme, "list": [{"k": (scheme,)}], "closure": lambda: scheme.key_id}
    for name, thing in hidden.items():
        coordinator.extra = thing
        contexts = contexts_in(reachable(coordinator, stop=federation.wire))
        assert any(context.has_secret_key() for context in contexts), name
        del coordinator.extra


def test_no_context_of_the_coordinator_decrypts_a_ciphertext(
    blind_ckks: tuple[Any, Secrets],
) -> None:
    """Its own context, and every context that can be read out of the bytes that it saw."""
    federation, _ = blind_ckks
    things = reachable(federation.coordinator, stop=federation.wire)
    contexts = [thing for thing in things if isinstance(thing, tenseal.Context)]
    for raw in parts(federation):
        with contextlib.suppress(ValueError, RuntimeError):
            contexts.append(tenseal.context_from(raw))
    assert len(contexts) == 2  # the adder's, and the one in the key offer
    blocks = ciphertexts(federation)
    assert len(blocks) == 2 * 3 * 3  # up and down, three sites, the weights and two rounds
    for context in contexts:
        assert not context.has_secret_key()
        for block in blocks:
            for raw in framing.unpack(block, CKKS["lean"]):
                with pytest.raises(ValueError, match="secret_key"):
                    tenseal.ckks_vector_from(context, raw).decrypt()
    scheme = federation.participants["bank"]._keys.scheme  # control: a site's opens them
    assert np.isfinite(scheme.open([blocks[-1]], 551)).all()


# -- the boxes -------------------------------------------------------------------------------


def parts(federation: Any) -> set[bytes]:
    """Every byte string within the messages that the coordinator saw."""

    def walk(value: Any) -> Iterator[bytes]:
        if isinstance(value, bytes):
            yield value
            if value[:4] == b"FSHD":
                yield from walk(codec.decode(value[5:-64]))
        elif isinstance(value, dict):
            for item in value.values():
                yield from walk(item)
        elif isinstance(value, list):
            for item in value:
                yield from walk(item)

    return {
        part
        for one in federation.wire.log
        for message in (one.command, one.reply)
        for part in walk(message)
    }


def opens_with(channel: Channel, box: bytes, purpose: str, about: bytes, saw: set[bytes]) -> int:
    """Try everything that was seen: as the box's own key, and in place of either of the channel's
    two secrets, or of a private key that gives it, beside the other one, which is true: as if that
    were broken. How many were tried."""
    seen = [part for part in saw if len(part) == 32]
    seeds = [part for part in saw if len(part) == 64] + [part * 2 for part in seen]
    mlkem, x25519 = channel.secret[:32], channel.secret[32:]
    tried = {mlkem + part for part in seen} | {part + x25519 for part in seen}
    tried |= {part for part in saw if len(part) == 64}
    for seed in seeds:
        found = MLKEM768PrivateKey.from_seed_bytes(seed).decapsulate(channel.ciphertext)
        tried.add(found + x25519)
    for part in seen:
        private = X25519PrivateKey.from_private_bytes(part)
        for public in channel.keys[:2]:
            tried.add(mlkem + private.exchange(X25519PublicKey.from_public_bytes(public)))
    assert channel.secret not in tried
    for part in seen:
        with pytest.raises(InvalidTag):
            ChaCha20Poly1305(part).decrypt(bytes(12), box[32:], about)
    for secret in tried:
        with pytest.raises(CryptoError):
            dataclasses.replace(channel, secret=secret).unseal(box, purpose, associated=about)
    return len(tried)


def candidates(federation: Any) -> set[bytes]:
    """Every 32 or 64 bytes that the coordinator saw or holds."""
    saw = {part for part in parts(federation) if len(part) in (32, 64)}
    for public in (part for part in parts(federation) if len(part) == PUBLIC_KEY_BYTES):
        saw |= {public[at : at + 32] for at in range(0, PUBLIC_KEY_BYTES, 32)}
    return saw | {federation.server._private.private_bytes_raw(), federation.server.public}


def test_the_key_boxes_open_with_nothing_that_the_coordinator_has(
    blind: tuple[Any, Secrets],
) -> None:
    federation, _ = blind
    offer = federation.opened(federation.wire.of("bank", "make-key")[0].reply)[3]
    assert set(offer["boxes"]) == {"clinic", "hospital"}
    saw = candidates(federation)
    keys = {name: one._run_key for name, one in federation.participants.items()}
    assert {key.public.x25519 for key in keys.values()} <= saw
    for receiver, sealed in offer["boxes"].items():
        data = federation.opened(sealed)[3]["box"]
        context = federation.coordinator._session.context
        channel, box = receive(  # control: the receiver's key opens it
            data, keys[receiver], keys["bank"].public, context=context, names=("bank", receiver)
        )
        opened = channel.unseal(box, PURPOSE)
        assert opened[:32] == federation.participants["bank"]._keys.group_key
        assert opens_with(channel, box, PURPOSE, b"", saw) > 250


def test_the_share_boxes_open_with_nothing_that_the_coordinator_has(federation: Any) -> None:
    """Shares and answers of a sum, with every key that crossed in it and before."""
    ours = federation("rlwe")
    ours.coordinator.start()
    sums: dict[str, Any] = {}

    def to_site(site: str, method: str, data: bytes) -> bytes:
        sums[site] = ours.participants[site]._sum or sums.get(site)  # to see their keys later
        return data

    ours.wire.to_site = to_site
    ours.coordinator.round(1)
    saw = candidates(ours)
    keys = {name: sums[name]._key for name in ours.names}
    assert {key.public.x25519 for key in keys.values()} <= saw
    uploads = {
        name: messages.Upload.from_body(ours.opened(ours.wire.of(name, "work")[0].reply)[3])
        for name in ours.names
    }
    digests = tuple(ours.opened(ours.wire.of("bank", "announce")[0].command)[3]["block_digests"])
    about = contributors_digest(uploads) + aggregate_digest(digests)
    shares, answers = (
        ours.opened(ours.wire.of("bank", method)[0].reply)[3]["boxes"]
        for method in ("fetch-shares", "quorum")
    )
    for receiver in ("clinic", "hospital"):
        channel, share = receive(
            shares[receiver], keys[receiver], keys["bank"].public,
            context=ours.binding.context, names=("bank", receiver),
        )  # fmt: skip
        for box, purpose, speaks_of in (
            (share, channels.SHARE, upload_digest(uploads["bank"])),
            (answers[receiver], channels.ANSWER, about),
        ):
            content = channel.unseal(box, purpose, associated=speaks_of)  # control
            assert len(content) == sums["bank"]._shape(sums["bank"]._layout).num_bytes
            assert opens_with(channel, box, purpose, speaks_of, saw) > 250


# -- its memory ------------------------------------------------------------------------------

DUMP = """
def dump(path):
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
        with open(path, "wb") as out:
            for line in maps:
                place, kind = line.split()[:2]
                if not kind.startswith("rw") or "[v" in line:
                    continue
                start, end = (int(part, 16) for part in place.split("-"))
                memory.seek(start)
                while start < end:
                    piece = memory.read(min(end - start, 1 << 24))
                    if not piece:
                        break
                    start += len(piece)
                    out.write(piece)
"""

COORDINATOR = (
    """
import json, struct, sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedshield.plan.load import parse_plan
from fedshield.protocol.wire import codec
from fedshield.protocol.coordinator import Coordinator
from fedshield.protocol.roster import Roster
from fedshield.protocol.transport import Replies
from fedshield.plan.quorum import Rules

def receive():
    (size,) = struct.unpack(">I", sys.stdin.buffer.read(4))
    return codec.decode(sys.stdin.buffer.read(size))

def send(value):
    data = codec.encode(value)
    sys.stdout.buffer.write(struct.pack(">I", len(data)) + data)
    sys.stdout.buffer.flush()

kept = []  # it forgets nothing

class Pipe:
    def call(self, method, args):
        send([method, dict(args)])
        ok, failed = receive()
        kept.append((dict(args), ok))
        return Replies(ok, failed)
"""
    + DUMP
    + """
plan, sites, server, rules, seed, rounds, path = receive()
roster = Roster(sites, server, Rules(*rules), True)
key = Ed25519PrivateKey.from_private_bytes(seed)
plan = parse_plan(json.loads(plan), base_dir=Path("."))
coordinator = Coordinator(plan, roster, Pipe(), key.sign)
coordinator.start()
for number in range(1, rounds + 1):
    coordinator.round(number)
dump(path)
send(["done", sorted(sys.modules)])
"""
)

SITE = (
    """
import sys, tenseal
"""
    + DUMP
    + """
context = tenseal.context_from(sys.stdin.buffer.read())
dump(sys.argv[1])
"""
)

ONE_TIME_SITE = (
    """
import sys
from fedshield.crypto.rlwe.scheme import OneTimeKey
"""
    + DUMP
    + """
key = OneTimeKey(sys.stdin.buffer.read())
secret = key.secret()
dump(sys.argv[1])
"""
)


def run_over_a_pipe(federation: Any, rounds: int, dump: Path) -> list[str]:
    """The coordinator in another process, the sites here. Returns the modules that it loaded."""
    process = subprocess.Popen(
        [sys.executable, "-c", COORDINATOR],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def send(value: Any) -> None:
        data = codec.encode(value)
        process.stdin.write(struct.pack(">I", len(data)) + data)
        process.stdin.flush()

    with process:
        try:
            send(
                [
                    json.dumps(federation.plan.model_dump(mode="json")),
                    federation.roster.sites,
                    federation.roster.coordinator,
                    list(dataclasses.astuple(federation.roster.rules)),
                    federation.server._private.private_bytes_raw(),
                    rounds,
                    str(dump),
                ]
            )
            while True:
                (size,) = struct.unpack(">I", process.stdout.read(4))
                method, args = codec.decode(process.stdout.read(size))
                if method == "done":
                    return args
                replies = federation.wire.call(method, args)
                send([dict(replies.ok), dict(replies.failed)])
        finally:
            process.kill()


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("kind", ["ckks", "rlwe"])
def test_the_memory_of_the_coordinators_process_holds_no_secret(
    federation: Any, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of its writable memory after two rounds, in which it kept every message."""
    ours = federation(kind, weights="private")
    watched, first = Watched(ours, monkeypatch), ours.state()
    modules = run_over_a_pipe(ours, ROUNDS, tmp_path / "dump")
    secrets = Secrets(ours, watched, first)
    memory = (tmp_path / "dump").read_bytes()
    assert secrets.found_in(memory) == []

    # what it should know is there, and so is every byte that crossed
    known = [ours.roster.public(name) for name in ours.names]
    blocks = [piece for block in ciphertexts(ours) for piece in windows(block[HEAD:])]
    assert len(blocks) > 1000
    assert found_in(memory, known + blocks) == {*known, *blocks}

    assert not {
        name
        for name in modules
        if name.split(".")[0] in ("torch", "transformers")
        or name
        in (
            "fedshield.crypto.ckks",
            "fedshield.crypto.keys",
            "fedshield.crypto.plain",
            "fedshield.crypto.rlwe.sampling",
            "fedshield.crypto.rlwe.scheme",
            "fedshield.crypto.seal",
            "fedshield.crypto.shamir",
            "fedshield.crypto.shares",
            "fedshield.protocol.channels",
            "fedshield.site.ciphers",
            "fedshield.site.schemes",
            "fedshield.protocol.participant",
            "fedshield.protocol.run_keys",
            "fedshield.protocol.participant_sum",
        )
    }
    adders = "fedshield.crypto.adders" if kind == "ckks" else "fedshield.crypto.rlwe.adder"
    assert {"fedshield.protocol.coordinator", adders} <= set(modules)


def dumped(code: str, given: bytes, folder: Path) -> bytes:
    """The memory of a process that runs `code` and is given `given`."""
    subprocess.run(
        [sys.executable, "-c", code, str(folder / "dump")],
        input=given,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return (folder / "dump").read_bytes()


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc")
def test_the_same_search_finds_the_key_in_a_sites_memory(tmp_path: Path) -> None:
    """Control: a process that does hold the secret context, and nothing else is known of it."""
    scheme = CkksScheme.generate("lean", 22)
    needles = set(windows(raw_secret_key(scheme._context)))
    assert found_in(dumped(SITE, scheme.secret(), tmp_path), needles) == needles


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc")
def test_the_same_search_finds_a_one_time_key_in_a_sites_memory(tmp_path: Path) -> None:
    """Control: the same for rlwe, from the seed."""
    seed = os.urandom(32)
    secret = rlwe.OneTimeKey(seed).secret()
    memory = dumped(ONE_TIME_SITE, seed, tmp_path)
    as_it_lies = {secret[at : at + 8].astype("<i8").tobytes() for at in range(0, 4096, 8)}
    needles = {seed, *filter(distinct, as_it_lies)}
    assert len(needles) > 300
    assert found_in(memory, needles) == needles
