"""A record is the same record whatever a plan reads of it."""

from __future__ import annotations

from typing import Any

import pytest

from fedshield.data.records import MIN_TEXT, digests

RECORD: dict[str, Any] = {
    "question": "Which dose was given on the second day?",
    "answer": "Five milligrams, in the evening.",
    "ward": "B",
}


@pytest.mark.parametrize(
    "changed",
    [
        {**RECORD, "id": 7},
        {name: RECORD[name] for name in ("answer", "ward", "question")},
        {"question": RECORD["question"]},
        {"text": [{"content": f" {RECORD['answer']}\n"}]},
    ],
    ids=["a column added", "other order", "one column", "another form"],
)
def test_a_record_is_known_again(changed: dict[str, Any]) -> None:
    assert digests(RECORD) & digests(changed)


def test_another_record_with_the_same_label_is_another() -> None:
    other = {
        "question": "What was the first diagnosis?",
        "answer": "A sprained ankle.",
        "ward": "B",
    }
    assert not digests(RECORD) & digests(other)


def test_a_record_of_short_texts_is_known_by_all_its_fields() -> None:
    short = {"q": "yes?", "a": "no"}
    assert len("yes?") < MIN_TEXT
    assert digests(short) == digests({"a": "no", "q": "yes?"})
    assert not digests(short) & digests({"q": "yes?", "a": "yes"})


def test_text_that_is_no_unicode_and_values_of_any_kind_have_digests() -> None:
    assert digests({"a": "\ud800" * MIN_TEXT, "b": 1.5, "c": None, "d": {1: object}})
