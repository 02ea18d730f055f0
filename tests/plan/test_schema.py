"""The plan: the paper's defaults, rules between keys, schedules, and the hash that binds a run."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from fedshield.errors import PlanError
from fedshield.plan.load import load_plan, parse_plan
from fedshield.plan.quorum import Rules, resolve
from fedshield.plan.schema import Plan, learning_rate
from fedshield.update import prune

EXAMPLES = Path(__file__).parents[2] / "examples"
HERE = Path(__file__).parent
UNBOUND = ("speed", "output")

SITES = {
    "a": {"source": "sample:medical"},
    "b": {"source": "sample:finance"},
    "c": {"source": "sample:maths"},
}
BY_SITE: dict[str, Any] = {"rounds": 200, "data": {"sites": SITES}}
POOLED: dict[str, Any] = {
    "data": {
        "split": "dirichlet",
        "num_sites": 3,
        "dirichlet_column": "domain",
        "pool": [{"source": "sample:medical"}, {"source": "sample:finance"}],
    }
}

PINNED_TEXT = """
name: pinned
seed: 7
rounds: 4
model: {name: tiny-llama}
adapter: {rank: 4, alpha: 16, targets: [q_proj, v_proj]}
data:
  heldout_rows: 24
  sites:
    hospital: {source: "sample:medical", rows: 200}
    bank: {source: "sample:finance", columns: {prompt: term}}
training: {steps: 8, learning_rate: 0.02, min_learning_rate: 0.002}
scheme: {name: ckks, parameters: lean}
"""
PINNED_SHA256 = "c9f2b4a56f97d1948ae3e4cb1828bef14cbb67b6b84d21f2448cfa508b014e49"


def parsed(raw: dict[str, Any]) -> Plan:
    return parse_plan(raw, base_dir=HERE)


def refused(raw: dict[str, Any]) -> str:
    with pytest.raises(PlanError) as caught:
        parsed(raw)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def changed(raw: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """A copy of `raw` with `value` at `path`."""
    copy: dict[str, Any] = json.loads(json.dumps(raw))
    target: Any = copy
    for part in path[:-1]:
        target = target.setdefault(part, {}) if isinstance(target, dict) else target[part]
    target[path[-1]] = value
    return copy


def test_local_masks_are_refused_where_only_a_sum_hides_a_site() -> None:
    """Rule R9: membership would differ by coordinate and round."""
    sites = {name: {"source": "sample:finance"} for name in ("a", "b", "c")}
    raw = {"data": {"sites": sites}, "pruning": {"mask": "local"}, "scheme": {"name": "rlwe"}}
    assert "pruning.mask: expected shared with scheme rlwe" in refused(raw)
    unit = {"unit": "example", "clip_norm": 1.0, "noise_multiplier": 1.0}
    others: list[dict[str, Any]] = [
        {"scheme": {"name": "ckks"}},
        {"privacy": unit, "adapter": {"dropout": 0.0}},
        {"pruning": {"mask": "local", "method": "none"}},
    ]
    for other in others:
        parsed(raw | other)


# -- the paper's setting -------------------------------------------------------------------


def test_the_defaults_of_method_are_the_papers() -> None:
    """Rank, schedules and pruning; what is exchanged and how it is protected are this project's."""
    plan = parsed(BY_SITE)
    assert plan.rounds == parsed({"data": BY_SITE["data"]}).rounds == 200
    adapter, training, pruning = plan.adapter, plan.training, plan.pruning
    assert (adapter.rank, adapter.alpha, adapter.dropout) == (32, 64.0, 0.05)
    assert adapter.targets == ("q_proj", "v_proj")
    assert (adapter.train, adapter.factors, adapter.exchange) == ("ab", "svd", "delta")
    assert (training.steps, training.batch_size, training.max_length) == (10, 16, 512)
    assert (training.learning_rate, training.min_learning_rate) == (5e-5, 1e-6)
    assert (training.lr_schedule, training.optimizer) == ("cosine", "adamw")
    assert (pruning.method, pruning.initial_rate, pruning.target_rate) == ("magnitude", 0.2, 0.5)
    assert (pruning.mask, pruning.ranking, pruning.explore) == ("shared", "tensor", 0.1)
    assert training.local_algorithm == "plain"
    assert (plan.aggregation.optimizer, plan.aggregation.learning_rate) == ("fedavg", 1.0)
    assert prune.ramp_rounds(pruning, plan.rounds) == (40, 200)
    assert (plan.scheme.name, plan.scheme.weights) == ("rlwe", "private")
    assert (plan.scheme.server, plan.scheme.open_to) == ("malicious", "peers")
    encoding = plan.encoding
    assert (encoding.bits, encoding.headroom, encoding.error_feedback) == (16, False, True)
    assert plan.rules() == resolve(3)


def test_the_paper_example_says_what_the_paper_has_and_the_defaults_have_not() -> None:
    paper, _ = load_plan(EXAMPLES / "paper.yaml")
    default = parsed(BY_SITE)
    assert paper.adapter == default.adapter.model_copy(update={"exchange": "parameters"})
    assert (paper.scheme.name, paper.scheme.weights) == ("ckks", "equal")
    assert paper.rounds == default.rounds
    assert paper.training.model_copy(update={"gradient_checkpointing": False}) == default.training
    ramps = [prune.ramp_rounds(plan.pruning, plan.rounds) for plan in (paper, default)]
    assert ramps[0] == ramps[1]
    assert (paper.pruning.initial_rate, paper.pruning.target_rate) == (0.2, 0.5)
    assert paper.pruning.mask == "local"
    assert paper.aggregation == default.aggregation
    assert paper.scheme.parameter_set == "paper"
    assert paper.model.quantization == "8bit"
    assert len(paper.data.site_names()) == 3


def test_the_pruning_ramp_of_two_hundred_rounds() -> None:
    plan = parsed(BY_SITE)
    numbers = (1, 39, 40, 120, 200)
    rates = {number: prune.rate_at(plan.pruning, plan.rounds, number) for number in numbers}
    assert rates == pytest.approx({1: 0.0, 39: 0.0, 40: 0.2, 120: 0.35, 200: 0.5})


def test_the_learning_rate_falls_along_half_a_cosine() -> None:
    plan = parsed(BY_SITE)
    rates = [learning_rate(plan.training, plan.rounds, number) for number in range(1, 201)]
    assert rates[0] == pytest.approx(5e-5)
    assert rates[100] == pytest.approx((5e-5 + 1e-6) / 2)
    assert rates == sorted(rates, reverse=True)
    assert 1e-6 <= rates[-1] < 1.02e-6
    quarter = 1e-6 + 4.9e-5 * 0.5 * (1 + math.cos(math.pi / 4))
    assert rates[50] == pytest.approx(quarter)


def test_a_constant_learning_rate() -> None:
    plan = parsed({**BY_SITE, "training": {"lr_schedule": "constant", "learning_rate": 0.01}})
    rates = {learning_rate(plan.training, plan.rounds, number) for number in (1, 100, 200)}
    assert rates == {0.01}


@pytest.mark.parametrize(
    ("training", "exchange"),
    [({"optimizer": "adamw"}, "delta"), ({"optimizer": "sgd"}, "parameters")],
)
def test_scaffold_needs_gradients_and_differences(training: dict[str, Any], exchange: str) -> None:
    scaffold = {**BY_SITE, "training": {"local_algorithm": "scaffold", **training}}
    said = refused({**scaffold, "adapter": {"exchange": exchange}})
    assert said.startswith("training.local_algorithm: expected optimizer sgd and exchange delta")
    assert "got scaffold" in said
    good = {"local_algorithm": "scaffold", "optimizer": "sgd"}
    assert parsed({**BY_SITE, "training": good}).training.local_algorithm == "scaffold"


def test_scaffold_needs_to_know_who_is_in_a_sum() -> None:
    """With membership open its shared control variate would move by the mean of who is there, and
    not by their share of all sites (Karimireddy et al., ICML 2020, Algorithm 1)."""
    training = {"local_algorithm": "scaffold", "optimizer": "sgd"}
    privacy = {"unit": "example", "epsilon": 8.0, "clip_norm": 1.0}
    opened = {"scheme": {"membership": "open"}, "privacy": privacy}
    said = refused({**BY_SITE, "training": training, **opened})
    assert said.startswith("training.local_algorithm: expected plain or fedprox with membership")


# -- the hash ------------------------------------------------------------------------------


def test_the_hash_of_a_known_plan() -> None:
    """If this fails, the hash of every plan has changed: say so in the CHANGELOG."""
    assert parsed(yaml.safe_load(PINNED_TEXT)).sha256() == PINNED_SHA256


def test_the_hash_knows_no_key_order_and_no_yaml_style(tmp_path: Path) -> None:
    def shuffled(value: Any, order: random.Random) -> Any:
        if not isinstance(value, dict):
            return [shuffled(item, order) for item in value] if isinstance(value, list) else value
        keys = list(value)
        order.shuffle(keys)
        return {key: shuffled(value[key], order) for key in keys}

    full = yaml.safe_load(PINNED_TEXT)
    file = tmp_path / "plan.yaml"
    hashes = set()
    for seed in range(5):
        mixed = shuffled(full, random.Random(seed))
        for flow in (True, False, None):
            file.write_text("# a comment\n" + yaml.safe_dump(mixed, default_flow_style=flow))
            hashes.add(load_plan(file)[0].sha256())
    file.write_text(json.dumps(full, indent=3))
    hashes.add(load_plan(file)[0].sha256())
    file.write_text(PINNED_TEXT.replace("0.02", "2e-2").replace("alpha: 16", "alpha: 16.0"))
    hashes.add(load_plan(file)[0].sha256())
    assert hashes == {PINNED_SHA256}


def test_a_default_written_out_is_the_same_plan() -> None:
    plan = parsed(BY_SITE)
    assert parsed(plan.model_dump(mode="json")).sha256() == plan.sha256()
    assert parsed(changed(BY_SITE, ("adapter", "rank"), 32)).sha256() == plan.sha256()


def test_the_hash_does_not_depend_on_where_the_file_lies() -> None:
    plan = parsed(BY_SITE)
    assert plan.with_base_dir(Path("/elsewhere")).sha256() == plan.sha256()


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Paths of everything in a dumped plan that is not a mapping or a list of mappings."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))
    else:
        yield path


def fields(model: type[BaseModel], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Dotted name -> annotation of every plain field; a site or a list's place is '*'."""
    found: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        inner = sections(info.annotation)
        plural = get_origin(info.annotation) in (dict, tuple)
        for section in inner:
            found |= fields(section, (*path, name, *(("*",) if plural else ())))
        if not inner:
            found[".".join((*path, name))] = info.annotation
    return found


def sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in sections(part)]


def candidates(value: Any, options: tuple[Any, ...]) -> list[Any]:
    """Other values to try in place of `value`; the first that makes a plan is taken."""
    if options:
        return [option for option in options if option != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1]
    if isinstance(value, float):
        return [value + 0.1, value - 0.1, value / 2]
    if isinstance(value, list):
        return [[*value, "other"]]
    return ["other", "paper", "cpu", 3, 1, 0.25, ["other"], ";", "cp1252"]


def test_every_key_but_speed_and_output_changes_the_hash() -> None:
    """Walks every key that a plan has, whatever keys are added later."""
    source = {"source": "a.jsonl", "columns": {"prompt": "p", "response": "r"}}
    turns = {"source": "a.jsonl", "columns": {"messages": "m"}}
    unit = {"unit": "site", "clip_norm": 1.0}
    private = {**BY_SITE, "adapter": {"dropout": 0.0}}
    private["scheme"] = {**BY_SITE.get("scheme", {}), "weights": "equal"}
    bases = [
        {**changed(BY_SITE, ("data", "sites", "a"), source), "model": {"name": "some/model"}},
        changed(POOLED, ("data", "pool", 0), source),
        changed(BY_SITE, ("data", "sites", "a"), turns),
        changed(POOLED, ("data", "pool", 0), turns),
        {**BY_SITE, "scheme": {"name": "ckks"}, "adapter": {"train": "core"}},
        {
            **private,
            "privacy": {**unit, "noise_multiplier": 1.0, "delta": 1e-6, "max_epsilon": 5.0},
        },
        {**private, "privacy": {**unit, "epsilon": 3.0}},
    ]
    schema = fields(Plan)
    walked: set[str] = set()
    for base in bases:
        plan = parsed(base)
        full = plan.model_dump(mode="json")
        for path in leaves(full):
            name = star(path)
            value: Any = full
            for part in path:
                value = value[part]
            annotation = schema.get(name)
            options = get_args(annotation) if get_origin(annotation) is Literal else ()
            for other in candidates(value, options):
                try:
                    found = parsed(changed(full, path, other))
                except PlanError:
                    continue
                assert found != plan, name
                bound = path[0] not in UNBOUND
                assert (found.sha256() != plan.sha256()) == bound, name
                walked.add(name)
                break
    single = {name for name, kind in schema.items() if len(get_args(kind)) == 1}
    assert set(schema) - walked - single == {
        "data.split",  # needs other keys with it: tried below
        "data.pool.*.heldout_source",  # refused in a pool
        "data.pool.*.heldout_rows",
        "scheme.membership",
    }


def star(path: tuple[str | int, ...]) -> str:
    parts = ["*" if isinstance(part, int) else part for part in path]
    if parts[:2] == ["data", "sites"] and len(parts) > 2:
        parts[2] = "*"
    return ".".join(parts)


def test_the_membership_changes_the_hash() -> None:
    open_ = parsed(opened(4))
    raw = opened(4) | {"scheme": {"name": "rlwe", "membership": "fixed"}}
    assert parsed(raw).sha256() != open_.sha256()


def test_the_split_and_the_names_of_sites_change_the_hash() -> None:
    hashes = {
        parsed({"data": data}).sha256()
        for data in (
            {"sites": SITES},
            {"sites": {"a": SITES["a"], "b": SITES["b"], "d": SITES["c"]}},
            {"sites": {**SITES, "a": SITES["b"], "b": SITES["a"]}},
            {"split": "iid", "num_sites": 3, "pool": [SITES["a"]]},
            {"split": "dirichlet", "num_sites": 3, "pool": [SITES["a"]]},
            {"split": "iid", "num_sites": 3, "pool": [SITES["a"], SITES["b"]]},
            {"split": "iid", "num_sites": 3, "pool": [SITES["b"], SITES["a"]]},
        )
    }
    assert len(hashes) == 7


def test_speed_and_output_are_not_in_the_canonical_bytes() -> None:
    agreed = json.loads(parsed(BY_SITE).canonical())
    # Nor is privacy where there is none: absence says so, and hashes of before it stay.
    assert set(agreed) == set(Plan.model_fields) - set(UNBOUND) - {"privacy"}


# -- writing it out ------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1e5", "1.5e3", "-1E-4", "no", "null", "2024-01-01", "0x1f", "~"])
def test_a_text_that_looks_like_something_else_comes_back_as_text(
    text: str, tmp_path: Path
) -> None:
    raw = changed(
        BY_SITE,
        ("evaluation", "prompts"),
        [text, "two\nlines\ttab", "é ☃ 😀", "\x85", "a\u2028b", text],
    )
    plan = parsed(raw)
    file = tmp_path / "plan.yaml"
    file.write_text(plan.to_yaml(), encoding="utf-8")
    again, _ = load_plan(file)
    assert again.evaluation.prompts[0] == text
    assert again.with_base_dir(HERE) == plan
    assert again.sha256() == plan.sha256()


def test_a_site_may_be_called_1e5(tmp_path: Path) -> None:
    plan = parsed({"data": {"sites": {"1e5": SITES["a"], "007": SITES["b"], "0x1f": SITES["c"]}}})
    file = tmp_path / "plan.yaml"
    file.write_text(plan.to_yaml(), encoding="utf-8")
    assert load_plan(file)[0].with_base_dir(HERE) == plan


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_comes_back_from_its_own_yaml(example: Path, tmp_path: Path) -> None:
    plan, notes = load_plan(example)
    assert notes == []
    file = tmp_path / "plan.yaml"
    file.write_text(plan.to_yaml(), encoding="utf-8")
    again, _ = load_plan(file)
    assert again.with_base_dir(plan.base_dir) == plan
    assert again.sha256() == plan.sha256()
    assert again.to_yaml() == plan.to_yaml()


# -- paths ---------------------------------------------------------------------------------


def test_paths_start_at_the_plan_file(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(json.dumps(BY_SITE))
    plan, _ = load_plan(file)
    assert plan.resolve("x/../y.csv") == tmp_path.resolve() / "y.csv"
    assert plan.resolve("/abs/y.csv") == Path("/abs/y.csv")


@pytest.mark.parametrize("path", ["~no-such-user-here/x", "a\0b", "x" * 300])
def test_what_cannot_be_a_path_is_refused(path: str) -> None:
    with pytest.raises(PlanError, match=r"expected a path, but .*; check the plan$") as caught:
        parsed(BY_SITE).resolve(path)
    assert str(caught.value).isprintable()


# -- rules between keys --------------------------------------------------------------------


def pool(**data: Any) -> dict[str, Any]:
    return {"data": {"split": "iid", "num_sites": 3, "pool": [SITES["a"]], **data}}


def protected(sites: int = 3, **scheme: Any) -> dict[str, Any]:
    return {**pool(num_sites=sites), "scheme": {"name": "rlwe", **scheme}}


def opened(sites: int, **scheme: Any) -> dict[str, Any]:
    """With membership open, and what that asks of a plan."""
    return {
        **protected(sites, membership="open", **scheme),
        "adapter": {"dropout": 0},
        "privacy": {"unit": "example", "clip_norm": 1.0, "noise_multiplier": 1.0},
    }


@pytest.mark.parametrize(
    ("raw", "start", "hint"),
    [
        ({"data": {}}, "data.sites: expected at least one site", "split is by-site"),
        ({"data": {"sites": SITES, "num_sites": 2}}, "data.num_sites: expected no num_sites", ""),
        ({"data": {"sites": SITES, "pool": [SITES["a"]]}}, "data.pool: expected no pool", "source"),
        (pool(sites=SITES), "data.sites: expected no sites", "use pool, num_sites"),
        (pool(pool=[]), "data.pool: expected at least one source", "split is iid"),
        (pool(num_sites=None), "data.num_sites: expected a number of sites", "got None"),
        (pool(num_sites=65), "data.num_sites: expected a number <= 64", "got 65"),
        (pool(num_sites=1), "data.num_sites: expected at least 2 sites", "scheme is rlwe"),
        (pool(dirichlet_column="x"), "data.dirichlet_column: expected none", "split is iid"),
        (
            pool(pool=[SITES["a"], {"source": "b", "heldout_rows": 3}]),
            "data.pool.1.heldout_rows: expected none in a pool",
            "data.heldout_rows",
        ),
        (
            pool(pool=[{"source": "a", "heldout_source": "b"}]),
            "data.pool.0.heldout_source: expected none in a pool",
            "got 'b'",
        ),
        (
            {"data": {"sites": {f"s{k}": SITES["a"] for k in range(65)}}},
            "data.sites: expected at most 64",
            "got 65 sites",
        ),
        ({"data": {"sites": {"a": SITES["a"]}}}, "data.sites: expected at least 2 sites", "rlwe"),
        (
            {**BY_SITE, "adapter": {"factors": "gradient"}},
            "adapter.factors: expected svd when train is ab",
            "got gradient",
        ),
        (
            {**BY_SITE, "adapter": {"train": "core", "factors": "svdd"}},
            "adapter.factors: expected one of 'svd', 'gradient'",
            "got 'svdd'",
        ),
        (
            {"data": {"sites": {"a": SITES["a"]}}, "scheme": {"name": "ckks"}},
            "data.sites: expected at least 2 sites",
            "when scheme is ckks, got 1 site",
        ),
        (
            {**BY_SITE, "pruning": {"initial_rate": 0.4, "target_rate": 0.3}},
            "pruning.target_rate: expected at least initial_rate (0.4)",
            "got 0.3",
        ),
        (
            {**BY_SITE, "pruning": {"start_round": 9, "target_round": 8}},
            "pruning.target_round: expected at least start_round (9)",
            "got 8",
        ),
        (
            {**BY_SITE, "rounds": 10, "pruning": {"target_round": 11}},
            "pruning.target_round: expected at most rounds (10)",
            "got 11",
        ),
        (
            {**BY_SITE, "training": {"learning_rate": 1e-7}},
            "training.min_learning_rate: expected at most learning_rate (1e-07)",
            "got 1e-06",
        ),
        (
            {**BY_SITE, "scheme": {"name": "plain", "parameters": "paper"}},
            "scheme.parameters: expected no parameters when scheme.name is plain",
            "got 'paper'",
        ),
        (
            {**BY_SITE, "scheme": {"name": "ckks", "parameters": "huge"}},
            "scheme.parameters: expected one of lean, paper",
            "got 'huge'",
        ),
        (
            {**BY_SITE, "scheme": {"parameters": "lean"}},
            "scheme.parameters: expected no parameters when scheme.name is rlwe",
            "got 'lean'",
        ),
        # Who may open what (quorum.py): the plan names the key, the numbers and the way out.
        (
            protected(2),
            "scheme.max_colluding: expected 0 to 0 for 2 sites",
            "got 1; with two sites each learns the other's update from the sum",
        ),
        (protected(5, max_colluding=4), "scheme.max_colluding: expected 0 to 3", "got 4; lower it"),
        (opened(5, min_cohort=4, threshold=3), "scheme.threshold: expected 4 to 5", "got 3;"),
        (
            opened(5, min_cohort=4, votes=3),
            "scheme.votes: expected 4 to 5",
            "leave it out for 4",
        ),
        (opened(5, min_cohort=3), "scheme.min_cohort: expected 4 to 5", "got 3; leave it out"),
        (protected(5, min_cohort=4), "scheme.min_cohort: expected 5 to 5", "leave it out for 5"),
        (
            protected(5, membership="open"),
            "scheme.membership: expected fixed unless privacy.unit is example",
            "got open with privacy.unit none",
        ),
        (protected(3, min_cohort=2), "scheme.min_cohort: expected 3 to 3", "got 2"),
        (protected(3, threshold=1), "scheme.threshold: expected 2 to 3", "got 1"),
        (
            protected(3, server="semi-honest", threshold=1),
            "scheme.threshold: expected 2 to 3 for 3 sites with c=1 and a semi-honest coordinator",
            "got 1",
        ),
        *(
            (
                {**BY_SITE, "scheme": {"name": name, key: value}},
                f"scheme.{key}: expected none when scheme.name is {name}: only rlwe has a thresh",
                f"got {value!r}",
            )
            for name in ("ckks", "plain")
            for key, value in (
                ("max_colluding", 1),
                ("threshold", 3),
                ("votes", 3),
                ("min_cohort", 3),
                ("server", "semi-honest"),
                ("open_to", "server"),
            )
        ),
        (
            {**BY_SITE, "model": {"name": "tiny-llama", "quantization": "4bit"}},
            "model.quantization: expected none for the built-in tiny-llama",
            "got 4bit",
        ),
    ],
)
def test_impossible_combinations_name_the_key_and_the_way_out(
    raw: dict[str, Any], start: str, hint: str
) -> None:
    message = refused(raw)
    assert message.startswith(start)
    assert hint in message


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("rounds",), 0),
        (("rounds",), 100_001),
        (("seed",), -1),
        (("seed",), 2**63),
        (("name",), "a b"),
        (("adapter", "rank"), 0),
        (("adapter", "alpha"), 0),
        (("adapter", "alpha"), 1e300),
        (("adapter", "dropout"), 1.0),
        (("adapter", "dropout"), -0.1),
        (("adapter", "targets"), []),
        (("data", "heldout_rows"), 0),
        (("data", "sites", "a", "source"), ""),
        (("training", "steps"), 10**30),
        (("training", "max_length"), 7),
        (("training", "learning_rate"), 0),
        (("training", "learning_rate"), 1e300),
        (("training", "max_grad_norm"), 0),
        (("pruning", "target_rate"), 1.0),
        (("encoding", "grid_bits"), 7),
        (("encoding", "grid_bits"), 23),
        (("encoding", "bits"), 1),
        (("encoding", "bits"), 17),
        (("scheme", "max_colluding"), -1),
        (("scheme", "max_colluding"), 64),
        (("scheme", "threshold"), 0),
        (("scheme", "threshold"), 65),
        (("scheme", "votes"), -1),
        (("scheme", "min_cohort"), 1),
        (("scheme", "min_cohort"), 65),
        (("scheme", "open_to"), "all"),
        (("evaluation", "max_new_tokens"), 0),
        (("evaluation", "prompts"), [""]),
        (("speed", "device"), "cuda:x"),
        (("speed", "threads"), 100_000),
    ],
)
def test_values_out_of_range_name_the_key_and_the_value(
    path: tuple[str, ...], value: object
) -> None:
    message = refused(changed(BY_SITE, path, value))
    assert message.startswith(".".join(path))
    assert ": expected " in message
    assert "got " in message


@pytest.mark.parametrize("name", ["plain", "ckks"])
@pytest.mark.parametrize("sites", [2, 3, 16])
def test_without_a_threshold_only_the_whole_rosters_sum_is_opened(name: str, sites: int) -> None:
    plan = parsed({**pool(num_sites=sites), "scheme": {"name": name}})
    assert plan.rules() == Rules(sites, 0, 0, sites, sites)


def test_the_quorums_of_a_plan_are_those_of_its_keys() -> None:
    for sites in (3, 4, 5, 16, 64):
        assert parsed(protected(sites)).rules() == resolve(sites)
    assert parsed(protected(2, max_colluding=0)).rules() == resolve(2, max_colluding=0)
    asked: dict[str, Any] = {"max_colluding": 2, "threshold": 6, "votes": 7, "min_cohort": 8}
    wanted = Rules(9, 2, 6, 7, 8, membership="open")
    assert parsed(opened(9, **asked)).rules() == wanted
    assert resolve(9, membership="open", **asked) == wanted
    honest: dict[str, Any] = {"server": "semi-honest", "max_colluding": 3}
    assert parsed(protected(9, **honest)).rules() == resolve(9, **honest)


def test_site_names_are_sorted_and_padded() -> None:
    assert parsed(BY_SITE).data.site_names() == ("a", "b", "c")
    many = parsed(pool(num_sites=10)).data.site_names()
    assert (many[0], many[-1], len(many)) == ("site-01", "site-10", 10)
    assert list(many) == sorted(many)


def test_a_plan_cannot_be_changed() -> None:
    plan = parsed(BY_SITE)
    with pytest.raises(ValueError, match="frozen"):
        plan.rounds = 3  # type: ignore[misc]


# -- differential privacy --------------------------------------------------------------------

SITE = {"unit": "site", "clip_norm": 1.0, "noise_multiplier": 1.0}
EXAMPLE = {**SITE, "unit": "example"}
EQUAL = {"scheme": {"weights": "equal"}}
NO_DROPOUT = {"adapter": {"dropout": 0.0}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"privacy": {"clip_norm": 1.0}}, "privacy.clip_norm: expected none when privacy.unit is"),
        ({"privacy": {"max_epsilon": 1.0}}, "privacy.max_epsilon: expected none when"),
        ({"privacy": {"unit": "site"}, **EQUAL}, "privacy.clip_norm: expected the largest L2"),
        (
            {"privacy": {"unit": "site", "clip_norm": 1.0}, **EQUAL},
            "privacy.noise_multiplier: expected noise_multiplier or epsilon, one of the two",
        ),
        ({"privacy": {**SITE, "epsilon": 1.0}, **EQUAL}, "one of the two, got both"),
        (
            {"privacy": {"unit": "site", "clip_norm": 1.0, "epsilon": 1.0, "max_epsilon": 2.0}},
            "privacy.max_epsilon: expected none beside privacy.epsilon",
        ),
        ({"privacy": SITE}, "scheme.weights: expected equal or public when privacy.unit is site"),
        ({"privacy": SITE, "scheme": {"name": "plain", "weights": "equal"}}, "scheme.name: exp"),
        (
            {"privacy": SITE, "scheme": {"name": "ckks", "weights": "equal"}},
            "scheme.name: expected",
        ),
        ({"privacy": SITE, **EQUAL, "adapter": {"exchange": "parameters"}}, "adapter.exchange: ex"),
        ({"privacy": SITE, **EQUAL, "adapter": {"train": "share-a"}}, "adapter.train: expected an"),
        (
            {
                "privacy": SITE,
                **EQUAL,
                "training": {"local_algorithm": "scaffold", "optimizer": "sgd"},
            },
            "training.local_algorithm: expected plain or fedprox when privacy.unit is site",
        ),
        ({"privacy": EXAMPLE}, "adapter.dropout: expected 0 when privacy.unit is example"),
        (
            {"privacy": EXAMPLE, **NO_DROPOUT, "training": {"gradient_checkpointing": True}},
            "training.gradient_checkpointing: expected false when privacy.unit is example",
        ),
        ({"privacy": {**SITE, "delta": 0.5}, **EQUAL}, "privacy.delta: expected a number <= 0.01"),
        ({"privacy": {**SITE, "unit": "row"}, **EQUAL}, "privacy.unit: expected one of"),
    ],
)
def test_privacy_that_would_not_hold_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(PlanError) as caught:
        parsed({**BY_SITE, **changes})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("train", ["ab", "b", "alternate", "share-a", "core"])
def test_every_way_to_train_can_protect_its_rows(train: str) -> None:
    parsed({**BY_SITE, "privacy": EXAMPLE, "adapter": {"train": train, "dropout": 0.0}})


def test_without_a_unit_the_hash_is_what_it_was() -> None:
    """Pinned: plans of before the section keep their hashes, and so the bytes of an invitation."""
    assert parsed({**BY_SITE, "privacy": {"unit": "none"}}).sha256() == parsed(BY_SITE).sha256()
    assert b"privacy" not in parsed(BY_SITE).canonical()
    private = parsed({**BY_SITE, "privacy": SITE, **EQUAL})
    assert private.sha256() != parsed({**BY_SITE, **EQUAL}).sha256()
