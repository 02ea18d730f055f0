"""A lost ledger, from the question to the next plan: `fedshield site ledger ask`, `answer`,
`recover`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from consortium import Consortium
from consortium import raw_plan as plan_of

from fedshield.cli.entry import app
from fedshield.engines.approval import propose
from fedshield.errors import UserError
from fedshield.ledger.file import Ledger
from fedshield.ledger.heads import place_beside
from fedshield.protocol.caller import RoundFailed

NAMES = ("alpha", "beta", "victim")
Run = Callable[..., str]


def raw_plan(**changes: Any) -> dict[str, Any]:
    """What a site counted for under weights by rows is lost with its ledger."""
    return plan_of(NAMES, scheme={"name": "rlwe", "weights": "equal"}, **changes)


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Consortium]:
    """After a round of a plan, the victim's ledger is lost."""
    made = Consortium(tmp_path / "three", NAMES)
    made.approve(raw_plan())
    made.session(raw_plan(), "first").run(1, 1)
    made.close()
    made.kit("victim").ledger_path().unlink()
    yield made
    made.close()


@pytest.fixture
def run(
    three: Consortium, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """A command at a site's terminal, with this answer; what was said."""

    def done(site: str, *args: str, answer: str | None = None) -> str:
        monkeypatch.setattr(typer, "prompt", lambda *_, **__: answer)
        app(
            ["site", "ledger", *map(str, args), "--kit", str(three.root / site)],
            standalone_mode=False,
        )
        return capsys.readouterr().out

    return done


@pytest.fixture
def answers(three: Consortium, run: Run) -> list[Path]:
    question = three.root / "question.json"
    run("victim", "ask", "--to", question)
    files = [three.root / f"{name}.json" for name in ("alpha", "beta")]
    for name, path in zip(("alpha", "beta"), files, strict=True):
        said = run(name, "answer", question, "--to", path)
        assert "1 sums that victim was in" in said
    return files


def approved(three: Consortium, raw: dict[str, Any], consent: bool = False) -> None:
    for name in NAMES:
        kit = three.kit(name)
        with Ledger.open(kit.ledger_path()) as ledger:
            found = propose(kit, three.plan(raw, name), ledger)
            assert not found.refusals, found.refusals
            assert (found.part is not None) == (name == "victim")
            part = found.part if consent and name == "victim" else None
            ledger.approve(_with(found.approval, part))


def _with(approval: Any, part: Any) -> Any:
    return replace(approval, part=part)


def test_a_lost_ledger_is_rebuilt_and_the_next_plan_is_run(
    three: Consortium, run: Run, answers: list[Path]
) -> None:
    said = run("victim", "recover", *answers, answer="victim")
    assert "1 sums, 1 results" in said
    with Ledger.open(three.kit("victim").ledger_path()) as ledger:
        assert [row.round_number for row in ledger.rows] == [1]
    again = raw_plan(name="again", seed=8)
    approved(three, again, consent=True)
    # The others remember the lost ledger until their operators have them forget it.
    with pytest.raises(RoundFailed):
        three.session(again, "again").run(1, 1)
    assert "ledger is not the one that it signed before" in three.last_error("alpha", "again")
    three.close()
    for name in ("alpha", "beta"):
        assert "rebuilt" in run(name, "forget", "victim", answer="victim")
    three.session(again, "again").run(1, 2)


def test_what_the_rules_refused_is_refused_after_it(
    three: Consortium, run: Run, answers: list[Path]
) -> None:
    """A second run of the plan, a repeated round with other numbers, and what only this site
    changed."""
    run("victim", "recover", *answers, answer="victim")
    for name in ("alpha", "beta"):
        run(name, "forget", "victim", answer="victim")
    three.approve(raw_plan(), "victim")
    with pytest.raises(Exception, match="R4: expected the run first of this plan, got second"):
        three.session(raw_plan(), "second")
    session = three.session(raw_plan(), "first")
    with pytest.raises(RoundFailed):
        session.run(1, 1)
    assert "R4: expected round 1 of plan" in three.last_error("victim", "first")
    three.close()
    again = raw_plan(name="again", seed=8)
    approved(three, again)
    with pytest.raises(RoundFailed):
        three.session(again, "again").run(1, 1)
    assert "R3: expected this site's records" in three.last_error("victim", "again")


def test_all_others_must_answer_this_question(
    three: Consortium, run: Run, answers: list[Path]
) -> None:
    path = three.kit("victim").ledger_path()

    def refused(*files: Path) -> str:
        with pytest.raises(UserError) as found:
            run("victim", "recover", *files, answer="victim")
        assert not path.exists()
        return str(found.value)

    assert "got none of beta" in refused(answers[0])
    assert "each once" in refused(answers[0], answers[0])
    changed = three.root / "changed.json"
    raw = json.loads(answers[1].read_text())
    raw["said"]["rows"] = []
    changed.write_text(json.dumps(raw))
    assert "signed with its key of today" in refused(answers[0], changed)
    # An answer to an earlier question could lack the latest sums.
    (three.root / "victim" / "ledger.question.json").unlink()
    question = three.root / "another.json"
    run("victim", "ask", "--to", question)
    assert "got one to another" in refused(*answers)
    files = [three.root / "a", three.root / "b"]
    for name, file in zip(("alpha", "beta"), files, strict=True):
        run(name, "answer", question, "--to", file)
    with pytest.raises(UserError, match="nothing was written"):
        run("victim", "recover", *files, answer="yes")
    assert not path.exists()
    assert place_beside(path).exists()


def test_a_ledger_that_is_there_is_not_asked_for(three: Consortium, run: Run) -> None:
    with pytest.raises(UserError, match="expected no ledger, got one"):
        run("alpha", "ask", "--to", three.root / "question.json")
    with pytest.raises(UserError, match="expected this site's question, found none"):
        run("victim", "recover", three.root / "x.json")
