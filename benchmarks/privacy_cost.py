"""What each epsilon costs in held-out loss, on the built-in samples.

    python benchmarks/privacy_cost.py run [--model tiny-llama] [--units example,site] [--sites 3]
                                          [--epsilons 2,8,30] [--rates 5e-3,2e-2] [--clips 0.1,0.5]
                                          [--set training.steps=4 ...]
    python benchmarks/privacy_cost.py report

Every epsilon gets the same small grid of learning rates and clip norms, and its best counts: the
search itself looks at held-out rows and is not in epsilon, alike for all. `none` is the same run
without a unit. One JSON line for each run, in docs/results/privacy_cost.jsonl; a run that is in the
file already is not repeated. `report` prints the table from the lines alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedshield.errors import PlanError
from fedshield.plan.load import load_plan
from fedshield.plan.schema import Plan
from fedshield.run import local

HERE = Path(__file__).parent
LINES = HERE.parent / "docs" / "results" / "privacy_cost.jsonl"
SILOS = ("finance", "maths", "medical")
#: What makes a run another one.
KEYS = ("model", "unit", "sites", "epsilon", "rate", "clip", "more")
BASE = """
name: privacy-cost
seed: 1
rounds: 4
model: {name: MODEL}
adapter: {rank: 8, alpha: 32, dropout: 0.0, targets: all-linear, train: core}
pruning: {method: none}
training: {steps: 8, batch_size: 8, max_length: 192, lr_schedule: constant, precision: fp32}
scheme: {weights: equal}
encoding: {headroom: true}
data: DATA
"""


def data_of(sites: int) -> str:
    """Each silo at a site, or all dealt out to more sites."""
    if sites == len(SILOS):
        each = ", ".join(f'{silo}: {{source: "sample:{silo}", rows: 200}}' for silo in SILOS)
        return f"{{heldout_rows: 24, sites: {{{each}}}}}"
    pool = ", ".join(f'{{source: "sample:{silo}", rows: 200}}' for silo in SILOS)
    return f"{{split: iid, num_sites: {sites}, heldout_rows: 8, pool: [{pool}]}}"


def plan_of(one: dict[str, Any], folder: Path) -> Plan:
    path = folder / "plan.yaml"
    text = BASE.replace("MODEL", one["model"]).replace("DATA", data_of(one["sites"]))
    path.write_text(text)
    sets = [f"training.{key}={one['rate']}" for key in ("learning_rate", "min_learning_rate")]
    if one["epsilon"] is not None:
        keys = {"unit": one["unit"], "epsilon": one["epsilon"], "clip_norm": one["clip"]}
        sets += [f"privacy.{key}={value}" for key, value in keys.items()]
    return load_plan(path, [*sets, *one["more"]])[0]


def wanted(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    rates, clips = options.rates.split(","), options.clips.split(",")
    common = {"model": options.model, "sites": options.sites, "more": options.set}
    for rate in rates:
        yield {**common, "unit": "none", "epsilon": None, "rate": float(rate), "clip": None}
    grid = itertools.product(options.units.split(","), options.epsilons.split(","), rates, clips)
    for unit, epsilon, rate, clip in grid:
        yield {**common, "unit": unit, "epsilon": float(epsilon), "rate": float(rate),
               "clip": float(clip)}  # fmt: skip


def lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in LINES.read_text().splitlines()] if LINES.exists() else []


def run(options: argparse.Namespace) -> None:
    done = {json.dumps([line[key] for key in KEYS]) for line in lines()}
    for one in wanted(options):
        if json.dumps([one[key] for key in KEYS]) in done:
            continue
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            try:
                plan = plan_of(one, Path(folder))
                local.run(plan, Path(folder) / "run")
            except PlanError as error:
                print(f"left out: {one}: {error}")
                continue
            summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
        spent = summary["privacy"] or {}
        found = one | {
            "initial": summary["initial_heldout_loss"]["mean"],
            "final": summary["final_heldout_loss"]["mean"],
            "spent": spent.get("epsilon"),
            "noise_multiplier": spent.get("noise_multiplier"),
            "values": summary["trainable_values"],
            "rounds": summary["rounds"],
            "wall_s": round(time.perf_counter() - started, 1),
        }
        with LINES.open("a") as file:
            file.write(json.dumps(found) + "\n")
        print(json.dumps(found), flush=True)


def report() -> None:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines():
        group = (line["model"], line["sites"], line["unit"], line["epsilon"] or float("inf"))
        groups.setdefault(group, []).append(line)
    print("| model | sites | unit | epsilon | held-out loss before | after | at rate, clip |")
    print("|---|---|---|---|---|---|---|")
    for (model, sites, unit, epsilon), found in sorted(groups.items(), key=lambda one: one[0]):
        best = min(found, key=lambda line: line["final"])
        spent = "none" if epsilon == float("inf") else f"{epsilon:g}"
        clip = "" if best["clip"] is None else f", {best['clip']:g}"
        print(
            f"| {model} | {sites} | {unit} | {spent} | {best['initial']:.3f} | "
            f"{best['final']:.3f} | {best['rate']:g}{clip} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("--model", default="tiny-llama")
    parser.add_argument("--units", default="example,site")
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--epsilons", default="2,8,30")
    parser.add_argument("--rates", default="5e-3,2e-2")
    parser.add_argument("--clips", default="0.1,0.5")
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    run(options) if options.what == "run" else report()


if __name__ == "__main__":
    main()
