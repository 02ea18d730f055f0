"""What a view has is what crossed, and no more."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import fedshield.audit
from fedshield.audit import views

ATTACKS = ("tokens", "dictionary", "openings", "order")


def test_the_servers_view_is_every_byte_in_order(staged: Any) -> None:
    found = staged(**{"scheme.name": "rlwe"})
    crossings = found.recording.server.crossings
    assert {one.site for one in crossings} == set(found.plan.data.site_names())
    # A command and its reply, one after the other.
    for down, up in zip(crossings[::2], crossings[1::2], strict=True):
        assert (down.direction, up.direction) == ("down", "up")
        assert (down.site, down.method) == (up.site, up.method)
        assert down.data[:4] == up.data[:4] == b"FSHD"
    uploads = found.recording.server.uploads()
    assert [(one.round_number, one.site) for one in uploads] == [
        (number, site) for number in (1, 2) for site in ("bank", "hospital", "school")
    ]
    assert len({one.blocks for one in uploads}) == 6
    assert sorted(found.recording.server.aggregates()) == [1, 2]


def test_a_sites_view_has_its_own_messages_and_its_own_memory(staged: Any) -> None:
    found = staged(**{"scheme.name": "rlwe"})
    bank = found.recording.sites["bank"]
    assert {one.site for one in bank.crossings} == {"bank"}
    assert sorted(bank.states) == [0, 1, 2]
    assert sorted(bank.sent) == [1, 2]
    # Of the others a share of each key, and nothing else.
    assert {dealer for held in bank.shares.values() for dealer in held} == {
        "bank", "hospital", "school",
    }  # fmt: skip
    assert sum(one.weights[1] for one in found.recording.sites.values()) == 1.0


def test_no_view_holds_the_truth(staged: Any) -> None:
    """Rows are in the recording's truth only."""
    for view in (views.ServerView, views.SiteView, views.CoalitionView, views.AdapterView):
        names = {item.name for item in dataclasses.fields(view)}
        assert not names & {"truth", "batches", "rows", "data"}


def test_attacks_cannot_reach_the_truth() -> None:
    """Modules that attack updates never import the stage, which has the rows."""
    folder = Path(fedshield.audit.__file__).parent
    for name in ATTACKS:
        if not (folder / f"{name}.py").exists():
            continue
        tree = ast.parse((folder / f"{name}.py").read_text())
        found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert "fedshield.audit.replay" not in found, name
        assert "fedshield.audit.on_updates" not in found, name


def test_the_record_is_of_the_run_itself(staged: Any, tmp_path: Path) -> None:
    """The recorded rounds end with the adapter that a run of the plan ends with."""
    from fedshield.run import local

    found = staged()
    folder = local.run(found.plan, tmp_path / "run")
    summary = folder.read_json("summary.json")
    assert summary["adapter_sha256"] == found.recording.released.state.sha256()
