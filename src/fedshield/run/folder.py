"""The run folder: what a run leaves behind, written so that a kill never leaves half a file.

    plan.yaml          the plan as run, every default written out
    run.json           state of the run: running, finished, interrupted or failed
    metrics.jsonl      one object per round and site
    summary.json       the run in numbers, at its end
    answers.json       answers before and after, for the plan's prompts
    adapter/           the global adapter, PEFT format, with a model card
    report.html        one self-contained page
    journal/SITE.jsonl what each site has let out
    sites/SITE/        each site's global adapter of the last two rounds, its audit log, and in a
                       demonstration its ledger
    coordinator.audit.jsonl, rosters.json  the coordinator's, and public keys to check all by

No private key is ever written here.
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedshield import interrupt
from fedshield.disk import write_atomic
from fedshield.errors import RunFolderError
from fedshield.plan.load import load_plan
from fedshield.plan.schema import Plan
from fedshield.site.interfaces import Contribution
from fedshield.types import AdapterSpec, AdapterState, Float32, SiteMemory

KEPT_STATES = 2
#: What is left where a run cannot go on. Enrolled sites refuse a plan's second run (R4).
ANEW = "start a new run (where its sites are enrolled: of another plan, for a plan has one run)"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a file of one JSON object a round, up to the first that is not whole: a kill can
    cut the last one."""
    rows: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict) or not isinstance(row.get("round"), int):
            break
        rows.append(row)
    return rows


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """All rows anew, whole or not at all."""
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """More rows, synced."""
    with interrupt.held(), path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
        file.flush()
        os.fsync(file.fileno())


def now() -> str:
    """The time, for the state of a run."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def chat_date(state: Mapping[str, Any]) -> datetime.date | None:
    """The day on which a run began, by its state: what its chat template writes as today's date.
    None in a state that has no date."""
    started = str(state.get("chat_date") or state.get("started") or "")[:10]
    try:
        return datetime.date.fromisoformat(started)
    except ValueError:
        return None


def folder_of(plan: Plan) -> Path:
    """Where a run of the plan goes if no `--out` says: `output.dir`, else by its name and time."""
    if plan.output.dir is not None:
        return plan.resolve(plan.output.dir)
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{plan.name}-{stamp}"


class RunFolder:
    """One run's folder. Make it with `create` or `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def check_free(cls, path: Path) -> None:
        """Raises `RunFolderError` unless `path` is absent or an empty folder."""
        try:
            taken = path.is_symlink() or path.exists()
        except OSError as error:
            raise RunFolderError(
                f"{path}: expected a place to write to, but {error.strerror}; choose another --out"
            ) from None
        if taken:
            if not path.is_dir():
                raise RunFolderError(
                    f"{path}: expected a folder for the run, got a file; use --out"
                )
            if any(path.iterdir()):
                raise RunFolderError(
                    f"{path}: expected a new or empty folder, got one with files in it; choose "
                    f"another --out, or go on with: fedshield run --resume {path}"
                )
        parent = path.parent
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise RunFolderError(f"{path}: expected a place to write to; choose another --out")

    @classmethod
    def create(cls, path: Path, plan: Plan, state: dict[str, Any]) -> RunFolder:
        cls.check_free(path)
        path = path.resolve()
        part = path.with_name(f".{path.name}.part")
        with interrupt.held():
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            write_atomic(part / "plan.yaml", plan.to_yaml())
            cls(part).write_state(state)
            os.replace(part, path)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Raises `RunFolderError` if there is no run in `path`."""
        for name in ("run.json", "plan.yaml"):
            if not (path / name).is_file():
                raise RunFolderError(
                    f"{path}: expected a run folder, but it has no {name}; give the folder that "
                    "fedshield run printed"
                )
        return cls(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run: a second process on one folder raises `RunFolderError`."""
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunFolderError(
                    f"{self.path}: another process is working on this run; wait for it to end"
                ) from None
            yield

    # -- state and plan --------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        state = self._json("run.json")
        if not isinstance(state, dict) or not {"status", "plan_sha256"} <= state.keys():
            raise RunFolderError(
                f"{self.path / 'run.json'}: expected the state of a run, got something else; "
                f"restore it or {ANEW}"
            )
        return state

    def write_state(self, state: dict[str, Any]) -> None:
        write_atomic(self.path / "run.json", json.dumps(state, indent=1, sort_keys=True) + "\n")

    def plan(self) -> Plan:
        """The plan as run. Raises `RunFolderError` if it was changed since."""
        state = self.state()
        plan, _ = load_plan(self.path / "plan.yaml")
        if plan.sha256() != state.get("plan_sha256"):
            raise RunFolderError(
                f"{self.path / 'plan.yaml'}: expected the plan of this run, got a changed one; "
                f"restore it or {ANEW}"
            )
        return plan.with_base_dir(Path(state.get("base_dir", ".")))

    def _json(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunFolderError(f"{self.path}: expected {name}, found none") from None
        except (OSError, ValueError) as error:
            raise RunFolderError(
                f"{self.path / name}: cannot be read ({error}); restore it or {ANEW}"
            ) from None

    # -- metrics ---------------------------------------------------------------------------

    def metrics(self) -> list[dict[str, Any]]:
        return read_rows(self.path / "metrics.jsonl")

    def append_metrics(self, rows: Sequence[dict[str, Any]]) -> None:
        append_rows(self.path / "metrics.jsonl", rows)

    def rewind_metrics(self, completed_rounds: int) -> list[dict[str, Any]]:
        """Drop rows of later rounds; they will be made again."""
        rows = [row for row in self.metrics() if row["round"] <= completed_rounds]
        write_rows(self.path / "metrics.jsonl", rows)
        return rows

    def write_json(self, name: str, value: Any) -> None:
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomic(self.path / name, text + "\n")

    def read_json(self, name: str) -> Any:
        return self._json(name)

    # -- each site's global adapter ---------------------------------------------------------

    def site_store(self, site: str) -> SiteStore:
        return SiteStore(self.path / "sites" / site)

    def journal_path(self, site: str) -> Path:
        return self.path / "journal" / f"{site}.jsonl"


#: Of a site's folder: what it sends, or sent, in the round that it is in.
CONTRIBUTION = "contribution.safetensors"


class SiteStore:
    """A site's own folder: after each of the last two rounds, its global adapter and what it
    carries to the next; and its contribution to the round that it is in."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, completed_rounds: int, state: AdapterState, memory: SiteMemory) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        target = self._file(completed_rounds)
        metadata = {"sha256": state.sha256(), "spec": state.spec.sha256()}
        tensors = {
            "adapter": np.array(state.values),
            "residual": np.array(memory.residual),
            **{f"shared.{name}": np.array(vector) for name, vector in memory.shared.items()},
            **{f"own.{name}": np.array(vector) for name, vector in memory.own.items()},
        }
        metadata["memory"] = _memory_sha256(memory)
        write_atomic(target, save(tensors, metadata=metadata))
        for old in self.rounds()[:-KEPT_STATES]:
            self._file(old).unlink(missing_ok=True)

    def keep(self, contribution: Contribution) -> None:
        """Keep what is about to leave, for a repetition; for the site's eyes only."""
        self.path.mkdir(parents=True, exist_ok=True)
        tensors = {
            "trained": np.array(contribution.trained),
            "encoded": np.array(contribution.encoded),
        }
        if contribution.residual is not None:
            tensors["residual"] = np.array(contribution.residual)
        facts = {
            "round": contribution.round_number,
            "base": contribution.base,
            "weight": contribution.weight,
            "reserved": list(contribution.reserved),
            "num_clipped": contribution.num_clipped,
            "train_loss": contribution.train_loss,
            "num_examples": contribution.num_examples,
            "clip_factor": contribution.clip_factor,
            "made_of": contribution.made_of,
        }
        digest = hashlib.sha256(b"".join(value.tobytes() for value in tensors.values())).hexdigest()
        metadata = {"facts": json.dumps(facts), "sha256": digest}
        write_atomic(self.path / CONTRIBUTION, save(tensors, metadata=metadata), mode=0o600)

    def kept(self) -> Contribution | None:
        """Raises `RunFolderError` if the file is damaged."""
        path = self.path / CONTRIBUTION
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            names = [key for key in ("trained", "encoded", "residual") if key in tensors]
            digest = hashlib.sha256(b"".join(tensors[name].tobytes() for name in names))
            if digest.hexdigest() != metadata["sha256"]:
                raise ValueError("its digest is another")
            facts = json.loads(metadata["facts"])
            return Contribution(
                facts["round"],
                facts["base"],
                facts["weight"],
                tensors["trained"],
                tensors["encoded"],
                tuple(facts["reserved"]),
                facts["num_clipped"],
                tensors.get("residual"),
                facts["train_loss"],
                facts["num_examples"],
                facts["clip_factor"],
                facts["made_of"],
            )
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError(f"{path}: cannot be read ({error}); restore it") from None

    def rounds(self) -> list[int]:
        """Rounds whose adapter is here, ascending."""
        return sorted(
            int(path.stem.partition("-")[2])
            for path in self.path.glob("round-*.safetensors")
            if re.fullmatch(r"round-\d{6,}", path.stem)
        )

    def load(self, completed_rounds: int, spec: AdapterSpec) -> tuple[AdapterState, SiteMemory]:
        """Raises `RunFolderError` if the file is damaged or made for another adapter."""
        path = self._file(completed_rounds)
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                values = file.get_tensor("adapter")
                residual = file.get_tensor("residual").astype(np.float32)
                parts: dict[str, dict[str, Float32]] = {"shared": {}, "own": {}}
                for key in file.keys():  # noqa: SIM118 - not a dict
                    kind, _, name = key.partition(".")
                    if name:
                        parts[kind][name] = file.get_tensor(key).astype(np.float32)
            state = AdapterState(values.astype(np.float32), spec)
            memory = SiteMemory(residual, parts["shared"], parts["own"])
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise RunFolderError(f"{path}: cannot be read ({error}); restore it") from None
        sizes = {spec.num_values, len(spec.tensors)}
        shapes = (
            memory.residual.size == spec.num_values
            and "clip" in memory.shared
            and memory.clip.size == len(spec.tensors)
            and {vector.size for vector in (*memory.shared.values(), *memory.own.values())} <= sizes
        )
        kept = {"spec": spec.sha256(), "sha256": state.sha256(), "memory": _memory_sha256(memory)}
        if not shapes or any(metadata.get(key) != value for key, value in kept.items()):
            raise RunFolderError(
                f"{path}: expected this run's adapter, got a damaged or foreign one; restore it"
            )
        return state, memory

    def _file(self, completed_rounds: int) -> Path:
        return self.path / f"round-{completed_rounds:06d}.safetensors"


def _memory_sha256(memory: SiteMemory) -> str:
    digest = hashlib.sha256(memory.shared_sha256())
    for name, vector in (("residual", memory.residual), *sorted(memory.own.items())):
        digest.update(name.encode() + b"\0" + vector.size.to_bytes(8, "big"))
        digest.update(vector.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()
