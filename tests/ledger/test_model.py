"""The rules in every history of a small consortium: none violates the promise, and without any one
rule one does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import model_sites
import pytest
from model_sites import Certified, Site

from fedshield.ledger import rules
from fedshield.ledger.file import Ledger, Receipt
from fedshield.ledger.rows import Version
from fedshield.plan.quorum import Rules
from fedshield.protocol import contexts
from model import COLLUDING, Model
from reference.span import isolated


@pytest.mark.parametrize(
    ("second", "rounds", "runs", "states"),
    [
        ("again", 1, 2, 1045),
        ("again", 3, 1, 6929),
        ("weights", 3, 2, 4822),
        ("one muted", 3, 2, 501),
        ("one changed", 1, 2, 2553),
        ("one changed, all worded", 1, 2, 2553),
        ("all changed", 1, 1, 8074),
        pytest.param("again", 3, 2, 7565, marks=pytest.mark.slow),
        pytest.param("one changed", 2, 2, 25529, marks=pytest.mark.slow),
        pytest.param("all changed", 1, 2, 10651, marks=pytest.mark.slow),
    ],
)
def test_no_history_of_three_sites_isolates_one_or_splits_them(
    second: str, rounds: int, runs: int, states: int
) -> None:
    """Complete. The number of states is there so that a model that misses some is seen to."""
    outcome = Model(3, rounds, ("first", second), runs=runs).explore()
    assert not outcome.violation, outcome.trace
    assert outcome.states == states


@pytest.mark.slow
def test_no_history_of_four_sites_isolates_one_or_splits_them() -> None:
    """Complete up to exchange of honest sites: two plans, one round. Two rounds were not explored
    to the end since a site that signed for another result takes what the others certify."""
    outcome = Model(4, 1, ("first", "again"), runs=1).explore()
    assert not outcome.violation, outcome.trace
    assert outcome.states == 24268


def test_with_one_honest_vote_a_site_that_alone_heard_a_sum_can_change_its_part() -> None:
    """Why Q = c + 2. With Q = c + 1 one honest vote opens a sum, and nobody else need have seen
    that voter's row. Restored from a backup without it, it does not know that its part changed
    alone (R3), and the others do not ask."""
    one = Model(3, 1, ("first", "one changed"), runs=1, votes=COLLUDING + 1).explore()
    assert one.violation == "secrecy: site 0 alone"
    assert not Model(3, 1, ("first", "one changed"), runs=1).explore().violation


def test_without_heads_in_receipts_a_backup_splits_four_sites() -> None:
    """Why receipts carry the head of the ledger that holds them: else a site that was restored from
    between the two signs for another result, and nobody has seen that it could not."""
    blind = Model(4, 1, ("first",), backups="any", receipt_heads=False).explore()
    assert blind.violation.startswith("agreement")
    sound = Model(4, 1, ("first",), backups="any").explore()
    assert not sound.violation, sound.trace


def test_of_four_sites_one_that_signed_for_another_result_takes_that_of_the_others() -> None:
    """In histories of this model too, and no two results are installed for it. Three sites cannot:
    two others are no certificate."""
    for num_sites, takes in ((3, False), (4, True)):
        model = Model(num_sites, 1, ("first",))
        outcome = model.explore()
        assert not outcome.violation, outcome.trace
        sites = [one for one in model._things if isinstance(one, Site)]
        certified = [line for one in sites for line in one.ledger if isinstance(line, Certified)]
        assert bool(certified) == takes


def _lets_through(*_: Any) -> str:
    return ""


def _any_receipt(ledger: Ledger, receipt: Receipt) -> Receipt:
    return receipt


def _one_version(records: str, worded: bool) -> Version:
    """Of the rows that the model reads, in both halves."""
    rows = f"{records}, worded" if worded else records
    return Version(rows, rows)


OFF: dict[str, tuple[object, str, object]] = {
    "batch": (rules, "whole_batch", _lets_through),
    "scale": (rules, "one_scale", _lets_through),
    "part": (rules, "own_part", _lets_through),
    "halves": (model_sites, "_version", _one_version),
    "floors": (rules, "enough_examples", _lets_through),
    "start": (rules, "known_start", _lets_through),
    "certificate": (Rules, "certificate", property(lambda _: 2)),
    "one receipt": (Ledger, "add_receipt", _any_receipt),
    "heads": (Ledger, "holds", lambda *_: True),
}


@pytest.mark.parametrize(
    ("off", "model", "violated"),
    [
        ("batch", lambda: Model(3, 1, ("first",)), "secrecy"),
        ("scale", lambda: Model(3, 1, ("first", "weights")), "secrecy"),
        ("part", lambda: Model(3, 1, ("first", "one changed")), "secrecy: site 0"),
        ("halves", lambda: Model(3, 1, ("first", "one changed, all worded")), "secrecy: site 0"),
        ("floors", lambda: Model(3, 1, ("first", "one muted")), "secrecy"),
        ("start", lambda: Model(3, 1, ("first",)), "secrecy"),
        ("certificate", lambda: Model(3, 1, ("first",)), "agreement"),
        ("one receipt", lambda: Model(3, 1, ("first",)), "receipts"),
        ("heads", lambda: Model(4, 1, ("first",), receipt_heads=False), "agreement"),
    ],
)
def test_without_any_one_rule_there_is_a_history_that_violates_the_promise(
    off: str, model: Callable[[], Model], violated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = model().explore()
    assert not sound.violation, sound.trace
    monkeypatch.setattr(*OFF[off])
    outcome = model().explore()
    assert outcome.violation.startswith(violated), outcome
    assert outcome.trace


@pytest.mark.slow
@pytest.mark.parametrize("off", ["", "check_whole", "whole_batch"])
def test_no_history_of_two_batches_isolates_a_site_or_splits_one(
    off: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six sites in two batches, complete up to exchange of honest sites of a batch. What a session
    refuses and what the ledger does (R1) would each do alone."""
    if off:
        # Without the session's check there are too many sets for all histories.
        monkeypatch.setattr(rules if off == "whole_batch" else contexts, off, _lets_through)
    model = Model(6, 1, ("first",), runs=1, membership="batches")
    if off == "check_whole":
        with pytest.raises(RuntimeError, match="expected at most 30000 states"):
            model.explore(limit=30_000)
        return
    outcome = model.explore()
    assert not outcome.violation, outcome.trace
    assert outcome.states == 12726


@pytest.mark.parametrize(
    ("off", "second", "violated"),
    [
        ("batch", "", "secrecy: site 0 alone"),
        ("scale", "weights", "secrecy: site 2 alone"),
        ("part", "one changed", "secrecy: site 0 alone"),
        ("floors", "one muted", "secrecy: site 0 alone"),
        ("start", "", "secrecy: site 4 alone"),
        ("certificate", "", "agreement"),
        ("one receipt", "", "receipts"),
    ],
)
def test_without_any_one_rule_two_batches_violate_the_promise(
    off: str, second: str, violated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*OFF[off])
    if off == "batch":
        monkeypatch.setattr(contexts, "check_whole", _lets_through)
    plans = ("first", *([second] if second else []))
    outcome = Model(6, 1, plans, runs=1, membership="batches").explore(limit=30_000)
    assert outcome.violation.startswith(violated), outcome
    assert outcome.trace


def test_isolated_reads_the_span_and_not_the_rows() -> None:
    """Three sums, no two of which give a site away: seven sites, of which the last is left over."""
    row = lambda *sites: {(site, ""): 1 for site in sites}  # noqa: E731
    first, second, everyone = row(1, 2, 3), row(4, 5, 6), row(*range(1, 8))
    assert isolated([first, second]) is None
    assert isolated([first, everyone]) is None
    assert isolated([first, second, everyone]) == 7
    assert isolated([first, second, everyone], noised={(7, "")}) is None
    assert isolated([{(1, "old"): 1, (2, ""): 1}, {(1, "new"): 1, (2, ""): 1}]) == 1
    assert isolated([{(1, ""): 3, (2, ""): 5}, {(1, ""): 1, (2, ""): 1}]) == 1
    assert isolated([{(1, ""): 3, (2, ""): 5}, {(1, ""): 6, (2, ""): 10}]) is None
