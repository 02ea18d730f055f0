"""Today's date in a chat template: fixed for a run, so that its rows stay the same on another day.

Templates (Llama 3.2, Granite) ask `strftime_now` for it, which transformers takes from the clock. A
macro of that name, put before the template, answers with the run's date. The tokenizer's own
template stays as it is: what is exported asks the clock again.
"""

from __future__ import annotations

import datetime
import re

#: Every directive of strftime in Python's documentation, and glibc's more usual ones.
_DIRECTIVES = (
    *"aAwdbBmyYHIMSpfzZjUWcxXGuVDFTReCgnt",
    *("-d", "-m", "-H", "-I", "-M", "-S", "-j", "-y", "-e"),
)
_ASKS_THE_CLOCK = re.compile(r"\bstrftime_now\b")
_ASKS_FOR_CHANCE = re.compile(r"\|\s*random\b|\blipsum\s*\(")


def writes_date(template: str) -> bool:
    """Whether a chat template asks for today's date."""
    return bool(_ASKS_THE_CLOCK.search(template))


def writes_chance(template: str) -> bool:
    """Whether a chat template draws at random: no two renderings of a row need be the same."""
    return bool(_ASKS_FOR_CHANCE.search(template))


def at_date(template: str, date: datetime.date) -> str:
    """The template with midnight of `date` in place of the clock; one that does not ask the clock
    comes back as it is."""
    if not writes_date(template):
        return template
    moment = datetime.datetime(date.year, date.month, date.day)
    answer = "format | replace('%%', '\\0')"
    for directive in _DIRECTIVES:
        text = moment.strftime(f"%{directive}").replace("\\", "\\\\").replace("'", "\\'")
        text = text.replace("\n", "\\n").replace("\t", "\\t")
        answer += f" | replace('%{directive}', '{text}')"
    answer += " | replace('\\0', '%')"
    # Its last line end is taken away by trim_blocks: the template begins a line, as it did.
    return f"{{%- macro strftime_now(format) -%}}{{{{- {answer} -}}}}{{%- endmacro %}}\n{template}"
