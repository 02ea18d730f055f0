"""The coordinator's rules for one sum, each without a network: replies in, a decision out."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import pytest

from fedshield.crypto.keys import RunKey, SigningKey
from fedshield.errors import CryptoError, RoundFailed
from fedshield.plan.quorum import Rules, resolve
from fedshield.protocol.contexts import aggregate_digest, contributors_digest
from fedshield.protocol.coordinator_sum import CoordinatorSum, bound_set
from fedshield.protocol.roster import Roster
from fedshield.protocol.wire import envelope, messages
from fedshield.protocol.wire.envelope import Binding

NAMES = ("bank", "clinic", "hospital", "lab")
KEYS = {name: SigningKey() for name in NAMES}
SERVER = SigningKey()
SESSION = Binding(b"s" * 32, 1, "round")
#: Any two of four may be missing.
RULES = resolve(
    4,
    max_colluding=1,
    threshold=None,
    votes=None,
    min_cohort=None,
    server="malicious",
    membership="open",
)


class Numbers:
    """An `Adder` of decimal numbers."""

    def add(self, total: object | None, block: bytes) -> object:
        if not block.isdigit():
            raise CryptoError("block: expected digits")
        return (total or 0) + int(block)  # type: ignore[operator]

    def result(self, total: object) -> bytes:
        return str(total).encode()


def roster(rules: Rules = RULES) -> Roster:
    public = {name: key.public for name, key in KEYS.items()}
    return Roster(public, SERVER.public, rules, demo=True)


def new(rules: Rules = RULES, **changes: Any) -> CoordinatorSum:
    given = {"by_shares": True, "open_to": "peers"} | changes
    return CoordinatorSum(roster(rules), SESSION, Numbers(), **given)  # type: ignore[arg-type]


def round_key(bound: tuple[str, ...] = ()) -> messages.RoundKey:
    key = RunKey(b"k" * 32).public.to_bytes()
    return messages.RoundKey(key, b"m" * 32, dict.fromkeys(bound, b""))


def upload(*blocks: bytes, layout: bytes = b"l" * 32, key_id: bytes = bytes(16)) -> messages.Upload:
    digests = tuple(hashlib.sha256(block).digest() for block in blocks)
    return messages.Upload(key_id, layout, digests, {}, b"head")


def replies(**said: messages.Message) -> Any:
    return {name: (name.encode() + b" signed", message) for name, message in said.items()}


def with_uploads(summing: CoordinatorSum, *names: str) -> CoordinatorSum:
    summing.take_keys(replies(**{name: round_key() for name in NAMES}))
    summing.take_uploads(replies(**{name: upload(b"1") for name in names}))
    return summing


def test_a_key_that_is_none_is_refused_and_the_others_are_kept() -> None:
    summing = new()
    bad = messages.RoundKey(b"short", b"m" * 32, {})
    refused = summing.take_keys(replies(bank=round_key(), clinic=bad))
    assert list(refused) == ["clinic"]
    assert refused["clinic"].startswith("its answer was refused: ")
    assert list(summing.keys) == ["bank"]
    assert list(summing.work().round_keys) == ["bank"]


def test_messages_after_the_keys_are_bound_to_all_of_them() -> None:
    one, two = new(), new()
    one.take_keys(replies(bank=round_key(), clinic=round_key()))
    two.take_keys(replies(bank=round_key()))
    assert one.binding != two.binding
    assert (one.binding.round_number, one.binding.phase) == (1, "round")


def test_only_sites_that_a_sum_may_be_over_are_taken() -> None:
    summing = new()
    summing.only = frozenset({"bank", "lab"})
    summing.take_uploads(replies(bank=upload(b"1"), clinic=upload(b"2"), lab=upload(b"3")))
    assert summing.contributors == ("bank", "lab")


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (upload(b"1", layout=b"x" * 32), "lab used another key or layout"),
        (upload(b"1", key_id=b"x" * 16), "lab used another key or layout"),
        (upload(b"1", b"2"), "lab announced a different number of blocks"),
    ],
)
def test_uploads_of_another_shape_end_the_sum(other: messages.Upload, why: str) -> None:
    summing = new()
    summing.take_uploads(replies(bank=upload(b"1"), clinic=upload(b"2"), lab=other))
    with pytest.raises(RoundFailed, match=why):
        summing.check_shapes()


def test_each_holder_gets_the_shares_sealed_to_it_and_not_its_own() -> None:
    summing = with_uploads(new(), *NAMES)
    boxes = {name: f"for {name}".encode() for name in NAMES}
    summing.take_shares(replies(bank=messages.Shares(boxes), clinic=messages.Shares(boxes)))
    assert summing.contributors == ("bank", "clinic")
    hold = summing.hold(["bank", "lab"])
    assert isinstance(hold["bank"], messages.Hold)
    assert hold["bank"].shares == {"clinic": b"for bank"}
    assert hold["lab"].shares == {"bank": b"for lab", "clinic": b"for lab"}  # type: ignore[attr-defined]
    assert hold["bank"].uploads == {name: f"{name} signed".encode() for name in ("bank", "clinic")}


def test_a_dealer_is_left_out_only_where_too_few_could_answer() -> None:
    """Else one site could have any other blamed."""
    blame = messages.Held({"bank": b"share"})
    content = messages.Held({})
    summing = with_uploads(new(), *NAMES)
    summing.take_held(replies(bank=content, clinic=blame, hospital=content, lab=content))
    assert summing.least_answers <= 3
    assert summing.contributors == NAMES
    assert not summing.blamed
    summing = with_uploads(new(), *NAMES)
    summing.take_held(replies(bank=content, clinic=blame, hospital=blame, lab=blame))
    assert summing.contributors == ("clinic", "hospital", "lab")
    assert summing.blamed == {"bank": "its shares were refused by clinic, hospital, lab"}


def test_a_block_is_the_announced_one() -> None:
    summing = with_uploads(new(), "bank")
    assert summing.fits("bank", 0, b"1")
    assert not summing.fits("bank", 0, b"2")
    # Under one key there are no shares by which a sum could do without a site.
    summing = with_uploads(new(by_shares=False), "bank")
    with pytest.raises(RoundFailed, match="bank: block 0 is not the one it announced"):
        summing.fits("bank", 0, b"2")


def test_the_sum_is_of_those_whose_blocks_were_added() -> None:
    summing = with_uploads(new(), "bank", "clinic", "lab")
    summing.add("bank", [b"30", b"1"])
    summing.add("lab", [b"12", b"2"])
    summing.close({"bank", "lab"})
    assert summing.blocks == [b"42", b"3"]
    assert summing.contributors == ("bank", "lab")
    assert list(summing.announce().uploads) == ["bank", "lab"]
    assert [(one.index, one.block) for one in summing.deliver()] == [(0, b"42"), (1, b"3")]


def test_what_cannot_be_added_ends_the_sum_and_names_its_site() -> None:
    summing = with_uploads(new(), "bank")
    with pytest.raises(RoundFailed, match=r"^bank: block: expected digits"):
        summing.add("bank", [b"junk"])


def closed(**changes: Any) -> CoordinatorSum:
    summing = with_uploads(new(**changes), *NAMES)
    for name in NAMES:
        summing.add(name, [b"1"])
    summing.close(NAMES)
    return summing


def test_who_voted_for_another_sum_is_out() -> None:
    summing = closed()
    about = contributors_digest(summing.uploads), aggregate_digest(summing.block_digests)
    mine = messages.Vote(*about, b"head")
    other = messages.Vote(about[0], b"x" * 32, b"head")
    out = summing.take_votes(replies(bank=mine, clinic=mine, lab=other))
    assert out == {"lab": "voted for another sum"}
    assert summing.num_votes == 2
    quorum = summing.quorum(NAMES)
    assert list(quorum) == ["bank", "clinic"]
    assert quorum["bank"].votes == {name: f"{name} signed".encode() for name in ("bank", "clinic")}  # type: ignore[attr-defined]


def test_who_has_no_share_of_a_site_is_told_to_it() -> None:
    summing = with_uploads(new(), *NAMES)
    blame = messages.Held({"bank": b"share"})
    summing.take_held(replies(bank=messages.Held({}), clinic=blame, lab=messages.Held({})))
    for name in NAMES:
        summing.add(name, [b"1"])
    summing.close(NAMES)
    about = contributors_digest(summing.uploads), aggregate_digest(summing.block_digests)
    summing.take_votes(replies(bank=messages.Vote(*about, b"head")))
    # The hospital did not say that it holds any.
    assert set(summing.quorum(NAMES)["bank"].unheard) == {"clinic", "hospital"}  # type: ignore[attr-defined]


def tagged(summing: CoordinatorSum, signer: str, boxes: dict[str, bytes]) -> messages.Answer:
    body = messages.AnswerTag(b"t" * 32).to_body()
    tag = envelope.seal("answer-tag", summing.binding, signer, body, KEYS[signer].sign)
    return messages.Answer(boxes, b"", tag)


def test_answers_need_a_tag_of_their_holder() -> None:
    summing = closed()
    good = tagged(summing, "bank", {"lab": b"box"})
    stolen = tagged(summing, "bank", {"lab": b"box"})
    refused, lacking = summing.take_answers(
        replies(bank=good, clinic=stolen, lab=messages.Answer({}, b"", b""))
    )
    assert list(refused) == ["clinic"]
    assert lacking == {"lab"}
    assert summing.answers == {"bank": good}
    opening = summing.open(["bank", "lab"])
    assert opening["bank"].answers == {}  # type: ignore[attr-defined]
    assert opening["lab"].answers == {"bank": b"box"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("open_to", ["peers", "server"])
def test_an_answer_for_others_than_who_read_it_is_refused(open_to: str) -> None:
    """A site that answers in the clear where peers read, without a box for one, stopped the
    coordinator by a KeyError."""
    summing = closed(open_to=open_to)
    right = tagged(summing, "bank", {"clinic": b"box"})
    wrong = dataclasses.replace(right, share=b"in the clear")
    if open_to == "server":
        right, wrong = wrong, right
    refused, _ = summing.take_answers(replies(bank=wrong))
    assert refused == {"bank": f"its answer was refused: not for the {open_to}"}
    assert summing.take_answers(replies(bank=right)) == ({}, set())
    opening = summing.open(["lab"])
    wanted = {"bank": b"in the clear"} if open_to == "server" else {}
    assert opening["lab"].answers == wanted  # type: ignore[attr-defined]


def test_without_shares_every_site_answers_with_nothing() -> None:
    summing = with_uploads(new(by_shares=False), *NAMES)
    empty = messages.Answer({}, b"", b"")
    assert summing.take_answers(replies(bank=empty, lab=empty)) == ({}, set())
    assert list(summing.answers) == ["bank", "lab"]
    summing.take_answers(replies(clinic=messages.Answer({"bank": b"box"}, b"share", b"")))
    assert summing.open(["bank"])["bank"].answers == {}  # type: ignore[attr-defined]


def test_sites_that_opened_different_sums_take_none() -> None:
    summing = closed()
    one, other = messages.Receipt(b"a" * 32, b"head"), messages.Receipt(b"b" * 32, b"head")
    summing.take_receipts(replies(bank=one, lab=one))
    assert summing.receipts == {"bank": b"bank signed", "lab": b"lab signed"}
    with pytest.raises(RoundFailed, match="opened different sums"):
        summing.take_receipts(replies(bank=one, lab=other))


def test_a_set_that_was_voted_for_is_the_only_one() -> None:
    free = {name: round_key() for name in NAMES}
    assert bound_set(free) is None
    bound = free | {"bank": round_key(("bank", "clinic"))}
    assert bound_set(bound) == {"bank", "clinic"}
    with pytest.raises(RoundFailed, match="clinic must be back first"):
        bound_set({name: bound[name] for name in ("bank", "lab")})
    with pytest.raises(RoundFailed, match="different sets were voted for"):
        bound_set(bound | {"lab": round_key(("lab", "clinic"))})
