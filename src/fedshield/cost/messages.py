"""Lengths of a run's messages, found by sealing dummies of the same shape.

The same message types cross in a run, so the bytes are true; only the length of a CKKS ciphertext
is a measured mean (the compressor makes single ones up to half a percent shorter; means of many
hold to parts in ten thousand). `rlwe` and `plain` are exact.
"""

from __future__ import annotations

from fedshield.crypto.public_keys import PUBLIC_KEY_BYTES
from fedshield.crypto.scheme import parameters
from fedshield.crypto.seal import CIPHERTEXT_BYTES, OVERHEAD_BYTES
from fedshield.plan.schema import Plan
from fedshield.protocol.contexts import HEAD_BYTES, VERSION_BYTES
from fedshield.protocol.roster import COORDINATOR, Roster
from fedshield.protocol.wire import envelope, messages
from fedshield.protocol.wire.envelope import Binding
from fedshield.site.ciphers import share_shape
from fedshield.site.schemes import parameters_of, scheme_of
from fedshield.types import Layout


class Sizes:
    """Lengths of the messages of a run, found by sealing dummies of the same shape."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._names = plan.data.site_names()
        rules = plan.rules()
        keys = {name: at.to_bytes(32, "big") for at, name in enumerate(self._names)}
        self._roster = Roster(keys, b"\xff" * 32, rules, demo=True)
        self._shared = plan.scheme.traits.one_time_keys

    def _size(self, message: messages.Message, phase: str, sender: str = COORDINATOR) -> int:
        binding = Binding(bytes(32), 0, phase)
        sealed = envelope.seal(
            message.kind, binding, sender, message.to_body(), lambda _: bytes(64)
        )
        return len(sealed)

    def _signed(self, message: messages.Message, phase: str) -> dict[str, bytes]:
        """This message of every site, as it is passed on."""
        return {name: bytes(self._size(message, phase, name)) for name in self._names}

    def summed(self, layout: Layout, phase: str = "round") -> tuple[int, int]:
        """Bytes up and down, of all sites together, of one sum over `layout`."""
        names, sizes = self._names, scheme_of(self._plan).block_sizes(layout)
        digests = tuple(bytes(32) for _ in sizes)
        share = b""
        if self._shared:
            shape = share_shape(parameters_of(self._plan), layout, self._plan.rules())
            share = bytes(shape.num_bytes)
        box = bytes(len(share) + OVERHEAD_BYTES)
        first_box = bytes(CIPHERTEXT_BYTES + len(box))
        clear = self._plan.scheme.open_to == "server"
        round_key = messages.RoundKey(bytes(PUBLIC_KEY_BYTES), bytes(32), {})
        vote = messages.Vote(bytes(32), bytes(32), bytes(HEAD_BYTES))
        answer_tag = messages.AnswerTag(bytes(32))

        def others(name: str, value: bytes) -> dict[str, bytes]:
            return {other: value for other in names if other != name and self._shared}

        def upload(name: str) -> messages.Upload:
            return messages.Upload(
                bytes(16), bytes(32), digests, others(name, bytes(32)), bytes(HEAD_BYTES)
            )

        uploads = {name: bytes(self._size(upload(name), phase, name)) for name in names}
        round_keys, votes = self._signed(round_key, phase), self._signed(vote, phase)
        receipts = self._signed(messages.Receipt(bytes(32), bytes(HEAD_BYTES)), phase)
        tags = self._signed(answer_tag, phase)
        up = down = 0
        for name in names:
            shares = others(name, first_box)
            boxes = {} if clear else others(name, box)
            tag = tags[name] if self._shared else b""
            answer = messages.Answer(boxes, share if clear else b"", tag)
            answers = others(name, share if clear else box)
            held_tags = {other: tags[other] for other in answers}
            replies: list[messages.Message] = [round_key, upload(name), vote, answer]
            commands: list[messages.Message] = [
                messages.Prepare(),
                messages.Work(round_keys),
                messages.Announce(uploads, digests),
                messages.Quorum(votes),
                messages.Open(answers, held_tags),
            ]
            if self._shared:
                replies += [messages.Shares(shares), messages.Held({})]
                commands += [messages.FetchShares(), messages.Hold(uploads, shares)]
            replies += [messages.Receipt(bytes(32), bytes(HEAD_BYTES)), messages.Done()]
            commands += [messages.Install(receipts)]
            if phase == "round" and self._roster.batches:
                replies += [messages.Done()]
                commands += [messages.Train()]
            if phase == "round":
                replies += [messages.Done()]
                commands += [messages.Evaluate()]
            replies += [messages.Block(0, b""), messages.Done()] * len(sizes)
            commands += [messages.Fetch(0), messages.Deliver(0, b"")] * len(sizes)
            up += sum(self._size(reply, phase, name) for reply in replies)
            down += sum(self._size(command, phase) for command in commands)
        up += len(names) * sum(uploaded for uploaded, _ in sizes)
        down += len(names) * sum(summed for _, summed in sizes)
        return up, down

    def setup(self, weights: Layout) -> tuple[int, int]:
        """Bytes up and down of all sites together: opening and closing one session."""
        names, plan = self._names, self._plan
        invite = messages.Invite(bytes(16), plan.canonical(), self._roster.encode())
        key = bytes(PUBLIC_KEY_BYTES)
        sizes = bytes(VERSION_BYTES), bytes(HEAD_BYTES)
        join = messages.Join(bytes(32), key, 0, 0, *sizes, {}, b"", 0)
        begin = messages.Begin(self._signed(join, "setup"))
        secret_bytes = public_bytes = 0
        if plan.scheme.traits.on_grid:
            chosen = parameters("ckks", plan.scheme.parameter_set)
            secret_bytes, public_bytes = chosen.secret_key_bytes, chosen.public_key_bytes
        secret = bytes(CIPHERTEXT_BYTES + 32 + secret_bytes + OVERHEAD_BYTES)
        maker, *others = names
        boxes = {
            name: bytes(self._size(messages.KeyBox(name, bytes(16), secret), "setup", maker))
            for name in others
        }
        up = self._size(messages.KeyOffer(bytes(public_bytes), boxes), "setup", maker)
        up += sum(self._size(messages.Done(), "setup", name) for name in others)
        down = self._size(messages.MakeKey(), "setup")
        down += sum(self._size(messages.TakeKey(box), "setup") for box in boxes.values())
        before = "setup"
        if plan.scheme.weights == "private":
            before = "weights"
            up_weights, down_weights = self.summed(weights, "weights")
            up, down = up + up_weights, down + down_weights
        finish = messages.Finish(
            self._signed(messages.Receipt(bytes(32), bytes(HEAD_BYTES)), "round")
        )
        for name in names:
            up += self._size(join, "setup", name)
            up += self._size(messages.Ready(bytes(32)), "setup", name)
            up += self._size(messages.Done(), before, name)
            up += self._size(messages.Done(), "round", name)
            down += self._size(invite, "setup") + self._size(begin, "setup")
            down += self._size(messages.Evaluate(), before) + self._size(finish, "round")
        return up, down
