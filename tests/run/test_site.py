"""What a site that shares no run folder writes down of its own sessions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedshield.crypto.keys import SigningKey
from fedshield.errors import UserError
from fedshield.ledger.file import Ledger
from fedshield.plan.schema import Plan
from fedshield.protocol.restart import ASK_BYTES, unasked
from fedshield.protocol.roster import COORDINATOR
from fedshield.protocol.wire import envelope, messages
from fedshield.run.flare.kit import Kit
from fedshield.run.ledgers import approval_of
from fedshield.run.site import SiteProcess, site_rows
from fedshield.site.interfaces import SiteRound


def stand(coordinator: SigningKey) -> bytes:
    """The coordinator asks where a site stands."""
    body = messages.Stand(bytes(ASK_BYTES)).to_body()
    return envelope.seal("stand", unasked(), COORDINATOR, body, coordinator.sign)


def test_each_session_of_a_site_is_in_its_own_run_json(
    tmp_path: Path, make_plan: Callable[..., Plan], monkeypatch: Any
) -> None:
    """A site hears of a run's end, not of what stopped a session: that one has no end."""
    monkeypatch.delenv("FEDSHIELD_SHARED_RUN", raising=False)
    plan, kit = make_plan(), Kit(tmp_path, "bank")
    folder = kit.run_folder("ward-1", plan)
    state = folder.state()
    assert (state["parties"], state["figures_of"], state["sessions"]) == ("apart", "bank", 0)
    for number in (1, 2):
        site = SiteProcess("bank", plan, folder, kit)
        (folder.path / "sites" / "bank").mkdir(parents=True, exist_ok=True)
        site._begin_session({})
        spent = folder.state()["wall_s"]
        site._append({"round": 0, "upload_bytes": 1, "download_bytes": 1})
        after = folder.state()
        assert after["sessions"] == len(after["sessions_log"]) == number
        # Seconds of the sessions before are not lost.
        assert after["wall_s"] > spent >= 0
    assert [entry["ended"] for entry in after["sessions_log"]] == ["", ""]


def test_another_plan_under_a_runs_name_changes_nothing(
    tmp_path: Path, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator chooses a run's name."""
    monkeypatch.delenv("FEDSHIELD_SHARED_RUN", raising=False)
    kit = Kit(tmp_path, "bank")
    folder = kit.run_folder("ward-1", make_plan())
    folder.write_state(folder.state() | {"status": "finished"})
    before = (folder.path / "run.json").read_bytes()
    with pytest.raises(UserError, match="expected the plan of this run, got another"):
        kit.run_folder("ward-1", make_plan({"rounds": 7}))
    assert (folder.path / "run.json").read_bytes() == before
    assert kit.run_folder("ward-1", make_plan()).path == folder.path


def test_a_run_goes_on_under_the_roster_that_it_began_with(
    tmp_path: Path, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal knows sites by name. Another organisation's key under a site's name would make
    two sums over one set from one model, and their difference is what two sites sent."""
    monkeypatch.delenv("FEDSHIELD_SHARED_RUN", raising=False)
    plan, kit = make_plan(), Kit(tmp_path, "bank")
    folder = kit.run_folder("ward-1", plan)
    site: Any = SiteProcess("bank", plan, folder, kit)
    data, host = SimpleNamespace(sha256=lambda: "da"), SimpleNamespace(factors_sha256="")

    def begins(charter: bytes, model: str = "ba") -> None:
        party = SimpleNamespace(roster=SimpleNamespace(charter=charter))
        given = SimpleNamespace(sha256=model, precision="float32")
        site._check_same(given, data, host, party)

    begins(b"one")
    # Nothing left yet: the operator put the right roster and the agreed model in place.
    begins(b"two", "another")
    begins(b"two")
    journal = folder.journal_path("bank")
    journal.parent.mkdir(parents=True, exist_ok=True)
    journal.write_text("a line\n")
    begins(b"two")
    with pytest.raises(UserError, match="expected the run's roster_sha256 74776f, got 6f6e65"):
        begins(b"one")
    with pytest.raises(UserError, match="expected the run's base_model_sha256 ba, got another"):
        begins(b"two", "another")


def test_whose_answer_was_wrong_is_said_to_the_sites_operator(
    tmp_path: Path, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On its console and in its own metrics, and of an honest round nothing."""
    monkeypatch.delenv("FEDSHIELD_SHARED_RUN", raising=False)
    plan, kit = make_plan(), Kit(tmp_path, "bank")
    site: Any = SiteProcess("bank", plan, kit.run_folder("ward-1", plan), kit)
    said: list[str] = []
    monkeypatch.setattr(site, "_events", SimpleNamespace(note=said.append))
    site._participant = SimpleNamespace(state=SimpleNamespace(sha256=lambda: "aa"))
    site._mine.mkdir(parents=True, exist_ok=True)
    site._begin_session({})
    for number, faulty in ((1, {}), (2, {"clinic": "tag", "bank": "share"})):
        record = SiteRound(
            number,
            "bank",
            heldout_loss_before=2.0,
            heldout_loss_after=1.0,
            contributors=("bank", "clinic"),
            faulty_answers=faulty,
        )
        site._observed(record)
    assert [text for text in said if text.startswith("opening the sum")] == [
        "opening the sum: this site's own answer does not fit the others': a contributor dealt it "
        "wrong shares; the answer of clinic is not the one that it signed for all sites"
    ]
    rows = site_rows(site._folder, "bank")
    assert [row["faulty_answers"] for row in rows] == [{}, {"clinic": "tag", "bank": "share"}]


def test_a_site_with_too_few_rows_refuses_before_it_sends(
    tmp_path: Path, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule R6. Others learn that it refuses, and not how many rows it has."""
    monkeypatch.delenv("FEDSHIELD_SHARED_RUN", raising=False)
    plan = make_plan({"data.min_examples": 17})
    folder = Kit(tmp_path, "bank").run_folder("ward-1", plan)
    coordinator = SigningKey()
    roster: Any = SimpleNamespace(charter=b"one", coordinator=coordinator.public)
    with Ledger.create(tmp_path / "ledger") as ledger:
        ledger.approve(approval_of(plan, roster, ""))
    admission = SimpleNamespace(
        simulated=False,
        local=lambda plan: plan,
        not_used=lambda _: (),
        ledger_path=lambda: tmp_path / "ledger",
        admit=lambda *_: SimpleNamespace(example_cap=None, roster=roster, key=SigningKey()),
    )
    site = SiteProcess("bank", plan, folder, admission)
    reply = site.handle("stand", stand(coordinator))
    assert (reply.data, reply.code) == (b"", "refused")
    told = (folder.path / "sites" / "bank" / "error.log").read_text()
    assert "data.min_examples: expected at least 17 rows with loss at bank, got 16;" in told
    assert "rule R6" in told
    assert not folder.journal_path("bank").exists()
    assert site.handle("invite", b"").code == "refused"
    assert site.handle("restart", b"").code == "size"


def test_a_session_of_an_unapproved_plan_loads_nothing(
    tmp_path: Path, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the run's folder is there already, as after another roster: why is said to this site's
    operator, and nothing else changes."""
    monkeypatch.delenv("FEDSHIELD_SHARED_RUN", raising=False)
    plan = make_plan()
    folder = Kit(tmp_path, "bank").run_folder("ward-1", plan)
    coordinator = SigningKey()
    one, two = (
        SimpleNamespace(charter=charter, coordinator=coordinator.public)
        for charter in (b"one", b"two")
    )
    with Ledger.create(tmp_path / "ledger") as ledger:
        ledger.approve(approval_of(plan, one, ""))  # type: ignore[arg-type]
    before = (folder.path / "run.json").read_bytes(), (tmp_path / "ledger").read_bytes()
    admission: Any = SimpleNamespace(
        simulated=False,
        local=lambda plan: plan,
        ledger_path=lambda: tmp_path / "ledger",
        admit=lambda *_: SimpleNamespace(example_cap=None, roster=two, key=SigningKey()),
    )
    site = SiteProcess("bank", plan, folder, admission)
    assert site.handle("stand", stand(coordinator)).code == "not-approved"
    after = (folder.path / "run.json").read_bytes(), (tmp_path / "ledger").read_bytes()
    assert after == before
    mine = [path.name for path in (folder.path / "sites" / "bank").iterdir()]
    assert mine == ["error.log"]
    assert {path.name for path in folder.path.iterdir()} == {"plan.yaml", "run.json", "sites"}
