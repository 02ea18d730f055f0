"""Seconds of a round over a slow line, for each scheme: real processes, real TLS, a shaped line.

    sudo python benchmarks/network.py [--mbit 20] [--delay-ms 80] [--model NAME] [--json FILE]

A server and three sites, each in a network namespace of its own, made by the same commands as in
docs/deploy.md. Every packet of a site crosses a pair of TUN devices whose relay, in this process,
keeps it for half the delay and sends at the rate, each way: what `tc netem` does in kernels that
have it. One local step, so that the line is what counts. Needs Linux, root and iproute2. Prints
a table and, with --json, writes the rows.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import queue
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

SITES = {"north": "medical", "south": "finance", "west": "maths"}
SCHEMES = {
    "plain float32": {"name": "plain"},
    "ckks paper": {"name": "ckks", "parameters": "paper"},
    "rlwe": {"name": "rlwe"},
}
NET, PORT = "10.99.0", 8702
CLONE_NEWNET, TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x40000000, 0x400454CA, 0x0001, 0x1000
FEDSHIELD = str(Path(sys.executable).with_name("fedshield"))
ENVIRONMENT = dict(os.environ) | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def sh(*words: object) -> str:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}: {done.stdout}{done.stderr}")
    return done.stdout


def tun(space: str, name: str) -> int:
    """A TUN device in a namespace: the descriptor that its packets come out of and go into."""
    found: list[int] = []

    def make() -> None:
        # A thread has a network namespace of its own.
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/var/run/netns/{space}") as other:
            if libc.setns(other.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns {space}")
        device = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
        found.append(device)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return found[0]


def relay(source: int, target: int, mbit: float, delay_s: float) -> None:
    """One direction of a line, for ever: packets leave in order, at the rate, after the delay."""
    waiting: queue.Queue[tuple[float, bytes]] = queue.Queue()

    def write() -> None:
        while True:
            due, packet = waiting.get()
            time.sleep(max(0.0, due - time.monotonic()))
            with contextlib.suppress(OSError):
                os.write(target, packet)

    def read() -> None:
        free = 0.0
        while True:
            packet = os.read(source, 65536)
            free = max(free, time.monotonic()) + 8 * len(packet) / (mbit * 1e6)
            waiting.put((free + delay_s, packet))

    for work in (write, read):
        threading.Thread(target=work, daemon=True).start()


@contextlib.contextmanager
def network(mbit: float, delay_ms: float) -> Iterator[None]:
    """A namespace for each party. `delay_ms`: of a round trip."""
    spaces = {party: f"fs-{party}" for party in ("coordinator", *SITES)}
    try:
        for space in spaces.values():
            sh("ip", "netns", "add", space)
            sh("ip", "netns", "exec", space, "ip", "link", "set", "lo", "up")
        server = ("ip", "netns", "exec", spaces["coordinator"])
        sh(*server, "ip", "addr", "add", f"{NET}.1/32", "dev", "lo")
        for number, site in enumerate(SITES, start=2):
            there, here = tun(spaces["coordinator"], f"fs-{site}"), tun(spaces[site], "fs-line")
            sh(*server, "ip", "link", "set", f"fs-{site}", "up")
            sh(*server, "ip", "route", "add", f"{NET}.{number}/32", "dev", f"fs-{site}")
            inside = ("ip", "netns", "exec", spaces[site])
            sh(*inside, "ip", "addr", "add", f"{NET}.{number}/32", "dev", "fs-line")
            sh(*inside, "ip", "link", "set", "fs-line", "up")
            sh(*inside, "ip", "route", "add", f"{NET}.1/32", "dev", "fs-line")
            relay(here, there, mbit, delay_ms / 2000)
            relay(there, here, mbit, delay_ms / 2000)
        yield
    finally:
        for space in spaces.values():
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)


def fedshield(folder: Path, *words: object) -> str:
    done = subprocess.run(
        [FEDSHIELD, *map(str, words)],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"fedshield {' '.join(map(str, words))}: {done.stdout}{done.stderr}")
    return done.stdout


def consortium(folder: Path, model: str) -> None:
    host = f"{NET}.1"
    where = ("--host", host, "--port", PORT)
    said = fedshield(folder, "consortium", "init", "coordinator", "--name", "slow-line", *where)
    found = re.search(r"SHA256:[0-9A-F:]+", said)
    assert found is not None
    roster = "coordinator/roster.json"
    allowed = [word for scheme in ("rlwe", "ckks", "plain") for word in ("--allow-scheme", scheme)]
    card = "coordinator/coordinator.card.json"
    fedshield(folder, "roster", "init", "--coordinator", card, "--out", roster, *allowed)
    for site in SITES:
        fedshield(folder, "site", "request", site, "--consortium", "slow-line", "--out", site)
        asked = (f"{site}/request/{site}.request.zip", f"{site}/{site}.card.json")
        fedshield(folder, "consortium", "approve", "coordinator", *asked)
    for site, sample in SITES.items():
        signed = f"coordinator/{site}.signed.zip"
        fedshield(folder, "site", "install", site, signed, "--fingerprint", found[0])
        policy = {
            "data_path": f"sample:{sample}",
            "ledger_path": f"{site}.ledger",
            "model_path": model,
            "schemes": ["rlwe", "ckks", "plain"],
            "servers": ["malicious", "semi-honest"],
            "open_to": ["peers", "server"],
        }
        (folder / site / f"{site}.policy.yaml").write_text(yaml.safe_dump(policy))
        others = ",".join(other for other in SITES if other != site)
        fedshield(
            folder, "roster", "sign", roster, "--key", f"{site}/{site}.key", "--confirm", others
        )
    for site in SITES:
        (folder / site / "roster.json").write_text((folder / roster).read_text())


@contextlib.contextmanager
def parties(folder: Path) -> Iterator[None]:
    started = []
    try:
        for party in ("coordinator", *SITES):
            kind = "server" if party == "coordinator" else "site"
            words = ["ip", "netns", "exec", f"fs-{party}", FEDSHIELD, kind, "start", party]
            with (folder / f"{party}.log").open("ab") as log:
                started.append(
                    subprocess.Popen(
                        words,
                        cwd=folder,
                        env=ENVIRONMENT,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
            time.sleep(10 if party == "coordinator" else 1)
        yield
    finally:
        for party in ("coordinator", *SITES):
            subprocess.run(["pkill", "-9", "-f", f"{folder}/{party}/"], check=False)
        for one in started:
            one.wait()


def measure(folder: Path, label: str, scheme: dict[str, str], args: argparse.Namespace) -> Any:
    plan = {
        "name": label.replace(" ", "-"),
        "rounds": args.rounds,
        "model": {"name": args.model},
        "adapter": {"rank": 8, "alpha": 16, "dropout": 0.0},
        "data": {
            "heldout_rows": 2,
            "sites": {site: {"source": f"sample:{sample}"} for site, sample in SITES.items()},
        },
        "training": {"steps": 1, "batch_size": 1, "max_length": 256, "precision": "fp32"},
        "pruning": {"method": "none"},
        "scheme": scheme,
        "speed": {"threads": 1},
    }
    path = folder / f"{plan['name']}.yaml"
    path.write_text(yaml.safe_dump(plan))
    out = f"out-{plan['name']}"
    inside = ["ip", "netns", "exec", "fs-coordinator", FEDSHIELD]
    words = [*inside, "submit", path, "--kit", "coordinator/admin", "--out", out]
    done = subprocess.run(
        [*map(str, words)], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    run = json.loads((folder / out / "run.json").read_text())["run"]
    lines = (folder / out / "coordinator.jsonl").read_text().splitlines()
    rounds = [entry for entry in map(json.loads, lines) if "aggregate_s" in entry]
    rows = [
        json.loads(line)
        for site in SITES
        for line in (folder / site / "runs" / run / "metrics.jsonl").read_text().splitlines()
    ]
    last = rounds[-1]
    mine = [row for row in rows if row["round"] == last["round"]]
    learning = max(row["wall_s"]["train"] + row["wall_s"]["evaluate"] for row in mine)
    return {
        "scheme": label,
        "mbit_per_s": args.mbit,
        "delay_ms": args.delay_ms,
        "upload_bytes_per_site": round(sum(row["upload_bytes"] for row in mine) / len(mine)),
        "download_bytes_per_site": round(sum(row["download_bytes"] for row in mine) / len(mine)),
        "round_s": last["round_s"],
        "learning_s": round(learning, 3),
        "other_s": round(last["round_s"] - learning, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mbit", type=float, default=20)
    parser.add_argument("--delay-ms", type=float, default=80)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="fedshield-network-") as found:
        folder = Path(found)
        consortium(folder, args.model)
        with network(args.mbit, args.delay_ms), parties(folder):
            time.sleep(15)
            print("| scheme | up, down per site | round | without learning |\n|---|---|---|---|")
            for label, scheme in SCHEMES.items():
                row = measure(folder, label, scheme, args)
                rows.append(row)
                up, down = row["upload_bytes_per_site"] / 1e6, row["download_bytes_per_site"] / 1e6
                print(
                    f"| {label} | {up:.2f}, {down:.2f} MB | {row['round_s']:.1f} s "
                    f"| {row['other_s']:.1f} s |",
                    flush=True,
                )
    if args.json:
        args.json.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
