"""A party's audit log: what it asked, answered, refused and lost, for people who were not there.

One entry a line, chained by hashes and signed by the party. An entry holds digests and sizes of
signed messages, never what is in them: `made` are messages that this party sent, `saw` those of
others. A party writes an entry before what it speaks of leaves, so whatever one party saw, the
other's log must have (`verify`). The journal is another file, with another purpose: it keeps a
site from sending twice; nothing is decided by this one.

Nothing here touches a disk; `fedshield.run.log_file` does.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from fedshield.causes import failure_code
from fedshield.errors import ProtocolError
from fedshield.protocol.contexts import upload_record
from fedshield.protocol.roster import COORDINATOR, Roster
from fedshield.protocol.wire import codec, messages
from fedshield.protocol.wire.envelope import SIGNATURE_BYTES, Binding, Sign

FORMAT = "fedshield audit 1"
SIGNED = "fedshield audit entry 1"
START = "0" * 64
MAX_LINE_BYTES = 1 << 20
#: Of a name, a kind, a date: the longest is a digest.
MAX_TEXT = 64

Act = Literal[
    "opened",  # a process began, with this signing key
    "answered",  # a site did what a command asked for
    "refused",  # a site did not, and why
    "session",  # the coordinator began a session
    "asked",  # the coordinator is about to send a command
    "received",  # what came back
    "lost",  # the coordinator goes on without these sites
    "summed",  # a sum was opened, alike at all sites
    "closed",  # the session ended as it should
    "failed",  # the session could not go on
    "stopped",  # the process was stopped, and could still say so
]
#: Blocks are not logged one by one: their digests are in `upload` and `announce`; nor are parts of
#: a model as they are given: they are where they are taken; nor what comes before a session, which
#: the joins say again.
UNLOGGED = ("fetch", "deliver", "give-model", "stand", "compare", "restart")
_KINDS = {kind.kind for kind in messages.Message.__subclasses__()}
#: Fields of commands that pass on other sites' signed messages.
_PASSED_ON = ("joins", "attested", "round_keys", "uploads", "votes", "tags", "receipts")


@dataclass(frozen=True)
class Fact:
    """What a party may log. `session`: hex of the id that the coordinator drew; `made`, `saw`:
    receiver or sender -> SHA-256 (hex) of a signed message; `*_bytes`: of all of them together."""

    act: Act
    message: str = ""
    session: str = ""
    round_number: int = 0
    phase: str = ""
    code: str = ""
    made: Mapping[str, str] = field(default_factory=dict)
    saw: Mapping[str, str] = field(default_factory=dict)
    made_bytes: int = 0
    saw_bytes: int = 0
    details: Mapping[str, codec.Value] = field(default_factory=dict)


Log = Callable[[Fact], None]


def unlogged(fact: Fact) -> None:
    """For whoever keeps no log."""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def plain_text(text: str, most: int) -> str:
    """What may be logged of a text that came from elsewhere: printable ASCII, cut to `most`."""
    return "".join(one if one.isascii() and one.isprintable() else "?" for one in text[:most])


def opening(
    plan_sha256: str, roster: Roster, public: bytes, version: str, policy: str = ""
) -> Fact:
    """The first entry of a process: under which plan and roster, and the key that signs from here
    on. `policy`: SHA-256 of the site's policy, if it has one."""
    return Fact(
        "opened",
        details={
            "public_key": public.hex(),
            "plan": plan_sha256,
            "roster": roster.sha256().hex(),
            "charter": roster.charter.hex(),
            "demonstration": int(roster.demo),
            "policy": policy,
            "fedshield": version,
        },
    )


# -- what a site has to say ----------------------------------------------------------------


def answered(
    site: str,
    method: str,
    command: bytes,
    session: str,
    reply: bytes,
    message: messages.Message,
    faulty: Mapping[str, str],
) -> Fact:
    """A command that was carried out: `command` and `reply` are the signed bytes; `faulty`: whose
    answers to a sum were wrong, and how (`answers`)."""
    value: Any = codec.decode(command[5:-SIGNATURE_BYTES])
    _, _, round_number, phase, _, body = value
    saw = {
        sender: sha256(data)
        for key in _PASSED_ON
        for sender, data in body.get(key, {}).items()
        if sender != site
    }
    return Fact(
        "answered",
        method,
        session,
        round_number,
        phase,
        made={COORDINATOR: sha256(reply)},
        saw={**saw, COORDINATOR: sha256(command)},
        made_bytes=len(reply),
        saw_bytes=len(command),
        details=_details(message) | _faulty(faulty),
    )


def _details(message: messages.Message) -> dict[str, codec.Value]:
    """What of a reply another party's log can be compared with, or a reader wants to see."""
    if isinstance(message, messages.Join):
        return {"completed_rounds": message.completed_rounds}
    if isinstance(message, messages.Attested | messages.Taken):
        return {"completed_rounds": message.completed_rounds, "standing": message.tag.hex()}
    if isinstance(message, messages.Upload):
        return {"upload": upload_record(message).hex(), "blocks": len(message.block_digests)}
    if isinstance(message, messages.Held) and message.complaints:
        complaints = {dealer: code.decode() for dealer, code in message.complaints.items()}
        return {"complaints": dict(complaints)}
    if isinstance(message, messages.Vote):
        return {"contributors": message.contributors.hex(), "aggregate": message.aggregate.hex()}
    if isinstance(message, messages.Answer) and message.tag:
        return {"answer_tag": sha256(message.tag)}
    if isinstance(message, messages.Receipt):
        return {"receipt": message.model_tag.hex()}
    return {}


def _faulty(faulty: Mapping[str, str]) -> dict[str, codec.Value]:
    return {"answers": dict(faulty)} if faulty else {}


def refused(
    method: str,
    command: bytes,
    session: str,
    binding: Binding,
    error: Exception,
    faulty: Mapping[str, str],
) -> Fact:
    """A command that was not carried out. Whoever sent it may not be the coordinator, so its
    digest is a detail and nobody's message. `faulty` as in `answered`."""
    return Fact(
        "refused",
        method if method in _KINDS else "unknown",
        session,
        binding.round_number,
        binding.phase,
        failure_code(error),
        saw_bytes=len(command),
        details={"command": sha256(command)} | _faulty(faulty),
    )


# -- entries -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One line, read. `before`: SHA-256 (hex) of the line before, zeros for the first; `digest`:
    of this one; `signed`: what the signature is over."""

    party: str
    number: int
    time: str
    fact: Fact
    before: str
    signature: bytes
    signed: bytes = field(repr=False)
    digest: str

    def where(self) -> str:
        """The entry in words."""
        fact = self.fact
        what = " ".join(part for part in (fact.act, fact.message, fact.code) if part)
        round_ = f", round {fact.round_number} ({fact.phase})" if fact.phase else ""
        return f"entry {self.number} ({what}{round_})"


_NAMES = {"round": "round_number"}  # as a line has it -> as `Fact` has it
_TYPES: dict[str, type] = {
    **dict.fromkeys(("format", "party", "time", "act", "message", "session", "phase", "code"), str),
    **dict.fromkeys(("before", "signature"), str),
    **dict.fromkeys(("number", "round", "made_bytes", "saw_bytes"), int),
    **dict.fromkeys(("made", "saw", "details"), dict),
}


def write_entry(fact: Fact, party: str, number: int, time: str, before: str, sign: Sign) -> bytes:
    """The line of an entry, without its end."""
    value: dict[str, codec.Value] = {
        "format": FORMAT,
        "party": party,
        "number": number,
        "time": time,
        "act": fact.act,
        "message": fact.message,
        "session": fact.session,
        "round": fact.round_number,
        "phase": fact.phase,
        "code": fact.code,
        "made": dict(fact.made),
        "saw": dict(fact.saw),
        "made_bytes": fact.made_bytes,
        "saw_bytes": fact.saw_bytes,
        "details": dict(fact.details),
        "before": before,
    }
    return _to_line({**value, "signature": sign(codec.encode([SIGNED, value])).hex()})


def _to_line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _is_plain(text: str) -> bool:
    """Whether a text from another party's file may stand in a line that is shown to people."""
    return len(text) <= MAX_TEXT and text.isascii() and text.isprintable()


def read_entry(line: bytes) -> Entry:
    """Raises `ProtocolError` ('malformed') for anything but the one form that an entry has: the
    same entry in other bytes (spaces, another order of keys) is refused too."""
    if len(line) > MAX_LINE_BYTES:
        raise ProtocolError("malformed", f"a line of {len(line)} bytes, at most {MAX_LINE_BYTES}")
    try:
        value = json.loads(line)
        whole = isinstance(value, dict) and {key: type(v) for key, v in value.items()} == _TYPES
        if not whole or _to_line(value) != line or value["format"] != FORMAT:
            raise ValueError("not an entry")
        # One spelling: it is the one part that is not under the signature.
        if re.fullmatch(f"[0-9a-f]{{{2 * SIGNATURE_BYTES}}}", value["signature"]) is None:
            raise ValueError("not a signature")
        signature = bytes.fromhex(value.pop("signature"))
        signed = codec.encode([SIGNED, value])
        for key in ("made", "saw"):
            if not all(isinstance(text, str) for text in value[key].values()):
                raise ValueError("not a digest")
        if value["act"] not in get_args(Act):
            raise ValueError("not an act")
        if not all(_is_plain(found) for found in value.values() if isinstance(found, str)):
            raise ValueError("not plain text")
    except (ValueError, TypeError, RecursionError, struct.error):
        raise ProtocolError("malformed", "not an entry of an audit log") from None
    head = {key: value.pop(key) for key in ("format", "party", "number", "time", "before")}
    fact = Fact(**{_NAMES.get(key, key): found for key, found in value.items()})
    return Entry(
        head["party"],
        head["number"],
        head["time"],
        fact,
        head["before"],
        signature,
        signed,
        sha256(line),
    )
