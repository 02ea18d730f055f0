"""Each story breaks what held inside one sum only. Each ends in a refusal that names its rule."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from consortium import NAMES, Consortium, Refused, participant, raw_plan

from fedshield.crypto import shamir
from fedshield.crypto import shares as sharing
from fedshield.errors import RoundFailed
from fedshield.protocol import participant_sum


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Consortium]:
    made = Consortium(tmp_path / "three", ("alpha", "mallory", "victim"))
    yield made
    made.close()


def test_a_second_run_of_a_plan_without_one_site(consortium: Consortium) -> None:
    """The same plan under a second name; what the coordinator loses the second time came out by
    subtraction, every digit."""
    raw = raw_plan()
    consortium.approve(raw)
    consortium.session(raw, "trial-0001").run(1, 1)
    consortium.close()
    with pytest.raises(Refused, match=r"R4: expected the run trial-0001 of this plan, got trial-2"):
        consortium.session(raw, "trial-2", absent=("victim",))


def test_the_same_run_without_one_site(consortium: Consortium) -> None:
    """No site uploads for a sum without the whole roster, whoever says who was lost."""
    raw = raw_plan()
    consortium.approve(raw)
    session = consortium.session(raw, "trial-0001")
    session.coordinator.start()
    session.link.drop = {"victim"}
    with pytest.raises(RoundFailed, match="work: no answer from victim"):
        session.coordinator.round(1)
    assert ("trial-0001", 1) not in consortium.opened


def test_a_rewind_with_one_digit_nudged(consortium: Consortium) -> None:
    """The coordinator says from where; a colluder nudges a digit, so that round 2 would start from
    another model, and a second set could be opened."""
    raw = raw_plan()
    consortium.approve(raw)
    consortium.session(raw, "trial-0001").run(1, 2)
    consortium.close()

    def nudge(sites: dict[str, Any]) -> None:
        model = participant(sites["mallory"])._model
        encode = model.contribution

        def contribution(number: int, cipher: Any, weight: float, *more: Any) -> Any:
            encoded = encode(number, cipher, weight, *more)
            digits = encoded.digits.copy()
            digits[int(np.argmin(np.abs(digits)))] += 1
            return dataclasses.replace(encoded, digits=digits)

        model.contribution = contribution
        # A colluder's own ledger is no hindrance to it.
        participant(sites["mallory"])._line.enter = lambda **_: None
        participant(sites["mallory"])._line.sign_receipt = lambda *_: None

    before = dict(consortium.opened)
    session = consortium.session(raw, "trial-0001", start=1, spied=nudge)
    session.coordinator.start()
    with pytest.raises(RoundFailed, match="open: no answer from"):
        session.coordinator.round(2)
    assert session.link.codes["victim"] == "disagree"
    assert (
        "R4: round 2 (round): this site signed for another result before"
        in consortium.last_error("victim", "trial-0001")
    )
    # What was opened again is what it was but for the nudge: nothing new of the victim.
    again = consortium.opened["trial-0001", 2][0]
    digits = np.abs(again - before["trial-0001", 2][0])
    assert np.count_nonzero(digits) <= 1
    consortium.close()

    # Further back, what was sent is not kept any more: nothing is sent at all.
    session = consortium.session(raw, "trial-0001", spied=nudge)
    session.coordinator.start()
    with pytest.raises(RoundFailed, match="work: no answer from"):
        session.coordinator.round(1)
    assert session.link.codes["victim"] == "rule"
    assert (
        "R4: round 1 was entered before, and what was sent then is not kept"
        in consortium.last_error("victim", "trial-0001")
    )


def test_two_processes_of_one_site(consortium: Consortium) -> None:
    raw = raw_plan()
    consortium.approve(raw)
    first = consortium.site("victim", raw, "trial-0001")
    assert not consortium.ask(first, raw).code
    second = consortium.site("victim", raw, "trial-0001")
    assert consortium.ask(second, raw).code == "refused"
    assert "another process of this site holds the ledger" in consortium.last_error(
        "victim", "trial-0001"
    )


def test_an_unapproved_plan_is_not_even_read(consortium: Consortium) -> None:
    """And nothing of it is written: a run folder at the site would tell of a run that never was,
    and no ledger is made where there were runs."""
    raw = raw_plan()
    consortium.approve(raw, "alpha", "beta", "mallory")
    folder = consortium.root / "victim"
    before = sorted(folder.iterdir())
    for other in (None, raw_plan(seed=8)):
        if other is not None:
            consortium.approve(other, "victim")
        with pytest.raises(
            Refused, match=r"victim: R8: expected an approval of plan .*fedshield site approve"
        ):
            consortium.session(raw, "trial-0001")
        assert not (folder / "runs").exists()
    # By the operator's hand: its approval, and the roster that it then put in force.
    made = {path.name for path in set(folder.iterdir()) - set(before)}
    assert made == {"keys.seen.json", "victim.ledger"}
    consortium.approve(raw, "victim")
    consortium.session(raw, "trial-0001")
    assert (folder / "runs" / "trial-0001" / "run.json").exists()


def test_a_lost_ledger_is_not_made_anew(consortium: Consortium) -> None:
    raw = raw_plan()
    consortium.approve(raw)
    consortium.session(raw, "trial-0001").run(1, 1)
    consortium.close()
    consortium.kit("victim").ledger_path().unlink()
    with pytest.raises(Refused, match=r"expected the ledger of these records, found none"):
        consortium.session(raw, "trial-0001")


def test_a_ledger_from_a_backup(consortium: Consortium) -> None:
    """The others remember what the site signed."""
    raw = raw_plan()
    consortium.approve(raw)
    path = consortium.kit("victim").ledger_path()
    backup = path.with_suffix(".backup")
    shutil.copy(path, backup)
    consortium.session(raw, "trial-0001").run(1, 1)
    consortium.close()
    shutil.copy(backup, path)
    session = consortium.session(raw, "trial-0001")
    with pytest.raises(RoundFailed, match="begin: no answer from"):
        session.coordinator.start()
    assert set(session.link.codes.values()) == {"ledger"}
    assert "it was restored from a backup" in consortium.last_error("victim", "trial-0001")
    assert "victim's ledger is not the one that it signed before" in consortium.last_error(
        "alpha", "trial-0001"
    )


def test_one_set_under_two_weightings(three: Consortium) -> None:
    """Two plans that differ in `scheme.weights` only are two equations: a site's update to 1 %."""
    first = raw_plan(three.names, scheme={"name": "rlwe", "weights": "equal"})
    second = raw_plan(three.names, scheme={"name": "rlwe", "weights": "private"})
    three.approve(first)
    three.approve(second)
    three.session(first, "equal").run(1, 1)
    three.close()
    session = three.session(second, "private")
    with pytest.raises(RoundFailed):
        session.run(1, 1)
    assert set(session.link.codes.values()) == {"rule"}
    assert "R2: expected weights equal as in an earlier sum" in three.last_error(
        "victim", "private"
    )
    assert ("private", 1) not in three.opened


def test_a_plan_with_one_row_fewer_at_one_site(consortium: Consortium) -> None:
    first = raw_plan()
    second = raw_plan(name="again")
    second["data"]["sites"]["victim"]["rows"] = 39
    consortium.approve(first)
    consortium.approve(second)
    consortium.session(first, "first").run(1, 1)
    consortium.close()
    session = consortium.session(second, "second")
    with pytest.raises(RoundFailed):
        session.run(1, 1)
    assert session.link.codes["victim"] == "rule"
    line = consortium.last_error("victim", "second")
    assert "R2: expected count" in line or "R3: expected this site's records" in line
    assert ("second", 1) not in consortium.opened


def test_a_slow_plan_repeats_every_update(consortium: Consortium) -> None:
    """Full batches at a tiny rate: each round has the same update. A later round with one site
    fewer would open that site, whatever digests say."""
    training = raw_plan()["training"] | {
        "steps": 1,
        "batch_size": 32,
        "optimizer": "sgd",
        "learning_rate": 1e-9,
        "min_learning_rate": 1e-9,
        "lr_schedule": "constant",
    }
    raw = raw_plan(training=training)
    consortium.approve(raw)
    session = consortium.session(raw, "slow").run(1, 1)
    session.link.drop = {"victim"}
    with pytest.raises(RoundFailed, match="no answer from victim"):
        session.coordinator.round(2)
    consortium.close()
    with pytest.raises(RoundFailed, match="invite"):
        consortium.session(raw, "slow", start=1, absent=("victim",)).coordinator.start()
    assert set(consortium.opened) == {("slow", 0), ("slow", 1)} or set(consortium.opened) == {
        ("slow", 1)
    }


def test_a_site_that_lies_is_not_a_way_to_leave_another_out(consortium: Consortium) -> None:
    """A well-formed wrong answer had an honest site blamed; the run could not go on, and the way
    out in the manual, a new run, opened that site. Now the answer is decoded: no site is lost, the
    round is taken, and a new run is refused all the same."""
    raw = raw_plan()
    consortium.approve(raw)
    add = sharing.add

    def lying(held: Any, shape: Any) -> Any:
        total = add(held, shape)
        return sharing.Share((total.key + 1) % shamir._P, total.residues)

    session = consortium.session(raw, "run-1")
    liar = participant(session.sites["mallory"])
    session.coordinator.start()
    quorum = liar._commands["quorum"]

    def answer(data: bytes) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(participant_sum.sharing, "add", lying)
            return quorum(data)

    liar._commands["quorum"] = answer
    outcome = session.coordinator.round(1)
    assert (set(outcome.contributors), outcome.lost) == (set(NAMES), {})
    honest = [participant(session.sites[name]) for name in NAMES if name != "mallory"]
    assert {one.completed_rounds for one in honest} == {1}
    assert len({one.state.sha256() for one in honest}) == 1
    consortium.close()
    with pytest.raises(RoundFailed, match="invite"):
        consortium.session(raw, "run-1", absent=("mallory",)).coordinator.start()
    consortium.close()
    with pytest.raises(Refused, match="R4: expected the run run-1"):
        consortium.session(raw, "run-2", absent=("victim",))


def test_a_budget_is_of_the_records_not_of_a_run(consortium: Consortium) -> None:
    """Another name, another seed, another run: what was spent stays spent."""
    privacy = {
        "unit": "example",
        "clip_norm": 1.0,
        "noise_multiplier": 2.0,
        "max_epsilon": 4.0,
    }
    first, second = (raw_plan(privacy=privacy, name=name, rounds=1) for name in ("one", "two"))
    consortium.approve(first)
    consortium.approve(second)
    session = consortium.session(first, "one").run(1, 1)
    alone = participant(session.sites["victim"]).spent
    consortium.close()
    session = consortium.session(second, "two")
    spent = participant(session.sites["victim"]).spent
    assert spent.epsilon_after(1) > alone.epsilon > 0
    limit = (alone.epsilon + spent.epsilon_after(1)) / 2
    consortium.close()
    third = raw_plan(privacy=privacy | {"max_epsilon": limit}, name="three", rounds=1)
    consortium.approve(third)
    session = consortium.session(third, "three")
    session.coordinator.start()
    assert "victim" in session.coordinator.out_of_budget()
    with pytest.raises(RoundFailed):
        session.run(1, 1)
    assert session.link.codes["victim"] == "budget"
    assert "R5" in consortium.last_error("victim", "three")


def test_a_plan_with_privacy_after_one_without(consortium: Consortium) -> None:
    """No epsilon holds for records of which a sum without noise was made."""
    bare = raw_plan(rounds=1)
    privacy = {
        "unit": "example",
        "clip_norm": 1.0,
        "noise_multiplier": 2.0,
        "max_epsilon": 50.0,
    }
    noised = raw_plan(privacy=privacy, name="noised", rounds=1)
    consortium.approve(bare)
    consortium.approve(noised)
    consortium.session(bare, "bare").run(1, 1)
    consortium.close()
    session = consortium.session(noised, "noised")
    with pytest.raises(RoundFailed):
        session.run(1, 1)
    assert "R5: epsilon would be infinite over all plans" in consortium.last_error(
        "victim", "noised"
    )


def test_a_crafted_start(consortium: Consortium) -> None:
    """A start that mutes all sites but one is neither the plan's nor a result of this ledger."""
    raw = raw_plan()
    consortium.approve(raw)

    def craft(sites: dict[str, Any]) -> None:
        for process in sites.values():
            model = participant(process)._model
            values = model.state.values.copy()
            values[:100] = 0.5
            model.state = dataclasses.replace(model.state, values=values)

    session = consortium.session(raw, "trial-0001", spied=craft)
    session.coordinator.start()
    with pytest.raises(RoundFailed):
        session.coordinator.round(1)
    assert set(session.link.codes.values()) == {"rule"}
    assert "R7: expected round 1 of plan" in consortium.last_error("victim", "trial-0001")


def test_a_session_that_goes_on_repeats_the_same_bytes(consortium: Consortium) -> None:
    """The control: what no rule forbids goes on, and opens nothing new."""
    raw = raw_plan()
    consortium.approve(raw)
    session = consortium.session(raw, "trial-0001").run(1, 2)
    states = {name: participant(one).state.sha256() for name, one in session.sites.items()}
    before = consortium.truth["trial-0001", 2][0].copy()
    consortium.close()
    session = consortium.session(raw, "trial-0001", start=1).run(2, 2)
    again = {name: participant(one).state.sha256() for name, one in session.sites.items()}
    assert again == states
    np.testing.assert_array_equal(consortium.truth["trial-0001", 2][0], before)
    session.coordinator.round(3)


def test_other_records_at_one_site_alone(consortium: Consortium) -> None:
    """The others put in what they put in before: the difference of the sums is what this site's two
    updates differ by. That no record is shared with the first sum does not change it."""
    first, second = raw_plan(), raw_plan(name="again")
    consortium.approve(first)
    consortium.session(first, "first").run(1, 1)
    consortium.close()
    path = consortium.root / "victim" / "victim.policy.yaml"
    path.write_text(path.read_text().replace("sample:medical", "sample:code"))
    consortium.approve(second)
    session = consortium.session(second, "second")
    with pytest.raises(RoundFailed):
        session.run(1, 1)
    assert session.link.codes["victim"] == "rule"
    assert "R3: expected this site's records as in" in consortium.last_error("victim", "second")
    assert ("second", 1) not in consortium.opened
