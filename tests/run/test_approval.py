"""What an operator reads before a plan may use the site's records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from consortium import NAMES as FOUR
from consortium import SOURCES, Consortium, raw_plan

from fedshield.data.preview import preview
from fedshield.enrolment.terms import Allowed, Asked
from fedshield.errors import ProtocolError
from fedshield.ledger.file import Ledger
from fedshield.ledger.rows import Version
from fedshield.model.base import inspect
from fedshield.model.chat import use_template
from fedshield.protocol.line import Line
from fedshield.run.approval import Proposal, propose
from fedshield.run.ledgers import line_of
from fedshield.run.settings import data_setup

NAMES = ("alpha", "beta", "victim")
PRIVACY = {"unit": "example", "clip_norm": 1.0, "noise_multiplier": 2.0, "max_epsilon": 4.0}


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Consortium]:
    made = Consortium(tmp_path / "three", NAMES)
    yield made
    made.close()


@pytest.fixture
def ledger(three: Consortium) -> Iterator[Ledger]:
    with Ledger.create(three.kit("victim").ledger_path()) as made:
        yield made


def proposed(three: Consortium, ledger: Ledger, **changes: Any) -> Proposal:
    return propose(three.kit("victim"), three.plan(raw_plan(NAMES, **changes), "victim"), ledger)


def line(three: Consortium, ledger: Ledger, **changes: Any) -> Line:
    kit = three.kit("victim")
    plan = three.plan(raw_plan(NAMES, **changes), "victim")
    here = kit.local(plan)
    tokenizer, _ = inspect(here.model, here.base_dir, here.speed.device)
    use_template(tokenizer, plan.model.chat_template)
    data = preview(data_setup(here), tokenizer, "victim", 1).data
    return line_of(ledger, "victim", plan, kit.admit(plan, None).roster, "run", data)


OTHERS = Version("1", "1")


def enter(mine: Line, others: Version = OTHERS) -> None:
    """A first round, as the site enters it: `others` is what all others say they put in."""
    versions = dict.fromkeys(NAMES, others) | {"victim": mine.version}
    mine.enter("round", 1, "2" * 64, "3" * 64, versions, 8, "2" * 64, None)


def fewer_rows(rows: int) -> dict[str, Any]:
    data = raw_plan(NAMES)["data"]
    data["sites"]["victim"] = data["sites"]["victim"] | {"rows": rows}
    return {"data": data, "name": f"rows-{rows}"}


def test_consent_is_asked_for_only_where_the_ledger_can_tell_a_change(
    three: Consortium, ledger: Ledger
) -> None:
    first = proposed(three, ledger)
    assert first.part is None
    ledger.approve(first.approval)
    enter(line(three, ledger))
    assert proposed(three, ledger, name="again").part is None
    changed = line(three, ledger, **fewer_rows(36))
    assert proposed(three, ledger, **fewer_rows(36)).part == changed.version


def test_consent_to_one_part_is_none_to_another(three: Consortium, ledger: Ledger) -> None:
    """The plan is approved either way. What only this site changed is let out by consent to it."""
    ledger.approve(proposed(three, ledger).approval)
    enter(line(three, ledger))
    other = proposed(three, ledger, **fewer_rows(36))
    changed = line(three, ledger, **fewer_rows(36))
    elsewhere = proposed(three, ledger, **fewer_rows(32)).part
    assert elsewhere not in (None, other.part)
    for given in (None, elsewhere):
        ledger.approve(replace(other.approval, part=given))
        with pytest.raises(ProtocolError, match="R3: expected this site's records as in round 1"):
            enter(changed)
    ledger.approve(replace(other.approval, part=other.part))
    enter(changed)


def test_everyones_change_needs_no_consent(three: Consortium, ledger: Ledger) -> None:
    ledger.approve(proposed(three, ledger).approval)
    enter(line(three, ledger))
    ledger.approve(proposed(three, ledger, **fewer_rows(36)).approval)
    enter(line(three, ledger, **fewer_rows(36)), Version("2", "2"))


@pytest.mark.parametrize(
    ("privacy", "warned"),
    [
        ({}, "4.5"),
        ({"max_epsilon": 4.0}, ""),
        ({"max_epsilon": 3.0}, ""),
        ({"max_epsilon": 4.0, "delta": 1e-4}, "4 at delta 0.0001"),
        (None, "none"),
    ],
)
def test_a_limit_above_an_earlier_plans_is_said(
    three: Consortium, ledger: Ledger, privacy: dict[str, Any] | None, warned: str
) -> None:
    """R5 holds a plan to its own limit; what an earlier one promised can be passed by a later."""
    noised = proposed(three, ledger, privacy=PRIVACY)
    assert noised.warnings == ()
    assert (noised.approval.unit, noised.approval.limit) == ("example", 4.0)
    ledger.approve(noised.approval)
    later = {"name": "later"}
    if privacy is not None:
        later["privacy"] = PRIVACY | {"max_epsilon": 4.5} | privacy
    # Approved and never run, it released nothing.
    assert proposed(three, ledger, **later).warnings == ()
    enter(line(three, ledger, privacy=PRIVACY))
    # It is no earlier plan than itself.
    assert proposed(three, ledger, privacy=PRIVACY).warnings == ()
    warnings = proposed(three, ledger, **later).warnings
    assert len(warnings) == (1 if warned else 0)
    for warning in warnings:
        assert f"plan {noised.approval.plan[:12]} on these records stopped at epsilon 4 " in warning
        assert f"this plan's limit is {warned}" in warning


# -- the eight lines ----------------------------------------------------------------------------


def lines_of(
    folder: Path,
    names: tuple[str, ...] = NAMES,
    asked: Asked | None = None,
    allowed: Allowed | None = None,
    **changes: Any,
) -> dict[str, str]:
    """What the victim's operator reads, by label, where roster and policy allow the plan."""
    made = Consortium(folder / "kits", names, asked or Asked(), allowed or Allowed())
    policy = made.root / "victim" / "victim.policy.yaml"
    policy.write_text(
        policy.read_text() + "schemes: [rlwe, ckks, plain]\nservers: [malicious, semi-honest]\n"
        "open_to: [peers, server]\nmemberships: [fixed, open, batches]\n"
    )
    kit = made.kit("victim")
    with Ledger.create(kit.ledger_path()) as ledger:
        plan = made.plan(raw_plan(names, **changes), "victim")
        return dict(propose(kit, plan, ledger).lines)


def scheme(name: str = "rlwe", **more: Any) -> dict[str, Any]:
    """A plan's keys for this scheme, and the roster's."""
    asked = {key: more[key] for key in ("server", "membership", "max_colluding") if key in more}
    return {
        "scheme": {"name": name, **more},
        "asked": Asked(**asked),
        "allowed": Allowed(("rlwe", "ckks", "plain")),
    }


def test_a_plan_with_all_defaults_in_eight_lines(tmp_path: Path) -> None:
    lines = lines_of(tmp_path)
    model = lines["starts from"].rpartition(" ")[2]
    assert lines == {
        "summed with": "alpha, beta: 3 sites with this one, always all of them",
        "my share": "by number of rows: this site's 40 count as 12, which is encrypted as the "
        "updates are; the total of all sites is opened",
        "my rows": "40 with loss, of sample:medical",
        "sums": "5 of this plan (4 rounds and the total of the counts); 5 in all on these records",
        "epsilon": "none: this plan adds no noise, and does not bound what its sums tell",
        "who may open": "each site opens every sum, and no update alone, with 2 answers; up to 1 "
        "colluding sites and the coordinator learn no more",
        "starts from": f"the adapter that the plan's seed gives, on the base model {model}",
        "leaves the site": "one encrypted update a round (rlwe, 16 bits a value), the training "
        "loss with it; its count, encrypted; signed digests",
    }


def test_plain_is_said_to_encrypt_nothing(tmp_path: Path) -> None:
    lines = lines_of(tmp_path, **scheme("plain"))
    assert lines["who may open"].startswith(
        "nothing is encrypted: the coordinator reads every site's update and every sum"
    )
    assert lines["leaves the site"] == (
        "one update a round, not encrypted (plain); its count, not encrypted; signed digests"
    )
    assert "not encrypted: the coordinator reads every site's count" in lines["my share"]


def test_ckks_is_said_to_be_open_to_the_coordinator_with_any_one_site(tmp_path: Path) -> None:
    lines = lines_of(tmp_path, **scheme("ckks"))
    assert (
        "only while it follows the protocol and no site colludes with it" in (lines["who may open"])
    )
    assert "with any one site it can read every site's update" in lines["who may open"]
    assert lines["leaves the site"].startswith("one encrypted update a round (ckks, lean);")


def test_a_semi_honest_threat_is_said_to_bear_no_other(tmp_path: Path) -> None:
    said = lines_of(tmp_path, **scheme(server="semi-honest"))["who may open"]
    assert "learn no more only while the coordinator follows the protocol (semi-honest" in said
    assert said.endswith("else it may have more opened")


@pytest.mark.parametrize(
    ("open_to", "who"),
    [
        ("peers", "each site opens every sum"),
        ("server", "the coordinator and each site open every"),
    ],
)
def test_the_coordinator_is_named_where_it_opens_sums(
    tmp_path: Path, open_to: str, who: str
) -> None:
    assert lines_of(tmp_path, **scheme(open_to=open_to))["who may open"].startswith(who)


def test_open_membership_is_said_to_show_this_sites_update(tmp_path: Path) -> None:
    more = scheme(membership="open")
    lines = lines_of(tmp_path, FOUR, privacy=PRIVACY, **more)
    assert lines["summed with"] == (
        "alpha, beta, mallory: 4 sites with this one, or any set of at least 3 of them"
    )
    assert lines["who may open"].endswith(
        "learn no more; but the difference of two sums over different sets can be this site's own "
        "update, with its noise"
    )
    assert lines["my share"].endswith(
        "the difference of totals over two sets can tell a site's count"
    )
    assert "the total of the counts, which can be over another set in each session" in lines["sums"]
    equal = {"scheme": more["scheme"] | {"weights": "equal"}}
    folder = tmp_path / "equal"
    folder.mkdir()
    share = lines_of(folder, FOUR, privacy=PRIVACY, **more | equal)["my share"]
    assert share == "1 of the sites in the sum, whatever the number of rows"


def test_batches_are_said_to_show_a_batch_and_no_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("north", "south"):
        monkeypatch.setitem(SOURCES, name, "code")
    six = (*FOUR, "north", "south")
    said = {}
    for weights in ("private", "public", "equal"):
        (tmp_path / weights).mkdir()
        more = scheme(membership="batches", max_colluding=1)
        more["scheme"] |= {"weights": weights}
        said[weights] = lines_of(tmp_path / weights, six, **more)
    lines = said["private"]
    # By name: alpha, beta, mallory; north, south, victim.
    assert lines["summed with"].endswith(
        "or whole batches of them, at least 3 sites; always with north, south, the batch of this "
        "site"
    )
    assert lines["my share"].endswith(
        "the total of all sites is opened, and of each sum what its sites count for: each batch's "
        "total is told"
    )
    assert "(4 rounds and the total of the counts)" in lines["sums"]
    assert lines["who may open"].endswith(
        "learn no more; but the difference of two sums can be the sum of this site's batch alone"
    )
    divided = "; a sum over fewer sites is divided by what they are together"
    assert said["public"]["my share"].endswith(f"told to all sites and the coordinator{divided}")
    assert said["equal"]["my share"] == f"1 of 6, whatever the number of rows{divided}"
    for one in said.values():
        assert not any("own update" in text or "a site's count" in text for text in one.values())


def test_open_membership_that_leaves_nobody_out_is_over_all(tmp_path: Path) -> None:
    """Of three sites with c = 1 every sum is over all: there is no difference to take."""
    lines = lines_of(tmp_path, privacy=PRIVACY, **scheme(membership="open"))
    assert lines["summed with"].endswith("always all of them")
    assert "difference" not in "".join(lines.values())


@pytest.mark.parametrize(
    ("weights", "share", "leaving"),
    [
        ("equal", "1 of 3, whatever the number of rows", "no count"),
        ("public", "told to all sites and the coordinator", "its count, signed and in the clear"),
        ("private", "encrypted as the updates are", "its count, encrypted"),
    ],
)
def test_counts_are_said_to_be_in_the_clear_only_where_they_are(
    tmp_path: Path, weights: str, share: str, leaving: str
) -> None:
    lines = lines_of(tmp_path, **scheme(weights=weights))
    assert share in lines["my share"]
    assert lines["leaves the site"].split("; ")[1] == leaving


def test_what_rows_count_as_is_what_the_others_hear(tmp_path: Path) -> None:
    data = raw_plan(NAMES)["data"] | {"min_examples": 39}
    assert "this site's 40 count as 40," in lines_of(tmp_path, data=data)["my share"]


def test_of_two_sites_each_is_said_to_learn_of_the_other(tmp_path: Path) -> None:
    two = ("alpha", "victim")
    lines = lines_of(tmp_path, two, **scheme(max_colluding=0))
    assert lines["my share"].endswith("which tells each of two sites the other's count")
    assert lines["who may open"].endswith(
        "the coordinator alone learns no more; of two sites each learns the other's update"
    )
    for name in ("plain", "ckks"):
        folder = tmp_path / name
        folder.mkdir()
        said = lines_of(folder, two, **scheme(name) | {"asked": Asked(max_colluding=0)})
        assert said["who may open"].endswith("; of two sites each learns the other's update")


def test_a_plan_that_is_approved_again_counts_its_sums_once(
    three: Consortium, ledger: Ledger
) -> None:
    first = proposed(three, ledger)
    ledger.approve(first.approval)
    enter(line(three, ledger))
    assert dict(proposed(three, ledger).lines)["sums"] == (
        "5 of this plan (4 rounds and the total of the counts), 1 of them entered before; "
        "5 in all on these records"
    )
    assert dict(proposed(three, ledger, name="again").lines)["sums"].endswith(
        "the counts); 6 in all on these records"
    )


def test_changes_are_those_since_the_last_approval(three: Consortium, ledger: Ledger) -> None:
    """Also where that was of a plan that had been approved before another."""
    assert proposed(three, ledger).changed == frozenset()
    equal = {"name": "rlwe", "weights": "equal"}
    public = {"name": "rlwe", "weights": "public"}
    for weights in (equal, public, equal):
        ledger.approve(proposed(three, ledger, scheme=weights).approval)
    ledger.close()
    with Ledger.open(three.kit("victim").ledger_path()) as again:
        assert proposed(three, again, scheme=equal).changed == frozenset()
        changed = proposed(three, again, scheme=public).changed
        assert changed == {"my share", "leaves the site"}
