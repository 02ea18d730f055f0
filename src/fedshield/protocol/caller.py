"""How the coordinator calls sites, and who is lost when one does not answer rightly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from fedshield.errors import ProtocolCode, ProtocolError, RoundFailed
from fedshield.protocol.contexts import SETUP, read_signed
from fedshield.protocol.log.entries import (
    UNLOGGED,
    Act,
    Fact,
    Log,
    plain_text,
    sha256,
    unlogged,
)
from fedshield.protocol.roster import COORDINATOR, Roster
from fedshield.protocol.transport import Sites
from fedshield.protocol.wire import codec, envelope, messages
from fedshield.protocol.wire.envelope import Binding, Sign

_M = TypeVar("_M", bound=messages.Message)


class Caller:
    """Signed commands out, checked replies in. `binding` is what commands belong to; `active`
    are the sites that still answer, `lost` says of the others at which message and why. `session`:
    hex of the session's id, for the `log`."""

    def __init__(
        self,
        roster: Roster,
        sites: Sites,
        sign: Sign,
        log: Log = unlogged,
    ) -> None:
        self._roster = roster
        self._sites = sites
        self._sign = sign
        self._log = log
        self.reset("")

    def reset(self, session: str, gone: Mapping[str, str] | None = None) -> None:
        """A new session: everyone is asked again, but who is `gone` (at which message, and why)."""
        self.session = session
        self.binding = Binding(bytes(32), 0, SETUP)
        self.lost: dict[str, str] = dict(gone or {})
        self.active: list[str] = [name for name in self._roster.names() if name not in self.lost]

    def everyone(self, command: messages.Message) -> dict[str, messages.Message]:
        return dict.fromkeys(self.active, command)

    def require(
        self, method: str, have: int, need: int, also: Mapping[str, str] | None = None
    ) -> None:
        """Raises `RoundFailed`, naming who is lost, if fewer than `need` are left. `also`: sites
        that still answer and are missed all the same, and why."""
        if have >= need:
            return
        missed = {site: self.why(site) for site in self.lost} | dict(also or {})
        why = ", ".join(f"{site} ({missed[site]})" for site in sorted(missed))
        wanted = "" if need == len(self._roster.sites) else f"; {have} of {need} needed are left"
        raise RoundFailed(
            f"{method}: no answer from {why}{wanted}; the model of the last round is kept"
        )

    def why(self, site: str) -> str:
        """The reason alone."""
        return self.lost[site].partition(": ")[2]

    def drop(self, failed: Mapping[str, str], method: str) -> None:
        """These are out: site -> why, at `method`."""
        for site, code in failed.items():
            self.lost[site] = f"{method}: {code}"
        if failed:
            why: codec.Value = {site: plain_text(code, 300) for site, code in failed.items()}
            self.note("lost", method, details={"lost": why})
        self.active = [site for site in self.active if site not in failed]

    def gather(
        self,
        commands: Mapping[str, messages.Message],
        kind: type[_M],
        replies_in: Binding | None = None,
        but: ProtocolCode | None = None,
    ) -> dict[str, tuple[bytes, _M]]:
        """The signed replies and what they say, of the sites that answered rightly; the others
        are out of the session, but for those that refused with the code `but`."""
        if not commands:
            return {}
        sealed: dict[int, bytes] = {}
        args: dict[str, bytes] = {}
        for site, command in commands.items():
            if id(command) not in sealed:
                sealed[id(command)] = envelope.seal(
                    command.kind, self.binding, COORDINATOR, command.to_body(), self._sign
                )
            args[site] = sealed[id(command)]
        method = next(iter(commands.values())).kind
        logged = method not in UNLOGGED
        if logged:  # first: so nobody can see a command that is not in the log
            digests = {id(data): sha256(data) for data in sealed.values()}
            self.note(
                "asked",
                method,
                made={site: digests[id(data)] for site, data in args.items()},
                made_bytes=sum(map(len, args.values())),
            )
        replies = self._sites.call(method, args)
        failed = {site: "no answer" for site in args if site not in replies.ok}
        failed |= {
            site: plain_text(code, 60) for site, code in replies.failed.items() if site in args
        }
        found: dict[str, tuple[bytes, _M]] = {}
        binding = replies_in or self.binding
        for site, data in replies.ok.items():
            if site not in args or site in failed:
                continue
            try:
                found[site] = (data, read_signed(data, kind, binding, site, self._roster))
            except ProtocolError as error:
                failed[site] = f"its answer was refused: {error}"
        if logged:
            refused = {
                site: plain_text(code, 60) for site, code in replies.failed.items() if site in args
            }
            self.note(
                "received",
                method,
                saw={site: sha256(data) for site, (data, _) in found.items()},
                saw_bytes=sum(len(data) for data, _ in found.values()),
                details={"refused": dict(refused)} if refused else {},
            )
        stay = {site for site, code in replies.failed.items() if code == but}
        self.drop({site: why for site, why in failed.items() if site not in stay}, method)
        return {site: found[site] for site in args if site in found}

    # -- what is logged --------------------------------------------------------------------

    def note(
        self,
        act: Act,
        message: str = "",
        *,
        made: Mapping[str, str] | None = None,
        saw: Mapping[str, str] | None = None,
        made_bytes: int = 0,
        saw_bytes: int = 0,
        details: Mapping[str, codec.Value] | None = None,
    ) -> None:
        """An entry of the coordinator's log, at the round and phase that it is in."""
        number, phase = self.binding.round_number, self.binding.phase
        self._log(
            Fact(
                act,
                message,
                self.session,
                number,
                phase,
                made=made or {},
                saw=saw or {},
                made_bytes=made_bytes,
                saw_bytes=saw_bytes,
                details=details or {},
            )
        )
