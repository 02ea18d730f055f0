"""`fedshield keygen` and `fedshield roster`, through the command line, and the page that a
consortium follows."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from fedshield import cli
from fedshield.enrolment import KeyFile, SignedRoster
from fedshield.run import folder

PAGE = Path(__file__).parents[2] / "docs" / "roster.md"
PARTIES = ("coordinator", "bank", "clinic", "hospital")
SITES = PARTIES[1:]


class Done(NamedTuple):
    code: object
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """`run('roster', 'verify', ...)` in an empty folder; no output may show a private key."""
    monkeypatch.chdir(tmp_path)

    def start(*args: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["fedshield", *args])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        for path in tmp_path.rglob("*.key"):
            found = re.search(r'"private_key": "([0-9a-f]{128})"', path.read_text())
            if found:
                secret = found[1]
                assert secret[:32] not in out + err
                assert secret[64:96] not in out + err
        return Done(stopped.value.code, out, err)

    return start


def everything() -> dict[str, bytes | None]:
    return {
        str(path): path.read_bytes() if path.is_file() else None
        for path in sorted(Path().rglob("*"))
    }


@pytest.fixture
def enrolled(run: Run) -> Run:
    """Keys of all parties and `roster.json` with three sites, not signed."""
    for name in PARTIES:
        assert run("keygen", name).code == 0
    assert run(*INIT).code == 0
    assert run("roster", "add", "roster.json", *(f"{name}.card.json" for name in SITES)).code == 0
    return run


INIT = ("roster", "init", "--coordinator", "coordinator.card.json", "--out", "roster.json")


def sign(run: Run, name: str, *confirmed: str) -> Done:
    args = [part for other in confirmed for part in ("--confirm", other)]
    return run("roster", "sign", "roster.json", "--key", f"{name}.key", *args)


def sign_all(run: Run) -> None:
    for name in SITES:
        assert sign(run, name, ",".join(other for other in SITES if other != name)).code == 0


def refused(done: Done) -> str:
    assert done.code == 2, done
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith("fedshield: ")
    assert line.isprintable()
    return line


# -- the page ------------------------------------------------------------------------------------


def commands() -> list[tuple[str, int]]:
    """The page's commands, and the exit status that it says each has."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL):
        for line in block.splitlines():
            assert line.startswith("$ fedshield ")
            command, _, remark = line.removeprefix("$ fedshield ").partition(" #")
            status = re.search(r"exit status (\d)", remark)
            found.append((command, int(status[1]) if status else 0))
    return found


def test_every_command_of_the_page_does_what_it_says(run: Run) -> None:
    assert len(commands()) == 18
    outputs = {}
    for command, status in commands():
        done = run(*shlex.split(command))
        assert done.code == status, (command, done)
        outputs[command] = done
    by_phrase = {
        command: done.out
        for command, done in outputs.items()
        if command.startswith("roster verify")
    }
    last = json.loads(by_phrase["roster verify roster.json --json"])
    assert last["ready"]
    assert last["unconfirmed_at_worst"] == 0
    assert last["allowed"] == {"schemes": ["rlwe"], "min_bits": 8, "max_examples": 100000}
    # The same command before and after signing: the later output is kept.
    assert "0 more sites may collude" in by_phrase["roster verify roster.json --key bank.key"]
    assert "DEMONSTRATION" in by_phrase["roster verify demo/roster.json"]


def test_the_page_has_every_option_of_init(run: Run) -> None:
    shown = set(re.findall(r"--[a-z0-9-]+", run("roster", "init", "--help").out))
    shown -= {"--help", "--coordinator", "--out"}
    assert shown == set(re.findall(r"^\| `(--[a-z0-9-]+)`", PAGE.read_text(), re.MULTILINE))


# -- what is said --------------------------------------------------------------------------------


def test_keygen_says_what_stays_and_what_goes(run: Run) -> None:
    done = run("keygen", "hospital", "--out", "keys")
    assert (done.code, done.err) == (0, "")
    assert "keys/hospital.key  (private" in done.out
    assert "keys/hospital.card.json  (public: send it to the coordinator)" in done.out


def test_verify_says_everything(enrolled: Run) -> None:
    sign_all(enrolled)
    roster = SignedRoster.read(Path("roster.json"))
    done = enrolled("roster", "verify", "roster.json", "--key", "clinic.key")
    assert (done.code, done.err) == (0, "")
    words = " ".join(done.out.split())
    assert roster.fingerprint() in words
    assert re.search(r"fingerprint +([0-9a-f]{4} ){7}[0-9a-f]{4}\n", done.out)
    assert roster.rules().in_words() in words
    assert "over a channel that the coordinator does not carry" in words
    assert (
        "up to 1 (c) colluding sites, unconfirmed keys among them, learn sums only; 2 (c+1)"
        in words
    )
    for card in (roster.coordinator, *roster.sites):
        assert card.public.hex() in words
    assert "signed, confirms clinic, hospital" in words
    assert "own card clinic, with your key" in words
    assert "state ready: every site confirmed every other: of c=1, 1 site may collude" in words
    assert "DEMONSTRATION" not in words


def test_verify_as_json_says_the_same(enrolled: Run) -> None:
    sign_all(enrolled)
    sign(enrolled, "bank", "clinic")
    done = enrolled("roster", "verify", "roster.json", "--json")
    found = json.loads(done.out)
    roster = SignedRoster.read(Path("roster.json"))
    assert (done.code, found["ready"], found["missing"]) == (0, True, [])
    assert found["fingerprint"] == roster.fingerprint()
    assert found["content_sha256"] == roster.content_sha256().hex()
    assert found["sites"]["bank"]["unconfirmed"] == ["hospital"]
    assert found["sites"]["clinic"]["unconfirmed"] == []
    assert found["unconfirmed_at_worst"] == 1
    assert found["own_card"] is None
    assert found["rules"]["in_words"] == roster.rules().in_words()


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_verify_ends_with_2_and_what_is_missing_as_long_as_no_run_may_use_it(
    enrolled: Run, form: tuple[str, ...]
) -> None:
    sign(enrolled, "bank", "clinic", "hospital")
    sign(enrolled, "clinic")
    done = enrolled("roster", "verify", "roster.json", *form)
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert line.startswith("fedshield: roster.json: not ready: no countersignature of hospital")
    assert "clinic did not confirm bank, hospital" in line
    assert "NOT READY" in done.out
    if form:
        assert json.loads(done.out)["sites"]["hospital"]["signed"] is False
    else:
        assert "missing       no countersignature of hospital" in done.out
        assert "not signed" in done.out


def test_a_signature_without_confirmations_is_said_to_confirm_nobody(enrolled: Run) -> None:
    done = sign(enrolled, "bank")
    assert done.code == 0
    assert "bank, which confirms nobody" in done.out
    assert "clinic, hospital not confirmed" in done.err
    assert "counts towards c=1" in done.err
    assert "clinic, hospital not confirmed" not in sign(enrolled, "bank", "clinic,hospital").err


def test_adding_after_a_signature_makes_a_new_roster_beside_it(enrolled: Run) -> None:
    sign_all(enrolled)
    assert enrolled("keygen", "school").code == 0
    before = Path("roster.json").read_bytes()
    done = enrolled("roster", "add", "roster.json", "school.card.json")
    assert done.code == 0
    words = " ".join(done.err.split())
    assert "roster.json stays as it is, with the countersignatures of bank, clinic, hosp" in words
    assert "nobody signed it: bank, clinic, hospital, school each review it" in words
    assert Path("roster.json").read_bytes() == before
    after = SignedRoster.read(Path("roster.next.json"))
    assert after.countersignatures == {}
    assert after.names() == (*SITES, "school")
    # One change at a time, unless the operator says where the other goes.
    enrolled("keygen", "lab")
    unchanged = everything()
    line = refused(enrolled("roster", "add", "roster.json", "lab.card.json"))
    assert "roster.next.json: expected no roster there yet" in line
    assert everything() == unchanged
    assert enrolled("roster", "add", "roster.json", "lab.card.json", "--out", "o.json").code == 0
    assert SignedRoster.read(Path("o.json")).names() == ("bank", "clinic", "hospital", "lab")


def test_a_key_is_replaced_and_all_sign_again(enrolled: Run) -> None:
    sign_all(enrolled)
    before = Path("roster.json").read_bytes()
    done = enrolled("keygen", "bank", "--replaces", "bank.key", "--out", "new")
    assert (done.code, done.err) == (0, "")
    done = enrolled("roster", "replace", "roster.json", "new/bank.card.json")
    assert done.code == 0
    assert "nobody signed it: bank, clinic, hospital each review it" in " ".join(done.err.split())
    assert Path("roster.json").read_bytes() == before
    line = refused(
        enrolled("roster", "sign", "roster.next.json", "--key", "bank.key", "--confirm", "clinic")
    )
    assert "got another key under the name bank" in line
    for name, key in zip(SITES, ("new/bank.key", "clinic.key", "hospital.key"), strict=True):
        others = ",".join(other for other in SITES if other != name)
        args = ("roster.next.json", "--key", key, "--confirm", others)
        assert enrolled("roster", "sign", *args).code == 0
    shown = enrolled("roster", "verify", "roster.next.json", "--key", "new/bank.key")
    old = KeyFile.read(Path("bank.key")).key.public.hex()
    assert shown.code == 0
    assert f"replaces {old[:16]}" in shown.out
    found = json.loads(enrolled("roster", "verify", "roster.next.json", "--json").out)
    assert [key["public_key"] for key in found["sites"]["bank"]["replaces"]] == [old]
    assert found["sites"]["clinic"]["replaces"] == []


def test_a_lost_key_comes_as_a_new_site(enrolled: Run) -> None:
    enrolled("keygen", "bank", "--out", "new")
    before = everything()
    line = refused(enrolled("roster", "replace", "roster.json", "new/bank.card.json"))
    assert "--key-lost" in line
    assert everything() == before
    done = enrolled("roster", "replace", "roster.json", "new/bank.card.json", "--key-lost")
    assert done.code == 0
    assert "no key of the roster signed the new card of bank" in done.err


def test_what_a_roster_changes_is_shown_before_it_is_signed(enrolled: Run) -> None:
    """A coordinator that puts a key of its own in the bank's place can give it any chain."""
    sign_all(enrolled)
    enrolled("keygen", "bank", "--out", "made")
    enrolled("keygen", "bank", "--replaces", "made/bank.key", "--out", "forged")
    enrolled("roster", "replace", "roster.json", "forged/bank.card.json", "--key-lost")
    shown = enrolled("roster", "verify", "roster.next.json", "--key", "clinic.key")
    assert "signed by each in turn" in shown.out
    assert "changed       bank: ANOTHER KEY" in shown.out
    found = json.loads(enrolled("roster", "verify", "roster.next.json", "--json").out)
    assert len(found["changes"]) == 1
    args = ("--key", "clinic.key", "--confirm", "hospital")
    done = enrolled("roster", "sign", "roster.next.json", *args)
    assert "changed       bank: ANOTHER KEY" in done.out
    # A file of another name: the reviewer says what to compare with, or is told to.
    Path("roster.next.json").rename("other.json")
    shown = enrolled("roster", "verify", "other.json")
    assert "changed       not compared: give --before ROSTER" in shown.out
    shown = enrolled("roster", "verify", "other.json", "--before", "roster.json")
    assert "changed       bank: ANOTHER KEY" in shown.out
    assert "--before" not in enrolled("roster", "verify", "roster.json").out


def test_confirmations_that_are_left_out_are_told(enrolled: Run) -> None:
    sign_all(enrolled)
    done = sign(enrolled, "bank", "clinic")
    assert "bank had confirmed hospital before and does not any more" in done.err
    args = ("--key", "bank.key", "--confirm", "hospital", "--out", "copy.json")
    enrolled("roster", "sign", "roster.json", *args)
    done = enrolled("roster", "merge", "roster.json", "copy.json")
    assert done.code == 0
    assert "copy.json: bank signed twice" in done.err
    assert "confirms clinic and not hospital" in done.err


def test_adding_before_any_signature_says_nothing_of_it(run: Run) -> None:
    for name in PARTIES:
        run("keygen", name)
    run(*INIT)
    done = run("roster", "add", "roster.json", "bank.card.json")
    assert (done.code, "dropped" in done.err) == (0, False)
    assert "not usable yet: expected a roster of at least 2 sites, got 1" in done.err
    done = run("roster", "add", "roster.json", "clinic.card.json", "hospital.card.json")
    assert (done.code, done.err) == (0, "")


def test_the_options_of_init_are_in_what_is_signed(enrolled: Run) -> None:
    Path("roster.json").unlink()
    numbers = ("--max-colluding", "0", "--threshold", "3", "--votes", "2", "--min-cohort", "3")
    others = ("--server", "malicious", "--model-sha256", "ab" * 32, "--min-bits", "8")
    schemes = ("--allow-scheme", "rlwe", "--allow-scheme", "ckks", "--max-examples", "5000")
    assert enrolled(*INIT, *numbers, *others, *schemes).code == 0
    enrolled("roster", "add", "roster.json", *(f"{name}.card.json" for name in SITES))
    done = enrolled("roster", "verify", "roster.json", "--json")
    found = json.loads(done.out)
    assert found["rules"] | {"in_words": ""} == {
        "num_sites": 3,
        "max_colluding": 0,
        "threshold": 3,
        "votes": 2,
        "min_cohort": 3,
        "server": "malicious",
        "membership": "fixed",
        "batches": [],
        "in_words": "",
    }
    assert found["model_sha256"] == "ab" * 32
    assert found["sealing"] == 2
    assert found["allowed"] == {"schemes": ["ckks", "rlwe"], "min_bits": 8, "max_examples": 5000}
    assert "ckks: any ONE site" in enrolled("roster", "verify", "roster.json").out


def test_signed_copies_are_merged(enrolled: Run) -> None:
    for name in SITES:
        others = ",".join(other for other in SITES if other != name)
        args = ("--key", f"{name}.key", "--confirm", others, "--out", f"by-{name}.json")
        assert enrolled("roster", "sign", "roster.json", *args).code == 0
    assert SignedRoster.read(Path("roster.json")).countersignatures == {}
    done = enrolled("roster", "merge", "roster.json", "by-bank.json", "by-clinic.json")
    assert "not yet by    hospital" in done.out
    done = enrolled("roster", "merge", "roster.json", "by-hospital.json")
    assert "not yet by" not in done.out
    SignedRoster.read(Path("roster.json")).check_ready(KeyFile.read(Path("bank.key")).key)


def test_a_fingerprint_given_is_the_one_that_is_signed(enrolled: Run) -> None:
    fingerprint = SignedRoster.read(Path("roster.json")).fingerprint()
    args = ("roster", "sign", "roster.json", "--key", "bank.key", "--fingerprint")
    before = everything()
    line = refused(enrolled(*args, "0" * 32))
    assert f"got {fingerprint}: this is another roster" in line
    assert everything() == before
    assert fingerprint in enrolled(*args, fingerprint.upper()).out


# -- a coordinator that exchanges cards ----------------------------------------------------------


def test_a_site_finds_that_its_card_was_exchanged(enrolled: Run) -> None:
    true = SignedRoster.read(Path("roster.json")).fingerprint()
    for name in SITES:
        Path(f"{name}.key").rename(f"true-{name}.key")
        Path(f"{name}.card.json").unlink()
        enrolled("keygen", name)
    Path("roster.json").unlink()
    enrolled(*INIT)
    enrolled("roster", "add", "roster.json", *(f"{name}.card.json" for name in SITES))
    sign_all(enrolled)
    done = enrolled("roster", "verify", "roster.json")
    assert done.code == 0
    assert "own card      not checked: give --key KEYFILE" in done.out
    assert true not in done.out
    before = everything()
    line = refused(enrolled("roster", "verify", "roster.json", "--key", "true-bank.key"))
    assert "got another key under the name bank: the card was exchanged on the way" in line
    args = ("--key", "true-bank.key", "--confirm", "clinic")
    assert "do not sign" in refused(enrolled("roster", "sign", "roster.json", *args))
    assert everything() == before


# -- mistakes ------------------------------------------------------------------------------------


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[], object]:
    def damage() -> None:
        path = Path("roster.json")
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return damage


def nothing() -> None:
    pass


VERIFY = ("roster", "verify", "roster.json")
SIGN = ("roster", "sign", "roster.json", "--key", "bank.key")
OTHER = (*INIT[:-1], "other.json")
MISTAKES: dict[str, tuple[Callable[[], object], tuple[str, ...], str]] = {
    "bad name": (nothing, ("keygen", "Bank"), "NAME: expected a name"),
    "key there": (nothing, ("keygen", "bank"), "bank.key: expected no file there yet"),
    "no folder": (nothing, ("keygen", "x", "--out", "a/b"), "a/b: expected a folder for the key"),
    "file for a folder": (
        nothing,
        ("keygen", "x", "--out", "bank.key"),
        "bank.key: expected a fol",
    ),
    "no name": (nothing, ("keygen",), "Missing argument"),
    "roster there": (nothing, INIT, "roster.json: expected no file there yet"),
    "no place": (nothing, (*INIT[:-1], "a/b.json"), "a/b.json: expected a place to write to"),
    "site for coordinator": (
        nothing,
        ("roster", "init", "--coordinator", "bank.card.json", "--out", "other.json"),
        "--coordinator: expected a card named coordinator, got one of bank",
    ),
    "server": (
        nothing,
        (*OTHER, "--server", "evil"),
        "--server: expected malicious or semi-honest",
    ),
    "scheme": (nothing, (*OTHER, "--allow-scheme", "rot13"), "--allow-scheme: expected some of"),
    "model": (nothing, (*OTHER, "--model-sha256", "abc"), "--model-sha256: expected 64 digits"),
    "colluding": (nothing, (*OTHER, "--max-colluding", "-1"), "--max-colluding: expected 0 to 62"),
    "threshold": (nothing, (*OTHER, "--threshold", "0"), "--threshold: expected 1 to 64, got 0"),
    "cohort": (nothing, (*OTHER, "--min-cohort", "1"), "--min-cohort: expected 2 to 64, got 1"),
    "bits": (nothing, (*OTHER, "--min-bits", "17"), "--min-bits: expected 2 to 16, got 17"),
    "examples": (nothing, (*OTHER, "--max-examples", "0"), "--max-examples: expected 1 to"),
    "no number": (nothing, (*OTHER, "--votes", "x"), "Invalid value for '--votes'"),
    "private key sent": (
        nothing,
        ("roster", "add", "roster.json", "bank.key"),
        "bank.key: expected a card (NAME.card.json), got a private key file; never send it",
    ),
    "card again": (
        nothing,
        ("roster", "add", "roster.json", "bank.card.json"),
        "second card of bank",
    ),
    "second card damaged": (
        lambda: Path("x.card.json").write_text("{"),
        ("roster", "add", "roster.json", "bank.card.json", "x.card.json"),
        "x.card.json: expected a card (NAME.card.json), got damaged JSON",
    ),
    "coordinator as a site": (
        nothing,
        ("roster", "add", "roster.json", "coordinator.card.json"),
        "second card of coordinator",
    ),
    "no roster": (nothing, ("roster", "verify", "none.json"), "none.json: expected a roster, but"),
    "card for a roster": (nothing, ("roster", "verify", "bank.card.json"), "got a card"),
    "cut roster": (
        lambda: Path("roster.json").write_text(Path("roster.json").read_text()[:300]),
        VERIFY,
        "roster.json: expected a roster, got damaged JSON",
    ),
    "unsafe rules": (
        edit(lambda value: value["rules"].update(threshold=1)),
        VERIFY,
        "--threshold: expected 2 to 3 for 3 sites with c=1",
    ),
    "unsafe rules, signing": (
        edit(lambda value: value["rules"].update(min_cohort=2)),
        SIGN,
        "--min-cohort: expected 3 to 3",
    ),
    "wide key": (
        lambda: Path("bank.key").chmod(0o644),
        SIGN,
        "bank.key: expected mode 0600 or narrower, got 0644; run: chmod 600 bank.key",
    ),
    "wide key, verifying": (
        lambda: Path("bank.key").chmod(0o640),
        (*VERIFY, "--key", "bank.key"),
        "run: chmod 600 bank.key",
    ),
    "card for a key": (
        nothing,
        ("roster", "sign", "roster.json", "--key", "bank.card.json"),
        "bank.card.json: expected a key file (NAME.key), got a card",
    ),
    "confirming oneself": (
        nothing,
        (*SIGN, "--confirm", "bank"),
        "--confirm: expected other sites",
    ),
    "confirming nobody known": (nothing, (*SIGN, "--confirm", "zoo"), "got 'zoo'"),
    "coordinator signs": (
        nothing,
        ("roster", "sign", "roster.json", "--key", "coordinator.key"),
        "--key: expected a site's key, got the coordinator's",
    ),
    "signed copy there": (
        nothing,
        (*SIGN, "--out", "bank.card.json"),
        "bank.card.json: expected no file there yet",
    ),
    "merging a card": (nothing, ("roster", "merge", "roster.json", "bank.card.json"), "got a card"),
    "demo of one": (nothing, ("roster", "demo", "--sites", "a", "--out", "d"), "at least 2 sites"),
    "demo of two": (
        nothing,
        ("roster", "demo", "--sites", "a,b", "--out", "d"),
        "--max-colluding: expected 0 to 0 for 2 sites",
    ),
    "demo there": (
        nothing,
        ("roster", "demo", "--sites", "a,b,c", "--out", "bank.key"),
        "bank.key: expected no folder there yet",
    ),
    "demo names": (nothing, ("roster", "demo", "--sites", "a,,b", "--out", "d"), "expected a name"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_one_line_and_changes_nothing(enrolled: Run, what: str) -> None:
    damage, args, says = MISTAKES[what]
    damage()
    before = everything()
    assert says in refused(enrolled(*args))
    assert everything() == before


def test_a_copy_of_another_roster_is_not_merged(enrolled: Run) -> None:
    path = Path("roster.json")
    path.rename("first.json")
    enrolled(*INIT, "--min-bits", "8")
    enrolled("roster", "add", "roster.json", *(f"{name}.card.json" for name in SITES))
    sign_all(enrolled)
    before = everything()
    line = refused(enrolled("roster", "merge", "first.json", "roster.json"))
    assert "roster.json: expected a copy of this roster" in line
    assert everything() == before


def test_a_full_disk_leaves_the_roster_as_it_was(
    enrolled: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder.os, "fsync", full)
    for args in (
        (*SIGN, "--confirm", "clinic"),
        (*SIGN, "--out", "x.json"),
        ("keygen", "x"),
        OTHER,
    ):
        assert "No space left on device" in refused(enrolled(*args))
    assert everything() == before


# -- batches -----------------------------------------------------------------------------------


def test_batches_are_named_shown_and_signed(run: Run) -> None:
    names = ("bank", "clinic", "hospital", "lab", "school", "ward")
    for name in ("coordinator", *names):
        run("keygen", name)
    more = ("--max-colluding", "1", "--membership", "batches")
    named = ("--batch", "bank,school,ward", "--batch", "clinic,hospital,lab")
    assert run(*INIT, *more, *named).code == 0
    cards = [f"{name}.card.json" for name in names]
    early = run("roster", "add", "roster.json", *cards[:4])
    assert early.code == 0
    assert "not usable yet: --max-colluding" in early.err or "not usable yet: --" in early.err
    done = run("roster", "add", "roster.json", *cards[4:])
    assert "batches       bank, school, ward; clinic, hospital, lab" in done.out
    shown = run("roster", "verify", "roster.json").out
    assert "batch 1       bank, school, ward: always summed together" in shown
    assert "batch 2       clinic, hospital, lab: always summed together" in shown
    found = json.loads(run("roster", "verify", "roster.json", "--json").out)
    assert found["rules"]["batches"] == [["bank", "school", "ward"], ["clinic", "hospital", "lab"]]


def test_a_demonstration_cuts_its_sites(run: Run) -> None:
    sites = ("--sites", "a,b,c,d,e,f", "--membership", "batches")
    assert run("roster", "demo", *sites, "--out", "demo").code == 0
    assert SignedRoster.read(Path("demo/roster.json")).batches() == (tuple("abc"), tuple("def"))
    assert "--batch: expected none with membership fixed" in refused(
        run("roster", "demo", "--sites", "a,b,c", "--batch", "a,b", "--out", "other")
    )


# -- coming and going --------------------------------------------------------------------------

MORE = (*SITES, "lab")


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the operator types, in order; each question takes one."""
    left: list[str] = []
    monkeypatch.setattr(typer, "prompt", lambda *_, **__: left.pop(0))
    return left


@pytest.fixture
def four_signed(enrolled: Run) -> Run:
    """`roster.json` of four sites, signed by all."""
    assert enrolled("keygen", "lab").code == 0
    assert enrolled("roster", "add", "roster.json", "lab.card.json").code == 0
    sign_by_all(enrolled, "roster.json", MORE)
    return enrolled


def sign_by_all(run: Run, path: str, names: tuple[str, ...]) -> None:
    for name in names:
        others = ",".join(other for other in names if other != name)
        done = run("roster", "sign", path, "--key", f"{name}.key", "--confirm", others)
        assert done.code == 0, done


def test_who_leaves_signs_that_it_is_exposed(four_signed: Run, answers: list[str]) -> None:
    run = four_signed
    before = Path("roster.json").read_bytes()
    answers[:] = ["lab"]
    signing = run("roster", "leave", "roster.json", "lab", "--key", "lab.key")
    assert signing.code == 0
    assert "step          lab goes" in signing.out
    assert "batch before  bank, clinic, hospital, lab" in signing.out
    assert "batch after   bank, clinic, hospital\n" in signing.out
    assert "lab's update of round r can be computed by whoever holds the sums before" in signing.out
    assert "signed        lab.going.json  (send it to the coordinator)" in signing.out
    assert Path("roster.json").read_bytes() == before
    assert not Path("roster.next.json").exists()
    answers[:] = ["lab"]
    done = run("roster", "leave", "roster.json", "lab", "--exposure", "lab.going.json")
    assert done.code == 0
    assert "changes       lab: is not in it any more" in done.out
    assert "EXPOSED       lab signed that its update of round r can be computed by" in done.out
    assert "not hidden" not in done.out
    assert "roster        roster.next.json: bank, clinic, hospital\n" in done.out
    assert "roster.json stays as it is" in done.err
    assert Path("roster.json").read_bytes() == before
    sign_by_all(run, "roster.next.json", SITES)
    shown = run("roster", "verify", "roster.next.json")
    assert shown.code == 0
    assert "follows       1 rosters, the oldest first: " in shown.out
    assert "EXPOSED       lab signed" in shown.out
    found = json.loads(run("roster", "verify", "roster.next.json", "--json").out)
    assert (found["departure"], found["exposed"], found["not_hidden"]) == ("signed", ["lab"], [])
    assert found["follows"] == [SignedRoster.read(Path("roster.json")).content_sha256().hex()]


def test_who_is_taken_out_without_a_signature_is_said_not_to_be_hidden(
    four_signed: Run, answers: list[str]
) -> None:
    answers[:] = ["lab"]
    done = four_signed("roster", "leave", "roster.json", "lab")
    assert done.code == 0
    assert "not hidden    lab is in the same sums as fewer than 2 others (c + 1)" in done.out
    assert "unless each one's policy has exposes: [lab]" in done.out
    # Who signs the roster reads it too.
    signing = four_signed("roster", "sign", "roster.next.json", "--key", "bank.key")
    assert "not hidden    lab is in the same sums" in signing.out


def test_who_joins_signs_that_it_is_exposed(enrolled: Run, answers: list[str]) -> None:
    run = enrolled
    sign_by_all(run, "roster.json", SITES)
    assert run("keygen", "lab").code == 0
    answers[:] = ["lab"]
    signing = run("roster", "join", "roster.json", "lab.card.json", "--key", "lab.key")
    assert signing.code == 0
    assert "step          lab joins" in signing.out
    assert "batch before  bank, clinic, hospital\n" in signing.out
    answers[:] = ["lab"]
    exposure = ("--exposure", "lab.joining.json")
    done = run("roster", "join", "roster.json", "lab.card.json", *exposure)
    assert done.code == 0
    assert "roster        roster.next.json: bank, clinic, hospital, lab\n" in done.out
    assert SignedRoster.read(Path("roster.next.json")).lineage.exposures[0].card.name == "lab"


@pytest.mark.parametrize(
    ("command", "typed", "says"),
    [
        (("leave", "roster.json", "lab", "--key", "lab.key"), "la", "expected lab, got 'la'"),
        (("leave", "roster.json", "lab"), "", "expected lab, got ''"),
        (("leave", "roster.json", "ward"), None, "expected a site of the roster"),
        (("leave", "roster.json", "lab", "--key", "bank.key"), None, "a site that goes or joins"),
        (
            ("leave", "roster.json", "lab", "--key", "lab.key", "--exposure", "lab.card.json"),
            None,
            "--exposure: expected none with --key",
        ),
        (
            ("leave", "roster.json", "lab", "--exposure", "lab.card.json"),
            None,
            "lab.card.json: expected a site's exposure",
        ),
        (("leave", "roster.json", "lab", "clinic"), None, "--max-colluding: expected 0 to 0"),
        (("join", "roster.json", "lab.card.json"), None, "a second card of lab"),
    ],
)
def test_a_mistake_about_who_goes_changes_nothing(
    four_signed: Run,
    answers: list[str],
    command: tuple[str, ...],
    typed: str | None,
    says: str,
) -> None:
    before = everything()
    answers[:] = [] if typed is None else [typed]
    done = four_signed("roster", *command)
    assert done.code == 2
    assert says in done.err
    assert done.err.count("\n") == 1
    assert everything() == before


def test_an_exposure_for_other_batches_is_not_taken(four_signed: Run, answers: list[str]) -> None:
    run = four_signed
    for name in ("ward", "school"):
        run("keygen", name)
    answers[:] = ["lab"]
    assert run("roster", "leave", "roster.json", "lab", "--key", "lab.key").code == 0
    cards = ("ward.card.json", "school.card.json")
    answers[:] = ["school,ward"]
    assert run("roster", "join", "roster.json", *cards, "--out", "more.json").code == 0
    sign_by_all(run, "more.json", (*MORE, "school", "ward"))
    text = refused(run("roster", "leave", "more.json", "lab", "--exposure", "lab.going.json"))
    assert "exposure of lab: expected one for the batches of this step" in text


def test_departure_announced_is_typed_when_the_roster_is_signed(
    run: Run, answers: list[str]
) -> None:
    for name in (*PARTIES, "lab"):
        run("keygen", name)
    assert run(*INIT, "--departure", "announced").code == 0
    run("roster", "add", "roster.json", *(f"{name}.card.json" for name in MORE))
    answers[:] = ["no"]
    wrong = run("roster", "sign", "roster.json", "--key", "lab.key")
    assert (wrong.code, "expected lab, got 'no'; nothing was signed" in wrong.err) == (2, True)
    assert not SignedRoster.read(Path("roster.json")).countersignatures
    for name in MORE:
        answers[:] = [name]
        others = ",".join(other for other in MORE if other != name)
        done = run("roster", "sign", "roster.json", "--key", f"{name}.key", "--confirm", others)
        assert done.code == 0
        assert "departure     announced: who signs this roster signs that its updates" in done.out
    answers[:] = ["lab"]
    left = run("roster", "leave", "roster.json", "lab")
    assert "EXPOSED       lab signed" in left.out
    assert "not hidden" not in left.out


def test_who_goes_hidden_by_others_signs_nothing_without_its_ledger(
    four_signed: Run, answers: list[str]
) -> None:
    run = four_signed
    names = ("museum", "school", "ward")
    for name in names:
        run("keygen", name)
    answers[:] = ["museum,school,ward"]
    cards = (f"{name}.card.json" for name in names)
    assert run("roster", "join", "roster.json", *cards, "--out", "more.json").code == 0
    sign_by_all(run, "more.json", (*MORE, *names))
    before = everything()
    text = refused(run("roster", "leave", "more.json", *names, "--key", "ward.key"))
    assert "got ward, who goes hidden by others" in text
    both = ("--key", "ward.key", "--kit", ".")
    assert "--kit: expected it alone" in refused(run("roster", "leave", "more.json", *names, *both))
    assert everything() == before
