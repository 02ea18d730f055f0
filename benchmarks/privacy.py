"""What attacks find, before and after protection: tokens from updates, membership, canaries; and
what differential privacy takes from attacks and from the model, over several epsilons.

    python benchmarks/privacy.py tokens --data SILOS [--only a,b] [--set KEY=VALUE ...] [--label L]
    python benchmarks/privacy.py release --data SILOS [--only a,b] [--set KEY=VALUE ...] [--label L]
    python benchmarks/privacy.py epsilon --data SILOS [--only a,b]
    python benchmarks/privacy.py report [--out FILE]

SILOS holds finance, maths and medical as NAME.train.jsonl.gz and NAME.test.jsonl.gz. Settings are
in privacy.yaml; `--set` overrides keys of every plan (differential privacy, say), and `--label`
names what was changed in the table. The model of `epsilon` is trained by tiny_base.py when first
needed. One JSON line for each number; a variant that is in the file
already is not run again. `report` writes the tables from the lines alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from accuracy_vs_bytes import SILOS, TINY_BASE, nested, tiny_base
from fedshield.audit import after_release, on_updates, replay
from fedshield.audit.attacks import openings
from fedshield.audit.attacks.membership import row_losses
from fedshield.audit.effort import Effort
from fedshield.audit.stats import Measure, mean_measure
from fedshield.plan.load import parse_plan
from fedshield.plan.schema import Plan

HERE = Path(__file__).parent
RESULTS = HERE.parent / "docs" / "results"
LINES = RESULTS / "privacy.jsonl"


def plan_of(
    study: dict[str, Any], changes: dict[str, Any], sets: dict[str, Any], data: Path
) -> Plan:
    flat = study["plan"] | changes | sets
    rows, only = flat.pop("rows", 200), flat.pop("only", None)
    flat["data.sites"] = {
        silo: {
            "source": str(data / f"{silo}.train.jsonl.gz"),
            "heldout_source": str(data / f"{silo}.test.jsonl.gz"),
            "rows": rows,
        }
        for silo in ([only] if only else SILOS)
    }
    if flat["model.name"] == f"./{TINY_BASE}":
        tiny_base()
    return parse_plan(nested(flat), base_dir=HERE)


def lines() -> list[dict[str, Any]]:
    if not LINES.exists():
        return []
    return [json.loads(line) for line in LINES.read_text().splitlines() if line.strip()]


def keep(line: dict[str, Any]) -> None:
    LINES.parent.mkdir(parents=True, exist_ok=True)
    with LINES.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, sort_keys=True) + "\n")
    print(json.dumps(line), flush=True)


def tokens(plan: Plan) -> Iterator[dict[str, Any]]:
    """Token recovery by round and party: who opens what under the plan's scheme."""
    scene = replay.prepare(plan, _say)
    recording = replay.record(plan, scene, say=_say)
    attacker = on_updates.Attacker(plan, scene, ["tokens"], {})
    start = scene.start(plan)
    seen = {"server": openings.by_server(recording.server, plan, start).seen}
    names = plan.data.site_names()
    if len(names) > 1:
        seen["one site alone"] = openings.of_the_others((recording.sites[names[0]],), plan)
    if plan.scheme.name != "plain":
        coalition = recording.coalition(names[:1])
        opening = openings.by_coalition(coalition, plan, recording.roster)
        seen["server with 1 site"] = opening.seen or openings.left_closed(coalition, start)
    for party, updates in seen.items():
        for number in sorted({one.round_number for one in updates}):
            mine = [one for one in updates if one.round_number == number]
            reads = [attacker.read(one, recording) for one in mine]
            drawn = attacker.by_chance(mine, recording)
            different = sum(read.present for read in reads) / len(reads)
            for what, measure in on_updates.summed_up(reads, drawn):
                yield {
                    "party": party,
                    "round": number,
                    "what": what,
                    "different_tokens": different,
                    "vocabulary": reads[0].vocabulary,
                    "measure": asdict(measure),
                }


def release(plan: Plan) -> Iterator[dict[str, Any]]:
    """Membership and canaries of the released adapter, and what it is worth: the mean over all
    sites' held-out rows of a row's negative log-likelihood per response token."""
    scene = replay.prepare(plan, _say)
    effort = Effort(references=255, canaries=4, repeats=(0, 1, 16))
    recording = replay.record(after_release.in_the_clear(plan), scene, say=_say)
    state = recording.released.state
    heldout = [row for data in scene.data.values() for row in data.heldout]
    for name, adapter in (("before", scene.start(plan)), ("after", state)):
        losses = row_losses(scene.base, scene.host, adapter, heldout)
        measure = mean_measure([one.mean for one in losses])
        yield {"party": "any", "what": f"held-out loss {name}", "measure": asdict(measure)}
    skipped: dict[str, str] = {}
    found = after_release.membership(plan, scene, effort, state, None, skipped, _say)
    found += after_release.canaries(plan, scene, effort, skipped, _say)
    for name, why in skipped.items():
        _say(f"not measured: {name}: {why}")
    for one in found:
        yield {"party": one.party, "what": one.what, "measure": asdict(one.measure)}


def run(study_name: str, arguments: argparse.Namespace) -> None:
    study = yaml.safe_load((HERE / "privacy.yaml").read_text())[study_name]
    sets = {
        key: yaml.safe_load(value)
        for key, _, value in (one.partition("=") for one in arguments.set)
    }
    chosen = arguments.only.split(",") if arguments.only else list(study["variants"])
    for variant in chosen:
        key = {"study": study_name, "variant": variant, "label": arguments.label}
        if any(all(line[name] == value for name, value in key.items()) for line in lines()):
            continue
        plan = plan_of(study, study["variants"][variant], sets, arguments.data)
        started = time.perf_counter()
        made = list((tokens if study_name == "tokens" else release)(plan))
        setting = {
            "optimizer": plan.training.optimizer,
            "batch_size": plan.training.batch_size,
            "steps": plan.training.steps,
            "rank": plan.adapter.rank,
            "targets": list(plan.adapter.targets),
            "train": plan.adapter.train,
            "dropout": plan.adapter.dropout,
            "scheme": plan.scheme.name,
            "pruning": plan.pruning.method,
            "model": plan.model.name,
            "max_length": plan.training.max_length,
            "epsilon": plan.privacy.epsilon,
            "changes": study["variants"][variant] | sets,
            "wall_s": round(time.perf_counter() - started, 1),
        }
        for line in made:
            keep(key | setting | line)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# -- report ------------------------------------------------------------------------------------


def shown(measure: dict[str, Any]) -> str:
    found = Measure(**measure)
    text = f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
    return text if found.chance is None else f"{text} ({found.chance:.2g})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    every = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in every) + "\n"


def report(out: Path) -> None:
    found = lines()
    text = ["# What attacks find", ""]
    text += [
        "Made by `python benchmarks/privacy.py report` from privacy.jsonl. Values with 95 %",
        "intervals; in brackets after them, what chance gives. Attacks, parties and limits:",
        "[docs/audit.md](../audit.md).",
        # Until they are measured anew.
        "The rows were measured by 2026-11-26 and not since: before counts were cut to what",
        "`data.min_examples` allows, and before order of rows, dropout and rounding were",
        "derived as they are today.",
        "",
        "## Tokens of the training text, from one update",
        "",
    ]
    rows: list[list[str]] = []
    done: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for line in found:
        if line["study"] == "tokens":
            key = (line["variant"], line["label"], line["party"], line["round"])
            done.setdefault(key, {})[line["what"]] = line
    for (variant, label, party, number), parts in done.items():
        one = next(iter(parts.values()))
        values = list(parts.values())
        targets = "" if one["targets"] == ["q_proj", "v_proj"] else f", {', '.join(one['targets'])}"
        train = "" if one["train"] == "ab" else f", {one['train']}"
        dropout = f", dropout {one['dropout']}" if one["dropout"] else ""
        rows.append(
            [
                f"{variant}{f' ({label})' if label else ''}",
                one["scheme"] + (" pruned" if one["pruning"] != "none" else ""),
                party,
                f"{one['optimizer']}, {one['steps']} x {one['batch_size']}",
                f"{one['rank']}{targets}{train}{dropout}",
                str(number),
                f"{one['different_tokens']:.0f}",
                *(shown(line["measure"]) for line in values),
            ]
        )
    head = ["variant", "scheme", "party", "steps x batch", "rank", "round", "different tokens"]
    head += ["named", "AUC", "ROUGE-1", "ROUGE-2", "word for word", "whole"]
    text += [table(head, rows), "## The released adapter", ""]
    released = [line for line in found if line["study"] == "release"]
    text.append(
        table(
            ["variant", "model", "what", "value"],
            [
                [
                    line["variant"] + (f" ({line['label']})" if line["label"] else ""),
                    line["model"],
                    line["what"],
                    shown(line["measure"]),
                ]
                for line in released
            ],
        )
    )
    text += by_epsilon([line for line in found if line["study"] == "epsilon"])
    out.write_text("\n".join(text), encoding="utf-8")
    print(out)


#: Columns of the table by epsilon: what a line measures, and its heading.
BY_EPSILON = {
    "held-out loss after": "held-out loss",
    "AUC, loss": "membership AUC, loss",
    "AUC, shadow": "membership AUC, shadow",
    "exposure, secrets 1 times in a site's rows": "exposure, seen once",
    "exposure, secrets 16 times in a site's rows": "exposure, seen 16 times",
    "extracted, secrets 16 times in a site's rows": "extracted, seen 16 times",
}


def by_epsilon(found: Sequence[dict[str, Any]]) -> list[str]:
    """The part of the report on differential privacy, and its figure."""
    groups: dict[float, dict[str, dict[str, Any]]] = {}
    for line in found:
        epsilon = float("inf") if line["epsilon"] is None else line["epsilon"]
        groups.setdefault(epsilon, {})[line["what"]] = line["measure"]
    if not groups:
        return []
    ordered = sorted(groups, reverse=True)
    before = next(iter(groups.values()))["held-out loss before"]
    rows = [
        ["none" if epsilon == float("inf") else f"{epsilon:g}"]
        + [shown(groups[epsilon][what]) for what in BY_EPSILON]
        for epsilon in ordered
    ]
    draw({epsilon: groups[epsilon] for epsilon in ordered}, RESULTS / "privacy_epsilon.svg")
    return [
        "## What differential privacy takes from attacks, and from the model",
        "",
        f"Each training row protected (`privacy.unit: example`), delta {1e-3:g}, one seed, one",
        f"clip norm; held-out loss before training {shown(before)}.",
        "",
        table(["epsilon", *BY_EPSILON.values()], rows),
        "![by epsilon](privacy_epsilon.svg)",
        "",
    ]


def draw(groups: dict[float, dict[str, dict[str, Any]]], target: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "fedshield"
    drawn, places = pyplot.subplots(1, 3, figsize=(11, 3.6))
    chosen = ("AUC, shadow", "exposure, secrets 16 times in a site's rows", "held-out loss after")
    titles = ("membership AUC (shadow)", "exposure, bits (secret seen 16 times)", "held-out loss")
    names = ["none" if epsilon == float("inf") else f"{epsilon:g}" for epsilon in groups]
    for axes, what, title in zip(places, chosen, titles, strict=True):
        measures = [found[what] for found in groups.values()]
        values = [one["value"] for one in measures]
        error = [
            [one["value"] - one["low"] for one in measures],
            [one["high"] - one["value"] for one in measures],
        ]
        axes.errorbar(names, values, yerr=error, fmt="o-", capsize=3)
        if measures[0]["chance"] is not None:
            axes.axhline(measures[0]["chance"], linestyle=":", color="grey", linewidth=1)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epsilon")
    drawn.tight_layout()
    drawn.savefig(target, metadata={"Date": None})
    pyplot.close(drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("tokens", "release", "epsilon"):
        command = commands.add_parser(name)
        command.add_argument("--data", type=lambda text: Path(text).resolve(), required=True)
        command.add_argument("--only", default="")
        command.add_argument("--label", default="")
        command.add_argument("--set", action="append", default=[])
    writing = commands.add_parser("report")
    writing.add_argument("--out", type=Path, default=RESULTS / "privacy.md")
    arguments = parser.parse_args()
    if arguments.command == "report":
        report(arguments.out)
    else:
        run(arguments.command, arguments)


if __name__ == "__main__":
    main()
