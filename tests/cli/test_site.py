"""`fedshield site approve`: what it asks, and what an answer means."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from consortium import Consortium, raw_plan

from fedshield.cli.commands import app
from fedshield.data.preview import preview
from fedshield.enrolment.coming import exposure_of, joined
from fedshield.enrolment.lineage import Lineage
from fedshield.errors import UserError
from fedshield.ledger.file import Ledger, LedgerError
from fedshield.ledger.rules import Approval
from fedshield.model.base import inspect
from fedshield.protocol.contexts import ROUND
from fedshield.protocol.line import Line
from fedshield.run.ledgers import line_of
from fedshield.run.settings import data_setup

NAMES = ("alpha", "beta", "victim")
EQUAL = {"name": "rlwe", "weights": "equal", "max_colluding": 1}
Approve = Callable[..., str]


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Consortium]:
    made = Consortium(tmp_path / "three", NAMES)
    yield made
    made.close()


@pytest.fixture
def approve(
    three: Consortium,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Approve:
    """Approve `raw` at the victim's terminal with these answers; what was said and asked."""

    def approved(raw: dict[str, Any], *answers: str, options: tuple[str, ...] = ()) -> str:
        path = three.root / "plan.yaml"
        path.write_text(yaml.safe_dump(raw))
        left, asked = list(answers), []

        def prompt(question: str, **_: object) -> str:
            asked.append(question)
            return left.pop(0)

        monkeypatch.setattr(typer, "prompt", prompt)
        app(
            ["site", "approve", str(path), "--kit", str(three.root / "victim"), *options],
            standalone_mode=False,
        )
        assert left == []
        return "\n".join([capsys.readouterr().out, *asked])

    return approved


def last(three: Consortium) -> Approval:
    with Ledger.open(three.kit("victim").ledger_path()) as ledger:
        return list(ledger.approvals.values())[-1]


def test_the_number_of_sites_approves(three: Consortium, approve: Approve) -> None:
    raw = raw_plan(NAMES)
    with pytest.raises(UserError, match="expected 3, got '2'; nothing was approved"):
        approve(raw, "2")
    assert "approved" in approve(raw, "3")
    assert last(three).plan == three.plan(raw).sha256()


def test_warnings_are_read_before_the_question(
    three: Consortium, approve: Approve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedshield.run.approval._passed_limits", lambda *_: ("of a limit",))
    assert "warning       of a limit\n" in approve(raw_plan(NAMES), "3")


@pytest.mark.parametrize(("answer", "consents"), [("", False), ("victim", True)])
def test_an_empty_answer_is_no_consent(
    three: Consortium,
    approve: Approve,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    consents: bool,
) -> None:
    """The question is put where everyone may have changed too: then none is needed."""
    raw = raw_plan(NAMES)
    assert "consent" not in approve(raw, "3")
    monkeypatch.setattr(Line, "part_changed", lambda _: True)
    said = approve(raw, "3", answer)
    assert "If the others keep theirs" in said
    assert "leave it empty" in said
    assert (last(three).part is not None) == consents
    assert ("without consent" in said) != consents
    with pytest.raises(UserError, match="expected victim or nothing, got 'vic'; nothing was app"):
        approve(raw, "3", "vic")


def test_no_ledger_is_made_where_there_was_one(three: Consortium, approve: Approve) -> None:
    raw, path = raw_plan(NAMES), three.kit("victim").ledger_path()
    (three.root / "victim" / "runs" / "trial").mkdir(parents=True)
    with pytest.raises(
        LedgerError, match=r"has been in runs \(trial\); restore the ledger's newest"
    ):
        approve(raw, "3")
    assert not path.exists()


@pytest.fixture
def joined_late(three: Consortium) -> dict[str, Any]:
    """The victim's records were in a sum of three sites; `late` has joined, and signed what that
    shows of it. A plan of the four."""
    raw, kit, before = (
        raw_plan(NAMES, name="earlier", scheme=EQUAL),
        three.kit("victim"),
        three.roster(),
    )
    three.approve(raw, "victim")
    plan = three.plan(raw, "victim")
    here = kit.local(plan)
    tokenizer, _ = inspect(here.model, here.base_dir, here.speed.device)
    data = preview(data_setup(here), tokenizer, "victim", 1).data
    with Ledger.open(kit.ledger_path()) as ledger:
        line = line_of(ledger, "victim", plan, before.to_roster(), "run", data)
        versions = dict.fromkeys(NAMES, line.version)
        ledger.add_row(line._request(ROUND, 1, "", "", versions, 40, None))
    key = three.enrol("late")
    after = joined(before.followed(), [key.card()])
    lineage = after.lineage.with_exposures([exposure_of(before, after, key)])
    three.put_in_force(dataclasses.replace(after, lineage=lineage))
    return raw_plan(three.names, scheme=EQUAL)


def test_who_is_new_and_who_is_exposed_is_said(
    three: Consortium, approve: Approve, joined_late: dict[str, Any]
) -> None:
    said = approve(joined_late, "4", options=("--exposed",))
    assert "NEW since the last sum of these records: late" in said
    assert "exposed: late's update of each round can be computed by whoever holds" in said
    # What was not needed changes nothing, and asks for nothing.
    assert "--exposed was not needed" in said
    assert "Type victim" not in said
    assert not last(three).exposed


def test_an_exposed_site_is_asked_for_its_name(
    three: Consortium, approve: Approve, joined_late: dict[str, Any]
) -> None:
    path = three.root / "victim" / "victim.policy.yaml"
    # Three that are not exposed stay hidden by each other.
    path.write_text(f"{path.read_text()}exposes: [victim]\n")
    with pytest.raises(UserError, match=r"R1: expected this site's consent.*--exposed"):
        approve(joined_late)
    with pytest.raises(UserError, match="R1: expected every site to be in the same sums"):
        approve(joined_late, options=("--exposed",))
    three.put_in_force(dataclasses.replace(three.roster(), lineage=Lineage(), countersignatures={}))
    with pytest.raises(UserError, match="R1: expected the batch that these records were summed in"):
        approve(joined_late, options=("--exposed",))


def test_an_exposed_site_that_types_its_name_is_approved(
    three: Consortium, approve: Approve, joined_late: dict[str, Any]
) -> None:
    """With records that were in no sum, so that the four are one batch."""
    path = three.root / "victim" / "victim.policy.yaml"
    three.put_in_force(dataclasses.replace(three.roster(), lineage=Lineage(), countersignatures={}))
    fresh = path.read_text().replace("victim.ledger", "fresh.ledger")
    path.write_text(f"{fresh}exposes: [victim]\n")
    with pytest.raises(UserError, match="expected victim, got 'yes'; nothing was approved"):
        approve(joined_late, "4", "yes", options=("--exposed",))
    said = approve(joined_late, "4", "victim", options=("--exposed",))
    assert "victim's update of each round can be computed by whoever holds" in " ".join(
        said.split()
    )
    assert last(three).exposed
