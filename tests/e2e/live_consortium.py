"""A consortium on loopback: server and sites as separate processes, made by the commands that
docs/deploy.md gives, with mutual TLS and kits of their own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fedshield.plan.load import load_plan
from fedshield.run import local
from fedshield.run.flare.kit import KIT
from fedshield.run.parties import Enrolment

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy.md"
SITES = {"north": "medical", "south": "finance", "west": "maths"}
WRONG_CLOCK = Path(__file__).with_name("wrong_clock.c")
ENVIRONMENT = dict(os.environ) | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
PATIENCE_S = 240.0


def command(*arguments: object) -> list[str]:
    return [str(Path(sys.executable).with_name("fedshield")), *map(str, arguments)]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def commands(first: str, end: str) -> list[str]:
    """The commands of docs/deploy.md from the line that starts with `first` to that with `end`."""
    text = DEPLOY.read_text()
    part = text[text.index(f"\n{first}") : text.index(f"\n{end}")]
    return re.findall(r"^\$ (.*)$", part, re.MULTILINE)


class Federation:
    """`folder` holds the coordinator's folder and each site's kit, by name. `sites`: the built-in
    sample that each has for its data; `model`: the built-in that all have; `roster`: more options
    of `roster init`."""

    def __init__(
        self,
        folder: Path,
        sites: Mapping[str, str] = SITES,
        model: str = "tiny-llama",
        roster: str = "",
    ) -> None:
        self.folder = folder
        self.roster = roster
        self.model = model
        self.sites = sites
        self.port = free_port()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._runs = 0
        self._alone: dict[Path, str] = {}

    # -- making ----------------------------------------------------------------------------

    def call(self, *arguments: object, status: int = 0, typed: str = "") -> str:
        done = subprocess.run(
            command(*arguments),
            input=typed,
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env=ENVIRONMENT,
            timeout=PATIENCE_S,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def make(self) -> None:
        """By the commands of docs/deploy.md, in their order, on this machine's address."""
        lines = commands("## 1. ", "## 6. ")
        assert len(lines) >= 17
        init = "fedshield roster init"
        lines = [f"{line} {self.roster}" if line.startswith(init) else line for line in lines]
        self.type(self._for_all(lines))
        for site, sample in self.sites.items():
            self.write_policy(site, sample)

    def write_policy(self, site: str, sample: str) -> None:
        places = {"data_path": f"sample:{sample}", "ledger_path": f"{site}.ledger"}
        policy = yaml.safe_dump({**places, "model_path": str(self.model)})
        (self.folder / site / f"{site}.policy.yaml").write_text(policy)

    def type(self, lines: Iterable[str]) -> list[str]:
        """Run commands of docs/deploy.md on this machine: what each said."""
        fingerprint = ""
        said: list[str] = []
        for line in lines:
            words = shlex.split(self._here(line).replace("FINGERPRINT", fingerprint))
            if words[0] in ("cp", "mv"):
                act = shutil.copy if words[0] == "cp" else shutil.move
                act(self.folder / words[1], self.folder / words[2])
                continue
            assert words[0] == "fedshield", line
            said.append(self.call(*words[1:]))
            told = re.search(r"SHA256:[0-9A-F:]+", said[-1])
            fingerprint = told[0] if told else fingerprint
        return said

    def _for_all(self, lines: Sequence[str]) -> Iterator[str]:
        """What the first of the three hospitals does, each site does; the rest as it stands."""
        if self.sites is SITES:
            yield from lines
            return
        first, *others = SITES
        for line in lines:
            whose = next((word for word in re.findall(r"\w+", line) if word in SITES), None)
            if whose is None:
                yield line
            elif whose == first:
                for site in self.sites:
                    peers = ",".join(one for one in self.sites if one != site)
                    mine = re.sub(rf"\b{first}\b", site, line)
                    yield mine.replace(f"--confirm {','.join(others)}", f"--confirm {peers}")

    def alone(self, out: Path) -> str:
        """The adapter that one process makes of the plan that was submitted to `out`, with the same
        keys: what a site's training draws at random comes from its own, and from the plan."""
        if out not in self._alone:
            plan, _ = load_plan(self.folder / f"plan-{out.name.removeprefix('run-')}.yaml")
            folder = self.folder / f"alone-{out.name}"
            folder.mkdir()
            enrolment = self.enrolment(folder / "keys")
            done = local.run(plan, folder / "run", enrolment=enrolment)
            self._alone[out] = str(done.read_json("summary.json")["adapter_sha256"])
        return self._alone[out]

    def enrolment(self, keys: Path) -> Enrolment:
        """The roster and everyone's keys, copied to the new folder `keys`: what one process needs
        to draw as these sites do."""
        keys.mkdir(mode=0o700)
        for party in ("coordinator", *self.sites):
            shutil.copy2(self.folder / party / f"{party}.key", keys)
        return Enrolment(self.folder / "coordinator" / "roster.json", keys)

    def _here(self, line: str) -> str:
        return line.replace("fl.example.org", "localhost").replace("8502", str(self.port))

    # -- running ---------------------------------------------------------------------------

    def start(
        self,
        *parties: str,
        clock_off_s: int = 0,
        more: Mapping[str, str] | None = None,
        before: Sequence[str] = (),
        listens: bool = True,
    ) -> None:
        """`clock_off_s`: what the parties' clocks are ahead by, in all of their processes; `more`:
        what is in their environment besides; `before`: the words before their command; `listens`:
        whether a server will, and is waited for."""
        environment = dict(ENVIRONMENT) | dict(more or {})
        if clock_off_s:
            environment |= self._wrong_clock(clock_off_s)
        for party in parties or ("coordinator", *self.sites):
            kind = "server" if party == "coordinator" else "site"
            with (self.folder / f"{party}.log").open("ab") as log:
                self._processes[party] = subprocess.Popen(
                    [*before, *command(kind, "start", party)],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self.folder,
                    env=environment,
                    start_new_session=True,
                )
            if party == "coordinator" and listens:
                wait(lambda: self._listening(), "the server to listen")

    def _wrong_clock(self, off_s: int) -> dict[str, str]:
        library = self.folder / "wrong_clock.so"
        if not library.exists():
            build = ["cc", "-shared", "-fPIC", "-o", str(library), str(WRONG_CLOCK), "-ldl"]
            subprocess.run(build, check=True)
        return {"LD_PRELOAD": str(library), "CLOCK_OFF_S": str(off_s)}

    def _listening(self) -> bool:
        with socket.socket() as found:
            return found.connect_ex(("127.0.0.1", self.port)) == 0

    def connected(self) -> list[str]:
        done = subprocess.run(
            command("status", "--kit", "coordinator/admin", "--json"),
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env=ENVIRONMENT,
            timeout=PATIENCE_S,
        )
        return list(json.loads(done.stdout)["sites"]) if done.returncode == 0 else []

    def ready(self, *sites: str) -> None:
        wanted = sorted(sites or self.sites)
        wait(lambda: self.connected() == wanted, f"{', '.join(wanted)} to connect", every_s=3)

    def processes(self, party: str) -> list[int]:
        """The party's processes: FLARE's, and that of the job if one runs."""
        variable = f"{KIT}={(self.folder / party).resolve()}\0".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if variable in path.read_bytes():
                    found.append(int(path.parent.name))
        return found

    def signal(self, party: str, what: signal.Signals) -> None:
        for pid in self.processes(party):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, what)

    def kill(self, party: str) -> None:
        self.signal(party, signal.SIGKILL)
        if party in self._processes:
            self._processes.pop(party).wait()

    def end(self, party: str) -> int:
        """The status of a party that ends by itself."""
        return self._processes.pop(party).wait(timeout=PATIENCE_S)

    def stop(self) -> None:
        for party in dict.fromkeys(("coordinator", *self.sites, *self._processes)):
            self.signal(party, signal.SIGCONT)
            self.kill(party)

    # -- runs ------------------------------------------------------------------------------

    def begin(
        self, plan: Path, *more: object, then: Callable[[], object] = lambda: None
    ) -> Submission:
        """Submit the plan under a name of its own (a plan has one run), which every site's operator
        has approved. `then`: what happens between the two."""
        self._runs += 1
        out = self.folder / f"run-{self._runs}"
        raw = yaml.safe_load(plan.read_text())
        raw["name"] = f"{raw.get('name', 'run')}-{self._runs}"
        named = self.folder / f"plan-{self._runs}.yaml"
        named.write_text(yaml.safe_dump(raw))
        self.approve(named)
        then()
        return Submission(self, out, ("submit", named, "--out", out, *more))

    def approve(self, plan: Path, *sites: str) -> None:
        """What each site's operator (of `sites`; all by default) does at its terminal."""
        for site in sites or self.sites:
            said = self.call(
                *("site", "approve", plan, "--kit", site), typed=f"{len(self.sites)}\n{site}\n"
            )
            assert "approved" in said, said

    def resume(self, out: Path) -> Submission:
        return Submission(self, out, ("submit", "--resume", out))


class Submission:
    """A run that was submitted, in a process of its own."""

    def __init__(self, federation: Federation, out: Path, arguments: tuple[object, ...]) -> None:
        self.federation = federation
        self.out = out
        # A shell has its background jobs ignore SIGINT, and children inherit it.
        inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            self._process = subprocess.Popen(
                command(*arguments, "--kit", "coordinator/admin"),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=federation.folder,
                env=ENVIRONMENT,
            )
        finally:
            signal.signal(signal.SIGINT, inherited)

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)

    def end(self) -> tuple[int, str]:
        """Its exit status and what it said."""
        said, _ = self._process.communicate(timeout=PATIENCE_S)
        return self._process.returncode, said

    def name(self) -> str:
        wait(lambda: (self.out / "run.json").exists(), "the run to begin")
        return str(json.loads((self.out / "run.json").read_text())["run"])

    def folder(self, party: str) -> Path:
        return self.federation.folder / party / "runs" / self.name()

    def log(self) -> list[dict[str, Any]]:
        path = self.folder("coordinator") / "coordinator.jsonl"
        if not path.exists():
            return []
        return [
            json.loads(line)
            for line in path.read_text().splitlines(keepends=True)
            if line.endswith("\n")
        ]

    def wait_for_round(self, number: int) -> None:
        def done() -> bool:
            return any("aggregate_s" in entry and entry["round"] == number for entry in self.log())

        wait(done, f"round {number}")

    def wait_for_journal(self, site: str, what: str, round_number: int) -> None:
        """Until the site's journal says that it let this out."""
        path = self.folder(site) / "journal" / f"{site}.jsonl"

        def there() -> bool:
            if not path.exists():
                return False
            for line in path.read_bytes().splitlines():
                with contextlib.suppress(ValueError):
                    entry = json.loads(line)
                    if entry.get("kind") == what and entry.get("round") == round_number:
                        return True
            return False

        wait(there, f"{what} of round {round_number} at {site}", every_s=0.005)

    def adapters(self) -> dict[str, str]:
        """Each site's adapter in the end."""
        return {
            site: json.loads((self.folder(site) / "summary.json").read_text())["adapter_sha256"]
            for site in self.federation.sites
        }


def wait(done: Callable[[], bool], what: str, every_s: float = 0.1) -> None:
    until = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(every_s)


@contextlib.contextmanager
def federation(
    folder: Path,
    sites: Mapping[str, str] = SITES,
    model: str = "tiny-llama",
    roster: str = "",
) -> Iterator[Federation]:
    """Made, started and connected; stopped in the end, whatever happened."""
    made = Federation(folder, sites, model, roster)
    made.make()
    try:
        made.start()
        made.ready()
        yield made
    finally:
        made.stop()
