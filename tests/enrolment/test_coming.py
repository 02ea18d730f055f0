"""Sites that go and join: what the one at risk signs, and what a roster takes for it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedshield.crypto.keys import SiteKey
from fedshield.enrolment import KeyFile, RosterError, SignedRoster, changes
from fedshield.enrolment.coming import (
    exposure_of,
    following,
    joined,
    single_sites,
    with_announced,
    without,
)
from fedshield.enrolment.differences import differences
from fedshield.enrolment.exposure import Exposure, ExposureForm
from fedshield.enrolment.lineage import MAX_EARLIER, Earlier, Lineage, Member
from fedshield.enrolment.terms import Asked


def key_of(name: str, more: int = 0) -> KeyFile:
    raw = bytes((sum(name.encode()) + more + k) % 256 for k in range(64))
    return KeyFile(name, "2026-03-01", SiteKey.from_bytes(raw))


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(RosterError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


SITES = ("bank", "clinic", "hospital", "lab")
KEYS = {name: key_of(name) for name in (*SITES, "school", "annex", "ward", "museum", "coordinator")}


def signed(roster: SignedRoster) -> SignedRoster:
    for name in roster.names():
        others = [other for other in roster.names() if other != name]
        roster = roster.countersigned(KEYS[name], others)
    return roster


def first(*names: str, lineage: Lineage | None = None, **asked: Any) -> SignedRoster:
    cards = tuple(KEYS[name].card() for name in names or SITES)
    rules = Asked(**{"max_colluding": 1, **asked})
    return signed(
        SignedRoster(KEYS["coordinator"].card(), cards, rules, lineage=lineage or Lineage())
    )


def site(name: str) -> str:
    return KEYS[name].card().first_public().hex()


def with_exposures(roster: SignedRoster, *exposures: Exposure) -> SignedRoster:
    return dataclasses.replace(roster, lineage=roster.lineage.with_exposures(exposures))


def gone(before: SignedRoster, *names: str, signers: tuple[str, ...] = ()) -> SignedRoster:
    after = without(following(before), names)
    signed_by = (exposure_of(before, after, KEYS[name], bound=True) for name in signers)
    return with_exposures(after, *signed_by)


def test_a_first_roster_is_signed_as_before() -> None:
    """What says nothing of earlier ones has the content that it always had."""
    roster = first()
    assert not roster.lineage
    assert "lineage" not in json.loads(roster.to_text())
    assert roster.to_roster().history().cuts == (roster.cut(),)


def test_a_changed_roster_lists_the_one_that_it_follows(tmp_path: Path) -> None:
    before = first()
    after = gone(before, "lab")
    assert after.names() == SITES[:3]
    assert after.rules().max_colluding == 1
    assert after.lineage.consortium == before.content_sha256()
    (listed,) = after.lineage.earlier
    assert listed.roster == before.content_sha256()
    assert [one.name for one in listed.batches[0]] == [*SITES]
    assert after.to_roster().history().cuts == (before.cut(), after.cut())
    later = gone(signed(joined(following(signed(after)), [KEYS["school"].card()])), "school")
    assert [one.roster for one in later.lineage.earlier[:2]] == [
        before.content_sha256(),
        after.content_sha256(),
    ]
    assert later.lineage.consortium == before.content_sha256()
    path = tmp_path / "roster.json"
    path.write_text(signed(later).to_text())
    assert SignedRoster.read(path) == signed(later)


def test_changes_of_any_kind_list_the_roster_before(tmp_path: Path) -> None:
    path = tmp_path / "roster.json"
    path.write_text(first().to_text())
    new = KeyFile.make("lab", KEYS["lab"])
    change = changes.changed(path, lambda roster: roster.with_replacement(new.card()))
    assert [one.roster for one in change.roster.lineage.earlier] == [first().content_sha256()]
    assert single_sites(change.roster) == ()
    # The same site under a new key is the same place in the batch.
    assert change.roster.cut() == first().cut()
    assert change.roster.to_roster().history().cuts == (first().cut(),)
    unsigned = dataclasses.replace(first(), countersignatures={})
    path.write_text(unsigned.to_text())
    changed = changes.changed(path, lambda roster: without(roster, ["lab"]))
    assert not changed.roster.lineage


def test_what_earlier_rosters_were_is_under_the_signatures() -> None:
    after = signed(gone(first(), "lab"))
    for lineage in (
        Lineage(),
        dataclasses.replace(after.lineage, departure="announced"),
        dataclasses.replace(
            after.lineage,
            earlier=(
                after.lineage.earlier[0]._replace(
                    batches=((Member("bank", site("bank"), site("bank")),),)
                ),
            ),
        ),
    ):
        text = refused(lambda lineage=lineage: dataclasses.replace(after, lineage=lineage))  # type: ignore[misc]
        assert "countersignature of bank: expected" in text


def test_no_chain_of_rosters_begins_elsewhere_or_has_one_twice() -> None:
    first_one, second = (
        Earlier(bytes([k]) * 32, ((Member("bank", "aa", "aa"), Member("lab", "bb", "bb")),))
        for k in (1, 2)
    )
    assert Lineage("signed", first_one.roster, (first_one, second))
    for consortium, earlier in (
        (first_one.roster, (second,)),
        (first_one.roster, ()),
        (b"", (first_one,)),
        (first_one.roster, (first_one, first_one)),
        (first_one.roster, (first_one._replace(batches=((Member("bank", "aa", "aa"),) * 2,)),)),
        (first_one.roster, (first_one._replace(batches=((),)),)),
    ):
        assert "earlier: expected" in refused(
            lambda consortium=consortium, earlier=earlier: Lineage("signed", consortium, earlier)  # type: ignore[misc]
        )
    many = tuple(first_one._replace(roster=k.to_bytes(32, "big")) for k in range(MAX_EARLIER + 1))
    assert "at most 256" in refused(lambda: Lineage("signed", many[0].roster, many))


def test_who_goes_signs_its_batch_before_and_after() -> None:
    before = first()
    after = gone(before, "lab", signers=("lab",))
    (exposure,) = after.lineage.exposures
    assert (exposure.kind, exposure.card.name) == ("going", "lab")
    assert exposure.before == tuple(sorted(map(site, SITES)))
    assert exposure.after == tuple(sorted(map(site, SITES[:3])))
    history = signed(after).to_roster().history()
    assert history.open() == {site("lab")}
    # It goes to this roster, and signs for no other that would follow.
    assert history.bound == {0: {site("lab")}}
    assert history.call(site("lab")) == "lab"
    assert single_sites(after) == (("lab", "signed"),)
    assert single_sites(gone(before, "lab")) == (("lab", ""),)
    # It holds on, whoever comes after, and when the site is back.
    back = joined(following(signed(after)), [KEYS["lab"].card()])
    assert back.to_roster().history().open() == {site("lab")}
    assert back.to_roster().history().bound == {0: {site("lab")}}


def test_who_joins_signs_its_batch_before_and_after() -> None:
    before = first(*SITES[:3])
    after = joined(following(before), [KEYS["lab"].card()])
    exposure = exposure_of(before, after, KEYS["lab"])
    assert exposure.kind == "joining"
    assert exposure.before == tuple(sorted(map(site, SITES[:3])))
    assert exposure.after == tuple(sorted(map(site, SITES)))
    assert with_exposures(after, exposure).lineage.exposures == (exposure,)


def test_three_that_go_together_need_no_signature_and_two_do() -> None:
    before = first(*SITES, "school", "annex")
    assert single_sites(gone(before, "school", "annex", "lab")) == ()
    assert single_sites(gone(before, "school", "annex")) == (("annex", ""), ("school", ""))


def test_who_neither_goes_nor_joins_signs_nothing() -> None:
    before = first()
    after = gone(before, "lab")
    assert "expected the key of a site that goes or joins here, got bank's" in refused(
        lambda: exposure_of(before, after, KEYS["bank"])
    )
    unsigned = dataclasses.replace(before, countersignatures={})
    assert "nobody is exposed" in refused(
        lambda: exposure_of(unsigned, without(unsigned, ["lab"]), KEYS["lab"])
    )
    opened = first(membership="open", min_cohort=3)
    assert "expected membership fixed or batches, got open" in refused(
        lambda: exposure_of(opened, gone(opened, "lab"), KEYS["lab"])
    )


def test_an_exposure_that_its_key_did_not_sign_cannot_be_made(tmp_path: Path) -> None:
    before = first()
    exposure = exposure_of(before, gone(before, "lab"), KEYS["lab"])
    path = tmp_path / "lab.going.json"
    path.write_text(exposure.to_text())
    assert Exposure.read(path) == exposure
    assert exposure.following == b""
    for change in (
        {"card": KEYS["clinic"].card()},
        {"kind": "joining"},
        {"consortium": bytes(32)},
        {"roster": bytes(32)},
        {"before": exposure.before[1:]},
        {"after": exposure.after[1:]},
        {"following": bytes(32)},
        {"signature": bytes(64)},
    ):
        text = refused(lambda change=change: dataclasses.replace(exposure, **change))  # type: ignore[misc]
        assert "signed by the key of its card" in text
    assert "expected going, leaving, joining, announced" in refused(
        lambda: dataclasses.replace(exposure, kind="staying")  # type: ignore[arg-type]
    )


def test_an_exposure_is_for_one_step_of_one_consortium() -> None:
    before = first(*SITES, "school")
    after = gone(before, "lab")
    exposure = exposure_of(before, after, KEYS["lab"], bound=True)
    # By another key: a card of the same name whose first key is another.
    forger = key_of("lab", 99)
    forged = Exposure.sign(
        *(forger, "going", exposure.consortium, exposure.roster),
        *(exposure.before, exposure.after, exposure.following),
    )
    assert "expected one by the key that lab had in the roster" in refused(
        lambda: with_exposures(after, forged)
    )
    # Other batches: more go than it was told.
    assert "expected one for the batches of this step" in refused(
        lambda: with_exposures(gone(before, "lab", "hospital"), exposure)
    )
    # It did not go in the end, and later does: what it signed then is no signature for now.
    stayed = signed(joined(following(before), [KEYS["annex"].card()]))
    later = without(following(stayed), ["lab"])
    assert "expected one for the batches of this step" in refused(
        lambda: with_exposures(later, exposure)
    )
    # Another consortium of the same sites.
    other = first(*SITES, "school", votes=4)
    assert "it was signed in another consortium" in refused(
        lambda: with_exposures(gone(other, "lab"), exposure)
    )
    # And who puts the first one's roster before that one's says another consortium's name.
    lineage = gone(other, "lab").lineage
    spliced = Lineage(
        "signed", exposure.consortium, (*after.lineage.earlier, *lineage.earlier), (exposure,)
    )
    assert "expected one for the batches of this step" in refused(
        lambda: dataclasses.replace(gone(other, "lab"), lineage=spliced)
    )


def test_an_old_key_speaks_only_for_the_past() -> None:
    """Whoever stole the replaced key makes another successor with it and signs by that."""
    before = first()
    new, thief = KeyFile.make("lab", KEYS["lab"]), KeyFile.make("lab", KEYS["lab"])
    replaced = following(before).with_replacement(new.card())
    for name in SITES:
        key = new if name == "lab" else KEYS[name]
        replaced = replaced.countersigned(key, [other for other in SITES if other != name])
    after = without(following(replaced), ["lab"])
    for key in (thief, KEYS["lab"]):
        assert "exposure of lab: expected one by the key that lab had in the roster" in refused(
            lambda key=key: with_exposures(after, exposure_of(replaced, after, key))  # type: ignore[misc]
        )
    # What the site signs itself holds on when its key is another one.
    by_site = with_exposures(after, exposure_of(replaced, after, new))
    newer = KeyFile.make("lab", new)
    back = joined(following(signed(by_site)), [newer.card()])
    assert back.to_roster().history().open() == {site("lab")}


def test_who_signs_without_its_ledger_counts_as_nobody_who_goes_on() -> None:
    before = first()
    after = gone(before, "lab")
    exposed = with_exposures(after, exposure_of(before, after, KEYS["lab"]))
    assert exposed.to_roster().history().bound == {}
    assert exposed.to_roster().history().open() == {site("lab")}
    bound = gone(before, "lab", signers=("lab",))
    assert bound.to_roster().history().bound == {0: {site("lab")}}


def test_one_name_is_one_site_and_one_site_has_one_name() -> None:
    """Policies expose by name, so a roster may not give a site that went another one's."""
    after = gone(first(*SITES, "school"), "lab", "school")
    (listed,) = after.lineage.earlier
    names = {"lab": "school", "school": "lab"}
    swapped = [m._replace(name=names.get(m.name, m.name)) for m in listed.batches[0]]
    other = dataclasses.replace(
        after.lineage, earlier=(listed._replace(batches=(tuple(sorted(swapped)),)),)
    )
    # The ledgers tell who was called so; of a site that is there the roster itself does.
    assert dataclasses.replace(after, lineage=other)
    back = joined(following(signed(after)), [KEYS["lab"].card()])
    lineage = dataclasses.replace(
        back.lineage, earlier=(other.earlier[0], *back.lineage.earlier[1:])
    )
    assert "expected one name of each site, got school and lab of one" in refused(
        lambda: dataclasses.replace(back, lineage=lineage)
    )


def test_who_goes_with_others_signs_where_to_and_is_not_exposed() -> None:
    before = first(*SITES, "school", "annex", "ward")
    after = gone(before, "lab", "school", "annex", signers=("lab", "school"))
    assert {one.kind for one in after.lineage.exposures} == {"leaving"}
    history = after.to_roster().history()
    assert history.open() == frozenset()
    assert history.bound == {0: {site("lab"), site("school")}}
    assert single_sites(after) == ()
    # Without its ledger it says nothing: there is nothing to be exposed by.
    assert "who goes hidden by others" in refused(lambda: exposure_of(before, after, KEYS["annex"]))
    # If one of them stays, that is another step.
    assert "expected one for the batches of this step" in refused(
        lambda: with_exposures(gone(before, "lab", "annex"), after.lineage.exposures[0])
    )


def test_departure_announced_is_signed_with_the_roster() -> None:
    before = first(lineage=Lineage("announced"))
    assert all(given.announced for given in before.countersignatures.values())
    after = with_announced(before, without(following(before), ["lab"]))
    assert single_sites(after) == (("lab", "signed"),)
    (exposure,) = after.lineage.exposures
    assert (exposure.kind, exposure.after) == ("announced", ())
    assert after.lineage.departure == "announced"
    # Where it was not announced nothing is taken from a countersignature.
    assert with_announced(first(), gone(first(), "lab")).lineage.exposures == ()
    given = before.countersignatures["lab"]
    for changed in (
        dataclasses.replace(given, announced=b""),
        dataclasses.replace(given, announced=before.countersignatures["bank"].announced),
    ):
        with pytest.raises(RosterError, match="expected"):
            dataclasses.replace(
                before, countersignatures={**before.countersignatures, "lab": changed}
            )
    assert "--departure: expected signed with membership open" in refused(
        lambda: SignedRoster(
            KEYS["coordinator"].card(),
            asked=Asked(membership="open"),
            lineage=Lineage("announced"),
        )
    )
    assert "--departure: expected signed or announced" in refused(lambda: Lineage("silent"))  # type: ignore[arg-type]


def test_a_batch_stays_a_batch_when_others_go_or_join() -> None:
    six = first(*SITES, "school", "ward", membership="batches")
    assert six.batches() == (("bank", "clinic", "hospital"), ("lab", "school", "ward"))
    seven = signed(
        joined(following(six), [KEYS["annex"].card()], (("lab", "school", "ward", "annex"),))
    )
    assert seven.batches() == (
        ("annex", "lab", "school", "ward"),
        ("bank", "clinic", "hospital"),
    )
    assert single_sites(seven) == (("annex", ""),)
    less = without(following(seven), ["annex"])
    assert less.batches() == six.batches()
    assert "--batch: expected the batch of each site that joins" in refused(
        lambda: joined(following(six), [KEYS["annex"].card()])
    )
    assert "--batch: expected" in refused(
        lambda: joined(following(six), [KEYS["annex"].card()], (("lab", "annex", "school"),))
    )


def test_what_changes_is_told() -> None:
    before = first()
    told = " ".join(differences(before, gone(before, "lab")))
    assert "lab: is not in it any more" in told
    announced = dataclasses.replace(before, lineage=Lineage("announced"), countersignatures={})
    assert "departure: was signed; is announced" in differences(before, announced)


def test_a_site_that_is_none_cannot_go() -> None:
    assert "expected a site of the roster (bank, clinic, hospital, lab), got 'ward'" in refused(
        lambda: without(first(), ["ward"])
    )
    too_few = without(following(first()), ["lab", "hospital", "clinic"])
    assert "at least 2 sites" in refused(too_few.content)


@given(st.data())
def test_whatever_is_changed_in_a_file_of_an_exposure_is_refused(data: st.DataObject) -> None:
    before = first()
    fields = exposure_of(before, gone(before, "lab"), KEYS["lab"]).fields()
    key = data.draw(st.sampled_from(sorted(fields)))
    value = fields[key]
    empty = [] if value is None else [None]  # as it may be of who signs without its ledger
    fields[key] = data.draw(
        st.sampled_from(
            [*empty, 1, [], {}, "", value[:-1] if isinstance(value, str | list) else {}]
        )
    )
    with pytest.raises(RosterError):
        ExposureForm.parse(fields).exposure()


def test_a_namesake_does_not_make_who_is_hidden_sign_that_it_is_exposed() -> None:
    """A roster that somebody made by hand: four go together, and another site of one's name comes
    alone. By its name the one that goes would look singled out."""
    before = first(*SITES, "school", "annex", "ward")
    other = KeyFile.make("lab")
    after = without(following(before), ("lab", "school", "annex", "ward"))
    after = dataclasses.replace(after, sites=(*after.sites, other.card()))
    assert exposure_of(before, after, KEYS["lab"], bound=True).kind == "leaving"
    assert "need not sign" in refused(lambda: exposure_of(before, after, KEYS["lab"]))
    assert exposure_of(before, after, other).kind == "joining"
    # What people read tells them apart.
    new = other.card().first_public().hex()
    assert [name for name, _ in single_sites(after)] == [f"lab@{new[:16]}"]


def test_a_name_is_of_one_site() -> None:
    before = first(*SITES, "school", "annex", "ward")
    later = signed(without(following(before), ("lab", "school", "annex")))
    other = KeyFile.make("lab")
    said = refused(lambda: joined(following(later), [other.card()]))
    assert said.startswith("expected a name that no other site of the rosters before had, got lab")
    assert joined(following(later), [KEYS[name].card() for name in ("lab", "school", "annex")])
    # Nor is it taken by adding a card.
    assert refused(lambda: following(later).with_cards([other.card()])) == said


def test_a_site_has_its_name_again_whoever_else_had_it() -> None:
    """Its key was lost, and it goes and comes under the new one."""
    same = dataclasses.replace(KEYS["school"], name="lab").card()
    keys = (KEYS["lab"].card().first_public().hex(), same.first_public().hex())
    rosters = [
        Earlier(bytes([number]) * 32, ((Member("lab", key, key),),))
        for number, key in enumerate(keys)
    ]
    lineage = Lineage(consortium=rosters[0].roster, earlier=tuple(rosters))
    for card in (KEYS["lab"].card(), same):
        lineage.check_names_are_free([card], demo=False)
    with pytest.raises(RosterError, match=r"which .* had; make its key under another name"):
        lineage.check_names_are_free([KeyFile.make("lab").card()], demo=False)


@pytest.mark.parametrize(
    "site", ["\ud800", "\x1b[2K\x1b[1Aall fine", "0" * 63, "0" * 65, "Lab", ""]
)
def test_sites_of_a_statement_are_first_keys(tmp_path: Path, site: str) -> None:
    """They are shown to people, who decide by them, and are in what is signed."""
    before = first()
    after = without(following(before), ["lab"])
    fields = exposure_of(before, after, KEYS["lab"], bound=True).fields()
    path = tmp_path / "lab.going.json"
    for key in ("before", "after"):
        changed = {"fedshield": "exposure 1"} | fields | {key: [*fields[key], site]}
        path.write_text(json.dumps(changed))
        line = refused(lambda: Exposure.read(path))
        assert ("not UTF-8" if site == "\ud800" else f"{key}: expected sites as the 64") in line


@pytest.mark.parametrize("at", [0, 1])
def test_keys_of_earlier_rosters_are_keys(tmp_path: Path, at: int) -> None:
    after = following(first())
    path = tmp_path / "roster.json"
    value = json.loads(after.to_text())
    value["lineage"]["earlier"][0]["batches"][0]["lab"][at] = "\x1b[2K\x1b[1Aall fine"
    path.write_text(json.dumps(value))
    assert "expected sites as the 64 digits" in refused(lambda: SignedRoster.read(path))


def test_a_departure_that_was_announced_is_listed_in_a_roster_changed_twice(tmp_path: Path) -> None:
    """The second change is of a roster that nobody signed: who announced signed the one before."""
    path = tmp_path / "roster.json"
    path.write_text(first(lineage=Lineage(departure="announced")).to_text())
    once = changes.changed(path, lambda roster: joined(roster, [KEYS["annex"].card()]))
    once.write()
    twice = changes.changed(once.path, lambda roster: without(roster, ["lab"]))
    exposures = twice.roster.lineage.exposures
    assert [(one.kind, one.card.name) for one in exposures] == [("announced", "lab")]
