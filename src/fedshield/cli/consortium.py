"""Commands between organisations: making a consortium, joining it, running its parties.

Each party's private keys are made where it types these commands, and stay there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedshield.cli.console import out_console, print_notes
from fedshield.errors import UserError

consortium_app = typer.Typer(
    help="At the coordinator: certificates of a consortium.", no_args_is_help=True
)
server_app = typer.Typer(help="At the coordinator: the server.", no_args_is_help=True)

FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="The consortium's folder.")]
KitArgument = Annotated[Path, typer.Argument(metavar="KIT", help="The site's folder.")]


@consortium_app.command("init")
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to make.")],
    name: Annotated[str, typer.Option(help="The consortium's name, as in a host name.")],
    host: Annotated[str, typer.Option(help="Where sites reach the server.")],
    port: Annotated[int, typer.Option(help="Its one port.")] = 8502,
) -> None:
    """Make the coordinator's keys, the certificate authority, and the server's kit."""
    from fedshield.enrolment import keygen
    from fedshield.run.flare import provision
    from fedshield.run.flare.paths import check_kit_path

    check_kit_path(folder)
    consortium = provision.Consortium.checked(name, host, port)
    with provision.new_folder(folder) as part:
        keygen("coordinator", part)
        provision.make_authority(part, consortium)
    _say("folder", f"{folder}: keep ca/ and *.key where only you can read them")
    _say("fingerprint", f"{provision.fingerprint(folder)} (give it to every site, by telephone)")
    _say(
        "next",
        f"fedshield roster init --coordinator {folder}/coordinator.card.json --out "
        f"{folder}/roster.json",
    )


@consortium_app.command("approve")
def approve(
    folder: FolderArgument,
    request: Annotated[Path, typer.Argument(metavar="REQUEST", help="NAME.request.zip of a site.")],
    card: Annotated[
        Path | None,
        typer.Argument(metavar="CARD", help="Its NAME.card.json; left out for a renewal."),
    ] = None,
) -> None:
    """Sign a site's certificate, and add the card of a new site to the roster. A roster that
    anyone signed stays as it is: the new one is made beside it."""
    from fedshield.enrolment import Card, changes
    from fedshield.run.flare import provision, requests

    provision.Consortium.read(folder)
    name = request.name.removesuffix(".request.zip")
    if card is None:
        change = None
        cards = changes.enrolled_cards(folder / "roster.json", name)
    else:
        site = Card.read(card)
        if request.name != f"{site.name}.request.zip":
            raise UserError(
                f"{request}: expected {site.name}.request.zip to go with the card of {site.name}; "
                "give the two files of one site"
            )
        cards = [site]
        change = changes.enrolled(folder / "roster.json", site)
    signed = requests.approve(folder, request, name, cards, folder / f"{name}.signed.zip")
    if change is None:
        _say("signed", f"{signed} (send it back to {name}); no roster was changed")
        return
    change.write()
    _say("signed", f"{signed} (send it back to {name}, with the roster when all are in it)")
    _say("roster", f"{change.path}: {', '.join(change.roster.names())}")
    for note in change.notes():
        _note(note)


@server_app.command("start")
def start_server(folder: FolderArgument) -> None:
    """Run the server until it is stopped."""
    from fedshield.run.flare import parties
    from fedshield.run.flare.starting import prepare_start

    print_notes(prepare_start(folder, server=True))
    parties.start_server(folder, _note)


@server_app.command("renew")
def renew_server(folder: FolderArgument) -> None:
    """New TLS certificates for the server and for the kit that submits. Stop the server first."""
    from fedshield.run.flare import renewal

    renewed = renewal.renew_server(folder)
    for kit in renewed:
        _say("renewed", f"{kit}: certificate and key")
    if folder.resolve() / "admin" not in renewed:
        _note(f"{folder}/admin is not there: the kit that submits keeps its old certificate")
    _say("next", f"fedshield server start {folder}")


def renew_site(kit: KitArgument) -> None:
    """Ask for a new TLS certificate with a new TLS key. All else in the kit stays."""
    from fedshield.run.flare import renewal

    path = renewal.renew_site(kit)
    _say("send", f"{path} to the coordinator (no card: the roster stays as it is)")
    _say("next", f"fedshield site install {kit} {path.name.split('.')[0]}.signed.zip")


def request(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The site's name.")],
    consortium: Annotated[str, typer.Option(help="The consortium's name.")],
    out: Annotated[Path, typer.Option(help="The site's folder, which will be its kit.")],
) -> None:
    """Make this site's keys here, and what to send to the coordinator."""
    from fedshield.enrolment import keygen
    from fedshield.enrolment.files import check_site_name
    from fedshield.run.flare import provision, requests
    from fedshield.run.flare.paths import check_kit_path

    check_site_name(name, "NAME")
    check_kit_path(out)
    with provision.new_folder(out) as part:
        keygen(name, part)
        requests.request(part, consortium, name)
    _say("kit", f"{out}: its keys stay here")
    _say("send", f"{out}/request/{name}.request.zip and {out}/{name}.card.json")


def install(
    kit: KitArgument,
    signed: Annotated[Path, typer.Argument(metavar="SIGNED", help="NAME.signed.zip.")],
    fingerprint: Annotated[
        str | None,
        typer.Option(help="Of the root certificate, as you were told; a renewal knows it."),
    ] = None,
) -> None:
    """Make this site's start-up kit from what the coordinator signed, or renew its certificate."""
    from fedshield.run.flare import provision, renewal
    from fedshield.run.flare.paths import check_kit_path

    check_kit_path(kit)
    name = provision.site_name(kit)
    if (kit / "flare").exists():
        renewal.install_renewed(kit, signed, fingerprint)
        _say("renewed", f"{kit}/flare: certificate and key; all else is as it was")
        _say("next", f"fedshield site start {kit}")
        return
    if fingerprint is None:
        raise UserError(
            "expected --fingerprint with that of the root certificate, got none; ask the "
            "coordinator's operator for it by telephone"
        )
    provision.install(kit, signed, fingerprint)
    _say("kit", f"{kit}/flare: only FedShield's classes, no shipped code, mutual TLS")
    _say(
        "next", f"write {kit}/{name}.policy.yaml, put the ready roster at {kit}/roster.json, then:"
    )
    _say("", f"fedshield site start {kit}")


def start_site(kit: KitArgument) -> None:
    """Take part: wait for runs, check each against this site's policy, until stopped."""
    from fedshield.run.flare import parties
    from fedshield.run.flare.starting import prepare_start

    print_notes(prepare_start(kit, server=False))
    parties.start_site(kit, _note)


def _note(text: str) -> None:
    print_notes([text])


def _say(label: str, text: str) -> None:
    out_console.print(f"{label:<12} {text}", markup=False)
