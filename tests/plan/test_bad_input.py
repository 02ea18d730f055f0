"""Bad plans, data files, model folders and run folders, through the command line: always exit
status 2 and one line that names the key or file and says what to do, with nothing half-written."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedshield import cli

RUN = ("run", "plan.yaml", "--out", "out")
PLAN = ("plan", "plan.yaml")
#: What may be said before an error: how far the run has come.
NOTE = re.compile(r"(loading|hashing|tokenising|fetching) \S+( .*)?|\S+: \d+ \w+ rows|note: .*")


def rows(count: int, word: str = "row") -> bytes:
    lines = ({"prompt": f"{word} {k}?", "response": f"{word} {k}."} for k in range(count))
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


@dataclass(frozen=True)
class Case:
    """One mistake: in the plan (`set`: dotted key -> value, or the whole `plan`), in `files`,
    in a copy of the tiny model (`model`), in a copy of a finished run (`run`), or in `args`.
    `says`: what the error must contain, the key or file first and a way out last."""

    says: tuple[str, ...]
    set: dict[str, Any] = field(default_factory=dict)
    plan: str | bytes | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    model: Callable[[Path], object] | None = None
    run: Callable[[Path], object] | None = None
    args: tuple[str, ...] = RUN


def source(name: str, **settings: Any) -> dict[str, Any]:
    return {"data.sites.a": {"source": name, **settings}}


def data_file(name: str, raw: bytes, *says: str, **settings: Any) -> Case:
    return Case(says, set=source(name, **settings), files={name: raw})


def pool(**data: Any) -> dict[str, Any]:
    found = [{"source": "a.jsonl"}, {"source": "b.jsonl"}]
    return {"data": {"split": "iid", "num_sites": 2, "pool": found, "heldout_rows": 2, **data}}


def model_folder(damage: Callable[[Path], object], *says: str) -> Case:
    return Case(("model.name model: ", *says), set={"model.name": "model"}, model=damage)


def edit(name: str, **changes: Any) -> Callable[[Path], object]:
    """Change keys of a JSON file; None takes a key away."""

    def damage(folder: Path) -> None:
        found = json.loads((folder / name).read_text()) | changes
        kept = {key: value for key, value in found.items() if value is not None}
        (folder / name).write_text(json.dumps(kept))

    return damage


def remove(*names: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def replace(name: str, raw: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(raw)


def halve(name: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(raw[: len(raw) // 2])

    return damage


def both(*damages: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: [damage(folder) for damage in damages]


def plan_text(changes: dict[str, Any]) -> str:
    raw: dict[str, Any] = {
        "rounds": 1,
        "model": {"name": "tiny-llama"},
        "adapter": {"rank": 2, "alpha": 4, "dropout": 0.0},
        "data": {
            "heldout_rows": 2,
            "sites": {"a": {"source": "a.jsonl"}, "b": {"source": "b.jsonl"}},
        },
        "training": {"steps": 1, "batch_size": 2, "max_length": 64, "precision": "fp32"},
        "scheme": {"name": "plain"},
    }
    for key, value in changes.items():
        target: dict[str, Any] = raw
        *parents, last = key.split(".", 2)
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    return yaml.safe_dump(raw, sort_keys=False)


GZIP = gzip.compress(rows(40))
UNFINISHED = edit("run.json", status="running")

PLANS = {
    "unknown key": Case(("zzz: unknown key", "one of adapter, aggregation"), set={"zzz": 1}),
    "misspelt key": Case(("traning: unknown key", "did you mean training?"), set={"traning": {}}),
    "misspelt inner key": Case(
        ("training.stesp: unknown key", "did you mean training.steps?"), set={"training.stesp": 2}
    ),
    "another tool's key": Case(
        ("training.lr: unknown key", "did you mean training.learning_rate?"),
        set={"training.lr": 1e-4},
    ),
    "wrong type": Case(("rounds: expected a whole number, got 'ten'",), set={"rounds": "ten"}),
    "true for a number": Case(("rounds: expected a whole number, got True",), set={"rounds": True}),
    "null section": Case(("model: expected a mapping of keys, got None",), set={"model": None}),
    "out of range": Case(("adapter.rank: expected a number >= 1, got 0",), set={"adapter.rank": 0}),
    "not a number": Case(
        ("training.learning_rate: expected a finite number, got nan",),
        set={"training.learning_rate": float("nan")},
    ),
    "no such choice": Case(
        ("scheme.name: expected one of", "'plain'", "got 'aes'"), set={"scheme.name": "aes"}
    ),
    "plain with parameters": Case(
        ("scheme.parameters: expected no parameters when scheme.name is plain, got 'paper'",),
        set={"scheme.parameters": "paper"},
    ),
    "iid with sites": Case(
        ("data.sites: expected no sites when split is iid", "use pool, num_sites"),
        set={"data.split": "iid"},
    ),
    "a pool that holds out": Case(
        ("data.pool.0.heldout_rows: expected none in a pool", "data.heldout_rows"),
        set=pool(pool=[{"source": "a.jsonl", "heldout_rows": 3}]),
    ),
    "target rate below initial": Case(
        ("pruning.target_rate: expected at least initial_rate (0.4), got 0.3",),
        set={"pruning": {"initial_rate": 0.4, "target_rate": 0.3}},
    ),
    "ckks with one site": Case(
        ("data.sites: expected at least 2 sites", "when scheme is ckks"),
        set={"scheme.name": "ckks", "data.sites": {"a": {"source": "a.jsonl"}}},
    ),
    "site name": Case(
        ("data.sites: expected a site name of small letters", "got 'St. Mary'", "rename the site"),
        set={"data.sites.St. Mary": {"source": "a.jsonl"}},
    ),
    "a path that cannot be": Case(
        ("'~no-such-user-here/a.jsonl': expected a path, but", "check the plan"),
        set=source("~no-such-user-here/a.jsonl"),
    ),
    "invalid YAML": Case(
        ("plan.yaml, line 3: expected YAML, but", "mend it"), plan="a: 1\nb: [1,\n"
    ),
    "tab in YAML": Case(("plan.yaml, line 2: expected YAML", "mend it"), plan="a:\n\tb: 1\n"),
    "key twice": Case(("plan.yaml, line 2: key 'name' is given twice", "keep one of them"),
                      plan="name: a\nname: b\n"),
    "YAML alias": Case(("plan.yaml, line 2: expected no YAML alias, got *a", "write it out"),
                       plan="name: &a x\nmodel: {name: *a}\n"),
    "list at top": Case(("plan.yaml: expected a mapping", "got list", "see examples/"), plan="- a"),
    "empty plan": Case(("plan.yaml: expected a mapping", "an empty file", "see examples"), plan=""),
    "plan not UTF-8": Case(("plan.yaml: expected YAML text in UTF-8", "convert"), plan=b"a: \xff"),
    "no data": Case(("data: expected a value, got nothing", "add the key"), plan="rounds: 1\n"),
    "fedshield plan": Case(("ruonds: unknown key", "did you mean rounds?"), set={"ruonds": 1},
                           args=PLAN),
}  # fmt: skip

ARGUMENTS = {
    "no plan": Case(
        ("nope.yaml: expected a plan file, found none", "check the path"),
        args=("run", "nope.yaml", "--out", "out"),
    ),
    "plan is a folder": Case(
        ("sub: expected a plan file (YAML), got a folder", "name the file in it"),
        files={"sub/plan.yaml": b""},
        args=("run", "sub", "--out", "out"),
    ),
    "--set without =": Case(
        ("--set rounds: expected KEY=VALUE", "as in --set training.steps=4"),
        args=(*RUN, "--set", "rounds"),
    ),
    "--set of an unknown key": Case(
        ("training.step: unknown key", "did you mean training.steps?"),
        args=(*RUN, "--set", "training.step=3"),
    ),
    "--set that is no YAML": Case(
        ("--set rounds, line 1: expected YAML", "mend it"), args=(*RUN, "--set", "rounds=[")
    ),
    "plan and --resume": Case(
        ("expected a plan, or --resume RUN, and not both", "see fedshield run --help"),
        args=("run", "plan.yaml", "--resume", "done"),
    ),
    "neither plan nor --resume": Case(
        ("expected a plan, or --resume RUN", "see fedshield run --help"), args=("run",)
    ),
    "--resume with --set": Case(
        ("--resume goes on with the plan of the run", "no --out and no --set"),
        args=("run", "--resume", "done", "--set", "rounds=3"),
    ),
    "unknown option": Case(("--bogus", "see fedshield --help"), args=(*RUN, "--bogus")),
    "--resume of no run": Case(
        ("sub: expected a run folder, but it has no run.json", "give the folder"),
        files={"sub/notes.txt": b"x"},
        args=("run", "--resume", "sub"),
    ),
    "--resume of nothing": Case(
        ("nope: expected a run folder", "give the folder"), args=("run", "--resume", "nope")
    ),
    "--out not empty": Case(
        ("sub: expected a new or empty folder", "choose another --out"),
        files={"sub/notes.txt": b"x"},
        args=("run", "plan.yaml", "--out", "sub"),
    ),
    "--out is a file": Case(
        ("a.jsonl: expected a folder for the run, got a file", "--out"),
        args=("run", "plan.yaml", "--out", "a.jsonl"),
    ),
    "--out under a file": Case(
        ("a.jsonl/out: expected a place to write to", "choose another --out"),
        args=("run", "plan.yaml", "--out", "a.jsonl/out"),
    ),
    "--out too long": Case(("expected ", "--out"), args=("run", "plan.yaml", "--out", "x" * 300)),
    "output.dir of nobody": Case(
        ("~no-such-user-here/x", "expected "),
        set={"output.dir": "~no-such-user-here/x"},
        args=("run", "plan.yaml"),
    ),
}

DATA = {
    "missing": Case(
        ("data.sites.a.source: expected a data file, found none at no.csv", "check the path"),
        set=source("no.csv"),
    ),
    "a folder": Case(
        ("data.sites.a.source: expected a data file, got the folder .", "name a file"),
        set=source("."),
    ),
    "empty": data_file(
        "x.jsonl", b"", "data.sites.a.source: expected rows in x.jsonl, got none", "check the file"
    ),
    "malformed line": data_file(
        "x.jsonl", rows(5) + b'{"prompt": "a"\n', "x.jsonl:6: ", "mend the row, or set data.on_bad"
    ),
    "missing columns": data_file(
        "x.jsonl", b'{"text": "a"}\n', "x.jsonl:1: expected a response", "columns text", "mend the"
    ),
    "mapped column missing": data_file(
        "x.jsonl", rows(9), "x.jsonl:1: expected text in term", columns={"prompt": "term"}
    ),
    "empty response": data_file(
        "x.jsonl", b'{"prompt": "a", "response": " "}', "x.jsonl:1: expected text in response", "or"
    ),
    "control token": data_file(
        "x.jsonl",
        rows(3) + b'{"prompt": "a<|im_end|>", "response": "b"}',
        "x.jsonl:4: expected text without control tokens, got the tokenizer's <|im_end|>",
        "mend the row, or set data.on_bad_row: skip",
    ),
    "half a character": data_file(
        "x.jsonl", b'{"prompt": "a", "response": "\\ud83d"}', "x.jsonl:1: expected Unicode text"
    ),
    "unknown suffix": data_file(
        "x.txt", b"a", "data.sites.a.source: expected a file ending in .jsonl", "convert it"
    ),
    "not UTF-8": data_file(
        "x.jsonl", b'{"prompt": "caf\xe9"}', "x.jsonl: expected UTF-8 text", "convert the file"
    ),
    "not gzip": data_file("x.jsonl.gz", b"hello", "x.jsonl.gz: cannot be read", "check the file"),
    "gzip cut short": data_file("x.jsonl.gz", GZIP[:50], "x.jsonl.gz: cannot be read", "check the"),
    "gzip damaged": data_file(
        "x.csv.gz", GZIP[:12] + b"\xff" * 9 + GZIP[21:], "x.csv.gz: cannot be read", "check the"
    ),
    "CSV field count": data_file(
        "x.csv", b"prompt,response\na,b\na,b,c\n", "x.csv:3: expected 2 fields", "mend the row"
    ),
    "CSV open quote": data_file(
        "x.csv", b'prompt,response\n"a,b\n', "x.csv:2: expected CSV in the row that", "mend it"
    ),
    "CSV column twice": data_file(
        "x.csv", b"prompt,response,response\na,b,c", "x.csv: expected every column once", "mend it"
    ),
    "not Parquet": data_file(
        "x.parquet", b"hello", "x.parquet: expected a Parquet file", "convert it"
    ),
    "damaged Parquet": data_file(
        "x.parquet",
        b"PAR1" + b"\xff" * 60 + (60).to_bytes(4, "little") + b"PAR1",
        "x.parquet: expected a Parquet file",
        "convert it",
    ),
    "too few rows": data_file(
        "x.jsonl",
        rows(2),
        "data.sites.a: expected more than 2 rows (2 are held out), got 2",
        "add rows or lower data.heldout_rows",
    ),
    "held-out rows only": data_file(
        "x.jsonl", rows(1) * 9, "data.sites.a: expected training rows other than", "add rows"
    ),
    "misspelt sample": Case(
        ("data.sites.a.source: no sample is called 'medcal'", "did you mean 'medical'?"),
        set=source("sample:medcal"),
    ),
    "no answer fits": Case(
        ("data.sites.a: expected train rows with an answer within training.max_length 8", "raise"),
        set={"training.max_length": 8},
    ),
    "a prompt for the report that is too long": Case(
        (
            "evaluation.prompts: prompt 2: expected fewer tokens than tiny-llama reads (1024)",
            "got 1119; shorten the prompt",
        ),
        set={"evaluation.prompts": ["Hi", "x" * 1100]},
    ),
    "Dirichlet impossible": Case(
        ("data.dirichlet_alpha: expected a split", "raise it, or lower data.heldout_rows"),
        set=pool(split="dirichlet", num_sites=3, dirichlet_alpha=1e-4),
    ),
    "Dirichlet column missing": Case(
        ("a.jsonl:1: expected the column ward to split by, found none", "mend the row"),
        set=pool(split="dirichlet", dirichlet_column="ward"),
    ),
    "a pool too small": Case(
        ("data.pool (for each site): expected more than 2 rows", "add rows or lower"),
        set=pool(num_sites=9),
    ),
}

MODELS = {
    "missing": Case(
        ("model.name ./nope: expected a model folder, found none", "check the path"),
        set={"model.name": "./nope"},
    ),
    "a file": Case(
        ("model.name a.jsonl: expected a model folder, got a file", "name its folder"),
        set={"model.name": "a.jsonl"},
    ),
    "no config": model_folder(remove("config.json"), "expected config.json in model", "point to"),
    "pickles only": model_folder(
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "expected *.safetensors weights, got pickled ones",
        "convert them",
    ),
    "no weights": model_folder(
        remove("model.safetensors"), "expected *.safetensors weights", "complete the folder"
    ),
    "config cut short": model_folder(
        halve("config.json"), "expected a Hugging Face config", "mend"
    ),
    "config of a list": model_folder(replace("config.json", b"[]"), "Hugging Face config", "mend"),
    "config of no known model": model_folder(
        edit("config.json", model_type="nonsense"),
        "known model_type",
        "mend or replace config.json",
    ),
    "config with a wrong type": model_folder(edit("config.json", hidden_size="x"), "hidden_size"),
    "config that cannot be": model_folder(edit("config.json", hidden_size=63), "63"),
    "not a causal model": model_folder(
        edit("config.json", model_type="t5", architectures=None),
        "got t5, an encoder with a decoder",
    ),
    "weights damaged": model_folder(
        halve("model.safetensors"), "expected weights that fit its config", "damaged"
    ),
    "no tokenizer": model_folder(
        remove("tokenizer.json", "tokenizer_config.json"), "expected a tokenizer", "add tokenizer"
    ),
    "tokenizer damaged": model_folder(
        halve("tokenizer.json"), "expected a tokenizer in the folder", "tokenizer.json"
    ),
    "broken chat template": Case(
        ("the chat template refuses the turns", "or set data.on_bad_row: skip"),
        set={"model.name": "model"},
        model=replace("chat_template.jinja", b"{% for %}"),
    ),
    "target that does not exist": Case(
        ("adapter.targets: expected linear layers", "got q_porj; did you mean q_proj?"),
        set={"adapter.targets": ["q_porj"]},
    ),
    "8bit without CUDA": Case(
        ("model.quantization: expected a CUDA device for 8bit, got cpu", "use quantization: none"),
        set={"model": {"name": "model", "quantization": "8bit"}, "speed.device": "cpu"},
        model=lambda folder: None,
    ),
    "8bit of a built-in": Case(
        ("model.quantization: expected none for the built-in tiny-llama, got 8bit",),
        set={"model.quantization": "8bit"},
    ),
    "a CUDA device that is not here": Case(
        ("speed.device: expected a CUDA device that is here", "got cuda:99", "use cpu or auto"),
        set={"speed.device": "cuda:99"},
    ),
    "plan: model.config missing": Case(
        ("model.config: expected nope.json", "point to a Hugging Face model folder"),
        set={"model.name": "someone/else", "model.config": "nope.json"},
        args=PLAN,
    ),
    "plan: no such target": Case(
        ("adapter.targets: expected linear layers", "did you mean q_proj?"),
        set={"adapter.targets": ["q_porj"]},
        args=PLAN,
    ),
}

RUNS = {
    "generate: no run": Case(
        ("sub: expected a run folder, but it has no run.json", "give the folder"),
        files={"sub/notes.txt": b"x"},
        args=("generate", "sub", "hello"),
    ),
    "generate: unfinished": Case(
        ("done: expected a finished run with adapter/", "fedshield run --resume done"),
        run=both(UNFINISHED, remove("adapter")),
        args=("generate", "done", "hello"),
    ),
    "generate: adapter damaged": Case(
        ("adapter_model.safetensors: cannot be read", "restore it"),
        run=halve("adapter/adapter_model.safetensors"),
        args=("generate", "done", "hello"),
    ),
    "export: no run": Case(
        ("nope: expected a run folder", "give the folder"),
        args=("export", "nope", "--merge", "merged"),
    ),
    "export: unfinished": Case(
        ("done: expected a finished run with adapter/", "fedshield run --resume done"),
        run=both(UNFINISHED, remove("adapter")),
        args=("export", "done", "--merge", "merged"),
    ),
    "export: onto files": Case(
        ("sub: expected a new or empty folder", "choose another"),
        files={"sub/notes.txt": b"x"},
        run=lambda folder: None,
        args=("export", "done", "--merge", "sub"),
    ),
    "export: under a file": Case(
        ("a.jsonl/merged: expected ", "choose another"),
        run=lambda folder: None,
        args=("export", "done", "--merge", "a.jsonl/merged"),
    ),
    "resume: finished": Case(
        ("done: this run is finished", "nothing to go on with"),
        run=lambda folder: None,
        args=("run", "--resume", "done"),
    ),
    "resume: run.json cut short": Case(
        ("done/run.json: cannot be read", "restore it or start a new run"),
        run=halve("run.json"),
        args=("run", "--resume", "done"),
    ),
    "resume: run.json of nothing": Case(
        ("done/run.json: expected ", "restore it or start a new run"),
        run=replace("run.json", b"{}"),
        args=("run", "--resume", "done"),
    ),
    "resume: plan changed": Case(
        ("done/plan.yaml: expected the plan of this run, got a changed one", "restore it"),
        run=both(UNFINISHED, replace("plan.yaml", plan_text({"rounds": 2}).encode())),
        args=("run", "--resume", "done"),
    ),
    "resume: data gone": Case(
        ("data.sites.a.source: expected a data file, found none", "check the path"),
        run=both(UNFINISHED, lambda folder: (folder.parent / "a.jsonl").unlink()),
        args=("run", "--resume", "done"),
    ),
}  # fmt: skip

TABLE = {
    f"{kind}: {name}": case
    for kind, cases in (
        ("plan", PLANS),
        ("arguments", ARGUMENTS),
        ("data", DATA),
        ("model", MODELS),
        ("run", RUNS),
    )
    for name, case in cases.items()
}


def test_the_table_is_long_enough() -> None:
    assert len(TABLE) >= 30


# -- laying a case out ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run in `done`, and the data it was made from."""
    from fedshield.plan.load import load_plan
    from fedshield.run import local

    folder = tmp_path_factory.mktemp("finished")
    lay_out(Case(()), folder)
    local.run(load_plan(folder / "plan.yaml")[0], folder / "done")
    return folder / "done"


def lay_out(case: Case, folder: Path) -> None:
    text = plan_text(case.set) if case.plan is None else case.plan
    (folder / "plan.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    for name, raw in {"a.jsonl": rows(8, "a"), "b.jsonl": rows(8, "b"), **case.files}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(raw)


@pytest.fixture
def laid_out(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Case:
    case: Case = request.param
    lay_out(case, tmp_path)
    if case.model is not None:
        shutil.copytree(request.getfixturevalue("tiny_folder"), tmp_path / "model")
        case.model(tmp_path / "model")
    if case.run is not None:
        shutil.copytree(request.getfixturevalue("finished"), tmp_path / "done")
        edit("run.json", base_dir=str(tmp_path))(tmp_path / "done")
        case.run(tmp_path / "done")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return case


def everything(folder: Path) -> dict[str, bytes | None]:
    """Every path below, with what is in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def check(case: Case, code: object, out: str, err: str) -> None:
    assert "Traceback" not in err
    assert code == 2, err
    assert out == ""
    *before, error = err.splitlines()
    assert error.startswith("fedshield: ")
    assert error.isprintable()
    for line in before:
        assert NOTE.fullmatch(line), f"said before the error: {line!r}"
    for words in case.says:
        assert words in error


# -- the tests -----------------------------------------------------------------------------


@pytest.mark.parametrize("laid_out", TABLE.values(), ids=TABLE.keys(), indirect=True)
def test_bad_input(
    laid_out: Case,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    no_network: None,
) -> None:
    before = everything(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fedshield", *laid_out.args])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, err = capfd.readouterr()
    check(laid_out, stopped.value.code, out, err)
    assert everything(tmp_path) == before


def lose_a_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# In a process of their own: what they ask for is settled when Python starts, or is said by
# libraries that hold on to the first stderr they see.
ALONE = {
    "hub model offline": Case(
        (
            "model.name some/model: expected it in the local hub cache because HF_HUB_OFFLINE",
            "fetch",
        ),
        set={"model.name": "some/model"},
    ),
    "hub data offline": Case(
        ("data.sites.a.source: expected the hub data set some/set", "HF_HUB_OFFLINE is set"),
        set=source("hub:some/set"),
    ),
    "a tensor is missing": model_folder(
        lose_a_tensor, "expected weights for the whole model", "complete the folder"
    ),
    "weights of another shape": model_folder(
        edit("config.json", intermediate_size=64), "expected weights that fit its config", "damaged"
    ),
    "misspelt key": PLANS["misspelt key"],
}


@pytest.mark.parametrize("laid_out", ALONE.values(), ids=ALONE.keys(), indirect=True)
def test_bad_input_in_a_process_of_its_own(laid_out: Case, tmp_path: Path) -> None:
    before = everything(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "fedshield.cli", *laid_out.args],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    check(laid_out, done.returncode, done.stdout, done.stderr)
    assert everything(tmp_path) == before


def test_the_plan_that_all_cases_start_from_is_sound(finished: Path) -> None:
    assert (finished / "summary.json").is_file()
    assert (finished / "adapter" / "adapter_model.safetensors").is_file()
