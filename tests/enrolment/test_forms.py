"""Each kind of file, with each mistake that JSON allows: one line that names the file and the key,
and no value."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fedshield.crypto.keys import SigningKey
from fedshield.enrolment import Asked, Card, KeyFile, RosterError, SignedRoster, demonstration
from fedshield.enrolment import files as files_module
from fedshield.enrolment.exposure import Exposure
from fedshield.enrolment.forms import Form, Listed, Text, at_most
from fedshield.enrolment.seen import SeenKeys
from fedshield.ledger.entries import Receipt
from fedshield.ledger.rows import Version
from fedshield.recovery.letters import Answer, Question, ToldRow
from fedshield.run.log_file import ROSTERS_FILE, keep_roster, read_rosters

OLD = KeyFile.make("bank")
KEY = KeyFile.make("bank", OLD)
ROSTER, _ = demonstration([f"site-{k}" for k in range(6)], Asked(membership="batches"))
ONE, TWO = "1" * 64, "2" * 64
ROW = ToldRow(
    *("3" * 64, "", "trial", "round", 1, "4" * 64, (ONE, TWO), (ONE, TWO), 1, "fixed", "private"),
    steps=4,
    versions=tuple((site, Version.from_bytes(bytes(64))) for site in (ONE, TWO)),
)


class Sample(NamedTuple):
    """A kind of file. `text`: one that is read; `number`: the keys to a whole number in it."""

    read: Callable[[Path], object]
    text: str
    number: tuple[str | int, ...] | None = None


def run_rosters(folder: Path) -> str:
    keep_roster(folder, ROSTER.to_roster())
    return (folder / ROSTERS_FILE).read_text()


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sample]:
    exposure = Exposure.sign(KEY, "going", bytes(32), bytes(32), [ONE, TWO], [TWO])
    answer = Answer(
        *(bytes(32), ONE, TWO, b"", {ONE: bytes(3)}, (ROW,)),
        results=(Receipt("3" * 64, "round", 1, "5" * 64),),
    ).signed(SigningKey().sign)
    question = Question(bytes(32), ONE).signed(SigningKey().sign)
    seen = SeenKeys({}, frozenset()).after(ROSTER)
    rosters = run_rosters(tmp_path_factory.mktemp("run"))
    return {
        "card": Sample(Card.read, KEY.card().to_text()),
        "key file": Sample(KeyFile.read, KEY.to_text()),
        "roster": Sample(SignedRoster.read, ROSTER.to_text(), ("sealing",)),
        "exposure": Sample(Exposure.read, exposure.to_text()),
        "keys seen": Sample(SeenKeys.read, seen.to_text()),
        "run rosters": Sample(read_rosters, rosters, ("rosters", 0, "rules", "votes")),
        "question": Sample(Question.read, question.to_text()),
        "answer": Sample(Answer.read, answer.to_text(), ("rows", 0, "steps")),
    }


FILES = (
    *("card", "key file", "roster", "exposure", "keys seen", "run rosters", "question", "answer"),
)
WITH_NUMBERS = ("roster", "run rosters", "answer")


def refusal(sample: Sample, path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(RosterError) as caught:
        sample.read(path)
    line = str(caught.value)
    assert line.isprintable()
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


def changed(text: str, keys: Iterable[str | int], value: object) -> str:
    """With this value there; with nothing there for `...`."""
    whole = json.loads(text)
    *parents, last = keys
    place = whole
    for key in parents:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return json.dumps(whole)


def objects(value: Any, keys: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The keys to every object whose own keys have fixed names: in the others, names are data."""
    if isinstance(value, dict) and not any(name in value for name in NAMES_ARE_DATA):
        yield keys
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        if isinstance(inner, dict | list):
            yield from objects(inner, (*keys, key))


NAMES_ARE_DATA = ("site-0", "site-3", ONE)


@pytest.mark.parametrize("kind", FILES)
def test_the_files_are_read(samples: dict[str, Sample], kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(samples[kind].text)
    path.chmod(0o600)
    samples[kind].read(path)


@pytest.mark.parametrize("kind", FILES)
def test_an_unknown_key_is_refused_wherever_it_is(
    samples: dict[str, Sample], kind: str, tmp_path: Path
) -> None:
    sample = samples[kind]
    places = [*objects(json.loads(sample.text))]
    assert () in places
    for place in places:
        line = refusal(sample, tmp_path / "file", changed(sample.text, (*place, "colour"), "red"))
        path = ".".join(map(str, (*place, "colour")))
        assert line.startswith(f"{path!r}: unknown key; all parties need the same version")
        assert "red" not in line


@pytest.mark.parametrize("kind", FILES)
def test_a_missing_key_and_a_wrong_type_are_refused_wherever_they_are(
    samples: dict[str, Sample], kind: str, tmp_path: Path
) -> None:
    sample = samples[kind]
    whole = json.loads(sample.text)
    for place in objects(whole):
        inner = whole
        for key in place:
            inner = inner[key]
        for key in inner.keys() - {"fedshield"}:
            path = ".".join(map(str, (*place, key)))
            # A chain or a lineage that is left out is one more thing that was signed.
            if key not in ("replaces", "lineage", "announced"):
                line = refusal(sample, tmp_path / "file", changed(sample.text, (*place, key), ...))
                assert line.startswith(f"{path}: expected ")
                assert line.endswith(", found none; ask for the file again")
            wrong = changed(sample.text, (*place, key), 1.5)
            line = refusal(sample, tmp_path / "file", wrong)
            assert line.startswith(f"{path}: expected ")
            assert line.endswith(", got something else; ask for the file again")


@pytest.mark.parametrize("kind", WITH_NUMBERS)
@pytest.mark.parametrize("value", [True, 2.0, "2", None, [2], {}])
def test_what_is_no_whole_number_is_refused(
    samples: dict[str, Sample], kind: str, value: object, tmp_path: Path
) -> None:
    sample = samples[kind]
    assert sample.number is not None
    line = refusal(sample, tmp_path / "file", changed(sample.text, sample.number, value))
    path = ".".join(map(str, sample.number))
    assert line.startswith(f"{path}: expected a")
    assert "number" in line


@pytest.mark.parametrize(
    ("keys", "value", "says"),
    [
        (("sealing",), 10**4000, "sealing: expected 2"),
        (("rules", "votes"), 65, "--votes: expected 0 to 64, got 65"),
        (("rules", "threshold"), 10**4000, "--threshold: expected 1 to 64"),
        (("allowed", "min_bits"), 17, "--min-bits: expected 2 to 16, got 17"),
        (("allowed", "max_examples"), 2**31, "--max-examples: expected 1 to 2147483647"),
    ],
    ids=["sealing", "votes", "threshold", "min_bits", "max_examples"],
)
def test_a_number_that_is_too_large_is_refused(
    samples: dict[str, Sample],
    keys: tuple[str, ...],
    value: int,
    says: str,
    tmp_path: Path,
) -> None:
    sample = samples["roster"]
    assert refusal(sample, tmp_path / "file", changed(sample.text, keys, value)).startswith(says)


@pytest.mark.parametrize("value", [2**31, 10**4000, -1], ids=["2**31", "10**4000", "-1"])
def test_a_number_that_no_plan_has_is_refused(
    samples: dict[str, Sample], value: int, tmp_path: Path
) -> None:
    text = changed(samples["answer"].text, ("rows", 0, "steps"), value)
    line = refusal(samples["answer"], tmp_path / "file", text)
    assert line.startswith("rows.0.steps: expected a number from 0 to 2147483647, got something")


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize(
    ("put", "says"),
    [
        ('"fedshield": "card 1", ', "the key 'fedshield' is there twice"),
        ('"x": {"y": 1, "y": 1}, ', "the key 'y' is there twice"),
        ('"x": NaN, ', "NaN is no JSON"),
        ('"x": Infinity, ', "Infinity is no JSON"),
        ('"x": -Infinity, ', "-Infinity is no JSON"),
        (f'"x": {"[" * 200_000}{"]" * 200_000}, ', ""),
        ('"x": ' + "9" * 5000 + ", ", "Exceeds the limit"),
        (r'"x": "\ud800", ', "not UTF-8"),
        ('"x": "\n", ', "Invalid control character"),
        ('"x": ,', "Expecting value"),
    ],
    ids=["twice", "twice inside", "NaN", "inf", "-inf", "deep", "digits", "half", "line", "none"],
)
def test_what_pydantic_would_let_through_is_no_json(
    samples: dict[str, Sample], kind: str, put: str, says: str, tmp_path: Path, monkeypatch: Any
) -> None:
    """Keys that are there twice, and NaN; and what no parser should see."""
    limits = dict.fromkeys(files_module.MAX_BYTES, 2**20)
    monkeypatch.setattr(files_module, "MAX_BYTES", limits)
    sample = samples[kind]
    line = refusal(sample, tmp_path / "file", sample.text.replace("{", "{" + put, 1))
    assert "got damaged JSON (" in line
    assert says in line
    assert line.endswith("; ask for the file again")


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("text", ["[]", "3", "null", '"card 1"', "{}"])
def test_what_is_no_object_is_another_file(
    samples: dict[str, Sample], kind: str, text: str, tmp_path: Path
) -> None:
    line = refusal(samples[kind], tmp_path / "file", text)
    assert line.endswith("got something else; check the path")


def test_one_value_has_one_text(samples: dict[str, Sample], tmp_path: Path) -> None:
    """Hexadecimal digits are small, and there is nothing beside them."""
    public = KEY.key.public.hex()
    for other in (public.upper(), public + "\n", " " + public, "0x" + public[2:], public[:-2]):
        text = changed(samples["card"].text, ["public_key"], other)
        line = refusal(samples["card"], tmp_path / "file", text)
        assert line.startswith("public_key: expected 64 digits of 0-9 and a-f, got something else")


def test_a_private_key_is_in_no_refusal(samples: dict[str, Sample], tmp_path: Path) -> None:
    secret = KEY.key.to_bytes().hex()
    for keys, value in (
        (["private_key"], secret[:-1]),
        (["private_key"], [secret]),
        (["private_key"], secret.upper()),
        ([secret], 1),
    ):
        line = refusal(samples["key file"], tmp_path / "file", changed(KEY.to_text(), keys, value))
        assert secret[:64] not in line or keys == [secret]
        assert secret[64:] not in line.lower()


def test_a_key_cannot_break_the_line(samples: dict[str, Sample], tmp_path: Path) -> None:
    for keys in (["a\nb"], ["in_force", "a\nb"], ["in_force", "\x1b[2J"]):
        text = changed(samples["keys seen"].text, keys, 1)
        assert "\\" in refusal(samples["keys seen"], tmp_path / "file", text)


def test_an_object_has_so_many_keys(
    samples: dict[str, Sample], tmp_path: Path, monkeypatch: Any
) -> None:
    """Each unknown key is a note of pydantic's, and a file could have millions."""
    monkeypatch.setattr(files_module, "MAX_KEYS", 40)
    many = dict.fromkeys((f"key {k}" for k in range(40)), 0)
    text = json.dumps(json.loads(samples["roster"].text) | many)
    assert "more than 40 keys in one object" in refusal(samples["roster"], tmp_path / "file", text)


class Parts(Form):
    names: Listed[Text]
    few: Listed[Text] = ()


def test_the_first_bad_item_of_a_list_ends_its_reading() -> None:
    with pytest.raises(RosterError, match=r"^names\.1: expected text, got something else; "):
        Parts.parse({"names": ["a", 1, *range(100_000)]})
    for wrong in ("abc", {"a": 1}, 1, None):
        with pytest.raises(RosterError, match=r"^names: expected a list, got something else; "):
            Parts.parse({"names": wrong})


def test_what_is_no_object_is_no_form() -> None:
    for wrong in ([], "x", None, 1, [["names", []]]):
        with pytest.raises(RosterError, match=r"^expected an object with keys, got something"):
            Parts.parse(wrong)


def test_a_form_is_not_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Parts(names=()).names = ("a",)  # type: ignore[misc]


def test_at_most_counts_before_it_reads() -> None:
    check = at_most(2).func
    assert check([{}, {}]) == [{}, {}]  # type: ignore[call-arg]
    with pytest.raises(ValueError):
        check([{}, {}, {}])  # type: ignore[call-arg]
