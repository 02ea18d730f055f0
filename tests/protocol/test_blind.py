"""The coordinator is blind under ckks: what it sees, holds and has in memory opens nothing.

Three views, each with a control that shows that the search would have found something:
every byte that crossed, every object that can be reached from the `Coordinator`, and the whole
writable memory of a coordinator that runs in a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tenseal
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fedshield.crypto import framing
from fedshield.crypto.adders import CkksAdder
from fedshield.crypto.ckks import CkksScheme
from fedshield.crypto.keys import RunKey, SigningKey
from fedshield.crypto.scheme import CKKS
from fedshield.crypto.seal import unseal
from fedshield.errors import CryptoError
from fedshield.protocol import codec
from fedshield.protocol.run_keys import PURPOSE, RunKeys

HEAD = 128  # the serialised contexts begin alike: parameters
WINDOW = 64


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
            yield raw[start : start + 8].tobytes()


def found_in(haystack: bytes, needles: Iterable[bytes]) -> set[bytes]:
    """Which of `needles` (32 bytes or longer) occur in `haystack`, at whatever place."""
    by_start: dict[int, list[bytes]] = {}
    for needle in needles:
        assert len(needle) >= 32
        assert len(set(needle)) > 4, "a needle that memory is full of anyway"
        by_start.setdefault(struct.unpack_from("<Q", needle)[0], []).append(needle)
    starts = np.array(sorted(by_start), dtype=np.uint64)
    odd, shift_by = np.uint64(0x9E3779B97F4A7C15), np.uint64(48)
    likely = np.zeros(1 << 16, dtype=np.bool_)
    likely[(starts * odd) >> shift_by] = True
    found = set()
    for offset in range(8):
        count = (len(haystack) - offset) // 8
        words = np.frombuffer(haystack, dtype="<u8", count=count, offset=offset)
        (places,) = np.nonzero(likely[(words * odd) >> shift_by])
        places = places[np.isin(words[places], starts)]
        for place in places.tolist():
            at = offset + 8 * place
            for needle in by_start[int(words[place])]:
                if haystack.startswith(needle, at):
                    found.add(needle)
    return found


def raw_secret_key(context: Any) -> bytes:
    """SEAL's secret polynomial as it lies in memory: one 64-bit word for each coefficient."""
    plaintext = context.secret_key().data.data()
    words = [plaintext.data(index) for index in range(plaintext.coeff_count())]
    return struct.pack(f"<{len(words)}Q", *words)


def watch_slots(federation: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Fills with every site's slots of every round, as they go into encryption."""
    slots: dict[str, np.ndarray[Any, Any]] = {}

    def watched(name: str, real: Any) -> Any:
        def train_and_encode(scheme: Any) -> Any:
            encoded = real(scheme)
            round_number = len(federation.works[name].trained_rounds)
            slots[f"{name}'s slots, round {round_number}"] = encoded.slots
            return encoded

        return train_and_encode

    for name, one in federation.participants.items():
        one._train_and_encode = watched(name, one._train_and_encode)
    return slots


class Secrets:
    """What the sites of a federation know and nobody else may, as needles by name."""

    def __init__(
        self, federation: Any, slots: dict[str, np.ndarray[Any, Any]], first: Any, rounds: int
    ) -> None:
        self.named: dict[str, list[bytes]] = {}
        for name, one in federation.participants.items():
            run_key = one._run_key.private.private_bytes_raw()
            signing = federation.keys[name]._private.private_bytes_raw()
            self.named[f"{name}'s run key"] = [run_key]
            self.named[f"{name}'s signing key"] = [signing]
        keys = federation.participants["bank"]._keys
        self.named["the group key"] = [keys.group_key]
        if isinstance(keys.scheme, CkksScheme):
            middle = keys.scheme.secret()[HEAD:-WINDOW]
            self.named["the secret context"] = list(windows(middle))
            raw = raw_secret_key(keys.scheme._context)
            self.named["the secret polynomial"] = list(windows(raw))
        assert len(slots) == rounds * len(federation.names)
        values = {**slots, "the first adapter": first.values}
        for number in range(1, rounds + 1):
            for name in federation.names:
                trained = federation.trained(name, first, number)
                values[f"{name}'s adapter, round {number}"] = trained
            first = federation.stores["bank"].saved[number]
            values[f"the adapter after round {number}"] = first.values
        for name, array in values.items():
            self.named[name] = list(value_windows(array))

    def found_in(self, haystack: bytes) -> list[str]:
        hits = found_in(haystack, [one for needles in self.named.values() for one in needles])
        return sorted(name for name, needles in self.named.items() if hits & set(needles))


def run_and_collect(federation: Any, rounds: int = 2) -> Secrets:
    slots, first = watch_slots(federation), federation.state()
    federation.run(rounds)
    return Secrets(federation, slots, first, rounds)


@pytest.fixture
def blind(federation: Any) -> tuple[Any, Secrets]:
    ours = federation("ckks", weights="private")
    return ours, run_and_collect(ours)


# -- what crosses ----------------------------------------------------------------------------


def traffic(federation: Any) -> bytes:
    return b"".join(one.command + one.reply for one in federation.wire.log)


def test_no_byte_that_crosses_is_a_sites_secret(blind: tuple[Any, Secrets]) -> None:
    federation, secrets = blind
    recorded = traffic(federation)
    assert len(recorded) > 1_000_000
    assert secrets.found_in(recorded) == []


def test_the_search_finds_the_values_that_plain_sends(federation: Any) -> None:
    """Control: without encryption the same search finds every site's slots in every round."""
    ours = federation("plain", weights="private")
    hits = run_and_collect(ours).found_in(traffic(ours))
    assert [name for name in hits if "slots" in name] == sorted(
        f"{name}'s slots, round {number}" for name in ours.names for number in (1, 2)
    )
    assert not [name for name in hits if "key" in name]


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
    assert any(isinstance(thing, CkksAdder) for thing in things)  # the walk gets there

    contexts = contexts_in(things)
    assert contexts
    assert not any(context.has_secret_key() for context in contexts)
    forbidden = (CkksScheme, RunKeys, RunKey, np.ndarray, X25519PrivateKey)
    assert [thing for thing in things if isinstance(thing, forbidden)] == []
    signing = [thing for thing in things if isinstance(thing, SigningKey)]
    assert signing == [federation.server]

    held = [bytes(thing) for thing in things if isinstance(thing, bytes | bytearray | memoryview)]
    texts = [thing.encode() for thing in things if isinstance(thing, str)]
    assert sum(map(len, held)) > 500
    assert secrets.found_in(b"|".join(held + texts)) == []


def test_the_walk_finds_a_secret_context(blind: tuple[Any, Secrets]) -> None:
    """Control: hidden in an attribute, a closure and a list of a dict, it is found each time."""
    federation, _ = blind
    scheme = federation.participants["bank"]._keys.scheme
    coordinator = federation.coordinator
    hidden = {"attribute": scheme, "list": [{"k": (scheme,)}], "closure": lambda: scheme.key_id}
    for name, thing in hidden.items():
        coordinator.extra = thing
        contexts = contexts_in(reachable(coordinator, stop=federation.wire))
        assert any(context.has_secret_key() for context in contexts), name
        del coordinator.extra


def test_no_context_of_the_coordinator_decrypts_a_ciphertext(blind: tuple[Any, Secrets]) -> None:
    """Its own context, and every context that can be read out of the bytes that it saw."""
    federation, _ = blind
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


# -- the key boxes ---------------------------------------------------------------------------


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


def test_the_key_boxes_open_with_nothing_that_the_coordinator_has(
    blind: tuple[Any, Secrets],
) -> None:
    """Every 32 bytes that it saw or holds, taken as an X25519 key and as the box's own key."""
    federation, _ = blind
    offer = federation.opened(federation.wire.of("bank", "make-key")[0].reply)[3]
    assert set(offer["boxes"]) == {"clinic", "hospital"}
    context = federation.participants["bank"]._binding.context
    saw = {part for part in parts(federation) if len(part) == 32}
    saw |= {federation.server._private.private_bytes_raw(), federation.server.public, bytes(32)}
    peers = {name: one._run_key.public for name, one in federation.participants.items()}
    assert set(peers.values()) <= saw
    tried = 0
    for receiver, sealed in offer["boxes"].items():
        box = federation.opened(sealed)[3]["box"]
        for candidate in saw:
            with pytest.raises(InvalidTag):
                ChaCha20Poly1305(candidate).decrypt(bytes(12), box[32:], None)
            key = RunKey()
            key.private = X25519PrivateKey.from_private_bytes(candidate)
            for own in {key.private.public_key().public_bytes_raw(), *peers.values()}:
                key.public = own
                for peer in peers.values():
                    with pytest.raises(CryptoError):
                        unseal(
                            box,
                            key,
                            peer,
                            purpose=PURPOSE,
                            context=context,
                            names=("bank", receiver),
                        )
                    tried += 1
        opened = unseal(  # control: the receiver's key opens it
            box,
            federation.participants[receiver]._run_key,
            peers["bank"],
            purpose=PURPOSE,
            context=context,
            names=("bank", receiver),
        )
        assert opened[:32] == federation.participants["bank"]._keys.group_key
    assert tried > 500


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
from fedshield.planfile import parse_plan
from fedshield.protocol import codec
from fedshield.protocol.coordinator import Coordinator
from fedshield.protocol.roster import Roster
from fedshield.protocol.sites import Replies

def receive():
    (size,) = struct.unpack(">I", sys.stdin.buffer.read(4))
    return codec.decode(sys.stdin.buffer.read(size))

def send(value):
    data = codec.encode(value)
    sys.stdout.buffer.write(struct.pack(">I", len(data)) + data)
    sys.stdout.buffer.flush()

kept = []  # it forgets nothing

class Pipe:
    def names(self):
        return roster.names()
    def call(self, method, args, timeout_s=None):
        send([method, dict(args)])
        ok, failed = receive()
        kept.append((dict(args), ok))
        return Replies(ok, failed)
"""
    + DUMP
    + """
plan, sites, server, seed, rounds, path = receive()
roster = Roster(sites, server, True)
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
def test_the_memory_of_the_coordinators_process_holds_no_secret(
    federation: Any, tmp_path: Path
) -> None:
    """All of its writable memory after two rounds, in which it kept every message."""
    ours = federation("ckks", weights="private")
    slots, first = watch_slots(ours), ours.state()
    modules = run_over_a_pipe(ours, 2, tmp_path / "dump")
    secrets = Secrets(ours, slots, first, 2)
    memory = (tmp_path / "dump").read_bytes()
    assert secrets.found_in(memory) == []

    # what it should know is there, and so is every byte that crossed
    known = [ours.roster.public(name) for name in ours.names]
    blocks = [piece for block in ciphertexts(ours) for piece in windows(block[HEAD:])]
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
            "fedshield.crypto.seal",
            "fedshield.protocol.participant",
            "fedshield.protocol.run_keys",
        )
    }
    assert {"fedshield.protocol.coordinator", "fedshield.crypto.adders"} <= set(modules)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc")
def test_the_same_search_finds_the_key_in_a_sites_memory(tmp_path: Path) -> None:
    """Control: a process that does hold the secret context, and nothing else is known of it."""
    scheme = CkksScheme.generate("lean", 22)
    subprocess.run(
        [sys.executable, "-c", SITE, str(tmp_path / "dump")],
        input=scheme.secret(),
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    needles = set(windows(raw_secret_key(scheme._context)))
    assert found_in((tmp_path / "dump").read_bytes(), needles) == needles
