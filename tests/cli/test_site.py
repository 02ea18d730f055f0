"""`fedshield site approve`: what it asks, and what an answer means."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from consortium import Consortium, raw_plan

from fedshield.cli.entry import app
from fedshield.errors import UserError
from fedshield.ledger.file import Ledger, LedgerError
from fedshield.ledger.rules import Approval
from fedshield.protocol.line import Line

NAMES = ("alpha", "beta", "victim")
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

    def approved(raw: dict[str, Any], *answers: str) -> str:
        path = three.root / "plan.yaml"
        path.write_text(yaml.safe_dump(raw))
        left, asked = list(answers), []

        def prompt(question: str, **_: object) -> str:
            asked.append(question)
            return left.pop(0)

        monkeypatch.setattr(typer, "prompt", prompt)
        app(
            ["site", "approve", str(path), "--kit", str(three.root / "victim")],
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
    monkeypatch.setattr("fedshield.engines.approval._passed_limits", lambda *_: ("of a limit",))
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
