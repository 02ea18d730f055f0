"""What every engine writes into run.json: how a run begins, and how each session of it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fedshield import interrupt
from fedshield.data.sites import SiteData
from fedshield.errors import RunFolderError
from fedshield.model.adapter import AdapterHost
from fedshield.model.base import BaseModel
from fedshield.model.chat import date_in
from fedshield.plan.effect import without_effect
from fedshield.plan.schema import Plan
from fedshield.run.folder import RunFolder, now
from fedshield.run.prepare import run_notes


def first_state(
    plan: Plan,
    base: BaseModel,
    data: Mapping[str, SiteData],
    host: AdapterHost,
    charter: str,
    parties: str,
) -> dict[str, Any]:
    """What a resumed run is checked against, and the counters. `charter`: the roster's, hex;
    `parties`: `demonstration` or `enrolled`, for whoever reads the results."""
    return {
        "status": "interrupted",
        "reason": "stopped before its first session",  # until that begins
        "plan_sha256": plan.sha256(),
        "base_dir": str(plan.base_dir),
        "base_model_sha256": base.sha256,
        "factors_sha256": host.factors_sha256,
        "data_sha256": {site: found.sha256() for site, found in data.items()},
        "precision": base.precision,
        "notes": [*without_effect(plan), *run_notes(base, data, host)],
        "device": base.device,
        "chat_date": None if (date := date_in(base.tokenizer)) is None else date.isoformat(),
        "charter": charter,
        "parties": parties,
        "started": now(),
        "sessions": 0,
        "sessions_log": [],
        "wall_s": 0.0,
        "setup_upload_bytes": 0,
        "setup_download_bytes": 0,
    }


def unfinished(folder: RunFolder) -> dict[str, Any]:
    """The state of a run that can be gone on with. Raises `RunFolderError` if it is over."""
    state = folder.state()
    if state["status"] == "finished":
        raise RunFolderError(f"{folder.path}: this run is finished; there is nothing to go on with")
    return state


def check_charter(folder: RunFolder, state: Mapping[str, Any], charter: str) -> None:
    """Raises `RunFolderError` for another roster than the run began with."""
    if state["charter"] != charter:
        raise RunFolderError(
            f"{folder.path}: expected the roster that the run began with, got another; give the "
            "same --roster and --keys, or none where it had none"
        )


@contextmanager
def session(folder: RunFolder) -> Iterator[tuple[dict[str, Any], Callable[[], float]]]:
    """One session of a run: its state, to be filled, and the seconds of all sessions so far.
    However it ends, run.json says how: finished, interrupted, or failed and why. Signals are held:
    the body lets them through where it may be stopped (`interrupt.at_once`)."""
    started = time.perf_counter()
    state = folder.state()
    before_s = float(state["wall_s"])
    state |= {"status": "running", "sessions": int(state["sessions"]) + 1}
    for ended in ("reason", "ended_early"):
        state.pop(ended, None)
    begin_session(state)

    def elapsed() -> float:
        return before_s + time.perf_counter() - started

    with interrupt.held():
        try:
            folder.write_state(state)
            yield state, elapsed
            interrupt.check()
            state["status"] = "finished"
        except BaseException as error:
            state["status"], state["reason"] = ending(error)
            raise
        finally:
            state["wall_s"] = elapsed()
            end_session(state)
            folder.write_state(state)


def ending(error: BaseException) -> tuple[str, str]:
    """Status and reason of a session that `error` ended."""
    # GeneratorExit: a Ctrl-C that came before the first line of the session's body.
    if isinstance(error, KeyboardInterrupt | GeneratorExit):
        return "interrupted", interrupt.words(interrupt.asked())
    if interrupt.asked() is not None:  # what a library made of the interruption
        return "interrupted", f"{interrupt.words(interrupt.asked())} ({str(error)[:400]})"
    return "failed", str(error)[:500]


def begin_session(state: dict[str, Any]) -> None:
    """When it began. Its end stays empty if it is killed: nobody is left to write it."""
    log = state.setdefault("sessions_log", [])
    log.append({"started": now(), "ended": "", "how": "", "reason": ""})


def end_session(state: dict[str, Any]) -> None:
    """When the last session ended, and how."""
    how = {"ended": now(), "how": state["status"], "reason": state.get("reason", "")}
    state["sessions_log"][-1] |= how
