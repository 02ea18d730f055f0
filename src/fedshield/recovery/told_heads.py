"""Heads in the answers to a site whose ledger was lost: of its own, and of the others' ledgers.

A head counts if its site signed it. As in a session, what is told of another site counts under that
site's key of today only, and this site's own memory whatever key signed it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from fedshield.ledger.file import Ledger
from fedshield.ledger.heads import GAP, MAX_LINES, Head, Heads
from fedshield.protocol.statements import not_following, read_head
from fedshield.recovery.letters import Answer, RecoveryError

#: By first key of a site: its name, and every key of it that is known, that of today last.
Sites = Mapping[str, tuple[str, tuple[bytes, ...]]]


class OwnHeads(NamedTuple):
    """What the others remember of the lost ledger. `lines`: the last line, by who tells of it (a
    first key); `keys`: of the key that signed it, in words; `shown`: whether the older copy holds
    such a head, so that it is one."""

    lines: dict[str, int]
    keys: dict[str, str]
    shown: bool


def own_heads(older: Ledger, answers: Sequence[Answer], sites: Sites) -> OwnHeads:
    """What the others remember of the lost ledger.

    Args:
        older: the older copy of it.
        answers: of all others, checked.
        sites: of all that are known, this one among them.

    Raises:
        RecoveryError: where `older` is no copy of the ledger that the heads are of.
    """
    found = OwnHeads({}, {}, False)
    for answer in answers:
        for key in sites[answer.about][1]:
            head = read_head(answer.heads.get(answer.about, b""), key)
            if head is None:
                continue
            today = key == sites[answer.about][1][-1]
            if head.length > found.lines.get(answer.teller, 0):
                which = "the key of today" if today else "an earlier key"
                found.lines[answer.teller] = head.length
                found.keys[answer.teller] = f"{which} ({key.hex()[:16]})"
            found = found._replace(shown=found.shown or older.holds(head))
            held = older.holds(head) or older.was_lost(head, answer.teller)
            if today and head.length <= older.head.length and not held:
                raise RecoveryError(
                    "--older: expected a copy of the ledger that this site signed to "
                    f"{sites[answer.teller][0]} (line {head.length}), got another one; give the "
                    "right copy (if it is, the key was stolen: replace it first)"
                )
    return found


def next_line(older: Ledger, own: OwnHeads, sites: Sites) -> int:
    """Where the ledger goes on: beyond all lines that were ever signed, with room for 2^20 more.

    Args:
        older: the older copy of it.
        own: what the others remember of it.
        sites: of all that are known.

    Raises:
        RecoveryError: where somebody tells of a line that no ledger has.
    """
    last = max((*own.lines.values(), older.head.length))
    if last + 2 * GAP > MAX_LINES:
        who = [
            f"{sites[site][0]}, signed with {own.keys[site]}"
            for site, line in own.lines.items()
            if line == last
        ]
        raise RecoveryError(
            f"expected heads of this site's ledger of at most {MAX_LINES - 2 * GAP} lines, got one "
            f"of {last} from {'; '.join(who) or 'the older copy'}: a stolen key signed it; replace "
            "that key if it is today's, have them forget what it signed (fedshield site ledger "
            "forget NAME --kit KIT), and answer again"
        )
    return last + GAP


def heads_of_others(
    answers: Sequence[Answer], known: Collection[Heads], sites: Sites
) -> dict[str, tuple[Head, bytes]]:
    """The heads of the other ledgers, to remember.

    Args:
        answers: of all others, checked.
        known: what this site remembered itself.
        sites: of all that are known.

    Returns:
        By first key of a site, the head that it signed now, and the statement of it.

    Raises:
        RecoveryError: where a site's ledger does not follow from what is remembered of it, or where
            it signed two of one length.
    """
    found: dict[str, tuple[Head, bytes]] = {}
    for answer in answers:
        name, keys = sites[answer.teller]
        if not answer.head:
            continue
        head = read_head(answer.head, keys[-1])
        if head is None:
            raise RecoveryError(
                f"expected the head of {name}'s ledger, signed with its key of today, got "
                "something else; have it answer again"
            )
        if answer.teller not in found or found[answer.teller][0].length < head.length:
            found[answer.teller] = head, answer.head
    for site in {answer.teller for answer in answers}:
        name, keys = sites[site]
        lengths: dict[int, str] = {}
        for head, who in _remembered(site, answers, known, sites):
            if site not in found or not_following(head, found[site][0]):
                raise RecoveryError(
                    f"expected a ledger of {name} that goes on from line {head.length}, as {who} "
                    "remembers it, got an earlier one or none: it was restored from a backup, or "
                    "there are two of it; its operator must see to it first"
                )
            if lengths.setdefault(head.length, head.digest) != head.digest:
                raise RecoveryError(
                    f"expected one ledger of {name}, got two of one length (line {head.length}): "
                    "its operator must see to it first"
                )
    return found


def _remembered(
    site: str, answers: Sequence[Answer], known: Collection[Heads], sites: Sites
) -> list[tuple[Head, str]]:
    heads = [(one[site][0], "this site") for one in known if site in one]
    for answer in answers:
        statement = answer.head if answer.teller == site else answer.heads.get(site, b"")
        head = read_head(statement, sites[site][1][-1])
        if head is not None:
            heads.append((head, sites[answer.teller][0]))
    return heads
