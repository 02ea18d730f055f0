"""What a site works with: the base model, its data, the adapter's host, and where it stands."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import replace

from fedshield import interrupt
from fedshield.cost.memory import memory_cost, refuse_too_large
from fedshield.data.sites import SiteData, load_sites
from fedshield.errors import ModelError
from fedshield.model.adapter import AdapterHost, initial_state
from fedshield.model.answers import check_prompts
from fedshield.model.base import BaseModel
from fedshield.model.chat import use_template
from fedshield.model.check import check_ids, check_model
from fedshield.model.shapes import from_modules
from fedshield.notes import library_words
from fedshield.plan.floors import cap_note
from fedshield.plan.schema import Plan
from fedshield.run.events import Events
from fedshield.run.folder import SiteStore
from fedshield.run.settings import data_setup, load_base
from fedshield.run.warm import compile_kernels
from fedshield.seeds import derive
from fedshield.site.gradient_factors import public_factors
from fedshield.site.schemes import parameters_of, scheme_of
from fedshield.site.settings import privacy_terms
from fedshield.types import AdapterState, SiteMemory


def prepare(
    plan: Plan, watch: Events, only: str | None = None, date: datetime.date | None = None
) -> tuple[BaseModel, dict[str, SiteData], AdapterHost]:
    """The base model, the data of every site (or of `only` one), and the adapter's host. `date`:
    what a chat template that writes today's date is told; None: today. Raises `UserError`s for
    whatever of plan, model and data cannot be run."""
    if plan.speed.threads is not None:
        import torch

        torch.set_num_threads(plan.speed.threads)
    watch.note(f"loading {plan.model.name}")
    if plan.scheme.traits.one_time_keys:
        # A packing that cannot sum is refused before anything is loaded.
        packing = parameters_of(plan)
        compile_kernels(packing)
    interrupt.check()
    base = load_base(plan, watch.note)
    interrupt.check()
    if use_template(base.tokenizer, plan.model.chat_template, date) == "fallback":
        why = "asked for by the plan" if plan.model.chat_template == "fallback" else "it has none"
        note = f"the tokenizer's chat template is not used ({why}): User: and Assistant: lines are"
        base = replace(base, notes=(*base.notes, note))
    longest = base.max_positions
    if longest is not None and plan.training.max_length > longest:
        raise ModelError(
            f"training.max_length: expected at most what {plan.model.name} reads ({longest} "
            f"tokens), got {plan.training.max_length}; lower it"
        )
    with library_words() as words:
        check_prompts(base, plan.evaluation.prompts)
        data = load_sites(data_setup(plan), base.tokenizer, watch.note, only)
    for site, found in data.items():
        for what in ("skipped_rows", "duplicate_rows", "no_response_rows", "truncated_rows"):
            if getattr(found, what):
                watch.note(f"{site}: {getattr(found, what)} {what.replace('_', ' ')}")
    base = replace(base, notes=(*base.notes, *(f"transformers: {word}" for word in words)))
    rows = [row for site in data.values() for row in (*site.train, *site.heldout)]
    check_ids(base, rows)
    interrupt.check()
    given = public_factors(plan, base, watch.note)
    host = AdapterHost(base.model, plan.adapter, base.sha256, given)
    base = replace(base, notes=(*base.notes, *check_model(base, host, rows)))
    for note in run_notes(base, data, host):
        watch.note(f"note: {note}")
    check_memory(plan, base, data, host)
    for found in data.values():
        # A target or a limit that cannot be met is refused before a run folder is made.
        privacy_terms(plan, host.spec, len(found.train))
    interrupt.check()
    return base, data, host


def check_memory(
    plan: Plan, base: BaseModel, data: Mapping[str, SiteData], host: AdapterHost
) -> None:
    """Raises `ModelError` where the longest batch cannot fit into memory: before a run folder is
    made, and with the batch size that fits."""
    row_tokens = max(
        len(row.input_ids) for site in data.values() for row in (*site.train, *site.heldout)
    )
    shape = from_modules(base.model)
    cost = memory_cost(plan, shape, host.spec, scheme_of(plan).facts, base.precision, row_tokens)
    refuse_too_large(plan, cost, base.device)


def run_notes(base: BaseModel, data: Mapping[str, SiteData], host: AdapterHost) -> list[str]:
    """What a reader of the results must know of how they came about, one sentence each."""
    about_data = [f"{site}: {note}" for site in sorted(data) for note in data[site].notes]
    return list(dict.fromkeys([*base.notes, *host.notes, *about_data]))


def cap_notes(plan: Plan, data: Mapping[str, SiteData], cap: int | None) -> list[str]:
    """A sentence on each site whose rows count for less than they are: plan (rule R6) and roster
    cap what a site counts for. `cap`: the roster's `max_examples`."""
    notes = (cap_note(plan, site, len(data[site].train), cap) for site in sorted(data))
    return [note for note in notes if note is not None]


def standing_of(
    store: SiteStore, plan: Plan, host: AdapterHost, completed: int
) -> tuple[int, AdapterState, SiteMemory | None]:
    """Where a site stands: at round `completed`, or before it if it was lost on the way."""
    kept = [number for number in store.rounds() if number <= completed]
    if not kept or completed == 0:
        return 0, initial_state(host.spec, derive(plan.seed, "adapter")), None
    return max(kept), *store.load(max(kept), host.spec)
