"""What an operator reads before a plan may use the site's records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from consortium import Consortium, raw_plan

from fedshield.data.preview import preview
from fedshield.engines.approval import Proposal, propose
from fedshield.engines.ledgers import line_of
from fedshield.errors import ProtocolError
from fedshield.ledger.file import Ledger
from fedshield.ledger.rows import Version
from fedshield.model.base import inspect
from fedshield.model.chat import use_template
from fedshield.protocol.line import Line

NAMES = ("alpha", "beta", "victim")
PRIVACY = {"unit": "example", "clip_norm": 1.0, "noise_multiplier": 2.0, "max_epsilon": 4.0}


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Consortium]:
    made = Consortium(tmp_path / "three", NAMES)
    yield made
    made.close()


@pytest.fixture
def ledger(three: Consortium) -> Iterator[Ledger]:
    with Ledger.create(three.kit("victim").ledger_path()) as made:
        yield made


def proposed(three: Consortium, ledger: Ledger, **changes: Any) -> Proposal:
    return propose(three.kit("victim"), three.plan(raw_plan(NAMES, **changes), "victim"), ledger)


def line(three: Consortium, ledger: Ledger, **changes: Any) -> Line:
    kit = three.kit("victim")
    plan = three.plan(raw_plan(NAMES, **changes), "victim")
    here = kit.local(plan)
    tokenizer, _ = inspect(here)
    use_template(tokenizer, plan.model.chat_template)
    data = preview(here, tokenizer, "victim", 1).data
    return line_of(ledger, "victim", plan, kit.admit(plan, None).roster, "run", data)


OTHERS = Version("1", "1")


def enter(mine: Line, others: Version = OTHERS) -> None:
    """A first round, as the site enters it: `others` is what all others say they put in."""
    versions = dict.fromkeys(NAMES, others) | {"victim": mine.version}
    mine.enter("round", 1, "2" * 64, "3" * 64, versions, 8, "2" * 64, None)


def fewer_rows(rows: int) -> dict[str, Any]:
    data = raw_plan(NAMES)["data"]
    data["sites"]["victim"] = data["sites"]["victim"] | {"rows": rows}
    return {"data": data, "name": f"rows-{rows}"}


def test_consent_is_asked_for_only_where_the_ledger_can_tell_a_change(
    three: Consortium, ledger: Ledger
) -> None:
    first = proposed(three, ledger)
    assert first.part is None
    ledger.approve(first.approval)
    enter(line(three, ledger))
    assert proposed(three, ledger, name="again").part is None
    changed = line(three, ledger, **fewer_rows(36))
    assert proposed(three, ledger, **fewer_rows(36)).part == changed.version


def test_consent_to_one_part_is_none_to_another(three: Consortium, ledger: Ledger) -> None:
    """The plan is approved either way. What only this site changed is let out by consent to it."""
    ledger.approve(proposed(three, ledger).approval)
    enter(line(three, ledger))
    other = proposed(three, ledger, **fewer_rows(36))
    changed = line(three, ledger, **fewer_rows(36))
    elsewhere = proposed(three, ledger, **fewer_rows(32)).part
    assert elsewhere not in (None, other.part)
    for given in (None, elsewhere):
        ledger.approve(replace(other.approval, part=given))
        with pytest.raises(ProtocolError, match="R3: expected this site's records as in round 1"):
            enter(changed)
    ledger.approve(replace(other.approval, part=other.part))
    enter(changed)


def test_everyones_change_needs_no_consent(three: Consortium, ledger: Ledger) -> None:
    ledger.approve(proposed(three, ledger).approval)
    enter(line(three, ledger))
    ledger.approve(proposed(three, ledger, **fewer_rows(36)).approval)
    enter(line(three, ledger, **fewer_rows(36)), Version("2", "2"))


@pytest.mark.parametrize(
    ("privacy", "warned"),
    [
        ({}, "4.5"),
        ({"max_epsilon": 4.0}, ""),
        ({"max_epsilon": 3.0}, ""),
        ({"max_epsilon": 4.0, "delta": 1e-4}, "4 at delta 0.0001"),
        (None, "none"),
    ],
)
def test_a_limit_above_an_earlier_plans_is_said(
    three: Consortium, ledger: Ledger, privacy: dict[str, Any] | None, warned: str
) -> None:
    """R5 holds a plan to its own limit; what an earlier one promised can be passed by a later."""
    noised = proposed(three, ledger, privacy=PRIVACY)
    assert noised.warnings == ()
    assert (noised.approval.unit, noised.approval.limit) == ("example", 4.0)
    ledger.approve(noised.approval)
    later = {"name": "later"}
    if privacy is not None:
        later["privacy"] = PRIVACY | {"max_epsilon": 4.5} | privacy
    # Approved and never run, it released nothing.
    assert proposed(three, ledger, **later).warnings == ()
    enter(line(three, ledger, privacy=PRIVACY))
    # It is no earlier plan than itself.
    assert proposed(three, ledger, privacy=PRIVACY).warnings == ()
    warnings = proposed(three, ledger, **later).warnings
    assert len(warnings) == (1 if warned else 0)
    for warning in warnings:
        assert f"plan {noised.approval.plan[:12]} on these records stopped at epsilon 4 " in warning
        assert f"this plan's limit is {warned}" in warning
