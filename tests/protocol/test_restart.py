"""What a site believes of where a session is to begin."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedshield.crypto.keys import SigningKey
from fedshield.errors import ProtocolError, RoundFailed
from fedshield.plan.quorum import resolve
from fedshield.protocol.contexts import least_sites
from fedshield.protocol.restart import (
    ASK_BYTES,
    NONCE_BYTES,
    SiteRestart,
    Standing,
    alike,
    begins_at,
    restart_binding,
    unasked,
)
from fedshield.protocol.roster import COORDINATOR, Roster
from fedshield.protocol.wire import codec, envelope, messages

NAMES = ("bank", "clinic", "hospital", "lab", "surgery", "ward")
PLAN = "ab" * 32
BASE, OTHER = bytes(32), b"\1" * 32
NONCE = bytes(NONCE_BYTES)


class Party:
    """A coordinator that may say anything, and `bank`, which keeps rounds 0, 6 and 7."""

    def __init__(self, **rules: Any) -> None:
        self.coordinator = SigningKey()
        self.keys = {name: SigningKey() for name in NAMES}
        public = {name: key.public for name, key in self.keys.items()}
        resolved = resolve(len(NAMES), **rules)
        self.roster = Roster(public, self.coordinator.public, resolved, demo=False)
        self.loaded = 0
        self.stands: list[int] = []
        self.digests: list[bytes] = []
        self.told: list[Mapping[str, bytes]] = []
        self.door = SiteRestart(
            "bank",
            PLAN,
            self.roster,
            self.keys["bank"].sign,
            self.standing,
            self.stand_at,
            self.told.append,
        )

    def standing(self) -> Standing:
        self.loaded += 1
        return Standing(frozenset({0, 6, 7}), BASE)

    def stand_at(self, number: int, digest: bytes) -> None:
        self.stands.append(number)
        self.digests.append(digest)

    def ask(self, ask: bytes = bytes(ASK_BYTES), key: SigningKey | None = None) -> bytes:
        sign = (key or self.coordinator).sign
        body = messages.Stand(ask).to_body()
        return self.door.handle("stand", envelope.seal("stand", unasked(), COORDINATOR, body, sign))

    def said(
        self,
        site: str,
        *rounds: int,
        ask: bytes = bytes(ASK_BYTES),
        base: bytes = BASE,
        key: SigningKey | None = None,
    ) -> bytes:
        """What a site says of itself, signed."""
        binding = restart_binding(PLAN, self.roster, ask)
        body = Standing(frozenset(rounds), base).to_message(bytes(NONCE_BYTES)).to_body()
        sign = (key or self.keys[site]).sign
        return envelope.seal("standing", binding, site, body, sign)

    def restart(
        self, standings: Mapping[str, bytes], ask: bytes = bytes(ASK_BYTES), kind: str = "restart"
    ) -> None:
        command = {"restart": messages.Restart, "compare": messages.Compare}[kind](dict(standings))
        binding = restart_binding(PLAN, self.roster, ask)
        body, sign = command.to_body(), self.coordinator.sign
        self.door.handle(kind, envelope.seal(kind, binding, COORDINATOR, body, sign))

    def everyone(self, *rounds: int) -> dict[str, bytes]:
        return {site: self.said(site, *rounds) for site in NAMES if site != "bank"}


@pytest.fixture
def party() -> Party:
    return Party()


def test_a_site_begins_where_all_can(party: Party) -> None:
    own = party.ask()
    party.restart({"bank": own, **party.everyone(0, 5, 6)})
    assert party.stands == [6]


def test_the_coordinator_cannot_send_a_site_back(party: Party) -> None:
    """All stand at round 7. It may leave answers out, change them, bring older ones, or sign them
    itself: nowhere does the site stand."""
    own = party.ask()
    behind = party.said("clinic", 0, ask=b"an earlier time!")
    forged = party.said("clinic", 0, key=party.coordinator)
    others = party.everyone(0, 6, 7)
    for standings in (
        {"bank": own, **others, "clinic": behind},
        {"bank": own, **others, "clinic": forged},
        {"bank": own, **others, "clinic": party.said("lab", 0)},
        {"bank": own} | {site: others[site] for site in others if site != "lab"},
        others,
        {**others, "bank": party.said("bank", 0)},
        {"bank": own, **others, "stranger": party.said("lab", 0)},
        {},
    ):
        with pytest.raises(ProtocolError):
            party.restart(standings)
    assert not party.stands
    party.restart({"bank": own, **others})
    assert party.stands == [7]


def test_a_site_begins_once_from_what_it_said_last(party: Party) -> None:
    """Replayed in the middle of a session, it would end that. Whoever asks again with the same
    bytes, or another process, has another answer."""
    own = party.ask()
    standings = {"bank": own, **party.everyone(0, 6, 7)}
    with pytest.raises(ProtocolError) as refused:
        party.restart(standings | {"bank": party.said("bank", 0, 6, 7)})
    assert refused.value.code == "disagree"
    party.restart(standings)
    assert party.digests == [sha256(codec.encode(standings)).digest()]
    with pytest.raises(ProtocolError) as refused:
        party.restart(standings)
    assert refused.value.code == "repeated"
    again = party.ask()
    assert again != own
    with pytest.raises(ProtocolError) as refused:
        party.restart(standings)
    assert refused.value.code == "disagree"
    other = bytes(range(ASK_BYTES))
    party.ask(other)
    with pytest.raises(ProtocolError) as refused:
        party.restart(standings)
    assert refused.value.code == "context"
    assert party.stands == [7]


def test_nothing_is_loaded_for_a_stranger(party: Party) -> None:
    with pytest.raises(ProtocolError) as refused:
        party.ask(key=party.keys["lab"])
    assert (refused.value.code, party.loaded) == ("signature", 0)
    with pytest.raises(ProtocolError) as refused:
        party.restart(party.everyone(0))
    assert (refused.value.code, party.loaded) == ("context", 0)
    body = messages.Restart({}).to_body()
    forged = envelope.seal("restart", unasked(), COORDINATOR, body, party.keys["lab"].sign)
    with pytest.raises(ProtocolError) as refused:
        party.door.handle("restart", forged)
    assert refused.value.code == "signature"


def test_a_session_of_several_base_models_is_refused(party: Party) -> None:
    own = party.ask()
    others = party.everyone(0, 6, 7) | {"lab": party.said("lab", 0, 6, 7, base=OTHER)}
    with pytest.raises(ProtocolError) as refused:
        party.restart({"bank": own, **others})
    assert (refused.value.code, party.stands) == ("disagree", [])
    party.restart({"bank": own, **others}, kind="compare")
    assert party.told == [dict.fromkeys(NAMES, BASE) | {"lab": OTHER}]
    with pytest.raises(ProtocolError):
        party.restart({"bank": own, **others, "lab": party.said("clinic", 0)}, kind="compare")
    assert len(party.told) == 1


@pytest.mark.parametrize(
    "message",
    [
        messages.Standing(NONCE, (), BASE),
        messages.Standing(NONCE, (b"\0" * 7,), BASE),
        messages.Standing(NONCE, (b"\0" * 8, b"\0" * 8), BASE),
        messages.Standing(NONCE, (b"\0" * 7 + b"\2", b"\0" * 7 + b"\1"), BASE),
        messages.Standing(NONCE, tuple(bytes([0] * 7 + [n]) for n in range(17)), BASE),
        messages.Standing(NONCE, (b"\0" * 8,), BASE[1:]),
        messages.Standing(NONCE[1:], (b"\0" * 8,), BASE),
    ],
)
def test_what_no_site_of_ours_says_is_malformed(message: messages.Standing) -> None:
    with pytest.raises(ProtocolError) as refused:
        Standing.from_message(message)
    assert refused.value.code == "malformed"


KEPT = st.dictionaries(
    st.sampled_from(NAMES), st.frozensets(st.integers(0, 5), min_size=1, max_size=3)
)


@given(KEPT, st.sampled_from(["fixed", "batches", "open"]))
def test_where_each_begins_is_kept_there_and_by_enough(
    kept: dict[str, frozenset[int]], membership: Any
) -> None:
    """Against a count by hand."""
    rules = resolve(len(NAMES), membership=membership)
    standings = {site: Standing(rounds, BASE) for site, rounds in kept.items()}
    assert standings == {
        site: Standing.from_message(one.to_message(NONCE)) for site, one in standings.items()
    }
    begins = begins_at(rules, standings)
    enough = [n for n in range(6) if sum(n in one for one in kept.values()) >= least_sites(rules)]
    assert bool(begins) == bool(enough)
    for site, rounds in kept.items():
        below = [n for n in rounds if enough and n <= enough[-1]]
        if not below or (membership != "batches" and enough[-1] not in rounds):
            assert site not in begins
        else:
            assert begins[site] == (max(below) if membership == "batches" else enough[-1])


def test_most_have_the_base_model_that_counts() -> None:
    standings = {site: Standing(frozenset({0}), BASE) for site in NAMES[:4]}
    standings |= {site: Standing(frozenset({0}), OTHER) for site in NAMES[4:]}
    assert set(alike(standings)) == set(NAMES[:4])
    del standings["bank"], standings["clinic"]
    assert set(alike(standings)) == set(NAMES[4:])  # of two equal ones, the greater digest
    assert alike({}) == {}


def test_sites_that_began_from_different_answers_open_no_session(federation: Any) -> None:
    """One of them was shown old answers of the others, under the coordinator's signature."""
    fed = federation()
    for site in fed.participants.values():
        site._restart = bytes(32)
    fed.participants["clinic"]._restart = b"\1" * 32
    with pytest.raises(RoundFailed, match="begin"):
        fed.coordinator.start()
    assert {crossing.code for crossing in fed.wire.log if crossing.method == "begin"} == {"round"}
    fed.participants["clinic"]._restart = bytes(32)
    fed.coordinator.start()
