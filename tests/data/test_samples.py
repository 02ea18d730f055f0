"""The built-in sample silos: sound rows, no leaks between or within silos, and a true NOTICE."""

from __future__ import annotations

import gzip
import hashlib
import json
import re

import pytest

from fedshield.data import samples
from fedshield.errors import DataError

Row = dict[str, str]
TOTAL_BYTES_LIMIT = 1_000_000
RESPONSE_CHARS_LIMIT = 500


def rows_of(name: str) -> list[Row]:
    with gzip.open(samples.path(name), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def silos() -> dict[str, list[Row]]:
    return {name: rows_of(name) for name in samples.SAMPLES}


@pytest.fixture(scope="module")
def notice() -> dict[str, tuple[int, str]]:
    """File name -> (rows, sha256), read from the table in NOTICE.md."""
    text = samples.path("code").with_name("NOTICE.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| (\w+\.jsonl\.gz) \| (\d+) \| ([0-9a-f]{64}) \|$", text, re.MULTILINE)
    return {file: (int(rows), digest) for file, rows, digest in found}


def subject(row: Row) -> str:
    """What a row is about: the quoted term or name, or the whole question where none is quoted."""
    term = re.search(r"\"(.+)\"", row["instruction"])
    name = re.search(r"`(.+)`", row["instruction"])  # the case of a Python name counts
    return name[1] if name else term[1].lower() if term else row["instruction"]


@pytest.mark.parametrize("name", samples.SAMPLES)
def test_rows_are_whole(name: str, silos: dict[str, list[Row]]) -> None:
    for row in silos[name]:
        assert list(row) == ["instruction", "response", "domain"]
        assert row["domain"] == name
        assert row["instruction"] == row["instruction"].strip() != ""
        assert row["response"] == row["response"].strip() != ""
        assert len(row["response"]) <= RESPONSE_CHARS_LIMIT


@pytest.mark.parametrize("name", samples.SAMPLES)
def test_no_subject_occurs_twice(name: str, silos: dict[str, list[Row]]) -> None:
    subjects = [subject(row) for row in silos[name]]
    assert len(set(subjects)) == len(subjects)


@pytest.mark.parametrize("name", ["medical", "finance", "code"])
def test_no_response_occurs_twice(name: str, silos: dict[str, list[Row]]) -> None:
    responses = [row["response"].lower() for row in silos[name]]
    assert len(set(responses)) == len(responses)


def test_silos_are_disjoint(silos: dict[str, list[Row]]) -> None:
    instructions = [row["instruction"] for rows in silos.values() for row in rows]
    assert len(set(instructions)) == len(instructions)
    medical, finance = ({subject(row) for row in silos[name]} for name in ("medical", "finance"))
    assert not medical & finance


def test_total_size() -> None:
    assert sum(samples.path(name).stat().st_size for name in samples.SAMPLES) < TOTAL_BYTES_LIMIT


@pytest.mark.parametrize("name", samples.SAMPLES)
def test_notice_states_rows_and_hash(
    name: str, silos: dict[str, list[Row]], notice: dict[str, tuple[int, str]]
) -> None:
    file = samples.path(name)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert notice[file.name] == (len(silos[name]), digest)


def test_files_carry_no_time_stamp() -> None:
    for name in samples.SAMPLES:
        assert samples.path(name).read_bytes()[4:8] == bytes(4)


def test_notice_holds_the_licences() -> None:
    text = samples.path("code").with_name("NOTICE.md").read_text(encoding="utf-8")
    for phrase in (
        "WordNet 3.1 Copyright 2011 by Princeton University.  All rights reserved.",
        "Copyright 2018 DeepMind Technologies Limited",
        "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2",
    ):
        assert phrase in text


@pytest.mark.parametrize(("wrong", "near"), [("medcal", "medical"), ("Maths", "maths")])
def test_unknown_name_gets_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(DataError) as caught:
        samples.path(wrong)
    message = str(caught.value)
    assert f"'{wrong}'" in message
    assert "medical, finance, maths, code" in message
    assert message.endswith(f"did you mean '{near}'?")
    assert "\n" not in message


def test_unknown_name_with_nothing_near() -> None:
    with pytest.raises(DataError, match=r"code$"):
        samples.path("zzz")
