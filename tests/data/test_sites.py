"""Each site's share: even or skewed splits, nothing held out that is trained on, all counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from fedshield.data.sites import SiteData, load_sites
from fedshield.errors import DataError
from fedshield.model.builtin import tiny
from fedshield.model.chat import Tokens
from fedshield.notes import library_words
from fedshield.plan.load import parse_plan
from fedshield.run.settings import data_setup

LABELS = ("red", "green", "blue")
#: What the chat template writes around a question and its answer: marks are one token each, all
#: else is one token a byte.
BEFORE_ANSWER = len("S") + len("user\n") + len("E\n") + len("S") + len("assistant\n")
AFTER_ANSWER = len("E\n")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny.tokenizer()


def row(number: int, **more: str) -> dict[str, str]:
    return {"prompt": f"question {number:03d}", "response": f"answer {number:03d}", **more}


def rows(*numbers: int, **more: str) -> list[dict[str, str]]:
    return [row(number, label=LABELS[number % 3], **more) for number in numbers]


def write(folder: Path, name: str, found: Sequence[dict[str, Any]]) -> None:
    (folder / name).write_text("".join(json.dumps(item) + "\n" for item in found))


def load(
    folder: Path, tokenizer: Any, data: dict[str, Any], seed: int = 1, max_length: int = 96
) -> dict[str, SiteData]:
    raw = {
        "seed": seed,
        "model": {"name": "tiny-llama"},
        "data": data,
        "training": {"max_length": max_length},
        "scheme": {"name": "plain"},
    }
    return load_sites(data_setup(parse_plan(raw, base_dir=folder)), tokenizer)


def refused(folder: Path, tokenizer: Any, data: dict[str, Any], **more: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(folder, tokenizer, data, **more)
    message = str(caught.value)
    assert message.isprintable()
    return message


def one(source: str = "a.jsonl", heldout: int = 4, **settings: Any) -> dict[str, Any]:
    return {"heldout_rows": heldout, "sites": {"a": {"source": source, **settings}}}


def pooled(split: str, *sources: str, sites: int = 3, heldout: int = 4, **more: Any) -> Any:
    pool = [{"source": source} for source in sources]
    return {"split": split, "num_sites": sites, "pool": pool, "heldout_rows": heldout, **more}


def numbers(tokens: Sequence[Tokens], tokenizer: Any) -> list[int]:
    """Which rows these are, from their text."""
    texts = [tokenizer.decode(item.input_ids) for item in tokens]
    return [int(text.partition("question ")[2][:3]) for text in texts]


def dealt(sites: dict[str, SiteData], tokenizer: Any) -> dict[str, tuple[list[int], list[int]]]:
    return {
        name: (numbers(site.train, tokenizer), numbers(site.heldout, tokenizer))
        for name, site in sites.items()
    }


# -- one source per site -------------------------------------------------------------------


def test_the_last_rows_are_held_out(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, "a.jsonl", rows(*range(10)))
    sites = load(tmp_path, tokenizer, one())
    assert dealt(sites, tokenizer) == {"a": ([*range(6)], [*range(6, 10)])}
    assert sites["a"].source == "a.jsonl"
    assert dealt(load(tmp_path, tokenizer, one(), seed=2), tokenizer) == dealt(sites, tokenizer)


def test_rows_limits_training_only_and_heldout_rows_a_site(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, "a.jsonl", rows(*range(20)))
    sites = load(tmp_path, tokenizer, one(rows=5, heldout_rows=7))
    assert dealt(sites, tokenizer) == {"a": ([*range(5)], [*range(13, 20)])}


def test_held_out_rows_of_their_own_file(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, "a.jsonl", rows(*range(10)))
    write(tmp_path, "b.jsonl", rows(*range(50, 60)))
    data = one(heldout_source="b.jsonl")
    assert dealt(load(tmp_path, tokenizer, data), tokenizer) == {
        "a": ([*range(10)], [50, 51, 52, 53])
    }
    data = one(heldout=64, heldout_source="b.jsonl")  # at most 64: the file has ten
    assert dealt(load(tmp_path, tokenizer, data), tokenizer)["a"][1] == [*range(50, 60)]


def test_a_training_row_equal_to_a_held_out_one_is_left_out(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, "a.jsonl", rows(0, 1, 8, 2, 9, 8, 3, 7, 8, 9))
    found = load(tmp_path, tokenizer, one(heldout=3))["a"]
    assert (numbers(found.train, tokenizer), numbers(found.heldout, tokenizer)) == (
        [0, 1, 2, 3],
        [7, 8, 9],
    )
    assert found.duplicate_rows == 3


def test_equal_questions_with_other_answers_are_no_duplicates(
    tmp_path: Path, tokenizer: Any
) -> None:
    write(tmp_path, "a.jsonl", [row(1, response=f"answer {k}") for k in range(8)])
    assert load(tmp_path, tokenizer, one())["a"].duplicate_rows == 0


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (rows(*range(4)), "data.sites.a: expected more than 4 rows (4 are held out), got 4; add"),
        (rows(*[1] * 9), "data.sites.a: expected training rows other than the held-out ones, got"),
    ],
)
def test_too_few_rows(tmp_path: Path, tokenizer: Any, found: list[Any], says: str) -> None:
    write(tmp_path, "a.jsonl", found)
    assert says in refused(tmp_path, tokenizer, one())


@pytest.mark.parametrize("data", [one(), pooled("iid", "a.jsonl", sites=2)])
def test_too_few_rows_because_of_unusable_ones(
    tmp_path: Path, tokenizer: Any, data: dict[str, Any]
) -> None:
    write(tmp_path, "a.jsonl", [*rows(*range(4)), *[{"prompt": "a"}] * 9])
    message = refused(tmp_path, tokenizer, data | {"on_bad_row": "skip"})
    assert "and 9 unusable ones (a.jsonl:5: expected a response in one of" in message
    assert message.endswith("; mend them, add rows or lower data.heldout_rows")


# -- dealing out a pool --------------------------------------------------------------------


def test_iid_is_even_disjoint_and_complete(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, "a.jsonl", rows(*range(30)))
    write(tmp_path, "b.jsonl", rows(*range(30, 50)))
    data = pooled("iid", "a.jsonl", "b.jsonl", sites=4)
    sites = load(tmp_path, tokenizer, data)
    assert list(sites) == ["site-1", "site-2", "site-3", "site-4"]
    parts = dealt(sites, tokenizer)
    assert sorted(n for part in parts.values() for side in part for n in side) == [*range(50)]
    assert {len(train) + len(heldout) for train, heldout in parts.values()} == {12, 13}
    assert {len(heldout) for _, heldout in parts.values()} == {4}
    for train, _ in parts.values():  # dealt at random, not file after file
        assert min(train) < 30 <= max(train)


@pytest.mark.parametrize("split", ["iid", "dirichlet"])
def test_the_seed_decides_the_split(tmp_path: Path, tokenizer: Any, split: str) -> None:
    write(tmp_path, "a.jsonl", rows(*range(60)))
    data = pooled(split, "a.jsonl", dirichlet_alpha=5.0)
    first = dealt(load(tmp_path, tokenizer, data, seed=1), tokenizer)
    assert dealt(load(tmp_path, tokenizer, data, seed=1), tokenizer) == first
    assert dealt(load(tmp_path, tokenizer, data, seed=2), tokenizer) != first


def test_rows_of_a_pool_limit_each_source(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, "a.jsonl", rows(*range(30)))
    write(tmp_path, "b.jsonl", rows(*range(30, 60)))
    data = pooled("iid", "a.jsonl", "b.jsonl")
    data["pool"][0]["rows"] = 8
    parts = dealt(load(tmp_path, tokenizer, data), tokenizer)
    everything = sorted(n for part in parts.values() for side in part for n in side)
    assert everything == [*range(8), *range(30, 60)]


def skew(parts: dict[str, tuple[list[int], list[int]]]) -> float:
    """The mean over sites of the share of a site's most frequent label: 1/3 is even."""
    shares = []
    for train, heldout in parts.values():
        labels = Counter(number % 3 for number in train + heldout)
        shares.append(max(labels.values()) / labels.total())
    return sum(shares) / len(shares)


def test_dirichlet_is_complete_and_skewed_where_alpha_is_small(
    tmp_path: Path, tokenizer: Any
) -> None:
    write(tmp_path, "a.jsonl", rows(*range(300)))
    found = {}
    for alpha in (0.1, 1000.0):
        data = pooled("dirichlet", "a.jsonl", dirichlet_alpha=alpha, dirichlet_column="label")
        parts = dealt(load(tmp_path, tokenizer, data), tokenizer)
        assert sorted(n for part in parts.values() for side in part for n in side) == [*range(300)]
        found[alpha] = skew(parts)
        if alpha == 1000.0:
            sizes = [len(train) + len(heldout) for train, heldout in parts.values()]
            assert max(sizes) - min(sizes) < 30
    assert found[1000.0] < 0.4
    assert found[0.1] > 0.6


def test_dirichlet_without_a_column_goes_by_source(tmp_path: Path, tokenizer: Any) -> None:
    for place, name in enumerate("abc"):  # the label of a row is its file
        write(tmp_path, f"{name}.jsonl", rows(*range(place, 300, 3)))
    files = [f"{name}.jsonl" for name in "abc"]
    data = pooled("dirichlet", *files, dirichlet_alpha=0.1)
    assert skew(dealt(load(tmp_path, tokenizer, data), tokenizer)) > 0.6


def test_held_out_rows_of_a_skewed_site_are_drawn_from_all_it_has(
    tmp_path: Path, tokenizer: Any
) -> None:
    write(tmp_path, "a.jsonl", rows(*range(300)))
    data = pooled("dirichlet", "a.jsonl", dirichlet_alpha=1000.0, dirichlet_column="label")
    for train, heldout in dealt(
        load(tmp_path, tokenizer, data | {"heldout_rows": 30}), tokenizer
    ).values():
        assert {number % 3 for number in heldout} == {number % 3 for number in train} == {0, 1, 2}


@pytest.mark.parametrize("alpha", [1e-300, 1e-3, 1e308])
def test_a_dirichlet_split_that_cannot_be(tmp_path: Path, tokenizer: Any, alpha: float) -> None:
    write(tmp_path, "a.jsonl", rows(*range(0, 45, 3)))  # one label
    data = pooled("dirichlet", "a.jsonl", dirichlet_alpha=alpha, dirichlet_column="label")
    if alpha > 1:
        data["heldout_rows"] = 5  # an even split has five rows for each
        assert "expected more than 5 rows" in refused(tmp_path, tokenizer, data)
        return
    message = refused(tmp_path, tokenizer, data)
    assert message.startswith("data.dirichlet_alpha: expected a split that leaves every site more")
    assert message.endswith("raise it, or lower data.heldout_rows")


def test_a_pool_too_small_for_its_sites(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, "a.jsonl", rows(*range(12)))
    message = refused(tmp_path, tokenizer, pooled("iid", "a.jsonl"))
    assert message.startswith("data.pool (for each site): expected more than 4 rows")


def test_the_label_column_must_be_in_every_row(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, "a.jsonl", [*rows(*range(40)), row(41), *rows(*range(42, 60))])
    data = pooled("dirichlet", "a.jsonl", dirichlet_alpha=100.0, dirichlet_column="label")
    assert refused(tmp_path, tokenizer, data).startswith("a.jsonl:41: expected the column label")
    skipping = load(tmp_path, tokenizer, data | {"on_bad_row": "skip"})
    assert [site.skipped_rows for site in skipping.values()] == [1, 0, 0]  # the pool's, once
    assert skipping["site-1"].first_skipped.startswith("a.jsonl:41: ")


# -- counting ------------------------------------------------------------------------------


def test_truncation_is_counted_to_the_token(tmp_path: Path, tokenizer: Any) -> None:
    question, max_length = "q" * 10, 48
    lengths = [1, 17, 18, 19, 20, 25, 60, 2, 3, 4, 30, 1]
    found = [{"prompt": question, "response": chr(97 + k) * n} for k, n in enumerate(lengths)]
    room = max_length - BEFORE_ANSWER
    found[6] = {"prompt": "q" * room, "response": "g" * 60}  # the answer starts past the end
    found[7] = {"prompt": "q" * (room - 1), "response": "hh"}  # one token of the answer is left
    write(tmp_path, "a.jsonl", found)
    site = load(tmp_path, tokenizer, one(heldout=3), max_length=max_length)["a"]
    before = [BEFORE_ANSWER + len(item["prompt"]) for item in found]
    whole = [
        at + len(item["response"]) + AFTER_ANSWER for at, item in zip(before, found, strict=True)
    ]
    over = [max(0, length - max_length) for length in whole]
    answerless = sum(at >= max_length for at in before)
    assert answerless == 1
    assert site.no_response_rows == answerless
    assert site.truncated_tokens == sum(over)
    assert site.truncated_rows == sum(tokens > 0 for tokens in over)
    assert len(site.train) + len(site.heldout) == len(found) - answerless
    kept = [length for at, length in zip(before, whole, strict=True) if at < max_length]
    for tokens, length in zip([*site.train, *site.heldout], kept, strict=True):
        assert len(tokens.input_ids) == len(tokens.labels) == min(length, max_length)
        assert tokens.num_dropped == max(0, length - max_length)
    assert site.train[6].num_response == 1


def test_a_tokenizers_own_limit_is_noted_and_its_warning_is_not_shown(
    tmp_path: Path, tokenizer: Any
) -> None:
    write(tmp_path, "a.jsonl", rows(*range(6)))
    before = tokenizer.model_max_length
    tokenizer.model_max_length = 8
    try:
        with library_words() as words:
            site = load(tmp_path, tokenizer, one())["a"]
    finally:
        tokenizer.model_max_length = before
    assert words == []
    usual = load(tmp_path, tokenizer, one())["a"].notes
    (note,) = set(site.notes) - set(usual)
    assert note.startswith("the tokenizer's longest text is 8 tokens (model_max_length), less than")
    assert all(len(tokens.input_ids) > 8 for tokens in site.train)  # nothing is cut by it


def test_the_loss_is_on_the_answer_alone(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, "a.jsonl", rows(*range(6)))
    for tokens in load(tmp_path, tokenizer, one())["a"].train:
        taught = [token for token in tokens.labels if token != -100]
        number = numbers([tokens], tokenizer)[0]
        assert tokenizer.decode(taught) == f"answer {number:03d}<|im_end|>\n"


@pytest.mark.parametrize("heldout_fits", [True, False])
def test_no_answer_within_max_length(tmp_path: Path, tokenizer: Any, heldout_fits: bool) -> None:
    long = [{"prompt": "q" * 90, "response": f"{k}"} for k in range(8)]
    found = [*long, *rows(*range(4))] if heldout_fits else [*rows(*range(8)), *long[:4]]
    write(tmp_path, "a.jsonl", found)
    part = "train" if heldout_fits else "heldout"
    assert refused(tmp_path, tokenizer, one()).startswith(
        f"data.sites.a: expected {part} rows with an answer within training.max_length 96, got "
        f"none of {8 if heldout_fits else 4}; raise max_length"
    )


def test_all_that_became_of_the_rows_is_in_the_counts(tmp_path: Path, tokenizer: Any) -> None:
    found = [
        *rows(0, 1, 9),
        {"prompt": "no answer"},
        {"prompt": "q" * 90, "response": "lost"},
        {"prompt": "q" * 40, "response": "x" * 60},
        {"prompt": "an injection", "response": "<|im_end|>"},
        *rows(8, 9),
    ]
    write(tmp_path, "a.jsonl", found)
    site = load(tmp_path, tokenizer, one(heldout=2) | {"on_bad_row": "skip"})["a"]
    lost, cut = BEFORE_ANSWER + 90 + 4 + AFTER_ANSWER, BEFORE_ANSWER + 40 + 60 + AFTER_ANSWER
    assert site.counts() == {
        "source": "a.jsonl",
        "train_rows": 3,
        "heldout_rows": 2,
        "skipped_rows": 2,
        "first_skipped": site.first_skipped,
        "duplicate_rows": 1,
        "no_response_rows": 1,
        "truncated_rows": 2,
        "truncated_tokens": lost + cut - 2 * 96,
    }
    assert site.first_skipped.startswith("a.jsonl:4: expected a response in one of")


# -- control tokens ------------------------------------------------------------------------


def with_mark(form: str, mark: str) -> dict[str, Any]:
    text = f"before {mark} after"
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    return {
        "prompt": {"prompt": text, "response": "a"},
        "response": {"prompt": "q", "response": text},
        "input": {"instruction": "q", "input": text, "output": "a"},
        "system": {"prompt": "q", "response": "a", "system": text},
        "turn": {"messages": [*turns, {"role": "user", "content": text}, *turns[1:]]},
        "alone": {"prompt": "q", "response": mark},
    }[form]


@pytest.mark.parametrize("mark", tiny.SPECIAL_TOKENS)
@pytest.mark.parametrize("form", ["prompt", "response", "input", "system", "turn", "alone"])
def test_a_row_with_a_control_token_is_a_bad_row(
    tmp_path: Path, tokenizer: Any, form: str, mark: str
) -> None:
    write(tmp_path, "a.jsonl", [*rows(0, 1, 2), with_mark(form, mark), *rows(3, 4, 5)])
    message = refused(tmp_path, tokenizer, one(heldout=2))
    assert message == (
        f"a.jsonl:4: expected text without control tokens, got the tokenizer's {mark}; "
        "mend the row, or set data.on_bad_row: skip"
    )
    site = load(tmp_path, tokenizer, one(heldout=2) | {"on_bad_row": "skip"})["a"]
    assert dealt({"a": site}, tokenizer) == {"a": ([0, 1, 2, 3], [4, 5])}
    assert site.skipped_rows == 1
    assert site.first_skipped == message.partition(";")[0]


def test_a_held_out_file_and_a_pool_are_looked_at_too(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, "a.jsonl", rows(*range(20)))
    write(tmp_path, "b.jsonl", [*rows(30, 31), with_mark("turn", "<|im_start|>"), *rows(32, 33)])
    assert refused(tmp_path, tokenizer, one(heldout_source="b.jsonl")).startswith("b.jsonl:3: ")
    for split in ("iid", "dirichlet"):
        data = pooled(split, "a.jsonl", "b.jsonl", sites=2, dirichlet_alpha=100.0)
        assert refused(tmp_path, tokenizer, data).startswith("b.jsonl:3: expected text without")
        sites = load(tmp_path, tokenizer, data | {"on_bad_row": "skip"})
        assert [site.skipped_rows for site in sites.values()] == [1, 0]


def test_nothing_but_control_tokens(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, "a.jsonl", [with_mark("alone", "<|im_end|>")] * 6)
    message = refused(tmp_path, tokenizer, one() | {"on_bad_row": "skip"})
    assert message.startswith("data.sites.a.source: expected rows, got 6 unusable ones (a.jsonl:1")


def test_marks_that_are_added_later_count_and_plain_added_words_do_not(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(
        [AddedToken("<|tool|>", special=True), AddedToken("<call>", special=False)]
    )
    assert "<|tool|>" not in tokenizer.all_special_tokens
    write(tmp_path, "a.jsonl", [*rows(0, 1, 2), with_mark("prompt", "<call>"), *rows(3)])
    assert len(load(tmp_path, tokenizer, one(heldout=1))["a"].train) == 4
    write(tmp_path, "a.jsonl", [*rows(0, 1, 2), with_mark("prompt", "<|tool|>"), *rows(3)])
    assert "got the tokenizer's <|tool|>" in refused(tmp_path, tokenizer, one(heldout=1))


PIECES = st.sampled_from(["<|", "|>", "im_end", "im_start", "endoftext", "<", "|", "user\n", "é"])
TEXTS = st.lists(PIECES | st.text(max_size=3), min_size=1, max_size=8).map("".join)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=TEXTS, response=TEXTS, system=TEXTS)
def test_no_text_gets_a_control_token_into_the_chat(
    tmp_path: Path, tokenizer: Any, prompt: str, response: str, system: str
) -> None:
    found = {"prompt": prompt, "response": response, "system": system}
    write(tmp_path, "a.jsonl", [found, *rows(0, 1)])
    site = load(tmp_path, tokenizer, one(heldout=1) | {"on_bad_row": "skip"}, max_length=999)["a"]
    marks = tokenizer.convert_tokens_to_ids(list(tiny.SPECIAL_TOKENS))
    for tokens in site.train:
        turns = 3 if len(site.train) == 2 and tokens is site.train[0] and system.strip() else 2
        counts = [tokens.input_ids.count(mark) for mark in marks]
        assert counts == [0, turns, turns]


def test_fewer_rows_than_the_plan_wants_are_told(tmp_path: Path, tokenizer: Any) -> None:
    """Those that are held out are not there to train on either."""
    write(tmp_path, "a.jsonl", rows(*range(20)))
    few = load(tmp_path, tokenizer, one(rows=18))["a"]
    assert len(few.train) == 16
    unused = "column `label` not used (20 rows)"
    assert few.notes == ("16 rows are there to train on, fewer than data.sites.a.rows 18", unused)
    assert load(tmp_path, tokenizer, one(rows=16))["a"].notes == (unused,)
    data = pooled("iid", "a.jsonl", sites=2)
    data["pool"][0]["rows"] = 30
    (first, *_) = load(tmp_path, tokenizer, data).values()
    assert first.notes[0] == "a.jsonl has 20 usable rows, fewer than data.pool.0.rows 30"


def test_what_is_not_used_of_a_pool_is_told_to_whoever_asks_for_one_site(
    tmp_path: Path, tokenizer: Any
) -> None:
    write(tmp_path, "a.jsonl", rows(*range(20)))
    raw = {"data": pooled("iid", "a.jsonl", sites=2), "scheme": {"name": "plain"}}
    plan = parse_plan(raw | {"model": {"name": "tiny-llama"}}, base_dir=tmp_path)
    unused = ("column `label` not used (20 rows)",)
    setup = data_setup(plan)
    for name in ("site-1", "site-2"):
        assert load_sites(setup, tokenizer, only=name)[name].notes == unused
    assert [site.notes for site in load_sites(setup, tokenizer).values()] == [unused, ()]


def test_what_enters_has_a_digest_whatever_its_order(tmp_path: Path, tokenizer: Any) -> None:
    """Rule R3: it changes with what the model reads of the training rows, and with nothing else."""
    texts = [{"prompt": f"question {k}", "response": "word " * k} for k in range(1, 6)]

    def digests(
        found: Sequence[dict[str, Any]], max_length: int = 96, **more: Any
    ) -> tuple[bytes, bytes]:
        write(tmp_path, "a.jsonl", found)
        write(tmp_path, "held.jsonl", rows(1, 2))
        source = {"source": "a.jsonl", "heldout_source": "held.jsonl", **more}
        data = {"sites": {"a": source}, "min_examples": 1}
        loaded = load(tmp_path, tokenizer, data, max_length=max_length)["a"]
        return loaded.sources, loaded.train_digest()

    def digest(*about: Any, **more: Any) -> bytes:
        return digests(*about, **more)[1]

    whole = digest(texts)
    assert digest(texts[::-1]) == whole
    assert digest(texts, rows=5) == whole  # a key of the plan that changes nothing
    assert digest([{**text, "ward": "B"} for text in texts]) == whole
    others = [
        digest(texts, rows=4),
        digest(texts, max_length=50),  # cuts the longest
        digest(texts[:3]),
        digest([*texts, texts[0]]),
        digest(texts, columns={"prompt": "response", "response": "prompt"}),
    ]
    assert len({whole, *others}) == 6

    # What a plan reads of the same records changes what enters, and not which records they are.
    sources = digests(texts)[0]
    assert digests(texts[::-1])[0] == sources
    assert digests(texts, max_length=50)[0] == sources
    assert digests(texts, columns={"prompt": "response", "response": "prompt"})[0] == sources
    others = [
        digests(texts, rows=4)[0],
        digests(texts[:3])[0],
        digests([*texts, texts[0]])[0],
        digests([{**text, "ward": "B"} for text in texts])[0],
    ]
    assert len({sources, *others}) == 5
