"""Whole runs through the command line and the in-process engine, on the tiny model."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import safe_open

from command_line import Done, fedshield
from fedshield.errors import RoundFailed
from fedshield.plan.load import load_plan, parse_plan
from fedshield.protocol.log.verify import cross_check
from fedshield.run import local
from fedshield.run.folder import RunFolder
from fedshield.run.log_file import logs_of, read_known_keys, read_log

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "tiny.yaml"
FEDSHIELD = [sys.executable, "-m", "fedshield.cli"]
SUMMARY_KEYS = {
    "scheme",
    "rounds",
    "sites",
    "trainable_values",
    "upload_bytes",
    "download_bytes",
    "initial_heldout_loss",
    "final_heldout_loss",
    "wall_s",
    "plan_sha256",
    "adapter_sha256",
}


def command(*arguments: str | Path, code: int = 0) -> Done:
    done = fedshield(*arguments, cwd=ROOT)
    assert done.code == code, done.err
    return done


def small_plan(**changes: Any) -> Any:
    """The tiny example, smaller still."""
    raw = yaml.safe_load(TINY.read_text())
    raw |= {"rounds": 3, "evaluation": {"prompts": []}}
    raw["data"] |= {"heldout_rows": 6, "min_examples": 14}
    for site in raw["data"]["sites"].values():
        site["rows"] = 40
    raw["training"] |= {"steps": 2, "batch_size": 4, "max_length": 96}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            raw.setdefault(section, {})[name] = value
        else:
            raw[section] = value
    return raw


def run_small(out: Path, **changes: Any) -> dict[str, Any]:
    plan = parse_plan(small_plan(**changes), base_dir=ROOT / "examples")
    local.run(plan, out)
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In a process of its own, as a user runs it."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    done = subprocess.run(
        [*FEDSHIELD, "run", str(TINY), "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return out


# -- what a run leaves -----------------------------------------------------------------------


def test_a_run_leaves_every_file_and_lowers_every_loss(tiny_run: Path) -> None:
    for name in ("metrics.jsonl", "summary.json", "plan.yaml", "report.html", "answers.json"):
        assert (tiny_run / name).stat().st_size > 0, name
    assert {path.name for path in (tiny_run / "journal").iterdir()} == {
        "bank.jsonl",
        "hospital.jsonl",
        "school.jsonl",
    }
    summary = json.loads((tiny_run / "summary.json").read_text())
    assert summary.keys() >= SUMMARY_KEYS
    assert (summary["scheme"], summary["bits"], summary["open_to"]) == ("rlwe", 16, "peers")
    assert summary["security_bits"] == 128
    rules = load_plan(TINY)[0].rules()
    assert summary["quorums"] == dataclasses.asdict(rules)
    assert summary["quorums_in_words"] == rules.in_words()
    assert (summary["resumed"], summary["lost_sites"]) == (0, {})
    assert summary["rounds"] == 4
    assert summary["sites"] == ["bank", "hospital", "school"]
    for site in summary["sites"]:
        assert (
            summary["final_heldout_loss"]["sites"][site]
            < summary["initial_heldout_loss"]["sites"][site]
        )
    rows = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    assert [(row["round"], row["site"]) for row in rows] == [
        (number, site) for number in (1, 2, 3, 4) for site in summary["sites"]
    ]
    assert summary["upload_bytes"] == summary["setup_upload_bytes"] + sum(
        row["upload_bytes"] for row in rows
    )
    everyone = ["bank", "hospital", "school"]
    for row in rows:
        assert (row["sites_in_round"], row["contributors"]) == (3, everyone)
    for number in (1, 2, 3, 4):
        now = [row for row in rows if row["round"] == number]
        assert len({row["adapter_sha256"] for row in now}) == 1
        (mean,) = {row["mean_train_loss"] for row in now}  # opened with the sum
        losses, counts = ([row[key] for row in now] for key in ("train_loss", "num_examples"))
        weights = [float(f"{count:.2g}") for count in counts]
        weighted = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
        assert mean == pytest.approx(weighted, abs=1e-4)
    assert rows[-1]["adapter_sha256"] == summary["adapter_sha256"]
    # The paper's ramp in its proportions: 4 // 5 = 0 to round 4, from 0.2 to 0.5.
    assert [row["pruning_rate"] for row in rows[::3]] == pytest.approx([0.275, 0.35, 0.425, 0.5])


def test_no_key_material_and_no_pickle_in_a_run_folder(tiny_run: Path) -> None:
    files = [path for path in tiny_run.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files if not path.name.startswith(".")}
    assert kinds <= {".json", ".jsonl", ".yaml", ".html", ".md", ".safetensors", ".peers"}
    for path in files:
        assert b"PRIVATE" not in path.read_bytes()
    fields = {"kind", "session", "round", "phase", "digest", "check", "base", "contributors"}
    for path in (tiny_run / "journal").iterdir():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["kind"] for line in lines] == ["upload", "vote", "answer"] * 5
        assert all(set(line) <= fields for line in lines)


def test_the_adapter_loads_with_plain_peft(tiny_run: Path) -> None:
    import torch
    from peft import PeftModel

    from fedshield.model.builtin import tiny

    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
        model = PeftModel.from_pretrained(tiny.build(), tiny_run / "adapter")
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        tuned = model(input_ids=ids).logits
        with model.disable_adapter():
            base = model(input_ids=ids).logits
    assert (tuned - base).abs().max() > 0.1
    card = (tiny_run / "adapter" / "README.md").read_text()
    assert "4 of 4" in card
    assert "sample:medical" in card
    assert "one-time ring-LWE keys" in card
    assert "2 of 3" in card


def test_generate_and_export(tiny_run: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    answer = json.loads(command("generate", tiny_run, "hello", "--json").out)
    assert set(answer) == {"prompt", "base", "tuned", "cut", "max_new_tokens"}
    merged = tmp_path / "merged"
    command("export", tiny_run, "--merge", merged)
    model = AutoModelForCausalLM.from_pretrained(merged)
    tokenizer = AutoTokenizer.from_pretrained(merged)
    ids = tokenizer("hello", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        assert torch.isfinite(model(input_ids=ids).logits).all()
    assert (
        "expected a new or empty folder"
        in command("export", tiny_run, "--merge", merged, code=2).err
    )


def test_a_finished_run_is_not_resumed(tiny_run: Path) -> None:
    assert "finished" in command("run", "--resume", tiny_run, code=2).err


# -- the same plan, other schemes ----------------------------------------------------------------


#: Scheme -> changes to the plan.
SCHEMES: dict[str, dict[str, Any]] = {
    "plain": {"scheme": {"name": "plain"}},
    "ckks lean": {"scheme": {"name": "ckks"}},
    "ckks paper": {"scheme": {"name": "ckks", "parameters": "paper"}},
    "rlwe": {},
    "rlwe to the server": {"scheme": {"name": "rlwe", "open_to": "server"}},
    "rlwe 8 bits": {"encoding": {"bits": 8}},
    "rlwe 4 bits": {"encoding": {"bits": 4, "headroom": True}},
}
#: How far from plain's losses others may end. The order of a site's rows comes from the plan's hash
#: and the adapter's: it is another one under another scheme, and on another processor, and moves
#: a site's loss by a percent. In these three rounds it falls by a fifth or more.
BY_ORDER = 0.03
Runs = Callable[[str], tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Folder and summary of the small plan's run under a scheme, made once."""
    made: dict[str, tuple[Path, dict[str, Any]]] = {}
    folder = tmp_path_factory.mktemp("schemes")

    def run(scheme: str) -> tuple[Path, dict[str, Any]]:
        if scheme not in made:
            out = folder / scheme.replace(" ", "-")
            # Nothing pruned: shared masks are ranked by what was opened, and a last bit of it
            # decides near ties for all sites.
            changes = {"pruning": {"method": "none"}, **SCHEMES[scheme]}
            made[scheme] = out, run_small(out, **changes)
        return made[scheme]

    return run


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name != "plain"])
def test_every_scheme_ends_like_plain(runs: Runs, scheme: str) -> None:
    _, plain = runs("plain")
    folder, found = runs(scheme)
    assert found["scheme"] == scheme.split()[0]
    assert found["trainable_values"] == plain["trainable_values"]
    for site in plain["sites"]:
        ended, begun = found["final_heldout_loss"]["sites"], found["initial_heldout_loss"]["sites"]
        assert begun == plain["initial_heldout_loss"]["sites"]
        assert ended[site] < begun[site]
        assert ended[site] == pytest.approx(
            plain["final_heldout_loss"]["sites"][site], rel=BY_ORDER
        )
    assert (folder / "report.html").stat().st_size > 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len({row["adapter_sha256"] for row in rows}) == found["rounds"] == 3
    assert all((row["mean_train_loss"] is None) == (found["scheme"] != "rlwe") for row in rows)


def test_what_is_summed_does_not_depend_on_how_it_is_protected(runs: Runs) -> None:
    """Sums are exact: who opens them changes no bit; and few bits are another rounding."""
    adapters = {scheme: runs(scheme)[1]["adapter_sha256"] for scheme in SCHEMES}
    assert adapters["rlwe"] == adapters["rlwe to the server"]
    assert adapters["ckks lean"] == adapters["ckks paper"]
    assert len(set(adapters.values())) == len(adapters) - 2


def test_schemes_cost_what_they_should(runs: Runs) -> None:
    """At this size shares and votes are most of rlwe's bytes, and one block holds an update at any
    width, so that few bits save nothing yet; ciphertexts are most of ckks's."""
    bytes_of = {scheme: runs(scheme)[1]["upload_bytes"] for scheme in SCHEMES}
    assert bytes_of["ckks lean"] > 5 * bytes_of["plain"]
    assert bytes_of["ckks paper"] > 1.5 * bytes_of["ckks lean"]
    for width in ("rlwe 4 bits", "rlwe 8 bits"):
        assert 0.8 < bytes_of[width] / bytes_of["rlwe"] < 1.2
    assert bytes_of["rlwe to the server"] < bytes_of["rlwe"] < bytes_of["ckks lean"] / 3


def test_same_plan_and_seed_same_adapter_another_seed_another(
    small: tuple[Path, str], tmp_path: Path
) -> None:
    assert run_small(tmp_path / "2")["adapter_sha256"] == small[1]
    assert run_small(tmp_path / "3", seed=8)["adapter_sha256"] != small[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter__exchange": "parameters"},
        {"encoding": {"error_feedback": False}},
        {"scheme__weights": "public"},
        {"scheme__weights": "equal"},
        {"data": {"split": "iid", "num_sites": 4, "heldout_rows": 6,
                  "pool": [{"source": "sample:maths", "rows": 120}]}},
        {"data": {"split": "dirichlet", "num_sites": 3, "heldout_rows": 6, "dirichlet_alpha": 0.9,
                  "pool": [{"source": "sample:maths", "rows": 80},
                           {"source": "sample:code", "rows": 80}]}},
        {"scheme": {"name": "ckks", "weights": "equal"}, "adapter__exchange": "parameters"},
    ],
    ids=["parameters", "no feedback", "public", "equal", "iid", "dirichlet", "paper's"],
)  # fmt: skip
def test_variants_of_the_plan_run_and_learn(tmp_path: Path, changes: dict[str, Any]) -> None:
    summary = run_small(tmp_path / "run", **changes)
    assert summary["final_heldout_loss"]["mean"] < summary["initial_heldout_loss"]["mean"]
    assert (tmp_path / "run" / "report.html").exists()


def test_a_diverging_run_stops_keeps_the_last_model_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rate that a plan may name diverges on one machine and not on another: this one is past
    what its numbers can hold."""
    monkeypatch.setattr(
        "fedshield.site.train.learning_rate", lambda *given: math.inf if given[-1] == 2 else 0.1
    )
    with pytest.raises(RoundFailed, match=r"[^:]; bank: the loss became nan in step 2 of"):
        run_small(tmp_path / "run", training__optimizer="sgd", training__steps=2)
    state = json.loads((tmp_path / "run" / "run.json").read_text())
    assert state["status"] == "failed"
    assert "lower training.learning_rate" in state["reason"]
    kept = {path.name for path in (tmp_path / "run" / "sites").rglob("*.safetensors")}
    # And what was sent of the next, to be sent again as it is.
    assert kept == {"round-000001.safetensors", "contribution.safetensors"}
    assert not (tmp_path / "run" / "summary.json").exists()


# -- killed and resumed --------------------------------------------------------------------------

# A process that has everything loaded. For each line that it reads it makes a run in a fork of its
# own, and says how that ended. The run kills itself, with the signal that cannot be caught, just
# before or after the n-th write that it makes.
KILLED = """
import json, os, signal, sys, traceback
from pathlib import Path
import fedshield.run.folder as runfolder, fedshield.protocol.journal as journal
import fedshield.crypto.rlwe.kernels, fedshield.model.builtin.smollm2, fedshield.report.html
import fedshield.site.train, matplotlib.figure, peft
from transformers import LlamaForCausalLM
from fedshield.run import local
from fedshield.plan.load import load_plan

def run(fatal, when, plan, out):
    count = 0
    def deadly(inner):
        def wrapped(*args, **kwargs):
            nonlocal count
            count += 1
            mine = count
            if mine == fatal and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = inner(*args, **kwargs)
            if mine == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        return wrapped
    runfolder.write_atomic = deadly(runfolder.write_atomic)
    runfolder.SiteStore.save = deadly(runfolder.SiteStore.save)
    runfolder.RunFolder.append_metrics = deadly(runfolder.RunFolder.append_metrics)
    journal.Journal._append = deadly(journal.Journal._append)
    if out.exists():
        local.resume(out)
    else:
        local.run(load_plan(plan)[0], out)

for line in sys.stdin:
    fatal, when, plan, out = json.loads(line)
    child = os.fork()
    if child == 0:
        try:
            run(fatal, when, Path(plan), Path(out))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""
KilledRun = Callable[[Path, Path, int, str], int]


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KilledRun]:
    """`killed_run(plan, out, fatal, when)`: the exit status of a process that runs the plan, or
    resumes what is in `out`, and is killed at its write number `fatal`."""
    errors = tmp_path_factory.mktemp("killed") / "stderr"
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-c", KILLED],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=ROOT,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None

        def killed(plan: Path, out: Path, fatal: int, when: str) -> int:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps([fatal, when, str(plan), str(out)]) + "\n")
            process.stdin.flush()
            said = process.stdout.readline()
            assert said, errors.read_text()
            status = int(said)
            assert status in (0, -signal.SIGKILL), errors.read_text()
            return status

        yield killed
        process.stdin.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("small")
    plan = folder / "plan.yaml"
    plan.write_text(yaml.safe_dump(small_plan()))
    command("run", plan, "--out", folder / "whole")
    summary = json.loads((folder / "whole" / "summary.json").read_text())
    return plan, summary["adapter_sha256"]


def resumed_hash(out: Path) -> str:
    local.resume(out)
    summary = json.loads((out / "summary.json").read_text())
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert (out / "report.html").exists()
    assert (out / "adapter" / "adapter_model.safetensors").exists()
    # A kill is no tampering: the logs of both sessions are whole and agree.
    keys = read_known_keys(out / "rosters.json")
    chains = [read_log(path, keys) for path in logs_of(out)]
    assert [chain.problems for chain in chains] == [()] * 4
    assert cross_check(chains) == ()
    return str(summary["adapter_sha256"])


@pytest.mark.parametrize(
    ("fatal", "when"),
    [
        (5, "before"),  # nothing has left
        (9, "after"),  # two votes on the weights
        (15, "after"),  # two uploads of round 1
        (18, "after"),  # two votes on round 1: its set is bound
        (21, "before"),  # one answer
        (26, "after"),  # two of three sites have taken the adapter
        (29, "after"),  # metrics are written, the state is not
        (43, "before"),
        (58, "after"),
        (64, "before"),  # no round is left, the logs are not closed
    ],
)
def test_a_killed_run_resumes_to_the_same_adapter(
    killed_run: KilledRun, small: tuple[Path, str], tmp_path: Path, fatal: int, when: str
) -> None:
    plan, expected = small
    assert killed_run(plan, tmp_path / "run", fatal, when) == -signal.SIGKILL
    assert resumed_hash(tmp_path / "run") == expected


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_write(
    killed_run: KilledRun, small: tuple[Path, str], tmp_path: Path, when: str
) -> None:
    plan, expected = small
    fatal = 3  # the first two make the folder, which appears whole or not at all
    while True:
        out = tmp_path / f"run-{fatal}"
        if killed_run(plan, out, fatal, when) == 0:
            break
        if json.loads((out / "run.json").read_text())["status"] != "finished":
            assert resumed_hash(out) == expected, f"killed {when} write {fatal}"
        fatal += 1
    assert fatal > 65


def test_killed_and_killed_again_as_it_goes_on(
    killed_run: KilledRun, small: tuple[Path, str], tmp_path: Path
) -> None:
    """In the first session, in the second's set-up, and in the third's rounds."""
    plan, expected = small
    out = tmp_path / "run"
    for fatal, when in ((18, "after"), (9, "before"), (30, "after")):
        assert killed_run(plan, out, fatal, when) == -signal.SIGKILL
    assert RunFolder.open(out).state()["sessions"] == 3
    assert resumed_hash(out) == expected


def content(path: Path) -> Any:
    """All that a file of tensors holds, in whatever order it lies there. Of what it was made of,
    the base model alone: versions of records are keyed by each demonstration's own key."""
    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata() or {})
    if "facts" in metadata:
        facts = json.loads(metadata["facts"])
        facts["made_of"] = facts["made_of"].split()[-1]
        metadata["facts"] = facts
    return tensors, metadata


def optimised(optimizer: str, rate: float = 0.02) -> dict[str, Any]:
    return {"optimizer": optimizer, "learning_rate": rate}


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter__train": "b", "aggregation": optimised("fedavgm", 0.7)},
        {"adapter__train": "alternate", "aggregation": optimised("fedadam")},
        {"adapter__train": "share-a", "aggregation": optimised("fedyogi")},
        {"adapter__train": "core", "aggregation": optimised("fedadagrad")},
        {"adapter__train": "core", "adapter__factors": "gradient"},
        {"training__local_algorithm": "scaffold", "training__optimizer": "sgd",
         "training__learning_rate": 0.5},
        {"training__local_algorithm": "fedprox", "pruning__ranking": "global"},
        {"adapter__train": "core", "training__optimizer": "muon", "training__learning_rate": 0.1,
         "encoding": {"bits": 2, "headroom": True}, "pruning": {"method": "none"}},
    ],
    ids=["b fedavgm", "alternate fedadam", "share-a fedyogi", "core fedadagrad", "core gradient",
         "scaffold", "fedprox global", "as the quickstart"],
)  # fmt: skip
def test_what_sites_carry_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Moments, scores, control variates and personal parts are kept with each round: stopped
    after the second, a run ends with the same adapters and the same memories."""
    changes = {"scheme": {"name": "rlwe"}, "adapter__exchange": "delta", **changes}
    whole, out = tmp_path / "whole", tmp_path / "run"
    expected = run_small(whole, **changes)
    append, calls = RunFolder.append_metrics, iter(range(10))

    def stopped(self: RunFolder, rows: Any) -> None:
        if next(calls) == 1:
            raise KeyboardInterrupt
        append(self, rows)

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "append_metrics", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_small(out, **changes)
    assert json.loads((out / "run.json").read_text())["status"] == "interrupted"
    local.resume(out)
    assert (
        json.loads((out / "summary.json").read_text())["adapter_sha256"]
        == (expected["adapter_sha256"])
    )
    kept = [
        path.relative_to(whole)
        for folder in ("adapter", "sites")
        for path in (whole / folder).rglob("*.safetensors")
    ]
    # At each site two rounds, and what was sent of the last.
    assert len(kept) == (3 if changes.get("adapter__train") == "share-a" else 1) + 3 * 3
    for path in kept:
        assert content(out / path) == content(whole / path), path


def test_a_run_is_not_resumed_on_other_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedshield.errors import RunFolderError

    data = tmp_path / "rows.jsonl"
    rows = [json.dumps({"prompt": f"say {k}", "response": f"{k} it is"}) for k in range(30)]
    data.write_text("\n".join(rows))
    raw = small_plan(rounds=1)
    raw["data"]["sites"]["bank"] = {"source": str(data)}

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "append_metrics", stopped)
        with pytest.raises(KeyboardInterrupt):
            local.run(parse_plan(raw, base_dir=tmp_path), tmp_path / "run")
    data.write_text("\n".join(rows[:-1]))
    with pytest.raises(RunFolderError, match="bank's data"):
        local.resume(tmp_path / "run")
    data.write_text("\n".join(rows))
    local.resume(tmp_path / "run")
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_core_run_ends_as_a_lora_that_opens_without_its_factors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened where the gradients are others, or none can be had, a finished run is the same; an
    unfinished one is not gone on with."""
    import torch
    from transformers import AutoModelForCausalLM

    from fedshield.errors import RunFolderError
    from fedshield.model import lora_xs
    from fedshield.model.merge import save_merged
    from fedshield.run.reopen import open_finished
    from fedshield.site import gradient_factors

    out = tmp_path / "run"
    summary = run_small(
        out,
        scheme={"name": "plain"},
        adapter__train="core",
        adapter__factors="gradient",
        evaluation={"prompts": ["hello"], "max_new_tokens": 96},
    )
    assert summary["final_heldout_loss"]["mean"] < summary["initial_heldout_loss"]["mean"]
    (answer,) = json.loads((out / "answers.json").read_text())
    assert json.loads(command("generate", out, "hello", "--json").out) == answer

    def none(*_: Any) -> None:
        raise AssertionError("factors were looked for")

    with monkeypatch.context() as patched:
        patched.setattr(gradient_factors, "public_factors", none)
        patched.setattr(lora_xs, "factors", none)
        base, host, state, _ = open_finished(out)
    host.write(state)
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        expected = host.model(input_ids=ids).logits
        save_merged(base, host, state, tmp_path / "merged")
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        assert torch.allclose(merged(input_ids=ids).logits, expected, atol=1e-4)

    made = json.loads((out / "run.json").read_text())
    made |= {"status": "interrupted", "factors_sha256": "0" * 64}
    (out / "run.json").write_text(json.dumps(made))
    with pytest.raises(RunFolderError, match=r"expected the run's factors 0000.* same kind of"):
        local.resume(out)


def test_two_processes_do_not_work_on_one_run(tiny_run: Path, tmp_path: Path) -> None:
    from fedshield.errors import RunFolderError

    folder = RunFolder.open(tiny_run)
    with folder.locked(), pytest.raises(RunFolderError, match="another process"):
        local.resume(tiny_run)


# -- plans -------------------------------------------------------------------------------------


def test_the_papers_plan_is_costed_without_weights() -> None:
    cost = json.loads(command("plan", "examples/paper.yaml", "--json").out)
    assert cost["trainable_values"] == 16_777_216  # design notes; arXiv 2506.05640's adapter
    assert cost["rounds"] == len(cost["upload_bytes_per_site_round"]) == 200
    # 81 bytes a value: 1.36 GB a site and round.
    assert cost["upload_bytes_per_site_round"][0] == pytest.approx(1.36e9, rel=0.01)
    assert cost["total_upload_bytes"] == pytest.approx(3 * 200 * 1.36e9, rel=0.01)
    assert cost["peak_memory_bytes"] > 6.7e9
    assert cost["estimated_s"] > 0


def test_set_overrides_any_key_for_plan_and_run(tmp_path: Path) -> None:
    overrides = ["--set", "scheme.name=ckks", "--set", "scheme.parameters=paper"]
    rlwe = json.loads(command("plan", TINY, "--json").out)
    lean = json.loads(command("plan", TINY, "--json", *overrides[:2]).out)
    paper = json.loads(command("plan", TINY, "--json", *overrides).out)
    assert (rlwe["scheme"], lean["scheme_parameters"]) == ("rlwe", "lean")
    assert paper["scheme_parameters"] == "paper"
    assert paper["total_upload_bytes"] > 1.5 * lean["total_upload_bytes"]
    assert lean["total_upload_bytes"] > 3 * rlwe["total_upload_bytes"]
    more = ["--set", "rounds=1", "--set", "training.steps=1", "--set", "evaluation.prompts=[]"]
    command("run", TINY, "--out", tmp_path / "run", *overrides, *more)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["scheme_parameters"], summary["rounds"]) == ("paper", 1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_quickstart_lowers_every_sites_loss(tmp_path: Path) -> None:
    command_line = [*FEDSHIELD, "run", "examples/quickstart.yaml", "--out", str(tmp_path / "run")]
    subprocess.run(command_line, cwd=ROOT, check=True, timeout=1100)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for site in summary["sites"]:
        assert (
            summary["final_heldout_loss"]["sites"][site]
            < summary["initial_heldout_loss"]["sites"][site]
        )
