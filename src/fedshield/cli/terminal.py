"""What other parties' files say, on a terminal."""

from __future__ import annotations

import re

_ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: str) -> str:
    """Text in which nothing acts on a terminal: control characters, and those that mark or turn the
    direction of writing, are shown as what Python writes for them. Files of other parties are shown
    to people who decide by what they read.

    >>> visible("all fine\\x1b[2K")
    'all fine\\\\x1b[2K'
    """
    return _ACTING.sub(lambda found: found.group().encode("unicode_escape").decode(), text)
