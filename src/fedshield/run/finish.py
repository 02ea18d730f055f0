"""The end of a run: what is released and written once the rounds are done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fedshield import interrupt
from fedshield.data.sites import SiteData
from fedshield.errors import RunFolderError
from fedshield.model import export
from fedshield.model.adapter import AdapterHost
from fedshield.model.answers import answers
from fedshield.model.base import BaseModel
from fedshield.plan.schema import Plan
from fedshield.run.events import Events
from fedshield.run.folder import RunFolder, now
from fedshield.run.summary import summarise
from fedshield.site.round import personal
from fedshield.types import AdapterState


def finish(
    folder: RunFolder,
    plan: Plan,
    base: BaseModel,
    data: dict[str, SiteData],
    host: AdapterHost,
    watch: Events,
    state: dict[str, Any],
) -> None:
    """Answers, adapter, summary and report of a run whose rounds are done."""
    from fedshield.report import write_report
    from fedshield.report.card import model_card

    adapter = _current(folder, plan, host)
    states = _personal_states(folder, plan, host, adapter)
    if plan.evaluation.prompts:
        prompts = plan.evaluation.prompts
        notes = whose_answers(tuple(states))
        asked = time.perf_counter()
        replies = answers(
            base,
            host,
            next(iter(states.values())),
            prompts,
            plan.evaluation.max_new_tokens,
            watch.note,
            notes.append,
        )
        folder.write_json("answers.json", replies)
        state["answers_s"] = time.perf_counter() - asked
        for note in notes:
            watch.note(f"note: {note}")
        state["notes"] = list(dict.fromkeys([*state.get("notes", ()), *notes]))
    interrupt.check()
    watch.note("writing the adapter and the report")
    state["finished"] = now()
    summary = summarise(plan, base, data, adapter, folder.metrics(), state)
    card = model_card(plan, summary)
    export.save_adapter(base, host, states, plan.adapter, card, folder.path / "adapter")
    interrupt.check()
    folder.write_json("summary.json", summary)
    write_report(folder.path)


def whose_answers(adapters: Sequence[str]) -> list[str]:
    """A note where each site has an adapter of its own: prompts are answered with the first."""
    if len(adapters) < 2:
        return []
    return [f"answers are those of the adapter of {adapters[0]}: each site has one of its own"]


def _current(folder: RunFolder, plan: Plan, host: AdapterHost) -> AdapterState:
    """The adapter of the last finished round, which any site that has kept it can give."""
    completed = max(row["round"] for row in folder.metrics())
    for site in plan.data.site_names():
        if completed in folder.site_store(site).rounds():
            return folder.site_store(site).load(completed, host.spec)[0]
    raise RunFolderError(f"{folder.path}: expected round {completed} at some site, found none")


def _personal_states(
    folder: RunFolder, plan: Plan, host: AdapterHost, adapter: AdapterState
) -> dict[str, AdapterState]:
    """What is released: one adapter, or each site's own (`share-a`)."""
    if plan.adapter.train != "share-a":
        return {"": adapter}
    found: dict[str, AdapterState] = {}
    for site in plan.data.site_names():
        rounds = folder.site_store(site).rounds()
        if rounds:
            state, memory = folder.site_store(site).load(max(rounds), host.spec)
            found[site] = personal(plan, state, memory)
    return found
