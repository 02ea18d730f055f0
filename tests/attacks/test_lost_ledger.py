"""What an attacker makes of it that a lost ledger can be rebuilt: with a stolen key, as one of
those who answer, and with a copy of the lost ledger."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from consortium import Consortium, raw_plan

from fedshield.cli.commands import app
from fedshield.enrolment import KeyFile
from fedshield.enrolment.coming import exposure_of, joined
from fedshield.errors import UserError
from fedshield.ledger.heads import place_question
from fedshield.protocol.caller import RoundFailed
from fedshield.recovery.letters import Answer, Question

NAMES = ("alpha", "mallory", "victim")
Run = Callable[..., str]


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Consortium]:
    """After a round of a plan; the victim's ledger was copied on the first day, and now."""
    made = Consortium(tmp_path / "three", NAMES)
    raw = raw_plan(NAMES)
    made.approve(raw)
    shutil.copy(made.kit("victim").ledger_path(), tmp_path / "first-day")
    made.session(raw, "first").run(1, 1)
    made.close()
    shutil.copy(made.kit("victim").ledger_path(), tmp_path / "newest")
    yield made
    made.close()


@pytest.fixture
def run(
    three: Consortium, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    def done(site: str, *args: object) -> str:
        monkeypatch.setattr(typer, "prompt", lambda *_, **__: "victim")
        kit = str(three.root / site)
        app(["site", "ledger", *map(str, args), "--kit", kit], standalone_mode=False)
        return " ".join(capsys.readouterr().out.split())

    return done


def signing(three: Consortium, name: str) -> KeyFile:
    return KeyFile.read(three.root / name / f"{name}.key")


def answers(three: Consortium, run: Run, question: Path) -> list[Path]:
    files = [question.with_name(f"{question.stem}.{name}") for name in ("alpha", "mallory")]
    for name, path in zip(("alpha", "mallory"), files, strict=True):
        run(name, "answer", question, "--to", path)
    return files


def lose(three: Consortium, run: Run, question: str) -> list[Path]:
    three.kit("victim").ledger_path().unlink()
    run("victim", "ask", "--to", three.root / question)
    return answers(three, run, three.root / question)


def test_who_stole_a_key_and_asks_gets_nothing_that_loosens_a_check(
    three: Consortium, run: Run, tmp_path: Path
) -> None:
    """An answer changes nothing at who gives it: the site goes on as before, a site that was then
    rolled back is found as before, and its own recovery takes no answer to the thief's question."""
    key = signing(three, "victim").key
    own = three.kit("victim").enrolled()[0].to_roster().identity("victim")
    path = three.kit("victim").ledger_path()
    question = three.root / "thief.json"
    question.write_text(Question(bytes(32), own).signed(key.sign).to_text())
    stolen = answers(three, run, question)
    # What it learns: digests and names; no record, no count, no curve.
    told = json.loads(stolen[0].read_text())["rows"][0]
    assert set(told) == {
        *("plan", "roster", "run", "phase", "round", "base", "batch", "sites", "colluding"),
        *("membership", "weights", "steps", "recovered"),
    }
    whole = path.read_bytes()
    shutil.copy(tmp_path / "first-day", path)
    session = three.session(raw_plan(NAMES), "first", start=1)
    with pytest.raises(RoundFailed):
        session.run(2, 2)
    assert "it was restored from a backup" in three.last_error("victim", "first")
    assert "is not the one that it signed before" in three.last_error("alpha", "first")
    three.close()
    path.unlink()
    run("victim", "ask", "--to", three.root / "own.json")
    with pytest.raises(UserError, match="got one to another"):
        run("victim", "recover", *stolen, "--older", tmp_path / "first-day")
    path.write_bytes(whole)
    three.session(raw_plan(NAMES), "first", start=1).run(2, 2)


def test_a_question_that_another_key_signed_is_not_answered(three: Consortium, run: Run) -> None:
    own = three.kit("victim").enrolled()[0].to_roster().identity("victim")
    question = three.root / "forged.json"
    for about in (own, "f" * 64):
        mallory = signing(three, "mallory").key
        question.write_text(Question(bytes(32), about).signed(mallory.sign).to_text())
        with pytest.raises(UserError, match="signed with its key of today, got none"):
            run("alpha", "answer", question, "--to", three.root / "x")
    assert not (three.root / "x").exists()


def test_the_lost_ledger_is_refused_when_it_comes_back(
    three: Consortium, run: Run, tmp_path: Path
) -> None:
    """It would lack what came after; the others saw the new one."""
    files = lose(three, run, "question.json")
    run("victim", "recover", *files, "--older", tmp_path / "first-day")
    again = raw_plan(NAMES, name="again", seed=8)
    three.approve(again)
    three.session(again, "again").run(1, 1)
    three.close()
    path = three.kit("victim").ledger_path()
    shutil.copy(tmp_path / "newest", path)
    third = raw_plan(NAMES, name="third", seed=9)
    three.approve(third)
    session = three.session(third, "third")
    with pytest.raises(RoundFailed):
        session.run(1, 1)
    assert "it was restored from a backup" in three.last_error("victim", "third")
    assert "is not the one that it signed before" in three.last_error("alpha", "third")


def test_a_copy_at_work_between_answers_and_recovery_is_found(
    three: Consortium, run: Run, tmp_path: Path
) -> None:
    """Its sums are in no answer. The others remember more of it than they told."""
    path = three.kit("victim").ledger_path()
    files = lose(three, run, "question.json")
    nonce = place_question(path).read_bytes()
    shutil.copy(tmp_path / "newest", path)
    three.session(raw_plan(NAMES), "first", start=1).run(2, 2)
    three.close()
    path.unlink()
    # As on another machine: opened here, the ledger would have dropped the question.
    place_question(path).write_bytes(nonce)
    with pytest.raises(UserError, match=r"expected a ledger of .* that goes on from line"):
        run("victim", "recover", *files, "--older", tmp_path / "first-day")
    (path.with_name(f"{path.name}.peers")).unlink()
    run("victim", "recover", *files, "--older", tmp_path / "first-day")
    again = raw_plan(NAMES, name="again", seed=8)
    three.approve(again)
    session = three.session(again, "again")
    with pytest.raises(RoundFailed):
        session.run(1, 1)
    said = three.last_error("victim", "again")
    assert "this site's ledger does not hold what it signed before" in said
    assert "remembered by alpha" in said


def test_a_head_that_one_kept_back_stops_this_site_only_and_is_named(
    three: Consortium, run: Run, tmp_path: Path
) -> None:
    """It cannot be told from a copy at work. The other sites take the rebuilt ledger, which goes
    on beyond it."""
    alpha, mallory = lose(three, run, "question.json")
    answer = Answer.read(mallory)
    kept = {site: one for site, one in answer.heads.items() if site != answer.about}
    lying = Answer(**{**vars(answer), "heads": kept})
    mallory.write_text(lying.signed(signing(three, "mallory").key.sign).to_text())
    run("victim", "recover", alpha, mallory, "--older", tmp_path / "first-day")
    again = raw_plan(NAMES, name="again", seed=8)
    three.approve(again)
    session = three.session(again, "again")
    with pytest.raises(RoundFailed):
        session.run(1, 1)
    assert set(session.link.codes) == {"victim"}
    assert "remembered by mallory" in three.last_error("victim", "again")


def test_a_liar_adds_a_sum_and_is_named_before_it_counts(
    three: Consortium, run: Run, tmp_path: Path
) -> None:
    """What an honest site leaves out can only be found by another, so what one tells alone counts.
    What it tells of what was spent, or of how this site counted, there is no place for."""
    alpha, mallory = lose(three, run, "question.json")
    answer = Answer.read(mallory)
    fake = {**vars(answer.rows[-1]), "plan": "f" * 64, "weights": "equal"}
    lying = Answer(**{**vars(answer), "rows": (*answer.rows, type(answer.rows[0])(**fake))})
    mallory.write_text(lying.signed(signing(three, "mallory").key.sign).to_text())
    said = run("victim", "recover", alpha, mallory, "--older", tmp_path / "first-day")
    where = "told by some round 1 of plan ffffffffffff, over 3 sites"
    assert f"{where}: by mallory; not by alpha: it counts, and if it is a lie" in said
    assert f"infinite: what the rounds of plan {'f' * 64} spent is not known" in said
    # And an honest one whose row a liar leaves out is enough.
    alpha, mallory = lose(three, run, "again.json")
    answer = Answer.read(mallory)
    silent = Answer(**{**vars(answer), "rows": (), "results": ()})
    mallory.write_text(silent.signed(signing(three, "mallory").key.sign).to_text())
    said = run("victim", "recover", alpha, mallory, "--older", tmp_path / "first-day")
    assert "2 sums that the copy does not have, 0 results" in said
    assert "over 3 sites: by alpha; not by mallory: it counts" in said


def test_a_rebuilt_ledger_takes_what_was_signed_by_a_key_that_was_replaced_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """victim joined and signed that, replaced its key, and then beta lost its ledger: the statement
    stays in every later roster."""
    monkeypatch.setattr(typer, "prompt", lambda *_, **__: "beta")
    made = Consortium(tmp_path / "c", ("alpha", "beta", "gamma", "mallory"))
    made.enrol("victim")

    def a_round(name: str, seed: int, exposed: tuple[str, ...] = ()) -> None:
        raw = raw_plan(made.names, name=name, seed=seed, rounds=1)
        raw["scheme"] = {"name": "rlwe", "weights": "equal", "max_colluding": 1}
        made.approve(raw, exposed=exposed)
        made.session(raw, name).run(1, 1)
        made.close()

    def ledger(site: str, *args: object) -> None:
        kit = str(made.root / site)
        app(["site", "ledger", *map(str, args), "--kit", kit], standalone_mode=False)

    a_round("before", 1)
    place = made.kit("beta").ledger_path()
    shutil.copy(place, tmp_path / "copy")
    now = made.roster()
    after = joined(now.followed(), [made.keys["victim"].card()])
    statement = exposure_of(now, after, made.keys["victim"])
    lineage = after.lineage.with_exposures([statement])
    made.put_in_force(dataclasses.replace(after, lineage=lineage))
    a_round("joined", 2, exposed=("victim",))
    made.keys["victim"] = new = KeyFile.make("victim", made.keys["victim"])
    key_file = made.root / "victim" / "victim.key"
    key_file.unlink()
    key_file.touch(mode=0o600)
    key_file.write_text(new.to_text())
    made.put_in_force(made.roster().followed().with_replacement(new.card()))
    a_round("replaced", 3, exposed=("victim",))
    place.unlink()
    Path(f"{place}.peers").unlink()
    question = tmp_path / "question"
    ledger("beta", "ask", "--to", question)
    told = [tmp_path / name for name in ("alpha", "gamma", "victim", "mallory")]
    for path in told:
        ledger(path.name, "answer", question, "--to", path)
    ledger("beta", "recover", *told, "--older", tmp_path / "copy")
    a_round("rebuilt", 4, exposed=("victim",))
    a_round("again", 5, exposed=("victim",))
