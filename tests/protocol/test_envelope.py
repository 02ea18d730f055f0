"""Envelopes: signed, bound to kind, run, round, phase and sender, and checked in that order."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fedshield.crypto.keys import SigningKey
from fedshield.errors import ProtocolError
from fedshield.plan.quorum import Rules
from fedshield.protocol import contexts
from fedshield.protocol.participant_sum import tag
from fedshield.protocol.restart import restart_binding
from fedshield.protocol.roster import Roster
from fedshield.protocol.wire import codec, envelope, messages
from fedshield.protocol.wire.envelope import Binding

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "envelope.json").read_text())

BINDING = Binding(bytes(range(32)), 3, "round")
BODY: codec.Value = {"index": 7, "data": b"\x00\x01\x02"}
KEY = SigningKey()
ENVELOPE = [BINDING.context, BINDING.round_number, BINDING.phase]

Unseal = Callable[[], Any]


def sealed(key: SigningKey = KEY) -> bytes:
    return envelope.seal("block", BINDING, "bank", BODY, key.sign)


def signed(message: bytes, key: SigningKey = KEY) -> bytes:
    return message + key.sign(message)


def unseal(data: bytes, **changes: Any) -> codec.Value:
    expected: dict[str, Any] = {
        "kind": "block",
        "binding": BINDING,
        "sender": "bank",
        "public": KEY.public,
        **changes,
    }
    return envelope.unseal(data, **expected)


def code_of(data: bytes, **changes: Any) -> str:
    with pytest.raises(ProtocolError) as caught:
        unseal(data, **changes)
    assert "\n" not in str(caught.value)
    return caught.value.code


def test_known_answer() -> None:
    vector = VECTORS["envelope"]
    private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vector["ed25519_seed"]))
    binding = Binding(bytes.fromhex(vector["context"]), vector["round"], vector["phase"])
    body: codec.Value = {
        "index": vector["body"]["index"],
        "data": bytes.fromhex(vector["body"]["data_hex"]),
    }
    data = envelope.seal(vector["kind"], binding, vector["sender"], body, private.sign)
    assert data.hex() == vector["message"]
    public = bytes.fromhex(vector["ed25519_public"])
    assert envelope.unseal(data, vector["kind"], binding, vector["sender"], public) == body


def raw(value: Any) -> Any:
    """Hex texts of a vector as bytes."""
    if isinstance(value, dict):
        return {name: raw(item) for name, item in value.items()}
    return [raw(item) for item in value] if isinstance(value, list) else bytes.fromhex(value)


def test_known_answers_for_roster_and_contexts() -> None:
    vector = VECTORS["contexts"]
    rules = Rules(*vector["rules"])
    sites, server = raw(vector["sites"]), raw(vector["coordinator"])
    roster = Roster(sites, server, rules, bool(vector["demo"]), raw(vector["charter"]))
    assert roster.encode().hex() == vector["roster"]
    assert roster.sha256().hex() == vector["roster_sha256"]
    other = Roster(sites, server, rules, demo=False)
    assert other.sha256().hex() == vector["without_charter_or_demo"]
    setup = contexts.setup_context(vector["plan_sha256"], roster, raw(vector["session_id"]))
    assert setup.hex() == vector["setup"]
    ask = raw(vector["ask"])
    assert restart_binding(vector["plan_sha256"], roster, ask).context.hex() == vector["restart"]
    joins = {
        name: messages.Join(
            raw(join["nonce"]),
            raw(join["run_key"]),
            join["completed_rounds"],
            join["num_examples"],
            raw(join["version"]),
            raw(join["head"]),
            raw(join["heads"]),
            raw(join["restart"]),
            join["follows_from"],
        )
        for name, join in vector["joins"].items()
    }
    found = contexts.session_context(Binding(setup, 0, contexts.SETUP), joins)
    assert found.hex() == vector["session"]
    keys = {
        name: messages.RoundKey(raw(key["key"]), raw(key["model_tag"]), raw(key["bound"]))
        for name, key in vector["round_keys"].items()
    }
    binding = Binding(found, vector["round"], vector["phase"])
    assert contexts.round_context(binding, keys).hex() == vector["sum"]


def test_known_answers_for_digests() -> None:
    vector = VECTORS["digests"]
    uploads = {
        name: messages.Upload(
            raw(one["key_id"]),
            raw(one["layout_tag"]),
            tuple(raw(one["block_digests"])),
            raw(one["share_digests"]),
            raw(one["head"]),
        )
        for name, one in vector["uploads"].items()
    }
    for name, upload in uploads.items():
        assert contexts.upload_digest(upload).hex() == vector["upload"][name]
        assert contexts.shares_digest(upload).hex() == vector["shares"][name]
        assert contexts.upload_record(upload).hex() == vector["record"][name]
    assert contexts.contributors_digest(uploads).hex() == vector["contributors"]
    blocks = tuple(raw(vector["block_digests"]))
    assert contexts.aggregate_digest(blocks).hex() == vector["aggregate"]


def test_known_answers_for_tags() -> None:
    vector, contexts = VECTORS["tags"], VECTORS["contexts"]
    number, phase = contexts["round"], contexts["phase"]
    for label in ("layout", "model", "receipt"):
        context = contexts["session" if label == "model" else "sum"]
        binding = Binding(raw(context), number, phase)
        found = tag(raw(vector["group_key"]), binding, label.encode(), raw(vector["value"]))
        assert found.hex() == vector[label]


@given(
    st.text(max_size=12),
    st.binary(min_size=32, max_size=32),
    st.integers(0, 2**40),
    st.text(max_size=12),
    st.text(max_size=12),
    st.dictionaries(st.text(max_size=5), st.binary(max_size=40), max_size=4),
)
def test_round_trip(
    kind: str, context: bytes, number: int, phase: str, sender: str, body: dict[str, Any]
) -> None:
    binding = Binding(context, number, phase)
    data = envelope.seal(kind, binding, sender, body, KEY.sign)
    assert envelope.unseal(data, kind, binding, sender, KEY.public) == body


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"kind": "upload"}, "kind"),
        ({"binding": Binding(bytes(32), 3, "round")}, "context"),
        ({"binding": Binding(BINDING.context[:31] + b"\xff", 3, "round")}, "context"),
        ({"binding": Binding(BINDING.context, 4, "round")}, "round"),
        ({"binding": Binding(BINDING.context, 3, "weights")}, "round"),
        ({"sender": "hospital"}, "sender"),
        ({"public": SigningKey().public}, "signature"),
        ({"public": b"short"}, "signature"),
        ({"public": bytes(32)}, "signature"),
        ({"max_bytes": len(sealed()) - 1}, "size"),
    ],
)
def test_what_is_bound(changes: dict[str, Any], code: str) -> None:
    assert unseal(sealed()) == BODY
    assert code_of(sealed(), **changes) == code


def test_every_single_flipped_bit_breaks_the_signature() -> None:
    data = sealed()
    for at in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        assert code_of(bytes(flipped)) == "signature", f"bit {at}"


def test_cut_and_lengthened_messages() -> None:
    data = sealed()
    for length in range(len(data)):
        assert code_of(data[:length]) in ("size", "signature")
    assert code_of(data[: 4 + 1 + 64 - 1]) == "size"
    assert code_of(data + b"\0") == "signature"
    assert code_of(b"") == "size"


def test_the_largest_message_is_64_mib() -> None:
    assert code_of(bytes(envelope.MAX_BYTES + 1)) == "size"
    assert code_of(bytes(envelope.MAX_BYTES)) == "signature"


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version(version: int) -> None:
    message = sealed()[:-64]
    assert code_of(signed(message[:4] + bytes([version]) + message[5:])) == "version"


def test_another_magic() -> None:
    assert code_of(signed(b"FSHE" + sealed()[4:-64])) == "version"


class TestSignatureBeforeParsing:
    """Bytes that nobody of the roster signed never reach the parser."""

    head = envelope.MAGIC + bytes([envelope.VERSION])
    garbage = head + b"L\xff\xff\xff\xff not an encoding"

    def test_garbage_with_a_bad_signature(self) -> None:
        assert code_of(self.garbage + bytes(64)) == "signature"

    def test_garbage_with_a_good_signature(self) -> None:
        assert code_of(signed(self.garbage)) == "malformed"

    def test_another_version_with_a_bad_signature(self) -> None:
        assert code_of(b"FSHD\x09" + sealed()[5:]) == "signature"

    def test_the_decoder_is_not_called(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[bytes] = []
        monkeypatch.setattr(codec, "decode", lambda data: calls.append(data) or [])
        assert code_of(self.garbage + bytes(64)) == "signature"
        assert code_of(sealed(SigningKey())) == "signature"
        assert calls == []

    @pytest.mark.parametrize(
        "value",
        [
            1,
            {"kind": "block"},
            [],
            ["block", *ENVELOPE, "bank"],
            ["block", *ENVELOPE, "bank", BODY, 0],
        ],
    )
    def test_signed_values_that_are_no_envelope(self, value: codec.Value) -> None:
        assert code_of(signed(self.head + codec.encode(value))) == "malformed"

    @pytest.mark.parametrize(
        ("at", "wrong", "code"),
        [
            (0, b"block", "kind"),
            (1, "text", "context"),
            (2, "3", "round"),
            (3, b"round", "round"),
            (4, b"bank", "sender"),
            (4, ["bank"], "sender"),
        ],
    )
    def test_fields_of_another_type(self, at: int, wrong: Any, code: str) -> None:
        value: list[Any] = ["block", *ENVELOPE, "bank", BODY]
        value[at] = wrong
        assert code_of(signed(self.head + codec.encode(value))) == code

    def test_the_first_of_several_faults_names_the_code(self) -> None:
        value: list[Any] = ["upload", bytes(32), 9, "weights", "hospital", BODY]
        order = ["kind", "context", "round", "round", "sender"]
        good = ["block", *ENVELOPE, "bank"]
        for at, code in enumerate(order):
            assert code_of(signed(self.head + codec.encode(value))) == code
            value[at] = good[at]
        assert unseal(signed(self.head + codec.encode(value))) == BODY


def test_contexts_differ_by_label_and_by_where_parts_end() -> None:
    found = {
        envelope.run_context("setup", b"ab", b"c"),
        envelope.run_context("setup", b"a", b"bc"),
        envelope.run_context("setup", b"abc"),
        envelope.run_context("setup", b"abc", b""),
        envelope.run_context("session", b"ab", b"c"),
    }
    assert len(found) == 5
    assert all(len(context) == 32 for context in found)


@pytest.mark.parametrize("resign", [False, True], ids=["as it came", "signed again"])
def test_fuzz(resign: bool) -> None:
    """3,000 mutations, and 3,000 more that carry a good signature and so reach the parser: a
    `ProtocolError` or, signed again, a body that the signer meant."""
    rng = random.Random(2)
    data = sealed()
    opened = 0
    for _ in range(3000):
        mutated = bytearray(data[:-64] if resign else data)
        for _ in range(rng.choice((1, 1, 2, 4))):
            at = rng.randrange(len(mutated)) if mutated else 0
            action = rng.randrange(4)
            if action == 0 and mutated:
                mutated[at] ^= 1 << rng.randrange(8)
            elif action == 1 and mutated:
                mutated[at] = rng.randrange(256)
            elif action == 2:
                del mutated[at : at + rng.randrange(1, 30)]
            else:
                mutated[at:at] = rng.randbytes(rng.randrange(1, 30))
        changed = bytes(mutated)
        try:
            body = unseal(signed(changed) if resign else changed)
        except ProtocolError:
            continue
        opened += 1
        assert resign or changed == data
        assert codec.encode(body) in changed
    assert opened > 0 or not resign


class TestMessages:
    """A body is exactly its message's fields, each of its type."""

    examples = (
        messages.Stand(b"a"),
        messages.Standing(b"n", (b"0",), b"m"),
        messages.Compare({"a": b"1"}),
        messages.Restart({"a": b"1"}),
        messages.MayGoOn(),
        messages.GoesOn(1),
        messages.Invite(b"s", b"p", b"r"),
        messages.Begin({"a": b"1", "b": b"2"}),
        messages.MakeKey(),
        messages.TakeKey(b"box"),
        messages.Attest(),
        messages.GiveModel(0),
        messages.TakeModel("a", b"part", {"a": b"1"}),
        messages.Prepare(),
        messages.Train(),
        messages.Work({"a": b"1"}),
        messages.FetchShares(),
        messages.Hold({"a": b"1", "b": b"2"}, {"a": b"box"}),
        messages.Fetch(4),
        messages.Announce({"a": b"1"}, (b"d", b"e")),
        messages.Deliver(0, b"block"),
        messages.Quorum({"a": b"1", "b": b"2"}),
        messages.Open({"a": b"box"}, {"a": b"tag"}),
        messages.Evaluate(),
        messages.Finish({}),
        messages.Join(b"n", b"k", 3, 0, b"v", b"h", {"bank": b"h"}, b"", 1),
        messages.Ready(b"c"),
        messages.KeyOffer(b"public", {"b": b"box"}),
        messages.KeyBox("b", b"id", b"box"),
        messages.Attested(2, b"tag"),
        messages.ModelPart(2, 0, 1, b"box"),
        messages.Taken(2, b"tag"),
        messages.RoundKey(b"k", b"tag", {"a": b"", "b": b""}),
        messages.Upload(b"id", b"tag", (b"d",), {"b": b"digest"}, b"head"),
        messages.Shares({"b": b"box"}),
        messages.Held({"a": b"missing"}),
        messages.Vote(b"set", b"sum", b"h"),
        messages.Install({"bank": b"r"}),
        messages.Answer({"b": b"box"}, b"", b"tag"),
        messages.AnswerTag(b"tag"),
        messages.Block(1, b"data"),
        messages.Receipt(b"tag", b"head"),
        messages.Done(),
    )

    def test_all_kinds_are_here_and_differ(self) -> None:
        kinds = {message.kind for message in self.examples}
        assert len(kinds) == len(self.examples) == len(messages.Message.__subclasses__())

    @pytest.mark.parametrize("message", examples, ids=lambda message: message.kind)
    def test_round_trip(self, message: messages.Message) -> None:
        body = codec.decode(codec.encode(message.to_body()))
        assert type(message).from_body(body) == message

    @pytest.mark.parametrize("message", examples, ids=lambda message: message.kind)
    def test_wrong_fields_and_types(self, message: messages.Message) -> None:
        body = message.to_body()
        assert isinstance(body, dict)
        bad: list[Any] = [0, [], "x", {**body, "more": 1}]
        wrong: tuple[Any, ...] = (1, "x", b"x", [1], ["x"], {"k": 1}, {"k": "x"}, True, None)
        for name, value in body.items():
            bad.append({key: item for key, item in body.items() if key != name})
            bad += [
                {**body, name: other}
                for other in wrong
                if type(other) is not type(value) or isinstance(other, list | dict)
            ]
        for value in bad:
            with pytest.raises(ProtocolError) as caught:
                type(message).from_body(value)
            assert caught.value.code == "malformed"
