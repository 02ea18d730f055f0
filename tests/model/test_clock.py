"""Today's date in a template is the run's, and a template without it is not touched."""

from __future__ import annotations

import datetime

import pytest

from fedshield.model.builtin import tiny
from fedshield.model.chat import date_in, render, use_template
from fedshield.model.clock import at_date, writes_chance, writes_date

DAY = datetime.date(2023, 3, 7)
ASK = [{"role": "user", "content": "Hi"}]


def text_of(template: str, date: datetime.date = DAY) -> str:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    use_template(tokenizer, "auto", date)
    before = tokenizer.chat_template
    text = render(tokenizer, ASK)
    assert tokenizer.chat_template == before == template
    return text


@pytest.mark.parametrize(
    "wanted",
    [
        "%d %b %Y",
        "%B %d, %Y",
        "%Y-%m-%d",
        "%A the %-d. of %B",
        "%H:%M 100%% %%d",
        "it's %j",
        "plain",
    ],
)
def test_the_runs_date_is_written(wanted: str) -> None:
    spelt = wanted.replace("'", "\\'")
    template = (
        f"{{%- set d = strftime_now('{spelt}') %}}Today: {{{{ d }}}}|{{{{ messages[0].content }}}}"
    )
    expected = datetime.datetime(2023, 3, 7).strftime(wanted)
    assert text_of(template) == f"Today: {expected}|Hi"


@pytest.mark.parametrize("begin", ["", "\n", "  ", "{# a remark #}\n", "{%- set x = 1 %}\n"])
def test_white_space_at_the_templates_beginning_stays_as_it_was(begin: str) -> None:
    body = "{% if true %}\nToday {{ WHEN }}\n{% endif %}\n{{ messages[0].content }}"
    with_clock = begin + body.replace("WHEN", "strftime_now('%Y') if strftime_now is defined")
    assert text_of(with_clock) == text_of(begin + body.replace("WHEN", "'2023'"))


def test_the_clock_is_seen_in_a_macro_too() -> None:
    template = (
        "{% macro head() %}{{ strftime_now('%Y') }}{% endmacro %}{{ head() }} "
        "{{ messages[0].role }}"
    )
    assert text_of(template) == "2023 user"


def test_a_template_without_the_clock_is_left_alone() -> None:
    assert at_date(tiny.CHAT_TEMPLATE, DAY) is tiny.CHAT_TEMPLATE
    tokenizer = tiny.tokenizer()
    use_template(tokenizer, "auto", DAY)
    assert date_in(tokenizer) is None
    assert not writes_date(tiny.CHAT_TEMPLATE)


def test_without_a_runs_date_it_is_the_day_on_which_the_template_was_settled() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%Y-%m-%d') }}"
    before = datetime.date.today()
    use_template(tokenizer, "auto")
    assert before <= datetime.date.fromisoformat(render(tokenizer, ASK)) <= datetime.date.today()
    assert date_in(tokenizer) == datetime.date.fromisoformat(render(tokenizer, ASK))


@pytest.mark.parametrize("template", ["{{ ['a', 'b'] | random }}", "{{ lipsum(1) }}"])
def test_chance_in_a_template_is_seen(template: str) -> None:
    assert writes_chance(template)
    assert not writes_chance("{{ 'random text' }}")
