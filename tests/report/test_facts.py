"""Every variant of a run is told as it was: no sentence that is only usually true."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_html import Page, metrics_of, page_of, summary_of, write_run

from fedshield.plan.schema import Plan
from fedshield.report import facts
from fedshield.report.card import model_card
from fedshield.run import local
from fedshield.run.folder import RunFolder
from fedshield.run.summary import portable

MakePlan = Callable[..., Plan]
THREE = ("north", "south", "west")
ONE_MACHINE = "whoever controls that machine sees everything"


def told(
    tmp_path: Path, *, scheme: str = "rlwe", sites: tuple[str, ...] = THREE, **more: Any
) -> str:
    """The page of a run whose summary has `more`."""
    summary = summary_of(sites, scheme) | more
    return page_of(write_run(tmp_path, summary, metrics_of(sites))).text


@pytest.mark.parametrize("scheme", ["plain", "ckks", "rlwe"])
@pytest.mark.parametrize(
    ("parties", "said", "never"),
    [
        ("demonstration", ["This was a demonstration", ONE_MACHINE], ["countersigned"]),
        (
            "enrolled",
            ["keys of a countersigned roster", ONE_MACHINE],
            ["demonstration", "simulated"],
        ),
        ("apart", ["a kit of its own"], [ONE_MACHINE, "simulated", "one machine", "demonstration"]),
    ],
)
def test_who_ran_is_told_as_it_was(
    tmp_path: Path, scheme: str, parties: str, said: list[str], never: list[str]
) -> None:
    text = told(tmp_path, scheme=scheme, parties=parties)
    for words in said:
        assert words in text
    for words in never:
        assert words not in text


def test_a_sites_own_report_speaks_of_that_site(tmp_path: Path) -> None:
    """Other sites' figures are unknown to it: neither 'not recorded' nor a mean over sites."""
    sites = ("north",)
    summary = summary_of(sites) | {
        "sites": list(THREE),
        "scheme": "rlwe",
        "parties": "apart",
        "figures_of": "north",
        "mean_over": ["north"],
        "engine": "flare",
    }
    page = page_of(write_run(tmp_path, summary, metrics_of(sites)))
    text = page.text
    for words in (
        "Held-out loss, this site (north)",
        "Uploaded by this site (north)",
        "other sites' losses, rows and bytes are not known to it",
        "What this site (north) uploads in one round",
        "This site, all rounds",
        "This page itself holds losses and counts of this site (north).",
        "3 sites (north, south, west) fine-tuned a-model",
        "fedshield submit plan.yaml --kit KIT",
        "NVIDIA FLARE, each site in a process of its own",
    ):
        assert words in text
    for words in ("mean over sites", "not recorded for every site", "All sites", "The sites down"):
        assert words not in text
    named = {row[0] for table in page.tables for row in table}
    assert "north" in named
    assert not {"south", "west"} & named


def test_lost_sites_are_told_with_the_rounds_that_lack_them(tmp_path: Path) -> None:
    text = told(
        tmp_path,
        lost_sites={"west": "round 2, upload (Timeout)"},
        absent={"west": [2], "south": [1, 2]},
        mean_over=["north", "south"],
    )
    assert "Not every site was in every sum." in text
    assert "west was lost at round 2, upload (Timeout); the sum of round 2 is without it." in text
    assert "south: the sums of rounds 1 to 2 are without it." in text
    assert "over north, south: no other site measured both" in text
    assert "What a site sent in the round in which it was lost is not counted." in text
    assert "why is not told to this site" in told(
        tmp_path, figures_of="north", sites=("north",), absent={"west": [2]}
    )
    whole = told(tmp_path)
    assert "Sites lost or missingnone" in whole
    assert "Not every site" not in whole


def test_a_site_that_came_back_after_a_resume_is_missing_from_nothing(tmp_path: Path) -> None:
    text = told(tmp_path, lost_sites={"west": "round 2, train"}, absent={}, resumed=1)
    assert "west was lost at round 2, train." in text


SESSIONS = [
    {"started": "T1", "ended": "T2", "how": "interrupted", "reason": "stopped by the user"},
    {"started": "T3", "ended": "", "how": "", "reason": ""},
    {"started": "T4", "ended": "T5", "how": "finished", "reason": ""},
]


def test_each_session_of_a_resumed_run_is_told(tmp_path: Path) -> None:
    text = told(tmp_path, resumed=2, sessions=SESSIONS)
    assert "Session 1, T1 to T2, was interrupted: stopped by the user." in text
    assert "Session 2, T3, ended without a record, as after a kill." in text
    assert "Session 3, T4 to T5, ran to the end." in text
    assert "sum of 3 sessions" in text
    assert "What was sent in rounds that a resume repeated is not counted." in text
    once = told(tmp_path, resumed=1, sessions=SESSIONS[1:])
    assert "Resumedonce" in once
    site = told(tmp_path, resumed=2, sessions=SESSIONS, figures_of="north", sites=("north",))
    assert "Session 2, T3, stopped; what stopped it was not told to this site." in site
    assert "sum of 3 sessions at this site" in site
    never = told(tmp_path, resumed=0, sessions=SESSIONS[2:])
    assert "Resumednever" in never
    assert "one session" in never
    assert "Session 1" not in never
    older = told(tmp_path, resumed=2, sessions=SESSIONS[2:])
    assert "Of 2 earlier sessions nothing was recorded." in older
    assert "Session 3, T4" in older


@pytest.mark.parametrize(
    ("scheme", "weights", "said"),
    [
        ("rlwe", "private", "encrypted as well, how many rows they count for"),
        ("ckks", "public", "readable to the coordinator, how many rows they count for"),
        ("rlwe", "equal", "adapter updates, which all count the same"),
        ("plain", "private", "adapter updates and how many rows they count for, not"),
    ],
)
def test_what_was_sent_is_told_by_the_weights(
    tmp_path: Path, scheme: str, weights: str, said: str
) -> None:
    text = told(tmp_path, scheme=scheme, weights=weights)
    assert said in text
    assert ("told how many rows each site counts for" in text) == (weights == "public")


def sight(tmp_path: Path, party: str, **more: Any) -> list[str]:
    sites = more.pop("sites", THREE)
    summary = summary_of(sites, more.pop("scheme", "rlwe")) | more
    return page_of(write_run(tmp_path, summary, metrics_of(sites))).row(party)


def test_who_could_see_what_follows_the_settings(tmp_path: Path) -> None:
    could, could_not = sight(tmp_path, "The coordinator alone", open_to="server")
    assert could.startswith("The opened sum of every round.")
    assert "sum" not in could_not
    could, could_not = sight(tmp_path, "The coordinator alone", open_to="peers")
    assert "the sum, until a site or a released adapter" in could_not
    helped = "One site together with the coordinator"
    assert "c=0" in sight(tmp_path, helped, quorums={"max_colluding": 0})[1]
    assert "c=0" not in sight(tmp_path, helped, quorums={"max_colluding": 1})[1]
    for scheme in ("plain", "ckks", "rlwe"):
        could, could_not = sight(tmp_path, "One site", scheme=scheme, sites=("a", "b"))
        assert "the other site's update: the sum less its own" in could
        assert "other sites" not in could_not


def test_open_membership_is_said_with_what_it_shows(tmp_path: Path) -> None:
    """A site's update is the difference of two sums, whoever sees both."""
    quorums = {"max_colluding": 1, "membership": "open"}
    for opened in ("peers", "server"):
        for party in (
            "One site",
            "One site together with the coordinator",
            "The coordinator alone",
        ):
            could, could_not = sight(tmp_path, party, quorums=quorums, open_to=opened)
            sees = opened == "server" or party != "The coordinator alone"
            assert ("From sums over different sets: their difference." in could) == sees
            assert could_not.startswith("In one sum: ") == sees
    assert "can be had as the difference of two sums" in told(tmp_path, quorums=quorums)
    assert "difference of two sums" not in told(tmp_path, quorums={"membership": "fixed"})


def test_settings_add_their_own_limits(tmp_path: Path) -> None:
    text = told(tmp_path, fewest_in_a_sum=2)
    assert "At least one sum of this run was over two sites only" in text
    adapter = {"rank": 8, "alpha": 16, "targets": ["q_proj"], "train": "share-a"}
    text = told(tmp_path, adapter=adapter)
    assert "Each site's adapter holds a matrix B of its own" in text
    assert "It says how well each site's own adapter fits such rows" in text
    two = told(tmp_path, sites=("a", "b"), weights="private")
    assert "the total of their rows tells each the other's number" in two


def test_notes_and_the_papers_definition_stand_in_the_report(tmp_path: Path) -> None:
    text = told(tmp_path, notes=["bank: column `year` not used (16 rows)"])
    assert "Notes What a reader of the results must know" in text
    assert "bank: column `year` not used (16 rows)" in text
    assert "LoRA, rank 32, A and B of q_proj and v_proj, nothing left out" in text
    without = told(tmp_path, paper_scheme_upload_bytes=None)
    assert "paper" not in without
    assert "Notes" not in without


def test_paths_of_one_machine_stay_on_it(tmp_path: Path) -> None:
    plan = "model:\n  name: /srv/models/seven-b\ndata:\n  source: '~/secret/ward 7/rows.jsonl'\n"
    page = page_of(write_run(tmp_path, plan=plan))
    assert ".../seven-b" in page.text
    assert ".../rows.jsonl" in page.text
    for part in ("/srv", "secret", "ward"):
        assert part not in page.text
    assert portable("/srv/models/seven-b") == "seven-b"
    assert portable("~/a/x.csv, sample:medical, ../b/my rows.jsonl (iid 1 of 2)") == (
        "x.csv, sample:medical, my rows.jsonl (iid 1 of 2)"
    )
    for kept in ("meta-llama/Llama-2-7b-hf", "data/rows.jsonl", "hub:a/b", "tiny-llama"):
        assert portable(kept) == kept


def test_every_table_can_stand_on_a_phone(tmp_path: Path) -> None:
    """Each cell carries its column's name, for a page too narrow for columns."""
    page = page_of(write_run(tmp_path))
    tables = [attributes for tag, attributes in page.tags if tag == "table"]
    assert len(tables) == 6
    assert all("stack" in (table.get("class") or "").split() for table in tables)
    for tag, attributes in page.tags:
        if tag == "td" and attributes.get("class") != "blank":
            assert attributes.get("data-label") not in (None, "", "?")


def test_a_resumed_run_tells_of_both_sessions(
    tmp_path: Path, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after its first round, and resumed: run.json, summary, report and card agree."""
    plan = make_plan({"rounds": 2, "training.steps": 1, "scheme.name": "plain"})
    append = RunFolder.append_metrics

    def stopped(self: RunFolder, rows: Any) -> None:
        append(self, rows)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "append_metrics", stopped)
        with pytest.raises(KeyboardInterrupt):
            local.run(plan, tmp_path / "run")
    folder = local.resume(tmp_path / "run")
    log = folder.state()["sessions_log"]
    assert [entry["how"] for entry in log] == ["interrupted", "finished"]
    assert all(entry["started"] <= entry["ended"] for entry in log)
    summary = folder.read_json("summary.json")
    assert (summary["parties"], summary["engine"], summary["figures_of"]) == (
        "demonstration", "inprocess", "",
    )  # fmt: skip
    assert [entry["how"] for entry in summary["sessions"]] == ["interrupted", "finished"]
    assert summary["mean_over"] == ["bank", "hospital"]
    assert (summary["absent"], summary["fewest_in_a_sum"], summary["resumed"]) == ({}, 2, 1)
    page = Page((folder.path / "report.html").read_text(encoding="utf-8"))
    assert "Session 1," in page.text
    assert "was interrupted: stopped by the user" in page.text
    card = (folder.path / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "This was a demonstration" in card
    assert "The run was resumed once." in card
    assert facts.of_summary(summary).one_machine
    assert model_card(plan, json.loads(json.dumps(summary))) == card
