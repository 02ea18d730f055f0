"""Rule R6: the fewest rows that a site takes part with, and the most that it counts for.

A mean over sites is mostly the heaviest one's, and shows it. So each site has at least
`data.min_examples` rows with loss, known to all before the run, and counts for no more than leaves
it `scheme.max_weight` of the honest sites' weight in the worst case: the other honest ones have the
fewest rows, and the c that may collude are struck out, since they could claim any count.
"""

from __future__ import annotations

from fractions import Fraction

from fedshield.plan.data import DataPlan
from fedshield.plan.schema import Plan


def min_examples(plan: Plan) -> int:
    """The fewest rows with loss that a site takes part with: `data.min_examples`, or where the plan
    does not say, as many as one optimiser step takes."""
    training = plan.training
    return plan.data.min_examples or training.batch_size * training.gradient_accumulation


def most_counted(plan: Plan) -> int | None:
    """The most rows that a site counts for, in two significant digits as counts are told; None
    where rows do not count, and for a single site."""
    others = plan.honest_sites() - 1
    if plan.scheme.weights == "equal" or others < 1:
        return None
    # Exact, so that all sites find the same; the others may have rounded down what they tell.
    weight = Fraction(str(plan.scheme.max_weight))
    least = others * _two_digits(min_examples(plan))
    return _two_digits(int(least * weight / (1 - weight)))


def counted(plan: Plan, num_examples: int, cap: int | None = None) -> int:
    """What so many rows count for, before they are rounded. `cap`: the roster's `max_examples`."""
    limits = [limit for limit in (cap, most_counted(plan)) if limit is not None]
    return min([num_examples, *limits])


def floor(plan: Plan) -> int:
    """The fewest rows with loss with which a site is not refused. Under scheme `plain`, which hides
    no update, it is what the plan says, or one row."""
    if not plan.scheme.traits.encrypted:
        return plan.data.min_examples or 1
    return min_examples(plan)


def too_few(data: DataPlan, least: int, site: str, num_examples: int) -> str | None:
    """Why a site cannot take part, in one line; None where it can.

    Args:
        data: the plan's, which says where the least comes from.
        least: the fewest rows (`floor`).
        site: its name.
        num_examples: its rows with loss.
    """
    if num_examples >= least:
        return None
    return (
        f"data.min_examples: expected at least {least:,} rows with loss at {site}, got "
        f"{num_examples:,}; it cannot take part (rule R6{_unset(data)}): add rows, or agree on a "
        "plan with a lower one"
    )


def cap_note(plan: Plan, site: str, num_examples: int, cap: int | None = None) -> str | None:
    """What a site's operator must know where its rows count for less than they are; None where
    they do not, or where rows do not count at all. `cap`: the roster's `max_examples`."""
    told = counted(plan, num_examples, cap)
    if plan.scheme.weights == "equal" or told == num_examples:
        return None
    why = "the roster's max_examples"
    if told != cap:
        why = (
            f"rule R6: at least {min_examples(plan):,} rows at every site{_unset(plan.data)}, and "
            f"scheme.max_weight {plan.scheme.max_weight:g}; if every site has more, raise "
            "data.min_examples"
        )
    return f"{site}: {num_examples:,} rows to train on count as {told:,} ({why})"


def in_words(plan: Plan) -> str:
    """How sites are weighted, in one line."""
    most, least = most_counted(plan), floor(plan)
    weights = plan.scheme.weights
    text = "equal" if weights == "equal" else f"by rows, {weights}"
    text += f"; at least {least:,} rows at every site"
    text += _unset(plan.data) if plan.scheme.traits.encrypted else ""
    return text if most is None else f"{text}, each counts for at most {most:,} (rule R6)"


def _unset(data: DataPlan) -> str:
    return "" if data.min_examples else ", one step's, since data.min_examples is not set"


def _two_digits(count: int) -> int:
    """Rounded down to two significant digits."""
    step: int = 10 ** max(0, len(str(count)) - 2)
    return count // step * step
