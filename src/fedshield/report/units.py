"""Numbers as people read them.

Bytes are decimal (1 kB = 1000 B). What is missing, NaN or infinite is `ABSENT`, so that no page
ever shows a bare None or nan. Three significant digits unless a function says otherwise.
"""

from __future__ import annotations

import math
from typing import Any

ABSENT = "not recorded"
MINUS = "\N{MINUS SIGN}"
SPACE = "\N{NO-BREAK SPACE}"


def number(value: Any) -> float | None:
    """`value` as a finite float, or None where it is no number.

    >>> number(3), number(float("nan")), number(True), number("3")
    (3.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def significant(value: float, digits: int = 3) -> str:
    """`value` to `digits` significant digits, never in scientific notation.

    >>> significant(1234.5), significant(0.00012345), significant(0.5, digits=1)
    ('1,230', '0.000123', '0.5')
    """
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{decimals}f}".replace("-", MINUS)


def human_bytes(value: Any) -> str:
    """Bytes in the unit that reads best.

    >>> human_bytes(999).split(), human_bytes(12345678).split(), human_bytes(None)
    (['999', 'B'], ['12.3', 'MB'], 'not recorded')
    """
    size = number(value)
    if size is None:
        return ABSENT
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 999.5:
            return f"{significant(size) if unit != 'B' else f'{size:.0f}'}{SPACE}{unit}"
        size /= 1000
    return f"{significant(size)}{SPACE}TB"


def human_seconds(value: Any) -> str:
    """Seconds in the units that read best.

    >>> [human_seconds(seconds).split() for seconds in (0.0042, 75, 7300)]
    [['4.2', 'ms'], ['1', 'min', '15', 's'], ['2', 'h', '2', 'min']]
    """
    seconds = number(value)
    if seconds is None:
        return ABSENT
    if seconds == 0:
        return f"0{SPACE}s"
    if seconds < 0.9995:
        return f"{significant(seconds * 1000, 2)}{SPACE}ms"
    if seconds < 59.95:
        return f"{significant(seconds)}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{SPACE}min{SPACE}{rest}{SPACE}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}{SPACE}h{SPACE}{minutes}{SPACE}min"


def count(value: Any) -> str:
    """A number of things, rounded to a whole one.

    >>> count(1234567), count(None)
    ('1,234,567', 'not recorded')
    """
    amount = number(value)
    return ABSENT if amount is None else f"{amount:,.0f}".replace("-", MINUS)


def plural(amount: float, noun: str) -> str:
    """A number of things with their noun.

    >>> plural(1, "row"), plural(6, "row")
    ('1 row', '6 rows')
    """
    return f"{count(amount)} {noun}{'' if amount == 1 else 's'}"


def loss(value: Any) -> str:
    """A loss, with three decimals.

    >>> loss(2.34567), loss(float("inf"))
    ('2.346', 'not recorded')
    """
    amount = number(value)
    return ABSENT if amount is None else f"{amount:.3f}".replace("-", MINUS)


def signed(value: Any, spec: str = ".3f") -> str:
    """A difference with its sign; zero has none.

    >>> signed(0.25), signed(-0.0001), signed(2, ".1f")
    ('+0.250', '0.000', '+2.0')
    """
    amount = number(value)
    if amount is None:
        return ABSENT
    text = f"{abs(amount):{spec}}"
    if float(text) == 0:
        return text
    return f"{MINUS if amount < 0 else '+'}{text}"


def scientific(value: Any) -> str:
    """A number with its power of ten, to three significant digits.

    >>> scientific(12345), scientific(0)
    ('1.23e4', '0')
    """
    amount = number(value)
    if amount is None:
        return ABSENT
    if amount == 0:
        return "0"
    digits, power = f"{amount:.2e}".split("e")
    return f"{digits}e{int(power)}".replace("-", MINUS)


def percent(part: Any, whole: Any) -> str:
    """A share: 'under 0.1 %' rather than a zero that is none.

    >>> [percent(part, 2000).split() for part in (500, 1, 0)]
    [['25.0', '%'], ['under', '0.1', '%'], ['0.0', '%']]
    """
    top, bottom = number(part), number(whole)
    if top is None or not bottom:
        return ABSENT
    share = 100 * top / bottom
    if 0 < share < 0.1:
        return f"under 0.1{SPACE}%"
    return f"{share:.1f}{SPACE}%"


def ratio(part: Any, whole: Any) -> str:
    """How large `part` is beside `whole`, to go before a noun.

    >>> ratio(15, 2), ratio(53, 100).split(), ratio(1, 0)
    ('7.5 times', ['53', '%', 'of'], 'not recorded')
    """
    top, bottom = number(part), number(whole)
    if top is None or not bottom:
        return ABSENT
    share = top / bottom
    if share >= 1.95:
        return f"{significant(share, 2)} times"
    return f"{significant(100 * share, 3 if share >= 0.995 else 2)}{SPACE}% of"
