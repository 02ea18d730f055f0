"""Reading a plan: YAML as people write it, overrides, and errors of one line that help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fedshield.errors import PlanError
from fedshield.plan.load import load_plan, parse_plan
from fedshield.plan.schema import Plan

HERE = Path(__file__).parent
SITES = (
    "data: {sites: {a: {source: 'sample:medical'}, b: {source: 'sample:finance'}, "
    "c: {source: 'sample:maths'}}}\n"
)
RAW: dict[str, Any] = yaml.safe_load(SITES)
# The same cases in every run; raise max_examples by hand to look for more.
FUZZ = settings(max_examples=400, deadline=None, derandomize=True, database=None)


def load(folder: Path, text: str | bytes, *overrides: str) -> tuple[Plan, list[str]]:
    file = folder / "plan.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_plan(file, overrides)


def refused(folder: Path, text: str | bytes, *overrides: str) -> str:
    with pytest.raises(PlanError) as caught:
        load(folder, text, *overrides)
    return one_line(caught.value)


def one_line(error: PlanError) -> str:
    message = str(error)
    assert message
    assert message.isprintable(), "a control character or a line end in an error"
    assert len(message) < 1000
    return message


# -- YAML ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("5E-5", 5e-5), ("1.e-3", 1e-3), (".5e-3", 5e-4)]
)
def test_numbers_in_powers_of_ten_are_numbers(tmp_path: Path, text: str, value: float) -> None:
    plan, _ = load(tmp_path, SITES + f"training: {{learning_rate: {text}}}")
    assert plan.training.learning_rate == value


def test_a_date_is_a_text(tmp_path: Path) -> None:
    assert load(tmp_path, SITES + "name: 2026-11-22")[0].name == "2026-11-22"


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    text = ("\ufeff" + SITES + "rounds: 7\n").replace("\n", "\r\n")
    assert load(tmp_path, text)[0].rounds == 7


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected a mapping of plan keys, got an empty file; see examples/"),
        ("# only a comment\n", "got an empty file"),
        ("- a\n- b\n", "expected a mapping of plan keys, got list"),
        ("hello", "expected a mapping of plan keys, got str"),
        ("a: [", "line 1: expected YAML, but"),
        ("data:\n\trounds: 1\n", r"line 2: expected YAML, but found character '\t'"),
        ("a: \0", "expected YAML, but unacceptable character #x0000"),
        (SITES + "---\nrounds: 2\n", "line 2: expected YAML, but found another document"),
        (SITES + "rounds: 2\nrounds: 3\n", "line 3: key 'rounds' is given twice; keep one"),
        (SITES + "model: {name: a, name: b}", "line 2: key 'name' is given twice"),
        (SITES + "1: 2", "line 2: expected a text key, got 1; put it in quotes"),
        (SITES + "? {a: b}\n: 1", "line 2: expected a text key, got {'a': 'b'}"),
        (SITES + "1e5: 2", "line 2: expected a text key, got 100000.0"),
        (SITES + "name: &n x\nmodel: {name: *n}", "line 3: expected no YAML alias, got *n"),
        (SITES + "name: !!python/object:os.system x", "line 2: expected no YAML tag, got"),
        (SITES + "rounds: !!int ''", "line 2: expected no YAML tag"),
        (SITES + "rounds: 0x_", "expected YAML, but invalid literal"),
        (b"name: \xff\xfe\n", "expected YAML text in UTF-8, got other bytes"),
    ],
)
def test_what_is_not_a_plan_in_yaml_is_named_by_file_and_line(
    tmp_path: Path, text: str | bytes, says: str
) -> None:
    message = refused(tmp_path, text)
    assert message.startswith(str(tmp_path / "plan.yaml"))
    assert says in message


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"got a folder; name the file in it$"):
        load_plan(tmp_path)
    with pytest.raises(PlanError, match=r"found none; check the path$"):
        load_plan(tmp_path / "none.yaml")
    (tmp_path / "file").write_text("")
    with pytest.raises(PlanError, match=r"cannot be read \(Not a directory\); check the file$"):
        load_plan(tmp_path / "file" / "plan.yaml")
    with pytest.raises(PlanError) as caught:
        load_plan(tmp_path / "a\nb\x1b[31m.yaml")
    one_line(caught.value)


@pytest.mark.timeout(300)
def test_an_alias_bomb_does_not_hang(tmp_path: Path) -> None:
    bomb = "x0: &x0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
        f"x{k}: &x{k} [{', '.join([f'*x{k - 1}'] * 10)}]\n" for k in range(1, 40)
    )
    assert "line 2: expected no YAML alias, got *x0" in refused(tmp_path, bomb + SITES)


@pytest.mark.parametrize("depth", [150, 250, 400, 1000, 20_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ("{a: ", "}")])
def test_deep_nesting_is_refused_in_one_line(
    tmp_path: Path, depth: int, opening: str, closing: str
) -> None:
    text = SITES + "model: " + opening * depth + "1" + closing * depth
    message = refused(tmp_path, text)
    assert "expected " in message


def test_deep_nesting_by_an_override(tmp_path: Path) -> None:
    assert "expected " in refused(tmp_path, SITES, "a." * 5000 + "b=1")
    assert "a: unknown key" in refused(tmp_path, SITES, "a." * 100 + "b=1")


# -- types ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rounds: true", "rounds: expected a whole number, got True"),
        ("rounds: 'four'", "rounds: expected a whole number, got 'four'"),
        ("rounds: '4'", "rounds: expected a whole number, got '4'"),
        ("rounds: 4.0", "rounds: expected a whole number, got 4.0"),
        ("rounds: .nan", "rounds: expected a whole number, got nan"),
        ("rounds: [4]", "rounds: expected a whole number, got [4]"),
        ("rounds:", "rounds: expected a whole number, got None"),
        ("rounds: " + "9" * 40, "rounds: expected a number <= 100000, got 9999"),
        ("rounds: " + "9" * 5000, "plan.yaml: expected YAML, but Exceeds the limit"),
        ("rounds: 0x" + "f" * 5000, "plan: expected text, numbers, lists and mappings"),
        ("adapter: {alpha: true}", "adapter.alpha: expected a number, got True"),
        ("adapter: {alpha: '16'}", "adapter.alpha: expected a number, got '16'"),
        ("adapter: {alpha: .nan}", "adapter.alpha: expected a finite number, got nan"),
        ("adapter: {alpha: -.inf}", "adapter.alpha: expected a finite number, got -inf"),
        ("adapter: {alpha: 1e999}", "adapter.alpha: expected a finite number, got inf"),
        ("adapter: {targets: q_proj}", "adapter.targets: expected a list, got 'q_proj'"),
        ("adapter: {targets: [1]}", "adapter.targets.0: expected text, got 1"),
        ("training: {gradient_checkpointing: 1}", "checkpointing: expected true or false, got 1"),
        ("training: {precision: fp16}", "precision: expected one of 'auto', 'bf16', 'fp32'"),
        ("model:", "model: expected a mapping of keys, got None"),
        ("model: tiny-llama", "model: expected a mapping of keys, got 'tiny-llama'"),
        ("scheme: []", "scheme: expected a mapping of keys, got []"),
        ("name: on", "name: expected text, got True"),
        ("name: \"a\\ud800\"", "plan: expected text, numbers, lists and mappings"),
        ("scheme: {parameters: \"a\\nb|c\"}",
         r"no parameters when scheme.name is rlwe, got 'a\nb|c'"),
        ("scheme: {name: ckks, parameters: \"a\\nb|c\"}",
         r"one of lean, paper when scheme.name is ckks, got 'a\nb|c'"),
        ("scheme: {threshold: '2'}", "scheme.threshold: expected a whole number, got '2'"),
        ("scheme: {threshold: 9}", "scheme.threshold: expected 2 to 3 for 3 sites with c=1 and a"),
        ("encoding: {bits: 8.0}", "encoding.bits: expected a whole number, got 8.0"),
        ("encoding: {headroom: 1}", "encoding.headroom: expected true or false, got 1"),
    ],
)  # fmt: skip
def test_wrong_types_name_the_key_and_the_value(tmp_path: Path, text: str, says: str) -> None:
    assert says in refused(tmp_path, SITES + text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data:", "data: expected a mapping of keys, got None"),
        ("rounds: 3", "data: expected a value, got nothing; add the key"),
        ("data: {sites: null}", "data.sites: expected a mapping of keys, got None"),
        ("data: {sites: {a: null}}", "data.sites.a: expected a mapping of keys, got None"),
        ("data: {sites: {a: {rows: 3}}}", "data.sites.a.source: expected a value, got nothing"),
        ("data: {sites: {A B: {source: x}}}", "data.sites: expected a site name of small letters"),
        ('data: {sites: {"": {source: x}}}', "data.sites: expected a site name"),
        ('data: {sites: {"[key]": {source: x}}}', "small letters, digits and dashes (at most 31)"),
        ('data: {sites: {"a\\nb": {source: x}}}', "data.sites: expected a site name"),
        ("data: {sites: {a: {source: x}}, heldout_rows: no}", "(1 more)"),
    ],
)
def test_a_data_section_that_is_not_whole(tmp_path: Path, text: str, says: str) -> None:
    overrides = ("rounds=x",) if "more" in says else ()
    assert says in refused(tmp_path, text, *overrides)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ruonds: 3", "ruonds: unknown key (value 3); did you mean rounds?"),
        ("traning: {steps: 1}", "did you mean training?"),
        ("training: {stesp: 1}", "training.stesp: unknown key (value 1); did you mean training.st"),
        ("training: {lr: 1e-4}", "did you mean training.learning_rate?"),
        ("lora_alpha: 3", "did you mean adapter.alpha?"),
        ("training: {rank: 4}", "did you mean adapter.rank?"),
        ("dirichlet_alpa: 1", "did you mean data.dirichlet_alpha?"),
        ("load_in_8bit: true", "did you mean model.quantization?"),
        ("data: {sites: {a: {sorce: x}}}", "data.sites.a.sorce: unknown key (value 'x'); did you"),
        ("data: {split: iid, pool: [{source: x, row: 3}]}", "did you mean data.pool.0.rows?"),
        (
            "data: {sites: {a: {source: x, columns: {promt: q}}}}",
            "did you mean data.sites.a.columns.prompt?",
        ),
        ("zzz: 1", "zzz: unknown key (value 1); expected one of adapter, aggregation, data"),
        (
            "scheme: {zzz: 1}",
            "scheme.zzz: unknown key (value 1); expected one of max_colluding, max_weight, ",
        ),
        ("scheme: {treshold: 3}", "did you mean scheme.threshold?"),
        ("min_cohort: 3", "did you mean scheme.min_cohort?"),
        ("'': 1", "'': unknown key"),
        ("'[key]': 1", "[key]: unknown key"),
        ('"a\\nb\\x1b": 1', r"'a\nb\x1b': unknown key"),
        ("zzz: " + "x" * 500, "unknown key (value 'xxx"),
    ],
)
def test_unknown_keys_get_the_nearest_one(tmp_path: Path, text: str, says: str) -> None:
    assert says in refused(tmp_path, text if text.startswith("data") else SITES + text)


# -- overrides -----------------------------------------------------------------------------


def test_overrides_reach_every_key(tmp_path: Path) -> None:
    plan, notes = load(
        tmp_path,
        SITES + "rounds: 9",
        "rounds=3",
        "training.learning_rate=1e-4",
        "adapter.targets=[q_proj, k_proj]",
        "data.sites.d.source=d.jsonl",
        "data.sites.a.columns.prompt=term",
        "model.gone=1",
        "model={name: tiny-llama}",
        "evaluation.prompts=['a = b', \"c\"]",
        "speed.threads=",
        " name = spaced ",
    )
    assert notes == ["--set model.gone=1 is not used: --set model comes after it"]
    assert plan.rounds == 3
    assert plan.training.learning_rate == 1e-4
    assert plan.adapter.targets == ("q_proj", "k_proj")
    assert plan.data.site_names() == ("a", "b", "c", "d")
    assert plan.data.sites["a"].columns is not None
    assert plan.data.sites["a"].columns.prompt == "term"
    assert plan.model.name == "tiny-llama"
    assert plan.evaluation.prompts == ("a = b", "c")
    assert plan.speed.threads is None
    assert plan.name == "spaced"


def test_the_last_override_of_a_key_wins(tmp_path: Path) -> None:
    plan, notes = load(tmp_path, SITES, "rounds=3", "rounds=4")
    assert plan.rounds == 4
    assert notes == ["--set rounds=3 is not used: --set rounds comes after it"]


def test_an_override_that_a_later_one_undoes_is_named(tmp_path: Path) -> None:
    inner, outer = "training.steps=3", "training={batch_size: 2}"
    plan, notes = load(tmp_path, SITES, inner, outer)
    assert plan.training.steps == 10
    assert notes == [f"--set {inner} is not used: --set training comes after it"]
    plan, notes = load(tmp_path, SITES, outer, inner)
    assert (plan.training.steps, plan.training.batch_size) == (3, 2)
    assert notes == []


def test_overrides_reach_into_lists_by_the_place_that_errors_name(tmp_path: Path) -> None:
    text = "data: {split: iid, num_sites: 3, pool: [{source: a.csv}, {source: b.csv}]}"
    plan, _ = load(tmp_path, text, "data.pool.1.source=c.csv", "data.pool.0.rows=3")
    assert [source.source for source in plan.data.pool] == ["a.csv", "c.csv"]
    assert plan.data.pool[0].rows == 3
    for place in ("2", "x", "-1", "9" * 30):
        says = refused(tmp_path, text, f"data.pool.{place}.source=c.csv")
        assert "expected a place in a list of 2 (from 0)" in says


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("rounds", "--set rounds: expected KEY=VALUE, as in --set training.steps=4"),
        ("=3", "--set =3: expected KEY=VALUE"),
        ("rounds=[", "--set rounds, line 1: expected YAML, but"),
        ("rounds=x", "rounds: expected a whole number, got 'x'"),
        ("rounds=", "rounds: expected a whole number, got None"),
        ("rounds.x=1", "rounds: expected a whole number, got {'x': 1}"),
        ("training.stps=1", "training.stps: unknown key (value 1); did you mean training.steps?"),
        ("training..steps=1", "training.'': unknown key"),
        ("a\nb", r"--set 'a\nb': expected KEY=VALUE"),
        ("a\nb=[", r"--set 'a\nb', line 1: expected YAML"),
    ],
)
def test_overrides_that_cannot_be(tmp_path: Path, override: str, says: str) -> None:
    assert says in refused(tmp_path, SITES, override)


def test_switching_the_scheme_drops_what_belonged_to_the_other(tmp_path: Path) -> None:
    text = SITES + "scheme: {name: ckks, parameters: paper, weights: public}"
    plan, notes = load(tmp_path, text, "scheme.name=plain")
    assert (plan.scheme.name, plan.scheme.parameters) == ("plain", None)
    assert plan.scheme.weights == "public"
    assert notes == ["scheme.parameters=paper belongs to another scheme and was dropped"]
    plan, notes = load(tmp_path, text, "scheme.name=ckks")
    assert (plan.scheme.parameters, notes) == ("paper", [])
    plan, notes = load(tmp_path, text, "scheme.name=ckks", "scheme.parameters=lean")
    assert (plan.scheme.parameters, notes) == ("lean", [])
    says = refused(tmp_path, text, "scheme.name=plain", "scheme.parameters=paper")
    assert "scheme.parameters: expected no parameters when scheme.name is plain" in says
    assert "scheme.name: expected one of" in refused(tmp_path, text, "scheme.name=aes")


@pytest.mark.parametrize("name", ["ckks", "plain"])
def test_switching_to_a_scheme_without_a_threshold_drops_the_quorums(
    tmp_path: Path, name: str
) -> None:
    keys = {
        "max_colluding": 1,
        "threshold": 3,
        "votes": 3,
        "min_cohort": 3,
        "server": "semi-honest",
        "open_to": "server",
    }
    given = {"weights": "public", **keys}
    text = SITES + yaml.safe_dump({"scheme": given})
    assert load(tmp_path, text)[0].scheme.threshold == 3
    plan, notes = load(tmp_path, text, f"scheme.name={name}")
    assert (
        plan.scheme
        == load(tmp_path, SITES + f"scheme: {{name: {name}, weights: public}}")[0].scheme
    )
    assert notes == [
        f"scheme.{key}={value} belongs to another scheme and was dropped"
        for key, value in keys.items()
    ]
    # Defaults that are written out, as in the plan of a run, are nothing to speak of.
    defaults = SITES + "scheme: {threshold: null, server: malicious, open_to: peers}"
    assert load(tmp_path, defaults, f"scheme.name={name}")[1] == []
    # The same scheme again, and rlwe's own, stay as they are.
    kept, notes = load(tmp_path, text, "scheme.name=rlwe")
    assert (kept.scheme, notes) == (load(tmp_path, text)[0].scheme, [])
    # Asked for in the same command, it is an error, as it is in a plan.
    for key, value in keys.items():
        says = refused(tmp_path, text, f"scheme.name={name}", f"scheme.{key}={value}")
        assert f"scheme.{key}: expected none when scheme.name is {name}" in says
        says = refused(tmp_path, SITES + f"scheme: {{name: {name}, {key}: {value}}}")
        assert f"scheme.{key}: expected none when scheme.name is {name}" in says


# -- anything at all -----------------------------------------------------------------------

KEYS = [*Plan.model_fields, "a", "b", "source", "columns", "prompt"]
for _info in Plan.model_fields.values():
    KEYS += getattr(_info.annotation, "model_fields", ())
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**20)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["ckks", "plain", "iid", "dirichlet", "paper", "tiny-llama", "sample:x"])
    | st.sampled_from(["rlwe", "semi-honest", "server", "peers", 0, 1, 2, 3])
)
NAMES = st.sampled_from(KEYS) | st.text(max_size=6)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4)
)


def parses_or_explains(raw: dict[str, Any]) -> None:
    try:
        plan = parse_plan(raw, base_dir=HERE)
    except PlanError as error:
        one_line(error)
        return
    again = parse_plan(json.loads(plan.model_dump_json()), base_dir=HERE)
    assert again.sha256() == plan.sha256()


@FUZZ
@given(st.dictionaries(NAMES, VALUES, max_size=5))
def test_any_mapping_parses_or_is_explained_in_one_line(raw: dict[str, Any]) -> None:
    parses_or_explains(raw)


@FUZZ
@given(
    st.dictionaries(
        st.sampled_from(list(Plan.model_fields)),
        st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3),
        max_size=3,
    )
)
def test_any_change_to_a_good_plan_parses_or_is_explained(raw: dict[str, Any]) -> None:
    parses_or_explains({**RAW, **raw})


@FUZZ
@given(st.text(max_size=60) | st.text("abc:-[]{},#&*!|>'\"%@`?1e.\n\t ~<=", max_size=40))
def test_any_text_parses_or_is_explained_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(text.encode())
    with pytest.raises(PlanError) as caught:
        load_plan(file)
    one_line(caught.value)


@FUZZ
@given(st.text(max_size=20), st.text(max_size=20))
def test_any_override_parses_or_is_explained_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: str
) -> None:
    file = tmp_path_factory.getbasetemp() / "sound.yaml"
    file.write_text(SITES)
    try:
        load_plan(file, [f"{key}={value}"])
    except PlanError as error:
        one_line(error)


@FUZZ
@given(st.lists(st.text(min_size=1, max_size=12), max_size=4), st.text(min_size=1, max_size=12))
def test_any_texts_come_back_from_the_plan_as_run(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[str], source: str
) -> None:
    raw = {
        "data": {"sites": {name: {"source": source} for name in "abc"}},
        "evaluation": {"prompts": prompts},
    }
    plan = parse_plan(raw, base_dir=HERE)
    file = tmp_path_factory.getbasetemp() / "again.yaml"
    file.write_bytes(plan.to_yaml().encode())
    assert load_plan(file)[0].model_dump() == plan.model_dump()


def test_all_linear_is_a_target_alone(tmp_path: Path) -> None:
    for text in ("all-linear", "[all-linear]"):
        plan, _ = load(tmp_path, SITES + f"adapter: {{targets: {text}}}")
        assert plan.adapter.targets == ("all-linear",)
    text = SITES + "adapter: {targets: [all-linear, q_proj]}"
    assert "adapter.targets: expected all-linear alone" in refused(tmp_path, text)
