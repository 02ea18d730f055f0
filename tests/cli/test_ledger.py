"""`fedshield site ledger`: what it shows, what it asks, and what is kept of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from consortium import Consortium, raw_plan

from fedshield.cli.commands import app
from fedshield.errors import UserError
from fedshield.ledger.file import Head, Ledger
from fedshield.ledger.rows import Row, Scale
from fedshield.ledger.rules import Approval

NAMES = ("alpha", "beta", "victim")
Run = Callable[..., str]
PLAN = "1" * 64


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Consortium]:
    made = Consortium(tmp_path / "three", NAMES)
    yield made
    made.close()


@pytest.fixture
def run(
    three: Consortium, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """A command at the victim's terminal, with this answer; what was said."""

    def done(*args: str, answer: str | None = None) -> str:
        asked: list[str] = []

        def prompt(question: str, **_: object) -> str:
            assert answer is not None, question
            asked.append(question)
            return answer

        monkeypatch.setattr(typer, "prompt", prompt)
        try:
            kit = str(three.root / "victim")
            app(["site", "ledger", *args, "--kit", kit], standalone_mode=False)
        finally:
            said = capsys.readouterr().out
        assert len(asked) == (answer is not None)
        return "\n".join([said, *asked])

    return done


@pytest.fixture
def ids(three: Consortium) -> dict[str, str]:
    """Each site's identity."""
    roster = three.kit("victim").admit(three.plan(raw_plan(NAMES)), None).roster
    ids = {name: roster.identity(name) for name in NAMES}
    row = Row(
        plan=PLAN,
        run="trial",
        phase="round",
        round_number=1,
        base="2" * 64,
        own=ids["victim"],
        batch=tuple(ids.values()),
        sites=tuple(ids.values()),
        colluding=1,
        membership="fixed",
        scale=Scale("equal", 40, 4),
        versions={},
        content="3" * 64,
        records=frozenset({b"01234567"}),
    )
    with Ledger.create(three.kit("victim").ledger_path()) as ledger:
        ledger.approve(Approval(PLAN, "4" * 64, "5" * 64, 3, ()))
        ledger.add_row(row)
        ledger.add_row(row)
        ledger.see_keys(roster.chains)
        ledger.see_peers({ids["alpha"]: (Head(7, "a" * 64), b"signed")})
        ledger.see_peers({ids["beta"]: (Head(10**6, "b" * 64), b"signed by a thief")})
    return ids


def test_the_ledger_is_shown_without_a_secret(
    three: Consortium, run: Run, ids: dict[str, str]
) -> None:
    path = three.kit("victim").ledger_path()
    before = path.read_bytes()
    said = run("show")
    for line in (
        f"ledger        {path}: 5 lines, the last ",
        f"plan          {PLAN[:16]}: approved under roster {'4' * 16} for 3 rounds; sums "
        "entered: 1, in 2 tries; results signed: 0",
        f"alpha         its ledger had 7 lines, the last {'a' * 16}; key 1, {ids['alpha'][:16]}",
        f"beta          its ledger had 1,000,000 lines, the last {'b' * 16}; key 1, ",
        f"victim        no head remembered; key 1, {ids['victim'][:16]}",
    ):
        assert line in said
    found = json.loads(run("show", "--json"))
    assert found["plans"][0] == {
        "plan": PLAN,
        "approved": True,
        "roster": "4" * 64,
        "rounds": 3,
        "sums": 1,
        "rows": 2,
        "results": 0,
    }
    assert [one["name"] for one in found["sites"]] == ["alpha", "beta", "victim"]
    assert found["sites"][0]["head"] == {"length": 7, "digest": "a" * 64}
    with Ledger.open(path) as ledger:
        key = ledger.record_key
        assert found["digest"] == ledger.head.digest
    for secret in (key.hex(), "01234567", b"01234567".hex()):
        assert secret not in said
        assert secret not in json.dumps(found)
    assert path.read_bytes() == before


def test_a_head_is_forgotten_by_its_site_s_name(
    three: Consortium, run: Run, ids: dict[str, str]
) -> None:
    path = three.kit("victim").ledger_path()
    for answer in ("", "alpha", "yes"):
        with pytest.raises(UserError, match=f"expected beta, got '{answer}'; nothing was forgot"):
            run("forget", "beta", answer=answer)
    said = run("forget", "beta", answer="beta")
    for part in (
        "beta          signed a ledger of 1,000,000 lines",
        "sums can give beta's update away",
        "one site fewer among which this one's update is hidden",
        "Do it only if beta's operator told you, over a channel that the coordinator does not",
        "Type beta to forget that it signed 1000000 lines:",
        f"line 6 of {path} says so",
    ):
        assert part in said
    with Ledger.open(path) as ledger:
        assert set(ledger.peers) == {ids["alpha"]}
        assert ids["beta"] in ledger.chains
        (gone,) = ledger.forgotten
        assert gone[:3] == (ids["beta"], 10**6, "b" * 64)
    said = run("show")
    assert f"forgotten     beta, 1,000,000 lines, the last {'b' * 16}, at 20" in said
    assert "beta          no head remembered; key 1" in said
    with pytest.raises(UserError, match="expected a remembered head of beta, found none"):
        run("forget", "beta")


@pytest.mark.parametrize("name", ["victim", "lab", "coordinator"])
def test_only_another_site_of_the_roster_is_forgotten(
    run: Run, ids: dict[str, str], name: str
) -> None:
    assert "victim" in ids
    with pytest.raises(UserError, match=r"expected another site of the roster \(alpha, beta\)"):
        run("forget", name)


@pytest.mark.parametrize("args", [("show",), ("forget", "beta")])
def test_no_ledger_is_made_to_look_at_it(three: Consortium, run: Run, args: tuple[str]) -> None:
    with pytest.raises(UserError, match="made when the first plan is approved"):
        run(*args)
    assert not three.kit("victim").ledger_path().exists()


def test_a_lost_ledger_is_not_taken_for_none(three: Consortium, run: Run) -> None:
    (three.root / "victim" / "runs" / "trial").mkdir(parents=True)
    with pytest.raises(UserError, match="expected the ledger of these records, found none"):
        run("show")
