"""The run folder: whole files or none, one process at a time, nothing damaged taken for good."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from fedshield.disk import write_atomic
from fedshield.errors import RunFolderError
from fedshield.plan.schema import Plan
from fedshield.run.folder import RunFolder, SiteStore
from fedshield.types import AdapterSpec, AdapterState, SiteMemory, TensorSpec

MakePlan = Callable[..., Plan]

SPEC = AdapterSpec((TensorSpec("q.lora_A.weight", (2, 3)),), "ab" * 32, 2.0)


def state(seed: int) -> AdapterState:
    return AdapterState(np.random.default_rng(seed).standard_normal(6).astype(np.float32), SPEC)


def memory(seed: int) -> SiteMemory:
    rng = np.random.default_rng(1000 + seed)
    residual = rng.standard_normal(6).astype(np.float32)
    shared = {"clip": rng.random(1), "score": rng.random(6)}
    own = {"control": rng.standard_normal(6)}
    return SiteMemory(
        residual,
        {name: vector.astype(np.float32) for name, vector in shared.items()},
        {name: vector.astype(np.float32) for name, vector in own.items()},
    )


def assert_same(one: SiteMemory, other: SiteMemory) -> None:
    assert one.residual.tobytes() == other.residual.tobytes()
    assert one.shared_sha256() == other.shared_sha256()
    assert one.own.keys() == other.own.keys()
    for name, vector in one.own.items():
        assert vector.tobytes() == other.own[name].tobytes()


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(RunFolderError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def plan(make_plan: MakePlan, tmp_path: Path) -> Plan:
    return make_plan().with_base_dir(tmp_path / "plans")


@pytest.fixture
def folder(tmp_path: Path, plan: Plan) -> RunFolder:
    return RunFolder.create(tmp_path / "run", plan, state_of(plan))


def state_of(plan: Plan) -> dict[str, Any]:
    return {
        "status": "running",
        "plan_sha256": plan.sha256(),
        "base_dir": str(plan.base_dir),
        "wall_s": 1.5,
    }


# -- whole files ---------------------------------------------------------------------------


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data, expected in ((b"\x00\xff", b"\x00\xff"), ("naïve\n", "naïve\n".encode()), ("", b"")):
        write_atomic(path, data)
        assert path.read_bytes() == expected
    assert left_in(tmp_path) == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_exception_midway_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(os, step, fail)
        with pytest.raises(type(error)):
            write_atomic(path, "new")
    assert path.read_text() == "old"
    assert left_in(tmp_path) == ["file"]
    write_atomic(path, "new")
    assert path.read_text() == "new"


def test_a_file_is_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        fsync(handle)

    def renamed(*paths: Any) -> None:
        done.append("rename")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    write_atomic(tmp_path / "file", "x")
    SiteStore(tmp_path / "site").save(1, state(1), memory(1))
    assert done == ["file", "rename", "folder"] * 2


def test_a_value_that_is_no_json_leaves_the_old_file(folder: RunFolder) -> None:
    folder.write_json("summary.json", {"loss": 1.0, "said": "½"})
    for bad in ({"loss": float("nan")}, {"loss": {1}}):
        with pytest.raises((ValueError, TypeError)):
            folder.write_json("summary.json", bad)
    assert folder.read_json("summary.json") == {"loss": 1.0, "said": "½"}
    assert "½" in (folder.path / "summary.json").read_text(encoding="utf-8")


# -- making and opening --------------------------------------------------------------------


def test_a_folder_is_made_and_opened_again(tmp_path: Path, plan: Plan) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "new" / "deep"):
        RunFolder.create(path, plan, state_of(plan))
        opened = RunFolder.open(path)
        assert left_in(path) == ["plan.yaml", "run.json"]
        assert opened.state() == state_of(plan)
        assert opened.plan() == plan
        assert opened.plan().base_dir == tmp_path / "plans"
        assert opened.metrics() == []


def test_a_place_that_is_taken_is_refused(tmp_path: Path, plan: Plan) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").write_text("data")
    file = tmp_path / "file"
    file.write_text("data")
    nowhere = tmp_path / "link"
    nowhere.symlink_to(tmp_path / "absent")
    expected = {
        full: f"got one with files in it; choose another --out, or go on with: fedshield run "
        f"--resume {full}",
        file: "got a file",
        nowhere: "got a file",
        file / "below": "expected a place to write to",
    }
    for path, said in expected.items():
        assert said in refused(lambda path=path: RunFolder.check_free(path))
        assert said in refused(lambda path=path: RunFolder.create(path, plan, {}))
    assert (full / "precious").read_text() == file.read_text() == "data"
    assert left_in(full) == ["precious"]


def test_what_is_no_run_folder_is_not_opened(tmp_path: Path, folder: RunFolder) -> None:
    assert "has no run.json" in refused(lambda: RunFolder.open(tmp_path / "absent"))
    (folder.path / "plan.yaml").unlink()
    assert "has no plan.yaml" in refused(lambda: RunFolder.open(folder.path))


def test_a_changed_plan_is_refused(folder: RunFolder, make_plan: MakePlan) -> None:
    path = folder.path / "plan.yaml"
    text = path.read_text()
    path.write_text(text.replace("rounds: 4", "rounds: 5"))
    message = refused(folder.plan)
    assert "expected the plan of this run, got a changed one" in message
    path.write_text(text.replace("eval_batch_size: 8", "eval_batch_size: 2"))
    assert folder.plan().speed.eval_batch_size == 2  # speed is not under the plan's hash
    path.write_text(make_plan({"name": "other"}).to_yaml())
    assert "changed one" in refused(folder.plan)


@pytest.mark.parametrize("text", ['{"status": ', "[]", "null", '"running"', "\udcff"])
def test_a_damaged_state_is_refused(folder: RunFolder, text: str) -> None:
    (folder.path / "run.json").write_bytes(text.encode(errors="surrogateescape"))
    assert "run.json" in refused(folder.state)
    assert "run.json" in refused(folder.plan)


def test_a_missing_state_is_refused(folder: RunFolder) -> None:
    (folder.path / "run.json").unlink()
    assert "expected run.json, found none" in refused(folder.state)


# -- one process at a time -----------------------------------------------------------------


def test_a_second_opener_is_refused_until_the_first_ends(folder: RunFolder) -> None:
    other = RunFolder.open(folder.path)
    with (
        folder.locked(),
        pytest.raises(RunFolderError, match="another process"),
        other.locked(),
    ):
        pytest.fail("both hold the run")
    with pytest.raises(KeyError), other.locked():
        raise KeyError
    with folder.locked():
        pass


def test_a_killed_process_holds_nothing(folder: RunFolder) -> None:
    code = (
        "import os, pathlib, sys\n"
        "from fedshield.run.folder import RunFolder\n"
        "with RunFolder(pathlib.Path(sys.argv[1])).locked():\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError, match="another process"), folder.locked():
            pytest.fail("both hold the run")
        holder.kill()
        holder.wait()
    with folder.locked():
        pass


# -- metrics -------------------------------------------------------------------------------


def row(number: int, site: str, loss: float = 0.25) -> dict[str, Any]:
    return {"round": number, "site": site, "loss": loss}


def test_metrics_are_added_and_read_back(folder: RunFolder) -> None:
    folder.append_metrics([row(1, "bank"), row(1, "hospital")])
    folder.append_metrics([row(2, "bank", loss=0.1)])
    assert folder.metrics() == [row(1, "bank"), row(1, "hospital"), row(2, "bank", loss=0.1)]


def test_a_last_line_cut_by_a_kill_is_left_out_and_written_over(folder: RunFolder) -> None:
    folder.append_metrics([row(1, "bank"), row(1, "hospital")])
    path = folder.path / "metrics.jsonl"
    whole = path.read_bytes()
    line = len(whole) // 2
    for cut in range(line + 1, len(whole) - 2):
        path.write_bytes(whole[:cut])
        assert folder.metrics() == [row(1, "bank")]
    folder.rewind_metrics(1)
    folder.append_metrics([row(1, "hospital")])
    assert folder.metrics() == [row(1, "bank"), row(1, "hospital")]


def test_rewinding_drops_later_rounds_only(folder: RunFolder) -> None:
    assert folder.rewind_metrics(0) == []
    rows = [row(number, site) for number in (1, 2, 3) for site in ("bank", "hospital")]
    folder.append_metrics(rows)
    assert folder.rewind_metrics(2) == rows[:4]
    assert folder.metrics() == rows[:4]
    folder.append_metrics(rows[4:])
    assert folder.metrics() == rows
    folder.rewind_metrics(0)
    assert folder.metrics() == []


# -- each site's adapter -------------------------------------------------------------------


def test_a_store_keeps_the_last_two_rounds(folder: RunFolder) -> None:
    store = folder.site_store("bank")
    assert store.path == folder.path / "sites" / "bank"
    assert store.rounds() == []
    for number in range(1, 13):
        store.save(number, state(number), memory(number))
        kept = [number - 1, number] if number > 1 else [1]
        assert store.rounds() == kept
        assert len(left_in(store.path)) == len(kept)
        for old in kept:
            loaded, carried = store.load(old, SPEC)
            assert loaded.values.tobytes() == state(old).values.tobytes()
            assert loaded.sha256() == state(old).sha256()
            assert_same(carried, memory(old))


def test_a_round_can_be_done_again(folder: RunFolder) -> None:
    store = folder.site_store("bank")
    store.save(1, state(1), memory(1))
    store.save(2, state(2), memory(2))
    store.save(2, state(22), memory(22))
    assert store.rounds() == [1, 2]
    loaded, carried = store.load(2, SPEC)
    assert loaded.sha256() == state(22).sha256()
    assert_same(carried, memory(22))


def test_an_exception_midway_keeps_the_rounds_before(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = folder.site_store("bank")
    store.save(1, state(1), memory(1))
    store.save(2, state(2), memory(2))
    for step in ("fsync", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(os, step, lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
            with pytest.raises(OSError, match="full"):
                store.save(3, state(3), memory(3))
        assert store.rounds() == [1, 2]
        assert len(left_in(store.path)) == 2
        loaded, carried = store.load(2, SPEC)
        assert loaded.sha256() == state(2).sha256()
        assert_same(carried, memory(2))


def test_other_files_beside_are_no_rounds(folder: RunFolder) -> None:
    store = folder.site_store("bank")
    store.save(1, state(1), memory(1))
    for name in ("round-x.safetensors", "round-1.safetensors", ".round-000002.safetensors.part"):
        (store.path / name).write_text("")
    (store.path / "error.log").write_text("")
    assert store.rounds() == [1]


def damaged(store: SiteStore, how: str) -> None:
    path = store.path / "round-000001.safetensors"
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name).copy() for name in file.keys()}  # noqa: SIM118
    assert tensors.keys() == {
        *("adapter", "residual", "shared.clip", "shared.score", "own.control"),
    }
    if how in tensors:  # one bit of one value
        tensors[how].view(np.uint8)[-1] ^= 1
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-3])
        return
    elif how == "empty":
        path.write_bytes(b"")
        return
    elif how.startswith("no digest"):
        metadata = {name: metadata[name] for name in metadata if name != how.split()[-1]} or None
    elif how.startswith("without"):
        del tensors[how.split()[-1]]
    elif how.startswith("a foreign"):
        tensors[how.split()[-1]] = np.zeros(6, np.float32)
    elif how == "longer":
        tensors["adapter"] = np.zeros(7, np.float32)
    else:  # a digest that fits what does not fit the adapter
        which, _, size = how.partition(" of ")
        right = memory(1)
        parts = {"residual": right.residual, **right.shared, **right.own}
        parts = {
            name: np.resize(v, int(size) if name == which else v.size) for name, v in parts.items()
        }
        other = SiteMemory(
            parts["residual"],
            {name: parts[name] for name in right.shared if size != "0" or name != which},
            {name: parts[name] for name in right.own},
        )
        shutil.rmtree(store.path)
        store.save(1, state(1), other)
        return
    save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize(
    "how",
    [
        *("adapter", "residual", "shared.clip", "shared.score", "own.control"),
        *("cut", "empty", "longer", "a foreign shared.x", "a foreign own.x", "a foreign other.x"),
        *("without adapter", "without residual", "without shared.clip"),
        *("without shared.score", "without own.control"),
        *("no digest sha256", "no digest spec", "no digest memory"),
        *("residual of 7", "clip of 2", "clip of 0", "score of 7", "control of 5"),
    ],
)
def test_a_damaged_adapter_is_refused(folder: RunFolder, how: str) -> None:
    store = folder.site_store("bank")
    store.save(1, state(1), memory(1))
    store.load(1, SPEC)
    damaged(store, how)
    assert "restore it" in refused(lambda: store.load(1, SPEC))


def test_an_adapter_of_another_run_or_round_is_refused(folder: RunFolder) -> None:
    store = folder.site_store("bank")
    store.save(1, state(1), memory(1))
    for other in (
        AdapterSpec(SPEC.tensors, "cd" * 32, 2.0),
        AdapterSpec(SPEC.tensors, SPEC.base_model_sha256, 1.0),
        AdapterSpec((TensorSpec("q.lora_A.weight", (3, 2)),), SPEC.base_model_sha256, 2.0),
    ):
        message = refused(lambda other=other: store.load(1, other))
        assert "expected this run's adapter, got a damaged or foreign one" in message
    assert "round-000002" in refused(lambda: store.load(2, SPEC))
