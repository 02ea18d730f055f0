"""What a chat template leaves of a row: refused rows, unused keys, trimmed and dropped text."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fedshield.data.sites import SiteData, load_sites
from fedshield.errors import DataError
from fedshield.model.builtin import tiny
from fedshield.model.chat import use_template
from fedshield.plan.load import parse_plan
from fedshield.run.settings import data_setup

EOS = "<|im_end|>"
#: Writes thoughts, names, tools and calls; arguments as JSON of what it is given.
RICH = (
    "{%- if tools %}{{- 'TOOLS ' + (tools | tojson) + '\\n' }}{%- endif %}"
    "{%- for m in messages %}{{- '<' + m.role + ((' ' + m.name) if m.name else '') + '>' }}"
    "{%- if m.reasoning_content %}{{- '(' + m.reasoning_content + ')' }}{%- endif %}"
    "{{- m.content }}"
    "{%- for c in m.tool_calls or [] %}"
    "{{- 'CALL ' + c.function.name + (c.function.arguments | tojson) }}{%- endfor %}"
    "{{- eos_token }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<assistant>' }}{%- endif %}"
)
STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<' + m['role'] + '>' + m['content'] | trim + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
NO_SYSTEM_TEXT = tiny.CHAT_TEMPLATE.replace(
    "{% for message in messages %}",
    "{% for message in messages if message['role'] != 'system' %}",
)


def pair(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"Bed {number}?", "response": f"Bed {number} is free.", **more}


def load(
    folder: Path, template: str, rows: Sequence[dict[str, Any]], heldout: int = 1, **data: Any
) -> tuple[SiteData, list[tuple[str, str]]]:
    """The site's data, and of each training text the whole and what of it has loss."""
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    privacy = data.pop("privacy", None)
    raw = {
        "model": {"name": "tiny-llama"},
        "data": {"heldout_rows": heldout, "sites": {"a": {"source": "a.jsonl"}}, **data},
        "adapter": {"dropout": 0.0},
        "training": {"max_length": 900},
        "scheme": {"name": "plain"},
        **({"privacy": privacy} if privacy else {}),
    }
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    site = load_sites(data_setup(parse_plan(raw, base_dir=folder)), tokenizer)["a"]
    decode = tokenizer.decode
    return site, [
        (decode(t.input_ids), decode([label for label in t.labels if label != -100]))
        for t in site.train
    ]


# -- refused rows --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (pair(7, system="Be brief."), "System role not supported"),
        (
            {
                "messages": [
                    {"role": "user", "content": "Hello?"},
                    {"role": "user", "content": "Bed 7?"},
                    {"role": "assistant", "content": "Free."},
                ]
            },
            "roles must alternate",
        ),
    ],
)
def test_a_row_that_the_template_refuses_is_a_bad_row(
    tmp_path: Path, bad: dict[str, Any], why: str
) -> None:
    rows = [pair(1), pair(2), bad, pair(3)]
    with pytest.raises(DataError) as caught:
        load(tmp_path, STRICT, rows)
    message = str(caught.value)
    assert message.startswith("a.jsonl:3: the chat template refuses the turns ")
    assert why in message
    assert message.endswith("; mend the row, or set data.on_bad_row: skip")
    site, texts = load(tmp_path, STRICT, rows, on_bad_row="skip")
    assert [learnt for _, learnt in texts] == [f"Bed {n} is free.{EOS}" for n in (1, 2)]
    assert site.skipped_rows == 1
    assert site.first_skipped == message.partition("; mend")[0]


def test_a_refused_row_at_the_end_is_not_among_the_held_out(tmp_path: Path) -> None:
    rows = [pair(1), pair(2), pair(3), pair(4, system="Be brief.")]
    site, texts = load(tmp_path, STRICT, rows, on_bad_row="skip")
    assert len(texts) == 2
    assert len(site.heldout) == 1


def test_where_every_row_is_refused_the_first_says_why(tmp_path: Path) -> None:
    rows = [pair(n, system="Be brief.") for n in range(3)]
    with pytest.raises(DataError, match=r"got 3 unusable ones \(a\.jsonl:1: the chat template ref"):
        load(tmp_path, STRICT, rows, on_bad_row="skip")


def test_calls_alone_that_are_not_written_are_the_reason(tmp_path: Path) -> None:
    """Not what follows from it, and nothing of a skipped row is counted as unused."""
    call = {"type": "function", "function": {"name": "beds", "arguments": {}}}
    turns = [
        {"role": "user", "name": "Ada", "content": "Free?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "Four."},
    ]
    asking = tiny.CHAT_TEMPLATE.replace("assistant\\n' }}", "assistant\\n<think>\\n' }}")
    for template in (tiny.CHAT_TEMPLATE, asking):
        rows = [pair(1), {"messages": turns}, pair(2)]
        site, _ = load(tmp_path, template, rows, on_bad_row="skip")
        assert site.first_skipped == (
            "a.jsonl:2: expected an answer in turn 2, got tool_calls alone, which the chat "
            "template does not write"
        )
        assert not [note for note in site.notes if "not used" in note]


def test_a_template_that_asks_with_more_than_it_writes_of_answers_is_noted(tmp_path: Path) -> None:
    asking = tiny.CHAT_TEMPLATE.replace("assistant\\n' }}", "assistant\\n<think>\\n' }}")
    site, texts = load(tmp_path, asking, [pair(1), pair(2), pair(3)])
    assert [learnt for _, learnt in texts] == [f"Bed {n} is free.{EOS}\n" for n in (1, 2)]
    assert site.notes == (
        "the chat template begins an answer that it asks for with '<think>', and leaves that out "
        "of answers that are given, which are learnt without it (3 rows, first a.jsonl:1)",
    )


# -- keys ----------------------------------------------------------------------------------


def test_what_the_template_writes_reaches_it_and_is_learnt(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "beds"}}]
    call = {"type": "function", "function": {"name": "beds", "arguments": {"ward": 4}}}
    row = {
        "tools": tools,
        "messages": [
            {"role": "user", "name": "Ada", "content": "Free?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "Two.", "thinking": "2 free"},
        ],
    }
    site, ((text, learnt), *_) = load(tmp_path, RICH, [row, pair(1), pair(2)])
    assert text == (
        f"TOOLS {json.dumps(tools)}\n<user Ada>Free?{EOS}"
        f'<assistant>CALL beds{{"ward": 4}}{EOS}<tool>2{EOS}<assistant>(2 free)Two.{EOS}'
    )
    assert learnt == f'CALL beds{{"ward": 4}}{EOS}(2 free)Two.{EOS}'
    assert site.notes == ()


@pytest.mark.parametrize(
    ("template", "given", "written"),
    [
        (RICH, '{"ward": 4}', '{"ward": 4}'),  # as text it would be quoted and escaped
        (RICH.replace(" | tojson) }}{%- endfor %}{{- eos", ") }}{%- endfor %}{{- eos"),
         {"ward": 4}, '{"ward": 4}'),
    ],
)  # fmt: skip
def test_arguments_of_calls_are_written_as_json(
    tmp_path: Path, template: str, given: Any, written: str
) -> None:
    call = {"function": {"name": "beds", "arguments": given}}
    turns = [
        {"role": "user", "content": "Free?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    _, texts = load(tmp_path, template, [{"messages": turns}, pair(1), pair(2)])
    assert texts[0][1] == f"CALL beds{written}{EOS}"


def test_keys_and_columns_that_are_not_used_are_named_and_counted(tmp_path: Path) -> None:
    def chat(**more: Any) -> list[dict[str, Any]]:
        return [
            {"role": "user", "content": "Free?", "mood": "calm"},
            {"role": "assistant", "content": "Yes.", **more},
        ]

    rows = [
        {"messages": chat(reasoning_content="hm"), "category": "x", "tools": [{"name": "t"}]},
        {"messages": chat(), "category": "", "id": 0},
        pair(1, category="y"),
        pair(2),
    ]
    site, _ = load(tmp_path, tiny.CHAT_TEMPLATE, rows)
    assert set(site.notes) == {
        "column `category` not used (2 rows)",
        "column `id` not used (1 row)",
        "column `tools` (by the chat template) not used (1 row)",
        "key `mood` of turns (by the chat template) not used (2 rows)",
        "key `reasoning_content` of turns (by the chat template) not used (1 row)",
    }
    for rule in ("refuse", "skip"):
        with pytest.raises(DataError) as caught:
            load(tmp_path, tiny.CHAT_TEMPLATE, rows, unused="refuse", on_bad_row=rule)
        assert str(caught.value).startswith("a.jsonl:1: expected every column and key to be used")
        assert "column `category`" in str(caught.value)


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_a_thought_that_is_not_written_has_the_name_that_the_file_has(
    tmp_path: Path, key: str
) -> None:
    turns = [{"role": "user", "content": "Free?"}, {"role": "assistant", "content": "Yes."}]
    turns[1][key] = "hm"
    site, _ = load(tmp_path, tiny.CHAT_TEMPLATE, [{"messages": turns}, pair(1), pair(2)])
    assert site.notes == (f"key `{key}` of turns (by the chat template) not used (1 row)",)


def test_an_answer_of_calls_alone_needs_a_template_that_writes_them(tmp_path: Path) -> None:
    call = {"function": {"name": "beds", "arguments": {}}}
    turns = [
        {"role": "user", "content": "Free?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    with pytest.raises(DataError, match="got tool_calls alone, which the chat template does not w"):
        load(tmp_path, tiny.CHAT_TEMPLATE, [{"messages": turns}, pair(1), pair(2)])


@pytest.mark.parametrize("key", ["reasoning_content", "name", "tools"])
def test_control_tokens_are_looked_for_in_all_that_is_written(tmp_path: Path, key: str) -> None:
    mark = "<|im_start|>"
    turns = [{"role": "user", "content": "Free?"}, {"role": "assistant", "content": "Yes."}]
    row: dict[str, Any] = {"messages": turns}
    if key == "tools":
        row["tools"] = [{"name": "beds", "about": f"a {mark}"}]
    else:
        turns[1][key] = f"a {mark}"
    with pytest.raises(DataError, match=r"a\.jsonl:2: expected text without control tokens, got"):
        load(tmp_path, RICH, [pair(1), row, pair(2)])
    # What is not written cannot end a turn.
    site, _ = load(tmp_path, tiny.CHAT_TEMPLATE, [pair(1), row, pair(2)])
    assert site.skipped_rows == 0


# -- text ----------------------------------------------------------------------------------


def test_white_space_is_trained_on_unless_the_template_trims_it(tmp_path: Path) -> None:
    code = "    if x:\n        return 1\n"
    rows = [{"prompt": "def f(x):", "completion": code}, pair(1), pair(2)]
    site, texts = load(tmp_path, tiny.CHAT_TEMPLATE, rows)
    assert texts[0][1] == f"{code}{EOS}\n"
    assert site.notes == ()
    site, texts = load(tmp_path, STRICT, rows)
    assert texts[0][1] == f"{code.strip()}{EOS}"
    assert site.notes == (
        "the chat template trims white space around text (1 row, first a.jsonl:1)",
    )


@pytest.mark.parametrize("system", ["Answer as the night nurse.", "s"])
def test_a_template_that_drops_a_role_is_named(tmp_path: Path, system: str) -> None:
    """Also where the text is so short that it occurs elsewhere."""
    site, _ = load(tmp_path, NO_SYSTEM_TEXT, [pair(1, system=system), pair(2), pair(3)])
    assert site.notes == (
        "the chat template leaves out text of the role system, or rewrites it "
        "(1 row, first a.jsonl:1)",
    )


def test_turns_after_the_last_answer_are_named(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "Free?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Thanks!"},
    ]
    site, texts = load(tmp_path, RICH, [{"messages": turns}, pair(1), pair(2)])
    assert texts[0][0] == f"<user>Free?{EOS}<assistant>Yes.{EOS}"
    assert site.notes == (
        "turns after the last answer are not used: nothing in them is learnt "
        "(1 row, first a.jsonl:1)",
    )


# -- templates that rewrite earlier answers --------------------------------------------------

REWRITES = (
    "{%- for m in messages %}{{- '<' + m.role + '>' }}"
    "{%- if m.role == 'assistant' and loop.last %}{{- '<think></think>' }}{%- endif %}"
    "{{- m.content + eos_token }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<assistant>' }}{%- endif %}"
)
TWO_ROUNDS = {
    "messages": [
        {"role": "user", "content": "A?"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "B?"},
        {"role": "assistant", "content": "b"},
    ]
}


def test_each_rewritten_answer_is_an_example_and_that_is_said(tmp_path: Path) -> None:
    site, texts = load(tmp_path, REWRITES, [TWO_ROUNDS, pair(1), pair(2)])
    assert texts[:2] == [
        (f"<user>A?{EOS}<assistant><think></think>a{EOS}", f"<think></think>a{EOS}"),
        (
            f"<user>A?{EOS}<assistant>a{EOS}<user>B?{EOS}<assistant><think></think>b{EOS}",
            f"<think></think>b{EOS}",
        ),
    ]
    assert len(site.train) == 3
    assert site.notes == (
        "the chat template rewrites earlier answers: each of those has a text of its own "
        "(1 row, first a.jsonl:1)",
    )


def test_with_example_privacy_a_conversation_stays_one_example(tmp_path: Path) -> None:
    """Its noise hides one example: a conversation that were two would be hidden half."""
    privacy = {"unit": "example", "clip_norm": 1.0, "epsilon": 8, "delta": 1e-5}
    rows = [TWO_ROUNDS, pair(1), pair(2)]
    site, texts = load(tmp_path, REWRITES, rows, privacy=privacy)
    assert [learnt for _, learnt in texts] == [
        f"<think></think>b{EOS}",
        f"<think></think>Bed 1 is free.{EOS}",
    ]
    assert "they have no loss, since with privacy.unit example a conversation" in site.notes[0]


# -- rows that a limit leaves out ------------------------------------------------------------


def test_rows_beyond_a_limit_are_told(tmp_path: Path) -> None:
    rows = [pair(n) for n in range(10)]
    site, texts = load(
        tmp_path, tiny.CHAT_TEMPLATE, rows, heldout=2, sites={"a": {"source": "a.jsonl", "rows": 3}}
    )
    assert len(texts) == 3
    assert site.notes == ("the first 3 rows are used, 5 further ones are not (data.sites.a.rows)",)


# -- the date ------------------------------------------------------------------------------


def test_rows_are_the_same_on_another_day_if_the_run_keeps_its_date(tmp_path: Path) -> None:
    rows = [pair(n) for n in range(3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw = {
        "model": {"name": "tiny-llama"},
        "data": {"heldout_rows": 1, "sites": {"a": {"source": "a.jsonl"}}},
        "scheme": {"name": "plain"},
    }
    plan = parse_plan(raw, base_dir=tmp_path)
    digests = []
    for day in (4, 4, 5):
        tokenizer = tiny.tokenizer()
        tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + tiny.CHAT_TEMPLATE
        use_template(tokenizer, "auto", datetime.date(2024, 2, day))
        site = load_sites(data_setup(plan), tokenizer)["a"]
        digests.append(site.sha256())
        assert tokenizer.decode(site.train[0].input_ids).startswith(f"0{day} Feb 2024")
        assert f"a date into every text: 2024-02-0{day}, the day on which" in site.notes[0]
    assert digests[0] == digests[1] != digests[2]
