"""What of a machine itself can stop a run, or spoil it: packages, clock, disk, memory."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

from fedshield.checks import Finding, State
from fedshield.cost import estimate, machine
from fedshield.cost.estimate import refused_memory, spec_of
from fedshield.cost.inputs import length_problem
from fedshield.enrolment import Policy
from fedshield.errors import FedShieldError, UserError
from fedshield.ledger.file import LedgerError
from fedshield.ledger.inspection import inspected, runs_kept
from fedshield.plan.schema import Plan

#: Seconds that a clock may be off: with a word, and at all.
CLOCK_WARN_S, CLOCK_FAIL_S = 30.0, 300.0
#: Bytes to leave free beside what a run writes.
DISK_MARGIN_BYTES = 1 << 30
#: float32 vectors of a site's kept states: adapter, residual, scores, moments, own parts; 3 states.
KEPT_VECTORS = 3 * 8


def refusal(check: str, expected: str, error: Exception) -> Finding:
    """What another part said in one line: it names what to do itself."""
    return Finding(check, "FAILED", expected, " ".join(str(error).split()))


def ledger(policy: Policy, kit: Path) -> Finding:
    """The ledger of the site's records, where its policy says. `kit`: the folder of the policy."""
    expected = "a whole ledger, or none before the first approval"
    try:
        found = inspected(policy.ledger_place(), runs_kept(kit))
    except LedgerError as error:
        return refusal("ledger", expected, error)
    return Finding("ledger", "ok", expected, found)


def packages() -> Iterator[Finding]:
    """Python and every package that FedShield asks for, in the ranges that it asks for."""
    about = importlib.metadata.metadata("fedshield")
    wanted, here = about["Requires-Python"] or ">=3.11", platform.python_version()
    fits = here in SpecifierSet(wanted)
    yield Finding(
        "python", "ok" if fits else "FAILED", wanted, here, "" if fits else "install another Python"
    )
    wrong: list[Finding] = []
    count = 0
    for text in importlib.metadata.requires("fedshield") or ():
        found = _package(text)
        if found is not None:
            count += 1
            wrong += [found] if found.state != "ok" else []
    yield from wrong
    if not wrong:
        yield Finding("packages", "ok", "known versions", f"{count} packages in their ranges")


def _package(text: str) -> Finding | None:
    """None for a package of an extra that is not installed."""
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return None
    optional = requirement.marker is not None and "extra" in str(requirement.marker)
    if requirement.marker is not None and not optional and not requirement.marker.evaluate():
        return None
    name, wanted = requirement.name, str(requirement.specifier) or "any version"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if optional:
            return None
        return Finding(f"package {name}", "FAILED", wanted, "none", f"pip install '{name}{wanted}'")
    if requirement.specifier.contains(version, prereleases=True):
        return Finding(f"package {name}", "ok", wanted, version)
    return Finding(f"package {name}", "FAILED", wanted, version, f"pip install '{name}{wanted}'")


def clock(now: datetime.datetime, right: str | None) -> Iterator[Finding]:
    """Against a time that is given, else against what cannot be: before the installation."""
    if right is not None:
        yield _clock_against(now, right)
        return
    installed = datetime.datetime.fromtimestamp(Path(__file__).stat().st_mtime, tz=datetime.UTC)
    early = now < installed
    yield Finding(
        "clock",
        "FAILED" if early else "ok",
        f"after {installed:%Y-%m-%d %H:%M} UTC (FedShield's files; --time compares exactly)",
        f"{now:%Y-%m-%d %H:%M} UTC",
        "set the clock, or synchronise it (NTP)" if early else "",
    )


def _clock_against(now: datetime.datetime, right: str) -> Finding:
    path = Path(right)
    try:
        text = path.read_text(encoding="utf-8").strip() if path.is_file() else right
        given = datetime.datetime.fromisoformat(text)
    except (OSError, ValueError):
        raise UserError(
            f"--time: expected a time such as 2026-03-01T12:00:00+00:00, or a file with one, got "
            f"{right[:60]!r}"
        ) from None
    if given.tzinfo is None:
        given = given.replace(tzinfo=datetime.UTC)
    off = (now - given).total_seconds()
    state: State = "ok" if abs(off) <= CLOCK_WARN_S else "warning"
    state = "FAILED" if abs(off) > CLOCK_FAIL_S else state
    todo = "" if state == "ok" else "set the clock, or synchronise it (NTP)"
    return Finding("clock", state, f"within {CLOCK_WARN_S:.0f} s", f"{off:+.0f} s off", todo)


def disk(out: Path, plan: Plan | None) -> Finding:
    """Room for a site's kept adapters, and a margin."""
    need = DISK_MARGIN_BYTES
    if plan is not None:
        # A plan without a cost is told of by `memory`.
        with contextlib.suppress(FedShieldError):
            need += estimate(plan).trainable_values * 4 * KEPT_VECTORS
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        return Finding(
            "disk", "FAILED", "a folder to write to", str(folder), "choose another --out"
        )
    enough = free >= need
    return Finding(
        "disk",
        "ok" if enough else "FAILED",
        f"{need / 1e9:.1f} GB free in {folder}",
        f"{free / 1e9:.1f} GB",
        "" if enough else "free some, or choose another --out",
    )


def memory(plan: Plan) -> Finding:
    """The plan's need, as if all sites ran here, against what this machine gives: what a run would
    refuse has failed, what is only free with luck is a warning."""
    try:
        cost = estimate(plan)
        refused = refused_memory(plan)
        shape, _ = spec_of(plan)
    except FedShieldError as error:
        return refusal("memory", "a plan whose cost is known", error)
    need = cost.peak_memory_bytes
    assumed = f"; assumed: {', '.join(shape.assumed)}" if shape.assumed else ""
    expected = f"at most {need / 1e9:.1f} GB (as if all sites ran here{assumed})"
    available = machine.device_memory(cost.device) or machine.memory()
    if available is None:
        return Finding("memory", "warning", expected, "unknown", "look yourself")
    given = f"{available.free / 1e9:.1f} GB free of {available.total / 1e9:.1f} GB"
    if refused is not None:
        return Finding("memory", "FAILED", expected, given, refused)
    if need > available.free:
        return Finding("memory", "warning", expected, given, "end other programs")
    return Finding("memory", "ok", expected, given)


def context(plan: Plan) -> Iterator[Finding]:
    """Whether the model reads rows as long as the plan's; nothing of a model whose sizes are not
    known, which `memory` tells of."""
    name, longest = plan.model.name, plan.training.max_length
    try:
        shape, _ = spec_of(plan)
    except FedShieldError:
        return
    expected = f"at most what {name} reads"
    given = f"{longest} tokens"
    if length_problem(plan, shape) is not None:
        reads = f"{expected}, {shape.max_positions}"
        yield Finding("max_length", "FAILED", reads, given, "lower training.max_length")
    else:
        yield Finding("max_length", "ok", expected, given)
