"""Whether audit logs are whole, genuine, and tell one story.

Of one file: every line is an entry in its one form, follows the line before, and is signed by the
key that its party opened with, which must be the roster's. So a changed, forged, moved or missing
entry is found, but not a missing end. That takes the other parties' files: what one saw, the
other made, and it wrote so before it sent it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedshield.errors import CryptoCode, ProtocolCode, ProtocolError
from fedshield.protocol.log.entries import START, UNLOGGED, Entry, read_entry
from fedshield.protocol.roster import COORDINATOR

#: SHA-256 (hex) of a run's roster, or its charter -> party -> Ed25519 public key.
KnownKeys = Mapping[str, Mapping[str, bytes]]
#: Codes that only a site can have sent: it wrote them down first.
_OF_A_SITE = frozenset([*get_args(ProtocolCode), *get_args(CryptoCode), "training"])
#: Command that passes on sites' messages -> the command that those were answers to.
_PASSED_ON = {
    **{"begin": "invite", "work": "prepare", "hold": "work", "announce": "work"},
    **{"quorum": "announce", "open": "quorum", "install": "open", "finish": "open"},
    **{"take-model": "attest"},
}
_ENDS = ("closed", "failed", "stopped")


@dataclass(frozen=True)
class Chain:
    """One file, read up to its first problem. `party`: whose, '' if not even that is known;
    `torn_bytes`: of a last line without an end; `key_checked`: against a roster."""

    name: str
    party: str
    entries: tuple[Entry, ...]
    problems: tuple[str, ...]
    torn_bytes: int
    key_checked: bool

    def opened(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.fact.act == "opened"]

    @property
    def demonstration(self) -> bool:
        """Whether any of it was signed under a roster that one operator made."""
        return any(entry.fact.details.get("demonstration") for entry in self.opened())


def read_chain(name: str, data: bytes, known: KnownKeys | None) -> Chain:
    """`name`: of the file, for its problems; `known`: None takes the keys that the log itself
    opens with, which proves only that nobody else wrote on."""
    *lines, torn = data.split(b"\n")
    entries: list[Entry] = []
    problems: list[str] = []
    key = b""
    for place, line in enumerate(lines):
        try:
            entry = read_entry(line)
            key = _check(entry, entries, key, known)
        except ProtocolError as error:
            text = str(error).partition(": ")[2]
            problems.append(f"{name}: line {place + 1}: {text}; what follows is not read")
            break
        entries.append(entry)
    if torn:
        problems.append(
            f"{name}: the last line has no end ({len(torn)} bytes): its party crashed while "
            "writing (it drops the line when it goes on), or the file was cut there"
        )
    if not entries and not problems:
        problems.append(f"{name}: expected a party's log, got an empty file")
    party = entries[0].party if entries else ""
    return Chain(name, party, tuple(entries), tuple(problems), len(torn), known is not None)


def _check(entry: Entry, earlier: Sequence[Entry], key: bytes, known: KnownKeys | None) -> bytes:
    """The key that signed it. Raises `ProtocolError`."""
    fact = entry.fact
    before = earlier[-1].digest if earlier else START
    if entry.before != before or entry.number != len(earlier):
        raise ProtocolError(
            "digest",
            f"expected entry {len(earlier)} after the line before, got {entry.where()} after "
            "another: an entry was removed, added, moved or changed here",
        )
    if earlier and entry.party != earlier[0].party:
        raise ProtocolError("sender", f"{entry.where()} is another party's ({entry.party!r:.60})")
    if fact.act == "opened":
        key = _opened_with(entry, known)
    elif not earlier:
        raise ProtocolError("kind", f"expected the opening of a log, got {entry.where()}")
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(entry.signature, entry.signed)
    except (InvalidSignature, ValueError):
        raise ProtocolError(
            "signature", f"{entry.where()} is not signed by the key that {entry.party} opened with"
        ) from None
    return key


def _opened_with(entry: Entry, known: KnownKeys | None) -> bytes:
    details = entry.fact.details
    try:
        key = bytes.fromhex(str(details.get("public_key")))
    except ValueError:
        raise ProtocolError("malformed", f"{entry.where()} has no key") from None
    if known is None:
        return key
    roster = known.get(str(details.get("roster"))) or known.get(str(details.get("charter")))
    if roster is None:
        raise ProtocolError(
            "context",
            f"{entry.where()} is under roster {str(details.get('roster'))[:16]!r}, which is not "
            "the one given",
        )
    if roster.get(entry.party) != key:
        raise ProtocolError(
            "signature",
            f"{entry.where()} is with the key {key.hex()[:16]}, which is not {entry.party:.40}'s "
            "in the roster",
        )
    return key


# -- between parties -------------------------------------------------------------------------


def cross_check(chains: Iterable[Chain]) -> tuple[str, ...]:
    """What does not fit together between logs, a line each, naming the log that lacks or differs.
    A log that is not sound by itself is left out: its own problems come first."""
    sound, problems = _one_each([chain for chain in chains if not chain.problems])
    coordinator = sound.get(COORDINATOR)
    for chain in sound.values():
        problems += _missing(chain, sound)
    problems += _differing(sound.values())
    if coordinator is not None:
        problems += _open_end(coordinator)
        for chain in sound.values():
            if chain is not coordinator:
                problems += _not_received(chain, coordinator)
                problems += _not_refused(chain, coordinator)
    else:
        problems += _not_finished(sound.values())
    return tuple(problems)


def _one_each(chains: list[Chain]) -> tuple[dict[str, Chain], list[str]]:
    """The longest log of each party; two that part ways are two stories of one party."""
    found: dict[str, Chain] = {}
    problems: list[str] = []
    for chain in sorted(chains, key=lambda one: -len(one.entries)):
        longest = found.setdefault(chain.party, chain)
        parted = [
            mine
            for mine, theirs in zip(chain.entries, longest.entries, strict=False)
            if mine.digest != theirs.digest
        ]
        if parted:
            problems.append(
                f"{chain.name} and {longest.name}: two logs of {chain.party} that part at "
                f"{parted[0].where()}: it told two stories"
            )
    return found, problems


def _missing(chain: Chain, sound: Mapping[str, Chain]) -> list[str]:
    """Messages of this party that others saw and its own log does not have."""
    # With the kind of message: a bare `done` has the same bytes after two commands of one sum.
    made = {
        (entry.fact.message, digest)
        for entry in chain.entries
        for digest in entry.fact.made.values()
    }
    # Signed apart from the answer that it came in, and passed on alone.
    made |= {
        (entry.fact.message, str(entry.fact.details["answer_tag"]))
        for entry in chain.entries
        if "answer_tag" in entry.fact.details
    }
    lacking = [
        (other, entry)
        for other in sound.values()
        for entry in other.entries
        if chain.party in entry.fact.saw
        and (_answer_to(entry, chain.party), entry.fact.saw[chain.party]) not in made
    ]
    if not lacking:
        return []
    other, entry = min(lacking, key=lambda pair: pair[1].time)
    return [
        f"{chain.name}: lacks what {len(lacking)} entries of others saw from {chain.party}, the "
        f"first in {other.name}, {entry.where()}: its end was cut, or it was written anew"
    ]


def _answer_to(entry: Entry, sender: str) -> str:
    """The command that the message which `entry` saw from `sender` was, or answered."""
    fact = entry.fact
    passed_on = fact.act == "answered" and sender != COORDINATOR
    return _PASSED_ON.get(fact.message, "") if passed_on else fact.message


def _sessions(chain: Chain) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in chain.entries:
        if entry.fact.session:
            found.setdefault(entry.fact.session, []).append(entry)
    return found


def _open_end(coordinator: Chain) -> list[str]:
    """A session in the middle that has no end was killed; the last one may have been cut."""
    last = coordinator.entries[-1]
    if last.fact.act in (*_ENDS, "opened"):
        return []
    return [
        f"{coordinator.name}: ends at {last.where()}, inside a session: the coordinator still "
        "works or was killed there, or its end was cut"
    ]


def _not_received(chain: Chain, coordinator: Chain) -> list[str]:
    """Answers of a site that the coordinator's log does not have, in a session that it says it
    closed without losing the site."""
    theirs = _sessions(coordinator)
    problems: list[str] = []
    for session, entries in _sessions(chain).items():
        known = theirs.get(session, [])
        lost = {name for entry in known for name in _names(entry, "lost")}
        if not known or known[-1].fact.act != "closed" or chain.party in lost:
            continue
        received = {(entry.fact.message, entry.fact.saw.get(chain.party)) for entry in known}
        lacking = [
            entry
            for entry in entries
            if entry.fact.act == "answered"
            and (entry.fact.message, entry.fact.made.get(COORDINATOR)) not in received
        ]
        if lacking:
            problems.append(
                f"{coordinator.name}: lacks {len(lacking)} answers of {chain.party}, the first "
                f"{chain.name}, {lacking[0].where()}, in a session that it closed"
            )
    return problems


def _not_refused(chain: Chain, coordinator: Chain) -> list[str]:
    """Refusals that the coordinator had from a site, and the site's log does not have."""
    own = {
        entry.fact.details.get("command") for entry in chain.entries if entry.fact.act == "refused"
    }
    asked: dict[tuple[str, str], str] = {}
    for entry in coordinator.entries:
        fact = entry.fact
        if fact.act == "asked" and chain.party in fact.made:
            asked[fact.session, fact.message] = fact.made[chain.party]
        code = _names(entry, "refused").get(chain.party)
        of_a_site = code in _OF_A_SITE and fact.message not in UNLOGGED
        if of_a_site and asked.get((fact.session, fact.message)) not in own:
            return [
                f"{chain.name}: lacks the refusal that {coordinator.name}, {entry.where()} has "
                f"of it ({code}): its end was cut, or it was written anew"
            ]
    return []


def _names(entry: Entry, key: str) -> dict[str, str]:
    found = entry.fact.details.get(key)
    return {name: str(why) for name, why in found.items()} if isinstance(found, dict) else {}


def _not_finished(chains: Iterable[Chain]) -> list[str]:
    """Without the coordinator's log: a site that did not finish a session that others did."""
    finished = {
        chain.party: {
            entry.fact.session
            for entry in chain.entries
            if (entry.fact.act, entry.fact.message) == ("answered", "finish")
        }
        for chain in chains
    }
    anyones = set().union(*finished.values())
    return [
        f"{chain.name}: ends before a session's finish, which others have: its end was cut, or "
        "the coordinator lost it there (its log would say so)"
        for chain in chains
        if (anyones & set(_sessions(chain))) - finished[chain.party]
    ]


def _differing(chains: Iterable[Chain]) -> list[str]:
    """One sum, one set of contributors, one aggregate, one opened model."""
    said: dict[tuple[str, int, str, str], dict[str, str]] = {}
    for chain in chains:
        for entry in chain.entries:
            fact = entry.fact
            for key in ("contributors", "aggregate", "receipt"):
                value = fact.details.get(key)
                if isinstance(value, str) and fact.session:
                    about = (fact.session, fact.round_number, fact.phase, key)
                    said.setdefault(about, {})[chain.name] = value
    return [
        f"round {number} ({phase}): the logs have different digests of {key}: "
        + ", ".join(f"{name} {value[:16]!r}" for name, value in sorted(values.items()))
        for (_, number, phase, key), values in said.items()
        if len(set(values.values())) > 1
    ]
