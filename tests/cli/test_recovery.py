"""A lost ledger, from the question to the next plan: `fedshield site ledger ask`, `answer`,
`recover`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from consortium import Consortium, Refused
from consortium import raw_plan as plan_of

from fedshield.cli.commands import app
from fedshield.enrolment import KeyFile, SignedRoster
from fedshield.enrolment.terms import Asked
from fedshield.errors import UserError
from fedshield.ledger.file import Ledger, LedgerError
from fedshield.ledger.heads import GAP, place_beside, place_question
from fedshield.ledger.rows import LOST
from fedshield.protocol.caller import RoundFailed
from fedshield.run.approval import propose

NAMES = ("alpha", "beta", "victim")
OTHERS = ("alpha", "beta")
Run = Callable[..., str]


def raw_plan(**changes: Any) -> dict[str, Any]:
    return plan_of(NAMES, **changes)


@pytest.fixture
def scheme() -> dict[str, str]:
    """Of the plan; by default a session begins with the total of the counts."""
    return {"name": "rlwe"}


@pytest.fixture
def three(tmp_path: Path, scheme: dict[str, str]) -> Iterator[Consortium]:
    """The victim's ledger is copied on the first day, and lost after a round of a plan."""
    made = Consortium(tmp_path / "three", NAMES)
    raw = raw_plan(scheme=scheme)
    made.approve(raw)
    shutil.copy(made.kit("victim").ledger_path(), tmp_path / "first-day")
    made.session(raw, "first").run(1, 1)
    made.close()
    lost = made.kit("victim").ledger_path()
    shutil.copy(lost, tmp_path / "newest")
    shutil.copy(place_beside(lost), place_beside(tmp_path / "newest"))
    lost.unlink()
    yield made
    made.close()


@pytest.fixture
def older(tmp_path: Path) -> Path:
    return tmp_path / "first-day"


@pytest.fixture
def run(
    three: Consortium, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """A command at a site's terminal, with this answer; what was said."""

    def done(site: str, *args: object, answer: str | None = "victim") -> str:
        monkeypatch.setattr(typer, "prompt", lambda *_, **__: answer)
        app(
            ["site", "ledger", *map(str, args), "--kit", str(three.root / site)],
            standalone_mode=False,
        )
        return " ".join(capsys.readouterr().out.split())

    return done


@pytest.fixture
def answers(three: Consortium, run: Run) -> list[Path]:
    question = three.root / "question.json"
    said = run("victim", "ask", "--to", question)
    assert "give it to alpha, beta" in said
    files = [three.root / f"{name}.json" for name in OTHERS]
    for name, path in zip(OTHERS, files, strict=True):
        # The total of the counts, and the round.
        assert "2 sums that victim was in" in run(name, "answer", question, "--to", path)
    return files


def test_a_lost_ledger_is_rebuilt_and_the_next_plan_is_run(
    three: Consortium, run: Run, answers: list[Path], older: Path
) -> None:
    """Upon a copy of the first day, without what lay beside it. What the site put in and what it
    counted for are known by its plan and records; nobody has to forget anything, and nothing
    looks changed."""
    lost = Ledger.prefix(older.with_name("newest"))[0]
    place = three.kit("victim").ledger_path()
    place_beside(place).unlink()
    said = run("victim", "recover", *answers, "--older", older)
    assert "2 sums that the copy does not have, 2 results" in said
    for word in ("infinite", "counts", "told by some"):
        assert word not in said
    # The total of the counts, which a session begins with, is a sum too.
    assert "cannot go on" in said
    with Ledger.open(place) as ledger:
        assert ledger.record_key == lost.record_key
        assert [row.key for row in ledger.rows] == [row.key for row in lost.rows]
        for row, before in zip(ledger.rows, lost.rows, strict=True):
            assert (row.records, row.scale, row.versions) == (
                before.records,
                before.scale,
                before.versions,
            )
        assert ledger.head.length > lost.head.length + GAP
        assert ledger.results(lost.rows[0].plan) == lost.results(lost.rows[0].plan)
        # What the others' ledgers are now is remembered, and they are not behind it.
        assert set(ledger.peers) == set(lost.peers)
        assert all(ledger.peers[one][0].length > lost.peers[one][0].length for one in lost.peers)
        assert ledger.chains == lost.chains
    lost.close()
    again = raw_plan(name="again", seed=8)
    for name in NAMES:
        kit = three.kit(name)
        with Ledger.open(kit.ledger_path()) as ledger:
            found = propose(kit, three.plan(again, name), ledger)
            assert not found.refusals, found.refusals
            assert found.part is None
            ledger.approve(found.approval)
    three.session(again, "again").run(1, 2)
    three.close()
    three.session(again, "again", start=2).run(3, 3)


def test_what_the_rules_refused_is_refused_after_it(
    three: Consortium, run: Run, answers: list[Path], older: Path
) -> None:
    """A second run of the plan, a sum again with other numbers, other sites, and what one site
    alone changed."""
    run("victim", "recover", *answers, "--older", older)
    # The copy's approval is none any more: what it consented to may have been taken back.
    with pytest.raises(Refused, match="R8: expected an approval of plan"):
        three.session(raw_plan(), "first")
    said = run("victim", "show")
    assert "rounds before this ledger was rebuilt, not since: approve it again" in said
    three.approve(raw_plan(), "victim")
    assert "not since" not in run("victim", "show")
    with pytest.raises(Exception, match="R4: expected the run first of this plan, got second"):
        three.session(raw_plan(), "second")
    session = three.session(raw_plan(), "first")
    with pytest.raises(RoundFailed):
        session.run(1, 1)
    assert "not to be repeated" in three.last_error("victim", "first")
    three.close()
    # With the victim's key of records another one, it would count as changed too.
    again = raw_plan(name="again", seed=8)
    again["data"]["sites"]["beta"]["rows"] = 39
    three.approve(again)
    with pytest.raises(RoundFailed):
        three.session(again, "again").run(1, 1)
    assert "got them changed where 2 of the batch kept theirs" in three.last_error("beta", "again")


def test_without_a_copy_it_is_said_what_is_lost(
    three: Consortium, run: Run, answers: list[Path], older: Path
) -> None:
    with pytest.raises(UserError, match="record key is lost") as found:
        run("victim", "recover", *answers)
    assert "\n" not in str(found.value)
    # A new ledger is no copy, with what lay beside the lost one or without.
    fresh = older.with_name("fresh")
    Ledger.create(fresh).close()
    with pytest.raises(UserError, match="another ledger's"):
        run("victim", "recover", *answers, "--older", fresh)
    place = three.kit("victim").ledger_path()
    place_beside(place).unlink()
    with pytest.raises(UserError, match="expected a copy that is shown to be of the lost ledger"):
        run("victim", "recover", *answers, "--older", fresh)
    with pytest.raises(UserError, match="expected a copy of the ledger, but No such file"):
        run("victim", "recover", *answers, "--older", older.with_name("none"))
    assert not place.exists()


def test_what_is_left_of_a_damaged_ledger_is_a_copy(
    three: Consortium, run: Run, answers: list[Path], older: Path
) -> None:
    damaged = older.with_name("newest")
    lines = damaged.read_bytes().splitlines(keepends=True)
    lines[5] = lines[5].replace(b"a", b"b")
    damaged.write_bytes(b"".join(lines))
    said = run("victim", "recover", *answers, "--older", damaged)
    assert "5 lines that follow" in said
    with Ledger.open(three.kit("victim").ledger_path()) as ledger:
        assert ledger.recoveries[0].after == 5
        # Of the first sum there is the row and not what was signed for it: it is not repeated.
        assert [row.recovered for row in ledger.rows] == [False, True, True]
        assert len({row.key for row in ledger.rows}) == 2


def test_all_others_must_answer_this_question(
    three: Consortium, run: Run, answers: list[Path], older: Path
) -> None:
    path = three.kit("victim").ledger_path()

    def refused(*files: Path, answer: str = "victim") -> str:
        with pytest.raises(UserError) as found:
            run("victim", "recover", *files, "--older", older, answer=answer)
        assert not path.exists()
        return str(found.value)

    assert "got none of beta: " in refused(answers[0])
    assert "each site's answer once" in refused(*answers, answers[0])
    changed = three.root / "changed.json"
    raw = json.loads(answers[1].read_text())
    raw["rows"] = []
    changed.write_text(json.dumps(raw))
    assert "signed with its key of today" in refused(answers[0], changed)
    assert "nothing was made" in refused(*answers, answer="yes")
    # An answer to an earlier question could lack the latest sums.
    place_question(path).unlink()
    question = three.root / "another.json"
    run("victim", "ask", "--to", question)
    assert "got one to another" in refused(*answers)
    assert place_beside(path).exists()
    with pytest.raises(UserError, match="nothing was told"):
        run("alpha", "answer", question, "--to", three.root / "x", answer="alpha")
    assert not (three.root / "x").exists()


def test_the_question_does_not_outlive_its_loss(
    three: Consortium, run: Run, answers: list[Path], older: Path
) -> None:
    """The same answers would lack what came between two losses."""
    path = three.kit("victim").ledger_path()
    with pytest.raises(LedgerError, match="expected no earlier ledger"):
        Ledger.create(path)
    run("victim", "recover", *answers, "--older", older)
    assert not place_question(path).exists()
    path.unlink()
    with pytest.raises(UserError, match="expected this site's question, found none"):
        run("victim", "recover", *answers, "--older", older)
    # Nor does it where a newer copy is found and used.
    run("victim", "ask", "--to", three.root / "again.json")
    assert place_question(path).exists()
    shutil.copy(older.with_name("newest"), path)
    three.approve(raw_plan(name="again", seed=8), "victim")
    assert not place_question(path).exists()
    with pytest.raises(UserError, match="expected no ledger, got one"):
        run("victim", "ask", "--to", three.root / "once-more.json")


def test_a_crash_as_the_ledger_gets_its_name_is_asked_through_again(
    three: Consortium,
    run: Run,
    answers: list[Path],
    older: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = three.kit("victim").ledger_path()

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        assert not place_question(path).exists()
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("fedshield.ledger.file.os.link", killed)
        with pytest.raises(Killed):
            run("victim", "recover", *answers, "--older", older)
    assert not path.exists()
    with pytest.raises(UserError, match="found none; begin with"):
        run("victim", "recover", *answers, "--older", older)
    question = three.root / "again.json"
    run("victim", "ask", "--to", question)
    files = [three.root / f"{name}.again.json" for name in OTHERS]
    for name, file in zip(OTHERS, files, strict=True):
        run(name, "answer", question, "--to", file)
    run("victim", "recover", *files, "--older", older)
    with Ledger.open(path) as ledger:
        assert len(ledger.rows) == 2


def test_what_lay_beside_can_be_made_anew_upon_a_whole_ledger(
    three: Consortium, run: Run, answers: list[Path], older: Path
) -> None:
    """The ledger itself is the copy; nobody told of anything that it does not hold."""
    path = three.kit("victim").ledger_path()
    place_beside(path).unlink()
    said = run("victim", "recover", *answers, "--older", older.with_name("newest"))
    assert "0 sums that the copy does not have, 0 results" in said
    three.approve(raw_plan())
    three.session(raw_plan(), "first", start=1).run(2, 2)


@pytest.mark.parametrize("scheme", [{"name": "rlwe", "weights": "equal"}])
def test_a_plan_without_tallies_goes_on_where_others_certify(
    three: Consortium, run: Run, older: Path, scheme: dict[str, str]
) -> None:
    """From the result that enough of them tell."""
    run("victim", "ask", "--to", three.root / "question.json")
    files = [three.root / f"{name}.json" for name in OTHERS]
    for name, file in zip(OTHERS, files, strict=True):
        run(name, "answer", three.root / "question.json", "--to", file)
    said = run("victim", "recover", *files, "--older", older)
    assert "1 sums that the copy does not have, 1 results" in said
    assert "cannot go on" not in said
    three.approve(raw_plan(scheme=scheme), "victim")
    three.session(raw_plan(scheme=scheme), "first", start=1).run(2, 2)


def test_a_plan_that_is_not_given_makes_epsilon_infinite(
    three: Consortium, run: Run, older: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And its full rounds are counted where it is: what is told says nothing of it."""
    path = three.kit("victim").ledger_path()
    shutil.copy(older.with_name("newest"), path)
    private = raw_plan(
        name="private",
        training=raw_plan()["training"] | {"optimizer": "sgd"},
        privacy={"unit": "example", "clip_norm": 1.0, "noise_multiplier": 1.0},
    )
    three.approve(private)
    three.session(private, "private").run(1, 1)
    three.close()
    path.unlink()
    shutil.move(three.root / "victim" / "runs" / "private", three.root / "away")
    question = three.root / "question.json"
    run("victim", "ask", "--to", question)
    files = [three.root / f"{name}.json" for name in OTHERS]
    for name, file in zip(OTHERS, files, strict=True):
        run(name, "answer", question, "--to", file)
        assert '"curve"' not in file.read_text()
    plan = three.plan(private, "victim").sha256()
    with pytest.raises(UserError, match="nothing was made"):
        run("victim", "recover", *files, "--older", older, answer="")
    said = " ".join(capsys.readouterr().out.split())
    assert f"epsilon infinite: what the rounds of plan {plan} spent is not known" in said
    assert f"counts not known for plan {plan[:12]}" in said
    given = three.root / "away" / "plan.yaml"
    said = run("victim", "recover", *files, "--older", older, "--plan", given)
    assert "infinite" not in said
    assert "counts" not in said
    with Ledger.open(path) as ledger:
        rows = [row for row in ledger.rows if row.plan == plan and row.curve]
        assert [row.phase for row in rows] == ["round", LOST]
        assert rows[1].curve == tuple(3 * value for value in rows[0].curve)


def test_what_lay_beside_and_is_damaged_is_moved_away(
    three: Consortium, run: Run, answers: list[Path], older: Path
) -> None:
    """It is said, for with it nothing is rebuilt; the answers hold it anew."""
    beside = place_beside(three.kit("victim").ledger_path())
    beside.write_bytes(beside.read_bytes().replace(b'"length": ', b'"length": 1'))
    with pytest.raises(LedgerError, match=rf"got a damaged file, .* move {beside.name} away too"):
        run("victim", "recover", *answers, "--older", older)
    beside.rename(three.root / "damaged")
    run("victim", "recover", *answers, "--older", older)
    with Ledger.open(three.kit("victim").ledger_path()) as ledger:
        assert len(ledger.peers) == 2


def test_a_plan_of_batches_is_said_to_end(
    three: Consortium, run: Run, answers: list[Path], older: Path
) -> None:
    raw = raw_plan(scheme={"name": "rlwe", "membership": "batches"})
    sites = raw["data"]["sites"]
    raw["data"]["sites"] = sites | {f"site{number}": sites["beta"] for number in range(3)}
    plan = three.plan(raw, "victim")
    path = three.root / "plan.yaml"
    path.write_text(plan.to_yaml())
    said = run("victim", "recover", *answers, "--older", older, "--plan", path)
    assert f"ended plan {plan.sha256()[:12]}, if it is not finished, cannot go on" in said


def test_a_site_that_left_is_not_told(three: Consortium, run: Run) -> None:
    """Nobody vouches for its key any more. What it says is why, and not that a file is wrong."""
    question, kit = three.root / "question.json", three.kit("alpha")
    run("victim", "ask", "--to", question)
    keys = {name: KeyFile.read(three.root / name / f"{name}.key") for name in OTHERS}
    signed = SignedRoster.read(kit.path / "roster.json")
    cards = tuple(signed.card(name) for name in OTHERS)
    signed = replace(signed, sites=cards, asked=Asked(max_colluding=0), countersignatures={})
    for name, key in keys.items():
        signed = signed.countersigned(key, [other for other in OTHERS if other != name])
    (kit.path / "roster.json").write_text(signed.to_text())
    with pytest.raises(UserError, match="got one of victim, which is not in it: a site that left"):
        run("alpha", "answer", question, "--to", three.root / "x")
    assert not (three.root / "x").exists()


def test_a_ledger_that_is_there_is_not_asked_for(three: Consortium, run: Run) -> None:
    with pytest.raises(UserError, match="expected no ledger, got one"):
        run("alpha", "ask", "--to", three.root / "question.json")
    with pytest.raises(UserError, match="expected this site's question, found none"):
        run("victim", "recover", three.root / "x.json", "--older", three.root / "y")
