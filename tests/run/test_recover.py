"""Whose answers a lost ledger needs, and what the site itself still has of its plans."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from consortium import Consortium, raw_plan

from fedshield.crypto.keys import SigningKey
from fedshield.enrolment import KeyFile, SignedRoster
from fedshield.enrolment.files import RosterError
from fedshield.enrolment.seen import FILE, SeenKeys
from fedshield.errors import UserError
from fedshield.ledger import heads
from fedshield.ledger.file import Head, Ledger
from fedshield.ledger.history import Cut, History
from fedshield.ledger.rows import LOST, Row, Scale, Version
from fedshield.ledger.rules import Approval
from fedshield.plan.load import load_plan
from fedshield.protocol.statements import sign_head
from fedshield.recovery.letters import Answer, RecoveryError, ToldRow
from fedshield.recovery.question import StandingQuestion
from fedshield.run.known_sites import KnownRoster, Member, before, must_answer
from fedshield.run.ledgers import check_one_run
from fedshield.run.log_file import keep_roster
from fedshield.run.recover import Draft, draft, own_part

NAMES = ("alpha", "beta", "victim")
PLAN = "1" * 64


class Story:
    """A victim whose ledger was copied on the first day and lost, and the others' answers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ours = Consortium(root / "kits", NAMES)
        self.place = self.ours.kit("victim").ledger_path()
        Ledger.create(self.place).close()
        self.members = {name: Member.of(self.ours.kit(name)) for name in NAMES}
        self.copy = root / "copy"

    def lose(self) -> None:
        shutil.copy(self.place, self.copy)
        with Ledger.open(self.place) as ledger:
            first = ledger.first
        self.place.unlink()
        if not heads.place_beside(self.place).exists():
            heads.write(heads.place_beside(self.place), first, {}, {})

    def row(self, member: Member | None = None, **changes: Any) -> Row:
        member = member or self.members["victim"]
        sites = tuple(sorted((member.own, *member.others)))
        row = Row(
            plan=PLAN,
            run="trial",
            phase="round",
            round_number=1,
            base="2" * 64,
            own=member.own,
            batch=sites,
            sites=sites,
            colluding=1,
            membership="fixed",
            scale=Scale("equal", 0, 4),
            versions={site: Version(site, site) for site in sites},
            content="3" * 64,
            records=frozenset({b"01234567"}),
        )
        return replace(row, **changes)

    def answers(self, *rows: Row, member: Member | None = None) -> list[tuple[Path, Answer]]:
        member = member or self.members["victim"]
        told = tuple(ToldRow.of(row, member.own) for row in rows)
        found = []
        for path in (member.kit.path.parent / name for name in NAMES[:2]):
            key = KeyFile.read(path / f"{path.name}.key").key
            own = Member.of(type(member.kit)(path, path.name)).own
            head = sign_head(Head(3, "e" * 64), key.sign)
            with StandingQuestion.of(self.place, make=True) as question:
                answer = Answer(question.nonce, own, member.own, head, {}, told, ())
            found.append((path, answer.signed(key.sign)))
        return found

    def draft(
        self, answers: list[tuple[Path, Answer]], *members: Member, plans: tuple[Path, ...] = ()
    ) -> Draft:
        older = Ledger.prefix(self.copy)
        with StandingQuestion.of(self.place, make=True) as question, older[0]:
            members = members or (Member.of(self.ours.kit("victim")),)
            found = draft(members, question, older, answers, plans)
            found.write(question)
        return found


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    made = Story(tmp_path)
    yield made
    made.ours.close()


def test_the_coordinator_is_not_asked(story: Story) -> None:
    """Nor is the key that it had before."""
    kit = story.ours.kit("victim")
    signed, _ = kit.enrolled()
    old = replace(signed, coordinator=KeyFile.make("coordinator").card(), countersignatures={})
    seen = SeenKeys({}, frozenset()).after(old)
    (kit.path / FILE).write_text(seen.to_text())
    keep_roster(kit.path / "runs" / "first", old.to_roster())
    story.lose()
    story.draft(story.answers(story.row()))
    with Ledger.open(story.place) as ledger:
        assert [row.recovered for row in ledger.rows] == [True]
        assert {head.length for head, _ in ledger.peers.values()} == {3}


@pytest.mark.parametrize("where", ["seen", "run", "beside", "copy", "told"])
def test_a_site_of_any_roster_that_is_known_must_answer(story: Story, where: str) -> None:
    """One that is gone could have been the only honest one in a sum."""
    kit = story.ours.kit("victim")
    gamma = KeyFile.make("gamma")
    first = gamma.key.public.hex()
    rows = [story.row()]
    wider = story.row(
        sites=tuple(sorted((*rows[0].sites, first))),
        versions=rows[0].versions | {first: Version(first, first)},
    )
    name = "gamma"
    signed, _ = kit.enrolled()
    before = signed.with_cards([gamma.card()])
    if where == "seen":
        (kit.path / FILE).write_text(SeenKeys({}, frozenset()).after(before).to_text())
    elif where == "run":
        keep_roster(kit.path / "runs" / "first", before.to_roster())
    elif where == "copy":
        with Ledger.open(story.place) as ledger:
            ledger.add_row(wider)
        name = first[:16]
    elif where == "told":
        rows, name = [wider], first[:16]
    story.lose()
    if where == "beside":
        with Ledger.prefix(story.copy)[0] as copy:
            beside = heads.place_beside(story.place)
            heads.write(beside, copy.first, {}, {first: (first,)})
        name = first[:16]
    with pytest.raises(RecoveryError, match=f"got none of {name}: what a sum held"):
        story.draft(story.answers(*rows))
    assert not story.place.exists()


def test_the_sites_of_every_roster_that_todays_follows_must_answer(story: Story) -> None:
    """A site that left before this kit came could be the only honest one in a sum."""
    gone = SigningKey()
    first = gone.public.hex()
    member = Member.of(story.ours.kit("victim"))
    today = member.rosters[-1]
    assert must_answer(member.rosters).keys() == {member.own, *member.others}
    earlier = KnownRoster("7" * 64, {**today.sites, first: "gone"})
    story.lose()
    answers = story.answers(story.row())
    with pytest.raises(RecoveryError, match="got none of gone: what a sum held"):
        story.draft(answers, member.with_rosters([earlier, today]))
    unknown = KnownRoster("8" * 64, {})
    with pytest.raises(RecoveryError, match="expected every roster with its sites, got 88888888"):
        story.draft(answers, member.with_rosters([unknown, earlier, today]))
    assert not story.place.exists()
    # It answers with the key that the roster knew it by.
    head = sign_head(Head(3, "e" * 64), gone.sign)
    last = replace(answers[0][1], teller=first, head=head).signed(gone.sign)
    answers.append((story.root / "gone", last))
    story.draft(answers, member.with_rosters([earlier, today]))
    with Ledger.open(story.place) as ledger:
        assert len(ledger.rows) == 1


def test_of_rosters_before_its_own_batch_must_answer(story: Story) -> None:
    """They alone tell of the sums that this site was in; those of before it came were not its."""
    member = Member.of(story.ours.kit("victim"))
    own, roster = member.own, member.roster
    names = {"x1": "gone", "x2": "other"}
    cuts: tuple[Cut, ...] = ((("x0", "x9"),), ((own, "x1"), ("x2", "x3")), ((own, "x2"),))
    found = before(replace(roster, lineage=History(cuts, names=names)), own)
    assert [{*one.sites} for one in found] == [{own, "x1"}, {own, "x2"}]
    assert found[0].sites["x1"] == "gone"
    # With membership open nobody knows who was in its sums.
    opened = before(replace(roster, lineage=History(((),))), own)
    with pytest.raises(RecoveryError, match="expected every roster with its sites"):
        must_answer(opened)


def test_two_kits_on_one_ledger_are_recovered_at_once(story: Story) -> None:
    """The answers to one say nothing of the sums of the other."""
    second = Consortium(story.root / "second", NAMES)
    policy = second.kit("victim").path / "victim.policy.yaml"
    policy.write_text(policy.read_text().replace("victim.ledger", str(story.place)))
    member, other = Member.of(story.ours.kit("victim")), Member.of(second.kit("victim"))
    with Ledger.open(story.place) as ledger:
        ledger.add_row(story.row(other))
    story.lose()
    rows = story.answers(story.row()), story.answers(story.row(other, plan="4" * 64), member=other)
    with pytest.raises(RecoveryError, match=f"begins with {other.own[:16]}, which was in their"):
        story.draft(rows[0])
    with pytest.raises(RecoveryError, match="got none of alpha, beta"):
        story.draft(rows[0], member, other)
    story.draft([*rows[0], *rows[1]], member, other)
    with Ledger.open(story.place) as ledger:
        assert [(row.own, row.plan) for row in ledger.rows] == [
            *((other.own, PLAN), (member.own, PLAN), (other.own, "4" * 64))
        ]


def test_a_kit_that_asked_is_not_left_out(story: Story) -> None:
    second = Consortium(story.root / "second", NAMES)
    story.lose()
    with StandingQuestion.of(story.place, make=True) as question:
        question.add(Member.of(second.kit("victim")).own)
    with pytest.raises(RecoveryError, match="expected every kit on these records"):
        story.draft(story.answers())


def test_without_a_sum_there_is_a_ledger_again(story: Story) -> None:
    """Others remember heads, so a new one would be refused: it goes on beyond them."""
    story.lose()
    heads.place_beside(story.place).unlink()
    found = story.draft(story.answers())
    with Ledger.open(story.place) as ledger:
        assert ledger.rows == []
        assert ledger.head.length == found.line


def test_a_roster_that_is_not_in_force_asks_and_answers_nothing(story: Story) -> None:
    """One that not all signed, one with another key of this site, and one that was replaced."""
    kit = story.ours.kit("victim")
    signed = SignedRoster.read(kit.path / "roster.json")
    keys = {name: KeyFile.read(story.root / "kits" / name / f"{name}.key") for name in NAMES}
    (kit.path / "roster.json").write_text(replace(signed, countersignatures={}).to_text())
    with pytest.raises(RosterError, match="expected one that is ready"):
        Member.of(kit)
    new = KeyFile.make("beta", keys["beta"])
    later = signed.with_replacement(new.card())
    for name, key in (keys | {"beta": new}).items():
        later = later.countersigned(key, [other for other in NAMES if other != name])
    (kit.path / "roster.json").write_text(later.to_text())
    assert Member.of(kit).others[keys["beta"].key.public.hex()][1][-1] == new.key.public
    (kit.path / "roster.json").write_text(signed.to_text())
    with pytest.raises(RosterError, match="which was replaced"):
        Member.of(kit)


def test_a_plan_of_batches_whose_lines_can_be_lost_does_not_go_on(
    story: Story, tmp_path: Path
) -> None:
    """Its total, and who was in rounds that this site took by the word of others, nobody tells."""
    raw = raw_plan(NAMES, scheme={"name": "rlwe", "membership": "batches"})
    sites = raw["data"]["sites"]
    raw["data"]["sites"] = sites | {f"site{number}": sites["beta"] for number in range(3)}
    paths = [tmp_path / "plan.yaml", tmp_path / "other.yaml"]
    for seed, path in enumerate(paths):
        path.write_text(story.ours.plan(raw | {"seed": seed}, "victim").to_yaml())
    plan, other = (load_plan(path)[0] for path in paths)
    story.lose()
    row = story.row(plan=plan.sha256(), membership="batches")
    found = story.draft(story.answers(row), plans=tuple(paths))
    assert found.ended == tuple(sorted((plan.sha256(), other.sha256())))
    with Ledger.open(story.place) as ledger:
        for one in (plan, other):
            with pytest.raises(UserError, match=r"^R4: expected a plan of which .* holds all"):
                check_one_run(ledger, one, "trial")
        check_one_run(ledger, story.ours.plan(raw_plan(NAMES), "victim"), "trial")


def test_a_lost_round_costs_what_the_own_plan_says(story: Story, tmp_path: Path) -> None:
    """With the records as they are now, if these are those of then; else infinity."""
    raw = raw_plan(
        NAMES,
        training=raw_plan()["training"] | {"optimizer": "sgd"},
        privacy={"unit": "example", "clip_norm": 1.0, "noise_multiplier": 1.0},
    )
    plan = story.ours.plan(raw, "victim")
    path = tmp_path / "plan.yaml"
    path.write_text(plan.to_yaml())
    member = Member.of(story.ours.kit("victim"))
    with Ledger.open(story.place) as ledger:
        part = own_part(member, plan, ledger.record_key)
        ledger.approve(Approval("6" * 64, "7" * 64, "8" * 64, 3, ()))
    assert part.version is not None
    assert (part.rounds, part.count, part.unit) == (4, 12, "example")
    assert len(part.records) == 2 * 40  # two digests of each
    story.lose()
    row = story.row(plan=plan.sha256(), scale=Scale("private", 0, 2))
    row = replace(row, versions={**row.versions, member.own: part.version})
    found = story.draft(story.answers(row), plans=(path,))
    assert found.rebuilt.unbounded == ()
    assert [one.phase for one in found.rebuilt.rows] == ["round", LOST]
    assert found.rebuilt.rows[0].curve == part.curve
    story.place.unlink()
    changed = replace(row, versions=story.row().versions)
    found = story.draft(story.answers(changed), plans=(path,))
    assert found.rebuilt.unbounded == (plan.sha256(),)
    assert found.notes == ()
    story.place.unlink()
    (story.ours.root / "victim" / "victim.policy.yaml").write_text(
        f"data_path: {tmp_path}/none.jsonl\nledger_path: victim.ledger\nmodel_path: tiny-llama\n"
    )
    found = story.draft(story.answers(row), plans=(path,))
    assert found.rebuilt.unbounded == (plan.sha256(),)
    assert "this site's part cannot be read" in found.notes[0]
    story.place.unlink()
    other = tmp_path / "other.yaml"
    other.write_text(story.ours.plan(raw_plan(("alpha", "beta", "mallory")), "alpha").to_yaml())
    with pytest.raises(UserError, match="expected a plan with this site in it"):
        story.draft(story.answers(row), plans=(other,))
