"""What can be wrong with the answers to a sum, in codes for a site's log and in words.

A site says so to its own operator only. A holder whose answer does not fit need not have lied: a
contributor that dealt it shares off its polynomials looks the same. So nothing follows from it by
machine: no site is left out for it.
"""

from __future__ import annotations

from collections.abc import Mapping

#: Codes, by which a log has them.
MISSING, UNREADABLE, UNTAGGED, UNFITTING = "missing", "unreadable", "tag", "share"

_WORDS = {
    MISSING: "no answer of {0} came",
    UNREADABLE: "the answer of {0} cannot be read ({0} or the coordinator spoilt it)",
    UNTAGGED: "the answer of {0} is not the one that it signed for all sites",
    UNFITTING: "the answer of {0} does not fit the others' ({0}, or a contributor that dealt it "
    "its shares, did not follow the protocol)",
}


_OWN = "this site's own answer does not fit the others': a contributor dealt it wrong shares"


def in_words(faulty: Mapping[str, str], site: str) -> str:
    """Holder -> code as one line at `site`, '' for none."""
    return "; ".join(
        _OWN if holder == site else _WORDS[code].format(holder)
        for holder, code in sorted(faulty.items())
    )
