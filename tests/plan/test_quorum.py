"""Who may open what: every numbers' rule against an oracle, and against coalitions that are tried.

The oracle below is written from the design alone; the coalitions are enumerated site by site. An
honest site votes once and answers only for what it voted for; a colluding one does as it likes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from itertools import combinations, product

import pytest

from fedshield.errors import PlanError
from fedshield.plan.quorum import Membership, Rules, Server, resolve
from fedshield.protocol.contexts import least_opened

SERVERS: tuple[Server, ...] = ("malicious", "semi-honest")
MEMBERSHIPS: tuple[Membership, ...] = ("fixed", "open")
SMALL = range(2, 7)
Given = tuple[int, int, int, int]


def allowed(
    k: int, c: int, t: int, q: int, cohort: int, server: Server, membership: Membership
) -> bool:
    """The design's rules, sections 3 and 10 (R1), for numbers that are all given."""
    if membership == "fixed" and cohort != k:
        return False
    if not 0 <= c <= k - 2 or not max(t, c + 2) <= cohort <= k or not c + 1 <= t <= k or q > k:
        return False
    if server == "semi-honest":
        return q >= 0
    if cohort == k:  # one set only, and two honest votes
        return q >= c + 2
    return 2 * q > k + c and 2 * t > k + c


def given(k: int, numbers: Given, server: Server, membership: Membership = "open") -> Rules:
    c, t, q, cohort = numbers
    return resolve(
        k,
        max_colluding=c,
        threshold=t,
        votes=q,
        min_cohort=cohort,
        server=server,
        membership=membership,
    )


def accepted(sizes: range) -> Iterator[Rules]:
    """All rules that `resolve` accepts when every number is given."""
    for server, membership, k in product(SERVERS, MEMBERSHIPS, sizes):
        for numbers in product(range(k), range(k + 1), range(k + 1), range(k + 1)):
            if allowed(k, *numbers, server, membership):
                yield given(k, numbers, server, membership)


# -- what is accepted, and what is not ------------------------------------------------------


@pytest.mark.parametrize("membership", MEMBERSHIPS)
@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("k", range(1, 10))
def test_exactly_the_numbers_of_the_design_are_accepted(
    k: int, server: Server, membership: Membership
) -> None:
    """Every c, T, Q and min_cohort from one below to one above what could make sense."""
    counts = {True: 0, False: 0}
    for numbers in product(range(-1, k + 1), *[range(-1, k + 2)] * 3):
        try:
            rules = given(k, numbers, server, membership)
            good = True
        except PlanError as error:
            good = False
            assert_helps(str(error), numbers)
        assert good == allowed(k, *numbers, server, membership), (k, numbers, server)
        counts[good] += 1
        if good:
            c, t, q, cohort = numbers
            assert rules == Rules(k, c, t, q, cohort, server, membership)
    assert counts[False] > 0
    assert (counts[True] > 0) == (k >= 2)


def assert_helps(text: str, numbers: Given) -> None:
    """The option, the range that is expected, what came, and what to do; on one line."""
    found = re.fullmatch(
        r"scheme\.(max_colluding|threshold|votes|min_cohort): expected (\d+) to (-?\d+) .*?"
        r"got (-?\d+); (leave it out for \d+|lower it or add sites|with two sites .*)",
        text,
    )
    assert found, text
    options = ("max_colluding", "threshold", "votes", "min_cohort")
    named = numbers[options.index(found[1])]
    assert int(found[4]) == named, text
    assert not int(found[2]) <= named <= int(found[3]), text


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("k", range(2, 65))
def test_every_default_of_a_fixed_membership_follows_the_rules(k: int, server: Server) -> None:
    for c in (None, *range(k - 1)):
        if (k, c) == (2, None):
            continue
        rules = resolve(k, max_colluding=c, server=server)
        expected = max(1, (k - 1) // 3) if c is None else c
        assert rules.threshold == max(2, expected + 1)
        assert rules.votes == (0 if server == "semi-honest" else expected + 2)
        assert (rules.num_sites, rules.max_colluding, rules.min_cohort) == (k, expected, k)
        assert (rules.server, rules.membership) == (server, "fixed")


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("k", range(2, 65))
def test_every_default_of_an_open_membership_follows_the_rules(k: int, server: Server) -> None:
    for c in (None, *range(k - 1)):
        if (k, c) == (2, None):
            continue
        rules = resolve(k, max_colluding=c, server=server, membership="open")
        expected = max(1, (k - 1) // 3) if c is None else c
        assert (rules.num_sites, rules.max_colluding, rules.server) == (k, expected, server)
        t, q, cohort = rules.threshold, rules.votes, rules.min_cohort
        assert allowed(k, expected, t, q, cohort, server, "open"), rules
        general = (k + expected) // 2 + 1
        if server == "semi-honest":
            wanted = max(2, expected + 1)
            assert (rules.threshold, rules.votes) == (wanted, 0)
            assert rules.min_cohort == max(wanted, expected + 2)
        elif rules.min_cohort == k:
            assert max(general, expected + 2) >= k, "one set only, where another would do"
            assert (rules.threshold, rules.votes) == (max(2, expected + 1), expected + 2)
        else:
            assert rules.threshold == rules.votes == general
            assert rules.min_cohort == max(general, expected + 2)


@pytest.mark.parametrize("membership", MEMBERSHIPS)
@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("k", range(3, 65))
def test_one_number_changed_at_a_time(k: int, server: Server, membership: Membership) -> None:
    """What is left out still fits what is given, or the refusal names the given option and a
    value that would do."""
    for c in {0, 1, (k - 1) // 3, (k - 1) // 2, k - 3, k - 2}:
        for option, value in product(("threshold", "votes", "min_cohort"), range(k + 2)):
            changes = {"max_colluding": c, option: value}
            try:
                rules = resolve(k, server=server, membership=membership, **changes)  # type: ignore[arg-type]
            except PlanError as error:
                text = str(error)
                assert text.startswith(f"scheme.{option}: expected "), text
                mended = re.search(r"got \d+; leave it out for (\d+)$", text)
                assert mended, text
                changes[option] = int(mended[1])
                again = resolve(k, server=server, membership=membership, **changes)  # type: ignore[arg-type]
                assert getattr(again, option) == int(mended[1])
            else:
                assert getattr(rules, option) == value
                t, q, cohort = rules.threshold, rules.votes, rules.min_cohort
                assert allowed(k, c, t, q, cohort, server, membership), rules


@pytest.mark.parametrize(
    ("k", "fixed", "open_"),
    [
        (3, (1, 2, 3, 3), (1, 2, 3, 3)),
        (4, (1, 2, 3, 4), (1, 3, 3, 3)),
        (5, (1, 2, 3, 5), (1, 4, 4, 4)),
        (7, (2, 3, 4, 7), (2, 5, 5, 5)),
        (16, (5, 6, 7, 16), (5, 11, 11, 11)),
        (64, (21, 22, 23, 64), (21, 43, 43, 43)),
    ],
)
def test_defaults_of_the_design(k: int, fixed: tuple[int, ...], open_: tuple[int, ...]) -> None:
    assert resolve(k) == Rules(k, *fixed, membership="fixed")
    assert resolve(k, membership="open") == Rules(k, *open_, membership="open")


def test_two_sites_are_told_what_it_means() -> None:
    with pytest.raises(PlanError, match=r"each learns the other's update.*set it to 0") as caught:
        resolve(2)
    assert str(caught.value).startswith("scheme.max_colluding: expected 0 to 0 for 2 sites")
    assert resolve(2, max_colluding=0) == Rules(2, 0, 2, 2, 2)


def test_one_set_for_the_whole_roster_may_be_asked_for() -> None:
    open_ = partial(resolve, 16, min_cohort=16, membership="open")
    assert open_() == Rules(16, 5, 6, 7, 16, membership="open")
    assert open_(threshold=11, votes=16) == Rules(16, 5, 11, 16, 16, membership="open")


def test_a_fixed_membership_has_no_smaller_cohort() -> None:
    with pytest.raises(PlanError, match=r"scheme\.min_cohort: expected 4 to 4 .*got 3"):
        resolve(4, min_cohort=3)
    assert resolve(4, min_cohort=4) == resolve(4)


# -- coalitions -----------------------------------------------------------------------------


def admissible(rules: Rules) -> list[frozenset[int]]:
    """The contributing sets that an honest site votes for."""
    sites = range(rules.num_sites)
    sizes = range(max(rules.min_cohort, rules.threshold), rules.num_sites + 1)
    return [frozenset(one) for size in sizes for one in combinations(sites, size)]


def opens(rules: Rules, honest_voters: int, colluding: int) -> bool:
    """Whether a sum opens for a server with so many colluding sites, when so many honest ones
    voted for it: they answer at Q votes, and T answers open."""
    have = honest_voters + colluding
    return have >= rules.threshold and (honest_voters == 0 or have >= rules.votes)


def two_sets_open(rules: Rules, colluding: int) -> bool:
    """Whether some split of the honest votes opens two different sets."""
    honest = rules.num_sites - colluding
    return len(admissible(rules)) > 1 and any(
        opens(rules, first, colluding) and opens(rules, second, colluding)
        for first in range(honest + 1)
        for second in range(honest + 1 - first)
    )


def test_tolerated_colluders_never_open_two_sets() -> None:
    """Against a malicious server, for all rules up to six sites that are accepted."""
    checked = 0
    for rules in accepted(SMALL):
        if rules.server == "malicious":
            for colluding in range(rules.max_colluding + 1):
                assert not two_sets_open(rules, colluding), rules
                checked += 1
    assert checked > 400


def test_without_the_rule_of_votes_two_sets_would_open() -> None:
    """Control: the least change of T and Q below the rule gives a single site away."""
    for k in range(4, 12):
        for c in range(k - 2):
            quorum = (k + c) // 2
            if c + 1 <= quorum and c + 2 < k:
                weak = Rules(k, c, quorum, quorum, max(quorum, c + 2))
                assert two_sets_open(weak, c), weak
                with pytest.raises(PlanError, match=r"scheme\.threshold: expected"):
                    given(k, (c, quorum, quorum, weak.min_cohort), "malicious")


def test_any_two_quorums_share_an_honest_site() -> None:
    """By enumeration of quorums and colluders, up to six sites."""
    for rules in accepted(SMALL):
        k, q, c = rules.num_sites, rules.votes, rules.max_colluding
        if rules.server != "malicious" or rules.min_cohort == k:
            continue
        quorums = [frozenset(one) for one in combinations(range(k), q)]
        for first, second in combinations(quorums, 2):
            # More than c sites in common: whichever collude, one of them is honest.
            for colluding in combinations(range(k), c):
                assert (first & second) - set(colluding), rules


def test_tolerated_colluders_hold_too_few_shares_and_never_all_but_one() -> None:
    """T - 1 >= c, so that the colluders' shares alone say nothing; and in every set that may be
    opened at least two sites are honest."""
    for rules in accepted(SMALL):
        assert not opens(rules, 0, rules.max_colluding), rules
        for colluding in combinations(range(rules.num_sites), rules.max_colluding):
            assert all(len(one - set(colluding)) >= 2 for one in admissible(rules)), rules


def test_one_colluder_more_can_be_too_many() -> None:
    """The number that is promised is not beaten down needlessly: for every K there are accepted
    numbers that c + 1 colluders break."""
    for k in range(3, 12):
        assert any(
            two_sets_open(rules, c + 1) or opens(rules, 0, c + 1) or rules.min_cohort <= c + 2
            for c in range(k - 1)
            for rules in [resolve(k, max_colluding=c, membership="open")]
        )


# -- in words -------------------------------------------------------------------------------


def survives(rules: Rules, before: int, after: int) -> bool:
    """Whether a round ends well when so many sites are lost before they upload, and so many
    after all that was asked of them as contributors was handed over."""
    contributors = rules.num_sites - before
    k, c = rules.num_sites, rules.max_colluding
    needed = max(rules.threshold, rules.votes, (k + c) // 2 + 1)
    begun = contributors >= max(rules.min_cohort, needed)
    return begun and contributors - after >= needed


def test_the_words_are_true() -> None:
    """The losses are found by trying one after the other; tried against live sites in
    protocol/test_collusion.py."""
    defaults = [
        resolve(k, membership=membership) for k in range(3, 65) for membership in MEMBERSHIPS
    ]
    for rules in [*accepted(range(2, 6)), *defaults]:
        text = rules.in_words()
        assert "\n" not in text
        k, c = rules.num_sites, rules.max_colluding
        assert text.startswith(f"{k} sites. ")
        assert (f"up to c={c} of them and the coordinator" in text) == (c > 0)
        assert f"with {c + 1} site{'s' if c else ''} colluding that no longer holds" in text
        assert f"at least min_cohort={rules.min_cohort} contributors" in text
        assert f"T={rules.threshold} answers" in text
        assert f"(Q={rules.votes})" in text
        assert ("no vote" in text) == (rules.votes == 0)
        before = max(n for n in range(k + 1) if n == 0 or survives(rules, n, 0))
        after = max(n for n in range(k + 1) if n == 0 or survives(rules, 0, n))
        if rules.membership == "fixed":
            assert before == 0
            assert "the run stops without a site that is lost before its upload" in text
            assert (f"A round that loses {after} after the upload still ends" in text) == (
                after > 0
            )
            assert ("So it does without one that is lost after it." in text) == (after == 0)
        else:
            assert f"survives {before} lost before uploading and {after} lost after" in text
            assert "a site's own update" in text


def test_three_sites_stop_without_one_and_four_can_spare_one_at_the_end_of_a_run() -> None:
    assert resolve(3).in_words().endswith("So it does without one that is lost after it.")
    assert resolve(4).in_words().endswith("repeats it, unless it was the last.")
    open_ = resolve(16, membership="open").in_words()
    assert "survives 5 lost before uploading and 5 lost after" in open_


def test_rules_cannot_be_changed_after_they_were_checked() -> None:
    with pytest.raises(AttributeError):
        resolve(3).threshold = 1  # type: ignore[misc]


# -- batches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("k", range(4, 20))
def test_batches_take_two_of_them_and_the_quorums_of_fixed(k: int) -> None:
    for c in range(k - 1):
        if k < 2 * (c + 2):
            with pytest.raises(PlanError, match=f"at least 2 \\(c \\+ 2\\) = {2 * c + 4} sites"):
                resolve(k, max_colluding=c, membership="batches")
            continue
        rules = resolve(k, max_colluding=c, membership="batches")
        assert (rules.threshold, rules.votes) == (max(2, c + 1), c + 2)
        assert rules.min_cohort == rules.least_apart == c + 2
        # A batch is enough for what a sum needs, and its certificate for agreement in it.
        alone = least_opened(rules, c + 2)
        assert max(rules.threshold, rules.votes, alone) <= c + 2
        for present in range(c + 2, k + 1):
            assert 2 * least_opened(rules, present) - present > c


def test_numbers_of_batches_that_are_unsafe_are_refused() -> None:
    for numbers, text in (
        ({"votes": 2}, "votes: expected 3 to 6"),
        ({"threshold": 1}, "threshold: expected 2 to 6"),
        ({"min_cohort": 2}, "min_cohort: expected 3 to 6"),
    ):
        with pytest.raises(PlanError, match=f"^scheme.{text}"):
            resolve(6, membership="batches", **numbers)  # type: ignore[arg-type]


def test_batches_say_what_two_of_them_could_come_to() -> None:
    apart = "batches that the coordinator keeps apart can each go on with a model of their own"
    two = resolve(6, membership="batches").in_words()
    assert apart in two
    assert "the others go on while they are 3" in two
    most = resolve(9, max_colluding=1, min_cohort=6, membership="batches").in_words()
    assert apart not in most
    assert "a round has one result, for any two such sums share a batch" in most
