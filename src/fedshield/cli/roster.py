"""The commands of enrolment: `fedshield keygen` and `fedshield roster ...`. They print, as
`cli` does, which registers them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedshield.cli.words import JsonOption, err_console, out_console
from fedshield.errors import UserError

if TYPE_CHECKING:
    from fedshield.enrolment import Allowed, Asked, SignedRoster, Standing

roster_app = typer.Typer(
    help="Who takes part, with which key and under which rules: made, reviewed, countersigned.",
    no_args_is_help=True,
)

COMPARE = (
    "Read the fingerprint to every other site's operator, and hear theirs, over a channel that "
    "the coordinator does not carry: in person, or by telephone at a number you had before. "
    "Signatures within the roster prove nothing against a coordinator that exchanged the cards. "
    "Confirm only sites whose operator had the same fingerprint and found their own card."
)

RosterArgument = Annotated[Path, typer.Argument(metavar="ROSTER", help="A roster file.")]
ColludingOption = Annotated[
    int | None, typer.Option(help="c: sites that may collude with the coordinator.")
]
ThresholdOption = Annotated[int | None, typer.Option(help="T: answers that open a sum.")]
VotesOption = Annotated[int | None, typer.Option(help="Q: matching votes before any site answers.")]
CohortOption = Annotated[int | None, typer.Option(help="Least number of contributors of a sum.")]
ServerOption = Annotated[
    str, typer.Option(help="What the coordinator is taken for: malicious or semi-honest.")
]
SchemeOption = Annotated[
    list[str] | None,
    typer.Option("--allow-scheme", help="A scheme that plans may use; rlwe if left out."),
]
BitsOption = Annotated[int | None, typer.Option(help="Least bits of a value (encoding.bits).")]
ExamplesOption = Annotated[
    int | None, typer.Option(help="What a site's example count is capped at.")
]


def keygen(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The site's name, or coordinator.")],
    out: Annotated[Path, typer.Option(help="The folder for both files.")] = Path(),
) -> None:
    """Make a party's keys: NAME.key, which stays, and NAME.card.json, which everyone may see."""
    from fedshield.enrolment import keygen as make

    key_path, card_path = make(name, out)
    _say("key", f"{key_path}  (private: it stays here; keep a copy where only you can read it)")
    _say("card", f"{card_path}  (public: send it to the coordinator)")


@roster_app.command("init")
def init(
    coordinator: Annotated[Path, typer.Option(help="The coordinator's card.")],
    out: Annotated[Path, typer.Option(help="The roster file to make.")],
    max_colluding: ColludingOption = None,
    threshold: ThresholdOption = None,
    votes: VotesOption = None,
    min_cohort: CohortOption = None,
    server: ServerOption = "malicious",
    model_sha256: Annotated[
        str | None, typer.Option(help="SHA-256 of the base model; any model if left out.")
    ] = None,
    allow_scheme: SchemeOption = None,
    min_bits: BitsOption = None,
    max_examples: ExamplesOption = None,
) -> None:
    """Start a roster: the coordinator's card and the rules. Sites come with `roster add`."""
    from fedshield.enrolment import Card, SignedRoster
    from fedshield.enrolment.files import write_new

    asked = _asked(max_colluding, threshold, votes, min_cohort, server)
    allowed = _allowed(allow_scheme, min_bits, max_examples)
    roster = SignedRoster(
        Card.read(coordinator), asked=asked, allowed=allowed, model_sha256=_digest(model_sha256)
    )
    write_new(out, roster.to_text(), 0o644)
    _say("roster", f"{out}: no sites yet; add cards: fedshield roster add {out} CARD...")


@roster_app.command("add")
def add(
    path: RosterArgument,
    cards: Annotated[list[Path], typer.Argument(metavar="CARD...", help="Sites' cards.")],
) -> None:
    """Add sites' cards. Signatures that were there are dropped: they were over fewer sites."""
    from fedshield.enrolment import Card, RosterError, SignedRoster

    before = SignedRoster.read(path)
    after = before.with_cards([Card.read(card) for card in cards])
    _write(path, after)
    dropped = sorted(before.countersignatures)
    if dropped:
        _note(
            f"dropped the countersignatures of {', '.join(dropped)}: they were over the roster "
            "without the new sites; every site reviews, compares and signs again"
        )
    _say("roster", f"{path}: with the sites {', '.join(after.names())}")
    try:
        after.rules()
    except RosterError as error:
        _note(f"not usable yet: {error}")


@roster_app.command("sign")
def sign(
    path: RosterArgument,
    key: Annotated[Path, typer.Option(help="This site's key file.")],
    confirm: Annotated[
        list[str] | None,
        typer.Option(help="Sites whose operator had this fingerprint too; a,b or repeated."),
    ] = None,
    fingerprint: Annotated[
        str | None, typer.Option(help="The fingerprint that you compared: signs no other roster.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A new file for the signed roster, instead of in place.")
    ] = None,
) -> None:
    """Countersign a roster that you reviewed, naming the sites whose fingerprint you compared."""
    from fedshield.enrolment import KeyFile, SignedRoster
    from fedshield.enrolment.files import write_new

    key_file = KeyFile.read(key)
    confirmed = _names(confirm or [])
    unsigned = SignedRoster.read(path)
    if fingerprint is not None:
        unsigned.check_fingerprint(fingerprint)
    roster = unsigned.countersigned(key_file, confirmed)
    if out is None:
        _write(path, roster)
    else:
        write_new(out, roster.to_text(), 0o644)
    _say("roster", str(out or path))
    _say("fingerprint", roster.fingerprint())
    _say("signed by", f"{key_file.name}, which confirms {_list(sorted(set(confirmed)))}")
    left = roster.standing().unconfirmed[key_file.name]
    if left:
        c = roster.rules().max_colluding
        _note(
            f"{', '.join(left)} not confirmed: a key that you did not confirm may be anyone's and "
            f"counts towards c={c}; compare the fingerprint with them too (fedshield roster verify "
            "says how) and sign again with --confirm"
        )


@roster_app.command("merge")
def merge(
    path: RosterArgument,
    copies: Annotated[list[Path], typer.Argument(metavar="COPY...", help="Signed copies of it.")],
) -> None:
    """Take over the countersignatures of copies that sites signed and sent back."""
    from fedshield.enrolment import RosterError, SignedRoster

    roster = SignedRoster.read(path)
    for copy in copies:
        other = SignedRoster.read(copy)
        try:
            roster = roster.merged(other)
        except RosterError as error:
            raise RosterError(f"{copy}: {error}") from None
    _write(path, roster)
    standing = roster.standing()
    _say("roster", str(path))
    _say("signed by", _list(sorted(roster.countersignatures)))
    if standing.unsigned:
        _say("not yet by", _list(standing.unsigned))


@roster_app.command("verify")
def verify(
    path: RosterArgument,
    key: Annotated[
        Path | None, typer.Option(help="Your key file: checks that your own card is in it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check every signature; show the fingerprint to compare, the rules, who signed, what is
    missing. Exit status 2 as long as no run may use it."""
    from fedshield.enrolment import KeyFile, RosterError, SignedRoster

    key_file = None if key is None else KeyFile.read(key)
    roster = SignedRoster.read(path)
    own = None if key_file is None else roster.check_own(key_file.key, key_file.name)
    standing = roster.standing()
    if as_json:
        text = json.dumps(_as_json(roster, standing, own), indent=1)
        out_console.print(text, markup=False)
    else:
        _show(path, roster, standing, own)
    if not standing.ready:
        raise RosterError(f"{path}: not ready: {'; '.join(standing.missing())}")


@roster_app.command("demo")
def demo(
    sites: Annotated[str, typer.Option(help="Names of the sites: a,b,c")],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    max_colluding: ColludingOption = None,
    threshold: ThresholdOption = None,
    votes: VotesOption = None,
    min_cohort: CohortOption = None,
    server: ServerOption = "malicious",
    allow_scheme: SchemeOption = None,
    min_bits: BitsOption = None,
    max_examples: ExamplesOption = None,
) -> None:
    """A demonstration: all keys by one operator, and a roster that says so. Protects nobody."""
    from fedshield.enrolment import write_demonstration

    asked = _asked(max_colluding, threshold, votes, min_cohort, server)
    allowed = _allowed(allow_scheme, min_bits, max_examples)
    roster = write_demonstration(out, _names([sites]), asked, allowed)
    _say("roster", f"{out / 'roster.json'}: {', '.join(roster.names())}, all signed")
    _say("keys", f"{out}: one key file and one card for each, and for the coordinator")
    _note("a DEMONSTRATION: one operator made every key, so it protects nobody")


# -- what is shown ---------------------------------------------------------------------------


def _show(path: Path, roster: SignedRoster, standing: Standing, own: str | None) -> None:
    rules = roster.rules()
    if roster.demo:
        _say("", "DEMONSTRATION: one operator made every key, so it protects nobody")
    _say("roster", str(path))
    _say("fingerprint", roster.fingerprint())
    _say("", COMPARE)
    _say("rules", rules.in_words())
    _say(
        "",
        f"The line: up to {rules.max_colluding} (c) colluding sites, unconfirmed keys among "
        f"them, learn sums only; {rules.max_colluding + 1} (c+1) with the coordinator can open "
        "single updates.",
    )
    _say("coordinator", f"taken for {rules.server}")
    _say("allowed", roster.allowed.in_words())
    _say("base model", roster.model_sha256.hex() or "any (no --model-sha256 was given)")
    for card in (roster.coordinator, *roster.sites):
        _say(card.name, f"key {card.public.hex()}, made {card.created}{_signed(roster, card.name)}")
    mine = "not checked: give --key KEYFILE to see that yours is in it"
    _say("own card", mine if own is None else f"{own}, with your key")
    _say("state", standing.in_words())
    for sentence in standing.missing():
        _say("missing", sentence)


def _signed(roster: SignedRoster, name: str) -> str:
    if name == roster.coordinator.name:
        return ""
    given = roster.countersignatures.get(name)
    return "; not signed" if given is None else f"; signed, confirms {_list(given.confirmed)}"


def _as_json(roster: SignedRoster, standing: Standing, own: str | None) -> dict[str, Any]:
    rules = roster.rules()
    return {
        "fingerprint": roster.fingerprint(),
        "content_sha256": roster.content_sha256().hex(),
        "demonstration": roster.demo,
        "own_card": own,
        "rules": {
            "num_sites": rules.num_sites,
            "max_colluding": rules.max_colluding,
            "threshold": rules.threshold,
            "votes": rules.votes,
            "min_cohort": rules.min_cohort,
            "server": rules.server,
            "in_words": rules.in_words(),
        },
        "allowed": {
            "schemes": sorted(roster.allowed.schemes),
            "min_bits": roster.allowed.min_bits,
            "max_examples": roster.allowed.max_examples,
        },
        "model_sha256": roster.model_sha256.hex() or None,
        "coordinator": {
            "public_key": roster.coordinator.public.hex(),
            "created": roster.coordinator.created,
        },
        "sites": {
            card.name: {
                "public_key": card.public.hex(),
                "created": card.created,
                "signed": card.name in roster.countersignatures,
                "unconfirmed": [*standing.unconfirmed[card.name]]
                if card.name in standing.unconfirmed
                else None,
            }
            for card in roster.sites
        },
        "ready": standing.ready,
        "state": standing.in_words(),
        "unconfirmed_at_worst": standing.worst,
        "missing": [*standing.missing()],
    }


def _say(label: str, text: str) -> None:
    out_console.print(f"{label:<13} {text}", markup=False)


def _note(text: str) -> None:
    err_console.print(f"note: {text}", markup=False)


def _list(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names) or "nobody"


# -- what is given ---------------------------------------------------------------------------


def _asked(
    max_colluding: int | None,
    threshold: int | None,
    votes: int | None,
    min_cohort: int | None,
    server: str,
) -> Asked:
    from fedshield.enrolment import Asked

    return Asked(max_colluding, threshold, votes, min_cohort, server)  # type: ignore[arg-type]


def _allowed(schemes: list[str] | None, min_bits: int | None, max_examples: int | None) -> Allowed:
    from fedshield.enrolment import Allowed

    return Allowed(tuple(_names(schemes or ["rlwe"])), min_bits, max_examples)


def _names(given: list[str]) -> list[str]:
    return [name.strip() for text in given for name in text.split(",")]


def _digest(text: str | None) -> bytes:
    if text is None:
        return b""
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise UserError(
            f"--model-sha256: expected 64 digits of 0-9 and a-f, got {text[:80]!r}; leave it out "
            "for any model"
        )
    return digest


def _write(path: Path, roster: SignedRoster) -> None:
    from fedshield.runfolder import write_atomic

    try:
        write_atomic(path, roster.to_text())
    except OSError as error:
        raise UserError(
            f"{path}: expected a file to write to, but {error.strerror}; check the folder"
        ) from None
