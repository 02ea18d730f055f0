"""Whether a site's base model can be trained with the plan's adapter: it is tried on one row."""

from __future__ import annotations

from collections.abc import Sequence

from fedshield.checks import Finding
from fedshield.doctor.machine import refusal
from fedshield.errors import UserError
from fedshield.model.adapter import AdapterHost, ordinary
from fedshield.model.answers import check_prompts
from fedshield.model.chat import Tokens, use_template
from fedshield.model.check import check_model
from fedshield.notes import library_words
from fedshield.plan.schema import Plan
from fedshield.run.settings import load_base

EXPECTED = "a pass forward and back in which each token and adapter tensor has its part"


def trial(plan: Plan, rows: Sequence[Tokens]) -> Finding:
    """The check that a run makes before it trains. `rows`: the site's tokenised rows, none where
    its data were not given or cannot be read. The notes that a run would begin with are a warning.
    """
    try:
        base = load_base(plan, may_fetch=False)
        use_template(base.tokenizer, plan.model.chat_template)
        with library_words() as words:
            check_prompts(base, plan.evaluation.prompts)
        # Factors of a core adapter take longer to find, and lie in the same layers.
        host = AdapterHost(base.model, ordinary(plan.adapter), base.sha256)
        checked = check_model(base, host, rows)
    except UserError as error:
        return refusal("model on a row", EXPECTED, error)
    notes = dict.fromkeys(
        (*base.notes, *(f"transformers: {word}" for word in words), *host.notes, *checked)
    )
    layers = f"{len(host.spec.layers())} kinds of layers, {host.spec.num_values} values"
    if notes:
        todo = "nothing if that is meant: a run notes the same"
        return Finding("model on a row", "warning", EXPECTED, "; ".join(notes), todo)
    return Finding("model on a row", "ok", EXPECTED, layers)
