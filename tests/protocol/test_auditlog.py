"""Audit logs of whole federations: what is in them, and every way of tampering that is found."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hand import failing

from fedshield.crypto.keys import SigningKey
from fedshield.enrolment import RosterError
from fedshield.errors import ProtocolError, RoundFailed, RunFolderError
from fedshield.protocol.coordinator import Coordinator
from fedshield.protocol.log.entries import (
    START,
    Entry,
    Fact,
    read_entry,
    sha256,
    write_entry,
)
from fedshield.protocol.log.verify import Chain, KnownKeys, cross_check, read_chain
from fedshield.protocol.roster import COORDINATOR, Roster
from fedshield.protocol.transport import Replies
from fedshield.protocol.wire import messages
from fedshield.protocol.wire.envelope import Binding
from fedshield.run.log_file import LogFile, keep_roster, known_keys, read_known_keys, read_rosters

Logs = dict[str, bytes]


class Logged:
    """A federation whose parties all keep a log in `folder`."""

    def __init__(self, federation: Any, folder: Path, sites: Any = None) -> None:
        self.fed, self.folder = federation, folder
        self.rosters: list[Roster] = []
        self.open(sites)

    def path(self, party: str) -> Path:
        return self.folder / f"{party}.audit.jsonl"

    def key(self, party: str) -> SigningKey:
        key: SigningKey = self.fed.server if party == COORDINATOR else self.fed.keys[party]
        return key

    def log(self, party: str) -> LogFile:
        key = self.key(party)
        plan = self.fed.plan.sha256()
        return LogFile.open(self.path(party), party, key.sign, key.public, plan, self.fed.roster)

    def open(self, sites: Any = None) -> None:
        self.rosters.append(self.fed.roster)
        for name, one in self.fed.participants.items():
            one._log = self.log(name).append
        self.fed.coordinator = Coordinator(
            self.fed.plan,
            self.fed.roster,
            sites or self.fed.wire,
            self.fed.server.sign,
            log=self.log(COORDINATOR).append,
        )

    def resumed(self) -> None:
        """New keys for everyone, as in a demonstration, and the same logs."""
        old = self.fed.participants
        self.fed.keys = {name: SigningKey() for name in self.fed.names}
        self.fed.server = SigningKey()
        public = {name: key.public for name, key in self.fed.keys.items()}
        self.fed.roster = Roster(public, self.fed.server.public, self.fed.plan.rules(), demo=True)
        for name, one in old.items():
            self.fed.participants[name] = self.fed.participant(
                name, self.fed.roster, one.state, one.completed_rounds, one.memory
            )
        self.open()

    def run(self, rounds: int = 1, first: int = 1) -> Logged:
        self.fed.coordinator.start()
        for number in range(first, first + rounds):
            self.fed.coordinator.round(number)
        self.fed.coordinator.finish()
        return self

    @property
    def parties(self) -> list[str]:
        return [COORDINATOR, *self.fed.names]

    @property
    def known(self) -> KnownKeys:
        return known_keys(self.rosters)

    def logs(self) -> Logs:
        return {party: self.path(party).read_bytes() for party in self.parties}


def lines(data: bytes) -> list[bytes]:
    return data.split(b"\n")[:-1]


def joined(parts: Iterable[bytes]) -> bytes:
    return b"".join(part + b"\n" for part in parts)


def entries(data: bytes) -> list[Entry]:
    return [read_entry(line) for line in lines(data)]


def chains(logs: Logs, known: KnownKeys | None) -> list[Chain]:
    return [read_chain(party, data, known) for party, data in logs.items()]


def problems(logs: Logs, known: KnownKeys | None) -> list[str]:
    """What `fedshield log verify` would find."""
    read = chains(logs, known)
    return [problem for one in read for problem in one.problems] + [*cross_check(read)]


def rewritten(
    data: bytes, key: SigningKey, change: Callable[[Fact], Fact | None] = lambda fact: fact
) -> bytes:
    """The whole log anew, chained and signed with `key`; `change` gives None to leave one out."""
    made: list[bytes] = []
    before = START
    for entry in entries(data):
        fact = change(entry.fact)
        if fact is None:
            continue
        if fact.act == "opened":
            fact = replace(fact, details={**fact.details, "public_key": key.public.hex()})
        made.append(write_entry(fact, entry.party, len(made), entry.time, before, key.sign))
        before = sha256(made[-1])
    return joined(made)


@pytest.fixture
def three(federation: Any, tmp_path: Path) -> Logged:
    """Three sites, one round under `plain`, finished."""
    return Logged(federation("plain", weights="private"), tmp_path / "logs").run()


@pytest.fixture
def four(federation: Any, tmp_path: Path) -> Logged:
    """Four sites under `rlwe`, one of which is lost on the way."""
    fed = federation("rlwe", sites=4, weights="equal")
    sites = failing(fed, {})
    logged = Logged(fed, tmp_path / "logs", sites)
    fed.coordinator.start()
    fed.works["lab"].fault = RoundFailed("the loss became nan, which nobody else may know")
    fed.coordinator.round(1)
    fed.coordinator.finish()
    return logged


# -- what is in them -------------------------------------------------------------------------


def test_logs_of_a_run_are_sound_and_agree(three: Logged) -> None:
    assert problems(three.logs(), three.known) == []
    for party, data in three.logs().items():
        found = entries(data)
        assert [entry.number for entry in found] == list(range(len(found)))
        assert {entry.party for entry in found} == {party}
        assert found[0].fact.act == "opened"
    site = [(e.fact.act, e.fact.message) for e in entries(three.logs()["bank"])]
    assert site[1:3] == [("answered", "invite"), ("answered", "begin")]
    assert site[-1] == ("answered", "finish")
    assert [e.fact.act for e in entries(three.logs()[COORDINATOR])][-1] == "closed"


def test_every_party_tells_the_same_of_a_round(three: Logged) -> None:
    said: dict[str, list[object]] = {"contributors": [], "aggregate": [], "receipt": []}
    for data in three.logs().values():
        for entry in entries(data):
            if (entry.fact.round_number, entry.fact.phase) == (1, "round"):
                for key, values in said.items():
                    values += [entry.fact.details[key]] if key in entry.fact.details else []
    # Three sites and the coordinator; it opens nothing, so it has no receipt of its own.
    assert [len(values) for values in said.values()] == [4, 4, 3]
    assert [len(set(values)) for values in said.values()] == [1, 1, 1]


def test_nothing_but_digests_sizes_names_and_decisions(four: Logged) -> None:
    """No value, no loss, no key, no text of a site's error."""
    allowed = {
        *("public_key", "plan", "roster", "charter", "demonstration", "policy", "fedshield"),
        *("dropped_bytes", "completed_rounds", "upload", "blocks", "complaints", "contributors"),
        *("aggregate", "receipt", "sites", "bytes", "lost", "refused", "reason", "command"),
        *("answer_tag", "answers"),
    }
    for data in four.logs().values():
        assert b"nan" not in data
        for entry in entries(data):
            assert set(entry.fact.details) <= allowed
            for digest in (*entry.fact.made.values(), *entry.fact.saw.values()):
                assert re.fullmatch(r"[0-9a-f]{64}", digest)
    secrets = [key._private.private_bytes_raw().hex() for key in four.fed.keys.values()]
    text = b"".join(four.logs().values()).decode()
    assert not any(secret in text for secret in secrets)


def test_what_a_site_refused_is_there_with_its_code_on_both_sides(four: Logged) -> None:
    assert problems(four.logs(), four.known) == []
    last = entries(four.logs()["lab"])[-1].fact
    assert (last.act, last.message, last.code) == ("refused", "work", "training")
    told = [e.fact for e in entries(four.logs()[COORDINATOR]) if e.fact.act == "lost"]
    assert [(fact.message, fact.details) for fact in told] == [
        ("work", {"lost": {"lab": "training"}})
    ]


def test_a_command_that_the_coordinator_did_not_sign_accuses_nobody(three: Logged) -> None:
    with pytest.raises(ProtocolError):
        three.fed.participants["bank"].handle("work", b"FSHD" + bytes(100))
    with pytest.raises(ProtocolError):
        three.fed.participants["bank"].handle("no such \x1b[31m command", b"")
    found = [entry.fact for entry in entries(three.logs()["bank"])[-2:]]
    assert [(one.act, one.message, one.code) for one in found] == [
        ("refused", "work", "signature"),
        ("refused", "unknown", "kind"),
    ]
    assert problems(three.logs(), three.known) == []


def test_how_a_session_ended_is_told(federation: Any, tmp_path: Path) -> None:
    logged = Logged(federation("plain", weights="equal"), tmp_path)
    fed = logged.fed
    fed.coordinator.start()
    fed.works["bank"].fault = RoundFailed("no")
    with pytest.raises(RoundFailed):
        fed.coordinator.round(1)
    assert entries(logged.logs()[COORDINATOR])[-1].fact.act == "failed"
    assert problems(logged.logs(), logged.known) == []
    fed.works["bank"].fault = None
    logged.resumed()
    logged.fed.coordinator.start()
    logged.fed.wire.to_site = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        logged.fed.coordinator.round(1)
    assert entries(logged.logs()[COORDINATOR])[-1].fact.act == "stopped"
    assert problems(logged.logs(), logged.known) == []


def test_ctrl_c_in_the_middle_of_any_entry_is_a_ctrl_c(
    federation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a log that could not be written; and the logs are whole, agree and can go on."""
    sync, left = os.fsync, [0]

    def stopped(file: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        sync(file)

    for stop_at in itertools.count(1):
        logged = Logged(federation("plain", weights="private"), tmp_path / f"{stop_at}")
        with monkeypatch.context() as patched:
            patched.setattr("fedshield.run.log_file.os.fsync", stopped)
            left[0] = stop_at
            try:
                logged.run()
            except KeyboardInterrupt:
                assert left[0] <= 0
            else:
                break
        logged.resumed()
        assert problems(logged.logs(), logged.known) == []
    assert stop_at > 30


def test_a_full_disk_at_the_coordinator_is_named(three: Logged) -> None:
    three.resumed()
    three.fed.coordinator.start()
    path = three.path(COORDINATOR)
    path.rename(path.with_suffix(".away"))
    path.mkdir()
    with pytest.raises(ProtocolError, match=r"cannot be written \(Is a directory\)"):
        three.fed.coordinator.round(2)


# -- tampering with one file -------------------------------------------------------------------


def test_any_flipped_byte_is_found(three: Logged) -> None:
    """Every byte of three entries (with their line ends), in one file."""
    data = three.logs()["clinic"]
    whole = lines(data)
    part = joined(whole[:3])
    assert read_chain("x", part, three.known).problems == ()
    for at in range(len(part)):
        for mask in (1, 32) if at % 5 == 0 else (1,):
            changed = bytearray(part)
            changed[at] ^= mask
            found = read_chain("clinic.audit.jsonl", bytes(changed), three.known).problems
            assert found, (at, mask)
            assert "clinic.audit.jsonl" in found[0]


def test_the_same_entry_in_other_bytes_is_no_entry(three: Logged) -> None:
    first, second, *_ = lines(three.logs()["bank"])
    value = json.loads(second)
    others = [
        second + b" ",
        b" " + second,
        json.dumps(value).encode(),
        json.dumps(dict(reversed(value.items())), separators=(",", ":")).encode(),
        second.replace(b'"bank"', b'"\\u0062ank"'),
        second.replace(b'"number":1', b'"number":1.0'),
        second.replace(b'"number":1', b'"number":true'),
        second.replace(b'"act":', b'"act":"opened","act":'),
        second[:-1] + b',"more":1}',
        b"[" * 100_000,
        b"null",
        b"",
        b"\xff",
    ]
    for other in others:
        assert other != second
        assert read_chain("x", joined([first, other]), three.known).problems, other[:80]


def test_what_a_log_says_cannot_reach_a_terminal(three: Logged) -> None:
    """A party may sign what it likes, also escape sequences in place of a name."""
    key = three.key("bank")
    for fact in (
        Fact("answered", "\x1b[2J"),
        Fact("answered", phase="\n"),
        Fact("lost", code="a" * 99),
    ):
        line = write_entry(fact, "bank", 0, "now", START, key.sign)
        (problem,) = read_chain("bank", joined([line]), three.known).problems
        assert problem.isprintable()
        assert "not an entry" in problem
    line = write_entry(Fact("opened"), "\x1b[2J", 0, "now", START, key.sign)
    (problem,) = read_chain("bank", joined([line]), three.known).problems
    assert problem.isprintable()


def test_no_party_can_make_anothers_log_unreadable(three: Logged) -> None:
    """A coordinator that draws a long session id; a site that sends a long code, or an odd one."""
    three.resumed()
    fed = three.fed
    invite = messages.Invite(b"\xff" * 5000, fed.plan.canonical(), fed.roster.encode())
    assert fed.reply("bank", invite, Binding(bytes(32), 0, "setup"))
    site = fed.wire.call

    def odd(method: str, args: Mapping[str, bytes]) -> Replies:
        ok = {name: data for name, data in site(method, args).ok.items() if name != "clinic"}
        return Replies(ok, {"clinic": "\ud800\x1b[2J" + "\n" * 2_000_000})

    fed.wire.call = odd
    with pytest.raises(RoundFailed):
        fed.coordinator.start()
    for party in three.parties:
        assert read_chain(party, three.logs()[party], three.known).problems == ()


def test_removed_doubled_and_swapped_entries_are_found_and_placed(three: Logged) -> None:
    for party in (COORDINATOR, "hospital"):
        whole = lines(three.logs()[party])
        for at in range(len(whole) - 1):
            for changed in (
                whole[:at] + whole[at + 1 :],
                whole[: at + 1] + whole[at:],
                [*whole[:at], whole[at + 1], whole[at], *whole[at + 2 :]],
            ):
                (problem,) = read_chain("it", joined(changed), three.known).problems
                line = at + 2 if len(changed) > len(whole) else at + 1
                assert problem.startswith(f"it: line {line}: "), problem


def test_a_forged_entry_is_found(three: Logged) -> None:
    """Right place, right chain, another key."""
    whole = lines(three.logs()["bank"])
    entry = read_entry(whole[-1])
    forged = write_entry(
        entry.fact, "bank", entry.number, entry.time, entry.before, SigningKey().sign
    )
    (problem,) = read_chain("bank", joined([*whole[:-1], forged]), three.known).problems
    assert "not signed by the key that bank opened with" in problem


def test_a_log_written_anew_under_another_key_needs_the_roster_to_be_found(three: Logged) -> None:
    logs = three.logs()
    logs["bank"] = rewritten(logs["bank"], SigningKey())
    (problem,) = problems(logs, three.known)
    assert "which is not bank's in the roster" in problem
    # The stated limit: without a roster nobody can tell.
    assert problems(logs, None) == []


def test_entries_under_a_roster_that_was_not_given_are_not_taken(three: Logged) -> None:
    other = Roster(
        {name: SigningKey().public for name in three.fed.names},
        SigningKey().public,
        three.fed.plan.rules(),
        demo=True,
    )
    found = problems(three.logs(), known_keys([other]))
    assert len(found) == 4
    assert all("not the one given" in problem for problem in found)


# -- cut and rewritten: the others tell ----------------------------------------------------------


@pytest.mark.parametrize("make", ["three", "four"])
def test_every_cut_end_is_found_and_the_log_is_named(
    make: str, request: pytest.FixtureRequest
) -> None:
    """Alone, such a file is sound; that is what the others' logs are for."""
    logged: Logged = request.getfixturevalue(make)
    logs = logged.logs()
    for party, data in logs.items():
        whole = lines(data)
        for length in range(1, len(whole)):
            cut = joined(whole[:length])
            assert read_chain(party, cut, logged.known).problems == ()
            found = problems({**logs, party: cut}, logged.known)
            assert any(problem.startswith(f"{party}: ") for problem in found), (party, length)


def test_a_cut_end_is_found_among_sites_alone(three: Logged) -> None:
    """Without the coordinator's log: what sites passed on of each other."""
    logs = three.logs()
    del logs[COORDINATOR]
    assert problems(logs, three.known) == []
    whole = lines(logs["clinic"])
    for length in range(2, len(whole)):
        found = problems({**logs, "clinic": joined(whole[:length])}, three.known)
        assert any(problem.startswith("clinic: ") for problem in found), length


def test_a_party_that_leaves_out_an_entry_and_signs_anew_is_found(three: Logged) -> None:
    """With its own key, so that its file is sound. Every entry that a message was part of."""
    logs = three.logs()
    for party in (COORDINATOR, "hospital"):
        key = three.key(party)
        for leave in range(1, len(lines(logs[party]))):
            count = iter(range(10_000))
            changed = rewritten(
                logs[party], key, lambda fact, at=leave, c=count: None if next(c) == at else fact
            )
            fact = entries(logs[party])[leave].fact
            found = problems({**logs, party: changed}, three.known)
            if fact.made or fact.saw or leave == len(lines(logs[party])) - 1:
                assert found, (party, fact.act, fact.message)
                assert party in found[0]


def test_a_party_that_tells_another_sum_is_found(three: Logged) -> None:
    logs = three.logs()

    def lie(fact: Fact) -> Fact:
        if "aggregate" not in fact.details:
            return fact
        return replace(fact, details={**fact.details, "aggregate": "00" * 32})

    logs["bank"] = rewritten(logs["bank"], three.key("bank"), lie)
    found = problems(logs, three.known)
    assert any(
        "round 1 (round): the logs have different digests of aggregate" in one for one in found
    )
    assert "bank '0000" in found[-1]


def test_two_stories_of_one_party_are_found(three: Logged) -> None:
    logs = three.logs()
    other = rewritten(logs["bank"], three.key("bank"))
    assert other == logs["bank"]  # signatures and times are the same: a copy is no second story
    shorter = joined(lines(other)[:5])
    read = chains(logs, three.known)
    assert cross_check([*read, read_chain("copy", shorter, three.known)]) == ()

    def change(fact: Fact) -> Fact:
        return replace(fact, saw_bytes=fact.saw_bytes + 1) if fact.message == "begin" else fact

    told = rewritten(logs["bank"], three.key("bank"), change)
    (problem,) = cross_check([*read, read_chain("copy", told, three.known)])
    assert "two logs of bank that part at entry 2" in problem


# -- going on ------------------------------------------------------------------------------------


def test_a_resumed_run_goes_on_in_the_same_chains(three: Logged) -> None:
    before = three.logs()
    three.resumed()
    three.run(first=2)
    after = three.logs()
    for party in three.parties:
        assert after[party].startswith(before[party])
        opened = [e.fact.details for e in entries(after[party]) if e.fact.act == "opened"]
        assert len({details["public_key"] for details in opened}) == 2
    assert problems(after, three.known) == []
    # Each session's roster counts for its own entries.
    found = problems(after, known_keys(three.rosters[:1]))
    assert len(found) == 4


def test_a_session_that_was_killed_is_not_taken_for_a_cut(federation: Any, tmp_path: Path) -> None:
    logged = Logged(federation("plain", weights="equal"), tmp_path)
    logged.fed.coordinator.start()
    logged.fed.prepare(1)  # sites answered a command; then the process was gone
    found = problems(logged.logs(), logged.known)
    assert any(one.startswith("coordinator: ends at entry ") for one in found)
    logged = Logged(federation("plain", weights="equal"), tmp_path / "other")
    logged.fed.coordinator.start()
    logged.resumed()
    logged.run()
    assert problems(logged.logs(), logged.known) == []


def test_a_torn_last_line_is_dropped_and_told(three: Logged) -> None:
    path = three.path("bank")
    whole = path.read_bytes()
    for torn in (b"{", lines(whole)[-1][:-1], b"\x00" * 30):
        path.write_bytes(whole + torn)
        (problem,) = read_chain("bank", path.read_bytes(), three.known).problems
        assert f"the last line has no end ({len(torn)} bytes)" in problem
        three.log("bank")
        last = entries(path.read_bytes())[-1].fact
        assert (last.act, last.details["dropped_bytes"]) == ("opened", len(torn))
        assert read_chain("bank", path.read_bytes(), three.known).problems == ()
        assert path.read_bytes().startswith(whole)


@pytest.mark.parametrize("damage", ["flip", "middle", "other"])
def test_a_damaged_log_is_not_written_on(three: Logged, damage: str) -> None:
    path = three.path("bank")
    whole = lines(path.read_bytes())
    changed = {
        "flip": joined([whole[0].replace(b'"number":0', b'"number":9'), *whole[1:]]),
        "middle": joined([*whole[:3], *whole[4:]]),
        "other": three.path("clinic").read_bytes(),
    }[damage]
    path.write_bytes(changed)
    with pytest.raises(RunFolderError, match="it is evidence"):
        three.log("bank")
    assert path.read_bytes() == changed


def test_a_site_that_cannot_log_does_not_answer(
    three: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    three.resumed()
    path = three.path("bank")
    path.rename(path.with_suffix(".away"))
    path.mkdir()
    with pytest.raises(RoundFailed, match=r"bank \(journal\)"):
        three.run(first=2)
    path.rmdir()
    # Nor does it begin again once it can: what the file holds is not known.
    assert three.fed.participants["bank"]._log.__self__._broken  # type: ignore[attr-defined]
    with pytest.raises(ProtocolError, match="could not be written"):
        three.fed.participants["bank"]._log(Fact("stopped"))


# -- the keys to check by ------------------------------------------------------------------------


def test_rosters_are_kept_once_each_and_read_back(three: Logged, tmp_path: Path) -> None:
    first = three.fed.roster
    keep_roster(tmp_path, first)
    keep_roster(tmp_path, first)
    three.resumed()
    keep_roster(tmp_path, three.fed.roster)
    path = tmp_path / "rosters.json"
    assert read_rosters(path) == (first, three.fed.roster)
    assert read_known_keys(path) == known_keys([first, three.fed.roster])
    private = {key._private.private_bytes_raw().hex() for key in three.fed.keys.values()}
    assert not any(secret in path.read_text() for secret in private)
    changed: Mapping[str, Any] = json.loads(path.read_text())
    changed["rosters"][0]["more"] = 1
    path.write_text(json.dumps(changed))
    with pytest.raises(RosterError):
        read_known_keys(path)


def test_processes_that_share_a_folder_lose_no_roster(three: Logged, tmp_path: Path) -> None:
    rosters = []
    for _ in range(12):
        keys = {name: SigningKey().public for name in three.fed.names}
        rosters.append(Roster(keys, SigningKey().public, three.fed.plan.rules(), demo=True))
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda roster: keep_roster(tmp_path, roster), rosters))
    found = read_rosters(tmp_path / "rosters.json")
    assert len(found) == 12
    assert all(roster in found for roster in rosters)
