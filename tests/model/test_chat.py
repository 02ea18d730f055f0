"""Labels: exactly what the assistant says and the mark that ends it, whatever the template."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedshield.errors import ModelError
from fedshield.model.builtin import tiny
from fedshield.model.chat import (
    FALLBACK_TEMPLATE,
    Message,
    Tokens,
    passages,
    render,
    tokenise,
    use_template,
)

LONG = 4096
EOS = "<|im_end|>"
BOS = "<|endoftext|>"

#: As Llama 2's: the system text inside the first turn, texts stripped, marks around each pair.
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set rest = messages[1:] %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}"
    "{% for m in rest %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') }}"
    "{{ m['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
STRIPPING = tiny.CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim")
DEFAULT_SYSTEM = (
    "{% if messages and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{% endif %}" + tiny.CHAT_TEMPLATE
)
NO_SYSTEM = (
    "{% if messages and messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}" + tiny.CHAT_TEMPLATE
)
#: Asking opens a thought that a finished answer does not show.
THINKING = (
    "{% for m in messages %}{{ '<' + m['role'] + '>\\n' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>\\n<think>\\n' }}{% endif %}"
)
REVERSED = (
    "{% for m in messages | reverse %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
PROMPTS_FIRST = (
    "{% for m in messages %}{% if m['role'] != 'assistant' %}{{ 'Q' + m['content'] }}{% endif %}"
    "{% endfor %}"
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ 'A' + m['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'A' }}{% endif %}"
)


def tokenizer_with(template: str | None) -> Any:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def chat(*texts: str, system: str | None = None) -> list[Message]:
    """Turns of user and assistant, the user first."""
    turns = [
        {"role": "assistant" if place % 2 else "user", "content": text}
        for place, text in enumerate(texts)
    ]
    return [{"role": "system", "content": system}, *turns] if system is not None else turns


def runs(tokenizer: Any, tokens: Tokens, *, labelled: bool) -> list[str]:
    """The text of each run of tokens with (or without) a label."""
    pairs = zip(tokens.input_ids, tokens.labels, strict=True)
    return [
        tokenizer.decode([token for token, _ in group])
        for has_label, group in groupby(pairs, key=lambda pair: pair[1] != -100)
        if has_label == labelled
    ]


def answers(template: str | None, messages: list[Message]) -> list[str]:
    tokenizer = tokenizer_with(template)
    use_template(tokenizer, "auto")
    tokens = tokenise(tokenizer, messages, LONG)
    assert tokens.num_dropped == 0
    assert tokenizer.decode(tokens.input_ids) == render(tokenizer, messages)
    for token, label in zip(tokens.input_ids, tokens.labels, strict=True):
        assert label in (-100, token)
    assert tokens.num_response == sum(label != -100 for label in tokens.labels)
    return runs(tokenizer, tokens, labelled=True)


#: Template -> what is learnt of the answer 'X' (with the mark that ends it).
TEMPLATES: dict[str, tuple[str | None, str]] = {
    "chatml": (tiny.CHAT_TEMPLATE, "X<|im_end|>\n"),
    "fallback": (None, " X<|im_end|>\n"),
    "llama2": (LLAMA2, " X <|im_end|>"),
    "stripping": (STRIPPING, "X<|im_end|>\n"),
    "default system": (DEFAULT_SYSTEM, "X<|im_end|>\n"),
    "no system": (NO_SYSTEM, "X<|im_end|>\n"),
    "thinking": (THINKING, "X<|im_end|>"),
}
templates = pytest.mark.parametrize("name", TEMPLATES)
TAKES_SYSTEM = [name for name in TEMPLATES if name != "no system"]


@templates
def test_one_answer(name: str) -> None:
    template, learnt = TEMPLATES[name]
    assert answers(template, chat("What is 2+2?", "It is 4.")) == [learnt.replace("X", "It is 4.")]


@templates
def test_every_answer_of_a_longer_chat(name: str) -> None:
    template, learnt = TEMPLATES[name]
    messages = chat("Hi", "Hello!", "And now?", "Hello!", "Thanks", "Bye")
    expected = [learnt.replace("X", text) for text in ("Hello!", "Hello!", "Bye")]
    assert answers(template, messages) == expected


@pytest.mark.parametrize("name", TAKES_SYSTEM)
def test_a_system_text_is_never_learnt(name: str) -> None:
    template, learnt = TEMPLATES[name]
    messages = chat("Hi", "Hello!", system="Say Hello! to all.")
    assert answers(template, messages) == [learnt.replace("X", "Hello!")]


@templates
@pytest.mark.parametrize(
    "text",
    [
        "naïve café ½",
        "日本語。",
        "Привет, 😀👩‍🔬!",
        "e",
        "user",
        "assistant",
        "think",
        "\\n<",
        "if x:\n    y\n\tz",
    ],
)
def test_answers_of_any_text_also_of_the_templates_own_words(name: str, text: str) -> None:
    template, learnt = TEMPLATES[name]
    messages = chat(text, text, text, text)
    assert answers(template, messages) == [learnt.replace("X", text)] * 2


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda text: text.strip() and "<|" not in text and "|>" not in text
)


@templates
@given(parts=st.lists(texts, min_size=2, max_size=6).filter(lambda parts: len(parts) % 2 == 0))
@example(parts=["a", "\n answer \n"])
@example(parts=["<", "<", "|", "|"])
def test_whatever_is_said(name: str, parts: list[str]) -> None:
    template, learnt = TEMPLATES[name]
    said = [text.strip() if name in ("llama2", "stripping") else text for text in parts[1::2]]
    assert answers(template, chat(*parts)) == [learnt.replace("X", text) for text in said]


# -- templates that do not fit -------------------------------------------------------------


@pytest.mark.parametrize("turns", [2, 4])
def test_a_template_that_writes_answers_before_questions_is_refused(turns: int) -> None:
    with pytest.raises(ModelError, match="writes the turns before the last answer otherwise"):
        answers(REVERSED, chat(*"abcd"[:turns]))


#: As Qwen3's: the thought's marks stand in the last answer only, and earlier thoughts are dropped.
LAST_THOUGHT = (
    "{%- set ns = namespace(last=-1) %}"
    "{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}"
    "{%- endfor %}{%- for m in messages %}{{- '<' + m.role + '>' }}"
    "{%- if m.role == 'assistant' and loop.index0 > ns.last %}"
    "{{- '<think>' + (m.reasoning_content or '') + '</think>' }}{%- endif %}"
    "{{- m.content + eos_token }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<assistant>' }}{%- endif %}"
)


def texts_of(template: str, messages: list[Message], **how: Any) -> list[tuple[str, list[str]]]:
    """Each text that teaches, and what of it has loss."""
    tokenizer = tokenizer_with(template)
    found = passages(tokenizer, messages, **how)
    return [(one.text, [one.text[low:high] for low, high in one.learnt]) for one in found]


def test_an_answer_that_is_rewritten_later_has_a_text_of_its_own() -> None:
    messages = chat("A?", "a", "B?", "b")
    messages[1]["reasoning_content"] = "hm"
    first = f"<user>A?{EOS}<assistant><think>hm</think>a{EOS}"
    second = f"<user>A?{EOS}<assistant>a{EOS}<user>B?{EOS}<assistant><think></think>b{EOS}"
    assert texts_of(LAST_THOUGHT, messages) == [
        (first, [f"<think>hm</think>a{EOS}"]),
        (second, [f"<think></think>b{EOS}"]),
    ]
    assert texts_of(LAST_THOUGHT, messages, last_only=True) == [
        (second, [f"<think></think>b{EOS}"])
    ]
    # The first answer alone has loss: its own text, and not the one that rewrites it.
    assert texts_of(LAST_THOUGHT, messages, learnt=[True, True, True, False]) == [
        (first, [f"<think>hm</think>a{EOS}"])
    ]


def test_an_answer_of_several_steps_is_one_text() -> None:
    messages = [
        {"role": "user", "content": "A?"},
        {"role": "assistant", "content": "look", "reasoning_content": "x"},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "a", "reasoning_content": "y"},
    ]
    ((_, learnt),) = texts_of(LAST_THOUGHT, messages)
    assert learnt == [f"<think>x</think>look{EOS}", f"<think>y</think>a{EOS}"]


def test_prompts_before_answers_are_told_apart_answer_by_answer() -> None:
    assert texts_of(PROMPTS_FIRST, chat(*"abcd")) == [("QaAb", ["b"]), ("QaQcAbAd", ["d"])]


def test_turns_without_loss() -> None:
    messages = chat("A?", "a", "B?", "b")
    ((text, learnt),) = texts_of(tiny.CHAT_TEMPLATE, messages, learnt=[True, False, True, True])
    assert text == render(tokenizer_with(tiny.CHAT_TEMPLATE), messages)
    assert learnt == [f"b{EOS}\n"]


def test_a_greeting_before_any_question_is_learnt_from_its_text_on() -> None:
    messages = [{"role": "assistant", "content": "Welcome!"}, *chat("A?", "a")]
    assert answers(tiny.CHAT_TEMPLATE, messages) == [f"Welcome!{EOS}\n", f"a{EOS}\n"]


def test_the_thought_is_learnt_where_asking_opens_it_otherwise() -> None:
    template = THINKING.replace(
        "m['content'] + eos",
        "('<think>' + m.reasoning_content if m.reasoning_content else '') + m['content'] + eos",
    )
    messages = chat("A?", "a")
    messages[1]["reasoning_content"] = "because"
    ((_, learnt),) = texts_of(template, messages)
    assert learnt == [f"becausea{EOS}"]


def test_the_fallback_refuses_roles_that_it_does_not_know() -> None:
    tokenizer = tokenizer_with(None)
    use_template(tokenizer, "auto")
    with pytest.raises(ModelError, match="the fallback template has no role tool"):
        render(tokenizer, [{"role": "tool", "content": "4"}])


def test_a_template_that_draws_at_random_is_refused() -> None:
    tokenizer = tokenizer_with("{{ ['a', 'b'] | random }}" + tiny.CHAT_TEMPLATE)
    with pytest.raises(ModelError, match=r"draws at random; set model\.chat_template: fallback"):
        use_template(tokenizer, "auto")
    assert use_template(tokenizer, "fallback") == "fallback"


def test_a_template_that_leaves_the_answer_out_is_refused() -> None:
    hiding = THINKING.replace("m['content']", "('' if m['role'] == 'assistant' else m['content'])")
    with pytest.raises(ModelError, match="does not write the last answer as it stands"):
        answers(hiding, chat("question", "answer"))


def test_a_template_that_refuses_to_ask_says_why() -> None:
    """It takes whole rounds only, so a question without its answer is refused."""
    rounds = "{% if messages | length % 2 %}{{ raise_exception('whole rounds') }}{% endif %}"
    with pytest.raises(ModelError, match=r"refuses the turns user \(whole rounds\)"):
        answers(rounds + tiny.CHAT_TEMPLATE, chat("question", "answer"))


def test_what_asking_writes_and_answering_does_not_is_kept() -> None:
    """As DeepSeek-R1's: it asks with a thought's beginning."""
    asking = tiny.CHAT_TEMPLATE.replace("assistant\\n' }}", "assistant\\n<think>\\n' }}")
    assert asking != tiny.CHAT_TEMPLATE
    for template, asked in ((asking, "<think>\n"), (tiny.CHAT_TEMPLATE, "")):
        (passage,) = passages(tokenizer_with(template), chat("question", "answer"))
        assert passage.asked == asked
        ((start, end),) = passage.learnt
        assert passage.text[start:end].startswith("answer")


def test_a_template_that_refuses_the_roles_says_which() -> None:
    with pytest.raises(ModelError) as caught:
        answers(NO_SYSTEM, chat("Hi", "Hello!", system="Be kind."))
    message = str(caught.value)
    assert message == (
        "the chat template refuses the turns system, user, assistant (System role not supported)"
    )


# -- the fallback, and tokens longer than a letter -----------------------------------------


def merging_tokenizer() -> Any:
    """As GPT-2's: a space and the word after it are one token, as are two line ends."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    merges = [("Ġ", "P"), ("ĠP", "a"), ("a", "r"), ("ĠPa", "r"), ("Ċ", "Ċ"), ("Ċ", "Ġ"), ("Ġ", "Ġ")]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *("".join(pair) for pair in merges)]
    core = Tokenizer(models.BPE({word: k for k, word in enumerate(words)}, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


def test_the_first_word_is_learnt_as_the_prompt_will_ask_for_it() -> None:
    tokenizer = merging_tokenizer()
    assert use_template(tokenizer, "auto") == "fallback"
    messages = chat("Capital?", "Paris")
    tokens = tokenise(tokenizer, messages, LONG)
    assert runs(tokenizer, tokens, labelled=True) == [" Paris</s>\n"]
    asked = render(tokenizer, messages[:1], generate=True)
    ids = tokenizer(asked, add_special_tokens=False)["input_ids"]
    assert list(tokens.input_ids[: len(ids)]) == ids
    assert set(tokens.labels[: len(ids)]) == {-100}
    assert -100 not in tokens.labels[len(ids) :]


@pytest.mark.parametrize(
    ("mark", "answer", "learnt"),
    [
        ("A: ", "Paris", " Paris</s>"),  # the prompt's space is in the answer's first token
        ("A:\n", "\n\nParis", "\n\n\nParis</s>"),
        ("A:", "  x\n  y", "  x\n  y</s>"),
        ("A:\n", "x", "x</s>"),
    ],
)
def test_a_token_shared_with_the_prompts_white_space_is_learnt(
    mark: str, answer: str, learnt: str
) -> None:
    tokenizer = merging_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}"
        f"{{{{ {mark!r} + m['content'] + eos_token }}}}"
        "{% else %}{{ m['content'] + '\\n' }}{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ {mark!r} }}}}{{% endif %}}"
    )
    tokens = tokenise(tokenizer, chat("q", answer), LONG)
    assert runs(tokenizer, tokens, labelled=True) == [learnt]


def test_the_plan_can_ask_for_the_fallback() -> None:
    tokenizer = tokenizer_with(tiny.CHAT_TEMPLATE)
    assert use_template(tokenizer, "auto") == "tokenizer"
    assert tokenizer.chat_template == tiny.CHAT_TEMPLATE
    assert use_template(tokenizer, "fallback") == "fallback"
    assert tokenizer.chat_template == FALLBACK_TEMPLATE
    text = render(tokenizer, chat("q", "a", system="s"))
    assert text == f"s\nUser: q\nAssistant: a{EOS}\n"
    assert render(tokenizer, chat("q"), generate=True) == "User: q\nAssistant:"


def test_the_fallback_begins_as_the_tokenizer_begins_texts() -> None:
    from tokenizers import processors

    tokenizer = tokenizer_with(None)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.bos_token_id)]
    )
    assert use_template(tokenizer, "auto") == "fallback"
    messages = chat("q", "a")
    tokens = tokenise(tokenizer, messages, LONG)
    assert list(tokens.input_ids) == tokenizer(f"User: q\nAssistant: a{EOS}\n")["input_ids"]
    assert tokens.input_ids.count(tokenizer.bos_token_id) == 1
    assert runs(tokenizer, tokens, labelled=True) == [f" a{EOS}\n"]


def test_a_tokenizer_without_an_end_mark_is_refused() -> None:
    tokenizer = tokenizer_with(None)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match=r"expected an end-of-text token, .* set eos_token in"):
        use_template(tokenizer, "auto")


# -- cutting -------------------------------------------------------------------------------


def test_long_chats_are_cut_and_the_cut_counted() -> None:
    tokenizer = tokenizer_with(tiny.CHAT_TEMPLATE)
    messages = chat("question", "a long answer")
    whole = tokenise(tokenizer, messages, LONG)
    length = len(whole.input_ids)
    for limit in (1, length // 2, length - 3, length - 1, length, length + 1):
        cut = tokenise(tokenizer, messages, limit)
        kept = min(limit, length)
        assert cut == Tokens(whole.input_ids[:kept], whole.labels[:kept], length - kept)
    assert tokenise(tokenizer, messages, 1).num_response == 0
    assert whole.num_response == len("a long answer") + 2
