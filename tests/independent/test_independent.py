"""A site built from docs/protocol.md alone takes part in a run with two of FedShield's own, under
FedShield's coordinator, and ends with their model."""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import page_site
import page_sum_of_site
import page_wire
import pytest
from mixed_run import Door, mixed, moved, plan_of

from fedshield.errors import ProtocolError, RoundFailed
from fedshield.protocol.wire import envelope
from fedshield.protocol.wire.envelope import Binding

HERE = Path(__file__).parent
PARTS = sorted(HERE.glob("page_*.py"))
LORA = {"train": "ab", "rank": 4, "alpha": 8, "dropout": 0.0, "targets": ["q_proj", "v_proj"]}
MASKS = {
    "method": "magnitude",
    "mask": "shared",
    "start_round": 1,
    "target_round": 2,
    "initial_rate": 0.3,
    "target_rate": 0.6,
}


@pytest.mark.parametrize("path", PARTS, ids=[path.stem for path in PARTS])
def test_imports_nothing_of_fedshield(path: Path) -> None:
    """Its own parts, the standard library, numpy and cryptography: nothing else by any way."""
    allowed = {*sys.stdlib_module_names, "numpy", "cryptography", *(one.stem for one in PARTS)}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = [node.module or ""]
        elif isinstance(node, ast.Name | ast.Attribute):
            word = node.id if isinstance(node, ast.Name) else node.attr
            assert word not in ("__import__", "import_module", "importlib", "exec", "eval")
        assert {name.partition(".")[0] for name in names} <= allowed


@pytest.mark.parametrize("independent", ["school", "bank"])
def test_ends_with_the_model_of_the_others(independent: str, tmp_path: Path) -> None:
    """`bank` sorts first: it makes the run's keys."""
    with mixed(plan_of(), tmp_path, independent) as run:
        run.run(3)
        assert len(set(run.digests().values())) == 1
        assert run.coordinator.completed_rounds == run.other.completed == 3
        assert moved(run)
        assert not run.sites.errors


@pytest.mark.parametrize(
    "changes",
    [
        {"aggregation__optimizer": "fedavgm", "scheme__weights": "equal"},
        {"aggregation__optimizer": "fedadam", "aggregation__learning_rate": 0.05},
        {"aggregation__optimizer": "fedyogi", "aggregation__learning_rate": 0.05},
        {"aggregation__optimizer": "fedadagrad", "training__optimizer": "sgd"},
        {"encoding__headroom": False, "encoding__bits": 12, "training__optimizer": "adamw"},
        {"adapter": LORA, "pruning": MASKS, "aggregation__optimizer": "fedadam"},
        {"adapter": LORA, "pruning": MASKS | {"ranking": "global"}, "encoding__bits": 4},
        {"adapter": LORA | {"train": "alternate"}, "encoding__bits": 8},
        {"adapter": LORA | {"exchange": "parameters"}, "encoding__bits": 16, "pruning": MASKS},
    ],
    ids=lambda changes: "-".join(f"{key}={value}" for key, value in changes.items())[:60],
)
def test_other_plans(changes: Mapping[str, Any], tmp_path: Path) -> None:
    """Every optimiser of the server, masks, and other adapters."""
    with mixed(plan_of(**changes), tmp_path) as run:
        run.run(3)
        assert len(set(run.digests().values())) == 1
        assert run.other.completed == 3
        assert moved(run)


def test_a_site_that_is_started_again(tmp_path: Path) -> None:
    """It goes on from what it kept; a second session has the others' memory of its ledger."""
    with mixed(plan_of(), tmp_path) as run:
        run.run(1)
        run.start_again()
        assert run.other.completed == 1
        run.run(3)
        assert run.other.completed == 3
        assert len(set(run.digests().values())) == 1


def test_takes_what_the_others_certified(tmp_path: Path) -> None:
    """One of four sites signed for another result of the round before: it signs no second one, and
    takes this one by the others' receipts."""
    clinic = {"source": "sample:medical", "rows": 12}
    with mixed(plan_of(data__sites__clinic=clinic), tmp_path) as run:
        ledger = run.other._me.ledger
        key = f"{run.plan.sha256()} round 1"
        ledger.sign_receipt(key, "00" * 32)
        run.run(2)
        assert len(set(run.digests().values())) == 1
        assert run.other.completed == 2
        assert ledger.receipts[key] == "00" * 32
        assert key in ledger.certified
        assert str(run.sites.errors["school"]) == "disagree: R4: another result was signed"


def test_refuses_with_the_same_codes(tmp_path: Path) -> None:
    """A site of either kind is told the same, and says the same."""
    with mixed(plan_of(), tmp_path) as run:
        plan, roster, sign = run.plan.canonical(), run.roster.encode(), run.server.sign
        setup = Binding(bytes(32), 0, "setup")
        body: dict[str, Any] = {"session": bytes(16), "plan": plan, "roster": roster}
        good = envelope.seal("invite", setup, "coordinator", body, sign)

        def sealed(kind: str = "invite", sender: str = "coordinator", **changed: Any) -> bytes:
            other = Binding(changed.pop("context", bytes(32)), changed.pop("number", 0), "setup")
            return envelope.seal(kind, other, sender, body | changed, sign)

        version = good[:4] + b"\2" + good[5:-64]
        cases = {
            "signature": flipped(good),
            "size": good[:20],
            "version": version + sign(version),
            "kind": sealed("begin"),
            "sender": sealed(sender="bank"),
            "round": sealed(number=1),
            "malformed": sealed(more=b""),
            "context": sealed(plan=plan + b" "),
        }
        cases_of_context = [sealed(roster=roster + b"0"), sealed(context=bytes([1] * 32))]
        own = next(iter(run.own.values()))
        for code, data in [*cases.items(), *(("context", one) for one in cases_of_context)]:
            for site in (own, Door(run.other)):
                with pytest.raises(ProtocolError) as caught:
                    site.handle("invite", data)
                assert caught.value.code == code
        for site in (own, Door(run.other)):
            with pytest.raises(ProtocolError) as caught:
                site.handle("work", good)
            assert caught.value.code == "kind"
            assert site.handle("invite", good)


# -- what does not fit is refused ----------------------------------------------------------------


@pytest.mark.parametrize("label", sorted(page_wire.LABELS))
def test_one_byte_of_a_label(label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever all must find the same, and one site finds otherwise, ends the run."""
    changed = bytearray(page_wire.LABELS[label])
    changed[-1] ^= 1
    monkeypatch.setitem(page_wire.LABELS, label, bytes(changed))
    # Only a factor that begins with numbers depends on the plan's seed.
    plan = plan_of(adapter=LORA) if label == "seed" else plan_of()
    with mixed(plan, tmp_path) as run:
        with pytest.raises(RoundFailed):
            run.run(1)
        assert run.coordinator.completed_rounds == 0


#: Message and field: signed as changed.
FIELDS = [
    *(("standing", name) for name in ("base_model", "rounds")),
    *(("join", name) for name in ("nonce", "run_key", "version", "head")),
    ("ready", "context"),
    *(("round-key", name) for name in ("key", "model_tag")),
    *(("upload", name) for name in ("key_id", "layout_tag", "head")),
    *(("upload", name) for name in ("block_digests", "share_digests")),
    ("block", "data"),
    *(("vote", name) for name in ("contributors", "aggregate", "head")),
    ("answer", "tag"),
    ("receipt", "model_tag"),
    ("key-box", "box"),
]


def flipped(value: Any) -> Any:
    """With one bit changed: the last byte's, of the first that has any."""
    if isinstance(value, bytes):
        return value[:-1] + bytes([value[-1] ^ 1])
    if isinstance(value, list):
        return [flipped(value[0]), *value[1:]]
    return {**value, min(value): flipped(value[min(value)])}


@pytest.mark.parametrize(("kind", "name"), FIELDS)
def test_one_byte_of_a_reply(
    kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = page_site.seal

    def seal(what: str, binding: Any, sender: str, body: Mapping[str, Any], key: Any) -> bytes:
        in_round = binding.phase == "round" or kind in ("standing", "join", "ready", "key-box")
        if what == kind and in_round:
            body = {**body, name: flipped(body[name])}
        return sealed(what, binding, sender, body, key)

    monkeypatch.setattr(page_site, "seal", seal)
    with mixed(plan_of(), tmp_path, "bank" if kind == "key-box" else "school") as run:
        with pytest.raises(RoundFailed):
            run.run(1)
        assert run.coordinator.completed_rounds == 0


@pytest.mark.parametrize("what", ["chunk", "tag", "reserved", "secret"])
def test_one_number_of_what_is_encrypted(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block, a tag, a count or a key that does not belong to the rest: the sum is rejected."""
    encrypted = page_sum_of_site.encrypt

    def encrypt(*args: Any) -> Any:
        made = encrypted(*args)
        if not made.chunks:
            return made  # the tally has none
        if what == "chunk":
            return made._replace(chunks=[flipped(made.chunks[0])])
        if what == "secret":
            secret = made.secret.copy()
            secret[0] += 1
            return made._replace(secret=secret)
        residues = list(made.residues)
        residues[-1 if what == "tag" else 1] += 1
        return made._replace(residues=residues)

    monkeypatch.setattr(page_sum_of_site, "encrypt", encrypt)
    with mixed(plan_of(), tmp_path) as run:
        with pytest.raises(RoundFailed):
            run.run(1)
        assert run.coordinator.completed_rounds == 0


@pytest.mark.parametrize("kind", ["shares", "answer"])
def test_a_box_that_one_peer_cannot_open(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer too few is no harm where enough are left. Who could not open a share is `unheard`:
    the answer to it brings the ciphertext."""
    sealed, unheard = page_site.seal, []

    def seal(what: str, binding: Any, sender: str, body: Mapping[str, Any], key: Any) -> bytes:
        if what == kind:
            body = {**body, "boxes": flipped(body["boxes"])}
        if what == "answer":
            unheard.append(len({len(box) for box in body["boxes"].values()}) > 1)
        return sealed(what, binding, sender, body, key)

    monkeypatch.setattr(page_site, "seal", seal)
    with mixed(plan_of(), tmp_path) as run:
        run.run(2)
        assert len(set(run.digests().values())) == 1
        assert moved(run)
    assert unheard == [kind == "shares"] * 3


def test_a_receipt_without_its_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody takes a result with a certificate whose head its site did not sign."""
    sealed = page_site.seal

    def seal(what: str, binding: Any, sender: str, body: Mapping[str, Any], key: Any) -> bytes:
        if what == "receipt" and binding.phase == "round":
            body = {**body, "head": flipped(body["head"])}
        return sealed(what, binding, sender, body, key)

    monkeypatch.setattr(page_site, "seal", seal)
    with mixed(plan_of(), tmp_path) as run:
        with pytest.raises(RoundFailed):
            run.run(2)
        assert {site.completed_rounds for site in run.own.values()} == {0}
