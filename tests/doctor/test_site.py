"""`fedshield doctor`: each thing that would stop a run, there and mended."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import re
import shutil
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from fedshield import certificates, cli
from fedshield.checks import Finding
from fedshield.cli.commands import app
from fedshield.cost import machine as cost_machine
from fedshield.doctor import machine
from fedshield.doctor import site as doctor_site
from fedshield.doctor.site import Site, examine
from fedshield.enrolment import Asked, write_demonstration
from fedshield.errors import UserError
from fedshield.model.builtin import tiny
from fedshield.plan.load import parse_plan
from fedshield.plan.schema import Plan

NOW = datetime.datetime(2026, 11, 25, 12, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)


def by_check(site: Site) -> dict[str, Finding]:
    return {one.check: one for one in examine(site)}


def rows(path: Path, count: int) -> Path:
    lines = [
        json.dumps({"prompt": f"question {k}", "response": f"answer {k}"}) for k in range(count)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Three sites; of the bank's rows only the policy knows."""
    sites = {name: {"source": f"{name}.jsonl"} for name in ("bank", "clinic", "hospital")}
    raw: dict[str, Any] = {
        "rounds": 2,
        "model": {"name": "tiny-llama"},
        "adapter": {"rank": 2},
        "data": {"heldout_rows": 3, "min_examples": 4, "sites": sites},
        "training": {"batch_size": 2, "max_length": 64},
    }
    return parse_plan(raw, base_dir=tmp_path / "elsewhere")


@pytest.fixture
def kit(tmp_path: Path, plan: Plan) -> Path:
    """Keys, a demonstration's roster, rows and a policy of the bank."""
    folder = tmp_path / "kit"
    write_demonstration(folder, plan.data.site_names(), Asked(max_colluding=1))
    rows(folder / "rows.jsonl", 12)
    policy(folder)
    return folder


def policy(folder: Path, **keys: Any) -> Path:
    path = folder / "bank.policy.yaml"
    given = {
        "data_path": "rows.jsonl",
        "ledger_path": "ledger",
        "model_path": "tiny-llama",
        "demonstration": True,
        **keys,
    }
    path.write_text(yaml.safe_dump(given))
    return path


def site(plan: Plan, kit: Path, **changes: Any) -> Site:
    given: dict[str, Any] = {
        "plan": plan,
        "name": "bank",
        "policy": kit / "bank.policy.yaml",
        "roster": kit / "roster.json",
        "key": kit / "bank.key",
        "out": kit,
    }
    return Site(**given | changes)


# -- a site as a whole ----------------------------------------------------------------------------


def test_a_ready_site(plan: Plan, kit: Path, no_network: None) -> None:
    found = by_check(site(plan, kit))
    assert {name: one.state for name, one in found.items()} == {
        **dict.fromkeys(("python", "packages", "clock", "disk", "memory", "key file"), "ok"),
        **dict.fromkeys(
            ("plan and roster", "model", "policy", "ledger", "data", "max_length"), "ok"
        ),
        "model on a row": "ok",
        "roster": "warning",  # a demonstration
    }
    assert found["data"].found == "9 to train on, 3 held out"
    assert tiny.sha256(tiny.build()) in found["model"].found


def test_a_site_with_too_few_rows_or_rows_that_do_not_count(plan: Plan, kit: Path) -> None:
    """Rule R6: the plan's floor refuses, its cap is told."""
    least = {"data": plan.data.model_copy(update={"min_examples": 10})}
    found = by_check(site(plan.model_copy(update=least).with_base_dir(plan.base_dir), kit))["data"]
    assert found.state == "FAILED"
    assert found.found.startswith("data.min_examples: expected at least 10 rows with loss at bank")
    least = {"data": plan.data.model_copy(update={"min_examples": 2})}
    found = by_check(site(plan.model_copy(update=least).with_base_dir(plan.base_dir), kit))["data"]
    assert found.state == "warning"
    assert "bank: 9 rows to train on count as 6 (rule R6: at least 2 rows" in found.found


def test_what_was_not_given_is_said(plan: Plan, kit: Path) -> None:
    assert len(doctor_site.not_examined(Site())) == 7
    alone = doctor_site.not_examined(Site(policy=kit / "bank.policy.yaml"))
    assert "whether the policy takes the plan (--plan)" in alone
    assert "where the policy has data and model (--site)" in doctor_site.not_examined(
        site(plan, kit, name=None)
    )
    assert doctor_site.not_examined(site(plan, kit)) == (
        "ports (--connect)",
        "certificates (--certificates)",
    )


def test_a_policy_that_refuses_names_every_key(plan: Plan, kit: Path) -> None:
    policy(kit, max_rounds=1, model_sha256=["ab" * 32])
    found = [one for one in examine(site(plan, kit)) if one.state == "FAILED"]
    assert [(one.check, one.found.partition(":")[0]) for one in found] == [
        ("model", "tiny-llama, " + tiny.sha256(tiny.build())[:16]),
        ("policy", "base model"),
        ("policy", "rounds"),
    ]
    policy(kit, no_such_key=1)
    assert "no_such_key: unknown key" in by_check(site(plan, kit))["policy"].found


def test_data_that_cannot_be_read_or_are_too_few(plan: Plan, kit: Path) -> None:
    (kit / "rows.jsonl").unlink()
    assert by_check(site(plan, kit))["data"].state == "FAILED"
    rows(kit / "rows.jsonl", 3)
    found = by_check(site(plan, kit))["data"]
    assert (found.state, "expected more than 3 rows" in found.found) == ("FAILED", True)
    (kit / "rows.jsonl").write_text('{"prompt": "x"}\n')
    assert by_check(site(plan, kit))["data"].state == "FAILED"


def test_a_model_that_is_not_here_is_not_fetched(plan: Plan, kit: Path, no_network: None) -> None:
    policy(kit, model_path="someone/no-such-model")
    found = by_check(site(plan, kit))
    assert found["model"].state == "FAILED"
    assert "data" not in found  # no tokenizer to read them with
    policy(kit, model_path="/no/such/folder")
    assert "expected a model folder, found none" in by_check(site(plan, kit))["model"].found


def test_a_model_that_cannot_be_trained_is_found_out(
    plan: Plan, kit: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    policy(kit, model_path=str(folder))
    found = by_check(site(plan, kit))["model on a row"]
    assert found.state == "FAILED"
    assert "(9 would not be used)" in found.found
    (folder / "config.json").write_text(json.dumps(config))
    assert by_check(site(plan, kit))["model on a row"].state == "ok"
    (folder / "pytorch_model.bin").write_bytes(b"")
    found = by_check(site(plan, kit))["model on a row"]
    assert (found.state, "pytorch_model.bin" in found.found) == ("warning", True)


def test_key_file_and_roster(plan: Plan, kit: Path) -> None:
    (kit / "bank.key").chmod(0o640)
    found = by_check(site(plan, kit))
    assert "expected mode 0600 or narrower, got 0640" in found["key file"].found
    assert found["roster"].state == "FAILED"
    (kit / "bank.key").chmod(0o600)
    found = by_check(site(plan, kit, key=kit / "clinic.key"))
    assert (found["key file"].state, found["key file"].found) == ("FAILED", "one of clinic")
    text = json.loads((kit / "roster.json").read_text())
    text["countersignatures"].pop("clinic")
    (kit / "roster.json").write_text(json.dumps(text))
    assert "no countersignature of clinic" in by_check(site(plan, kit))["roster"].found


def test_a_plan_that_the_roster_does_not_allow(plan: Plan, kit: Path) -> None:
    """The sites, the scheme and the bits of the plan are those that were agreed."""
    raw = plan.model_dump(mode="json")
    raw["scheme"] = {"name": "plain", "weights": "private"}
    found = by_check(site(parse_plan(raw, base_dir=plan.base_dir), kit))["plan and roster"]
    assert found.state == "FAILED"
    assert "the plan says plain; change scheme.name" in found.found
    write_demonstration(kit / "other", ("bank", "clinic", "third"), Asked(max_colluding=1))
    found = by_check(site(plan, kit, roster=kit / "other" / "roster.json"))["plan and roster"]
    assert "use the plan's roster" in found.found


# -- ports ----------------------------------------------------------------------------------------


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_that_answers_and_one_that_does_not(listening: int) -> None:
    assert doctor_site.port(f"127.0.0.1:{listening}").state == "ok"
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    found = doctor_site.port(f"127.0.0.1:{closed}")
    assert (found.state, found.found) == ("FAILED", "Connection refused")
    assert "firewall" in found.todo


@pytest.mark.parametrize("text", ["host", "host:", ":80", "host:0", "host:70000", "host:8x", ""])
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="expected HOST:PORT"):
        doctor_site.port(text)


# -- certificates --------------------------------------------------------------------------------


def write_certificate(path: Path, start: datetime.datetime, end: datetime.datetime) -> None:
    key, name = (
        Ed25519PrivateKey.generate(),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "s")]),
    )
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(end)
        .sign(key, None)
    )
    path.write_bytes(made.public_bytes(Encoding.PEM))
    private = path.with_suffix(".key")
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    private.chmod(0o600)


def test_proxy_variables_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"localhost:{listening.getsockname()[1]}"
        monkeypatch.delenv("grpc_proxy", raising=False)
        monkeypatch.setenv("https_proxy", "http://proxy.example.org:3128")
        found = by_check(Site(connect=(address,)))["proxy"]
        assert found.state == "ok"
        assert "https_proxy not used" in found.found
        monkeypatch.setenv("grpc_proxy", "http://proxy.example.org:3128")
        found = by_check(Site(connect=(address,)))["proxy"]
        assert found.state == "warning"
        assert "not through the proxy" in found.todo


def test_a_policy_is_read_without_a_plan_too(kit: Path) -> None:
    assert by_check(Site(policy=kit / "bank.policy.yaml"))["policy"].state == "ok"
    broken = policy(kit, min_bitz=2)
    found = by_check(Site(policy=broken))["policy"]
    assert found.state == "FAILED"
    assert "min_bitz" in found.found


def test_columns_that_are_not_used_are_told(plan: Plan, kit: Path) -> None:
    lines = [json.dumps({"prompt": f"q {k}", "response": "a", "ward": "3"}) for k in range(12)]
    (kit / "rows.jsonl").write_text("\n".join(lines) + "\n")
    found = by_check(site(plan, kit))["data"]
    assert found.state == "warning"
    assert found.found.endswith("3 held out; column `ward` not used (12 rows)")
    assert "fedshield data" in found.todo


def test_a_ledger_that_is_lost_or_damaged_is_told_and_left(plan: Plan, kit: Path) -> None:
    for alone in (False, True):
        asked = Site(policy=kit / "bank.policy.yaml") if alone else site(plan, kit)
        assert by_check(asked)["ledger"].found.startswith("none yet")
        (kit / "runs" / "trial").mkdir(parents=True)
        assert "found none" in by_check(asked)["ledger"].found
        (kit / "ledger").write_text("damaged\n")
        found = by_check(asked)["ledger"]
        assert (found.state, (kit / "ledger").read_text()) == ("FAILED", "damaged\n")
        (kit / "ledger").unlink()
        (kit / "runs" / "trial").rmdir()


def test_keys_without_effect_are_told(
    plan: Plan, kit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = kit / "plan.yaml"
    path.write_text(plan.to_yaml() + "\n")
    raw = yaml.safe_load(path.read_text())
    raw["training"]["proximal"] = 0.5
    path.write_text(yaml.safe_dump(raw))
    for arguments in (
        ["doctor", "--plan", str(path)],
        ["site", "check", str(path), "--policy", str(policy(kit))],
    ):
        with contextlib.suppress(UserError):
            app(arguments, standalone_mode=False)
        assert "note: training.proximal has no effect" in capsys.readouterr().err


# -- TLS -------------------------------------------------------------------------------------------


class Authority:
    """A certificate authority, and kits of what it issued."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")])
        self.certificate = self._issue(self.name, self.key, authority=True)

    def _issue(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, authority: bool = False
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
        usage = x509.KeyUsage(True, *[False] * 4, authority, authority, False, False)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + 90 * DAY)
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
            .add_extension(names, critical=False)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False
            )
            .sign(self.key, hashes.SHA256())
        )

    def kit(self, folder: Path, role: str, root: Authority | None = None) -> Path:
        """`root`: whose certificate the kit trusts, its own authority's by default."""
        folder.mkdir()
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, role)])
        (folder / "rootCA.pem").write_bytes((root or self).certificate.public_bytes(Encoding.PEM))
        certificate = self._issue(name, key).public_bytes(Encoding.PEM)
        (folder / f"{role}.crt").write_bytes(certificate)
        path = folder / f"{role}.key"
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        path.chmod(0o600)
        return folder


@contextmanager
def tls_server(kit: Path, connections: int = 2) -> Iterator[str]:
    """Asks for a client's certificate, and speaks first, as gRPC's server does. `connections`: the
    port's check, the handshake, and one more where the certificate's names are looked at."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=kit / "rootCA.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(kit / "server.crt", kit / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            for _ in range(connections):
                plain, _ = listening.accept()
                with contextlib.suppress(OSError), context.wrap_socket(plain, True) as secured:
                    secured.sendall(b"settings")
                    secured.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"localhost:{listening.getsockname()[1]}"
        finally:
            thread.join(10)
            assert not thread.is_alive()


def test_a_handshake_with_the_kits_certificates(tmp_path: Path) -> None:
    ours = Authority()
    with tls_server(ours.kit(tmp_path / "server", "server")) as address:
        kit = ours.kit(tmp_path / "kit", "client")
        found = by_check(Site(connect=(address,), certificates=kit))
    assert found[f"port {address}"].state == "ok"
    assert (found[f"TLS {address}"].state, found[f"TLS {address}"].found) == ("ok", "TLSv1.3")


def test_a_server_of_another_consortium(tmp_path: Path) -> None:
    ours, theirs = Authority(), Authority()
    with tls_server(theirs.kit(tmp_path / "server", "server", root=ours)) as address:
        kit = ours.kit(tmp_path / "kit", "client")
        found = by_check(Site(connect=(address,), certificates=kit))[f"TLS {address}"]
    assert found.state == "FAILED"
    assert "its certificate is not accepted: " in found.found
    assert "the kit is this consortium's" in found.todo


def test_a_server_that_refuses_our_certificate(tmp_path: Path) -> None:
    ours, theirs = Authority(), Authority()
    with tls_server(ours.kit(tmp_path / "server", "server")) as address:
        kit = theirs.kit(tmp_path / "kit", "client", root=ours)
        found = by_check(Site(connect=(address,), certificates=kit))[f"TLS {address}"]
    assert found.state == "FAILED"
    assert "unknown ca" in found.found.lower()


def test_a_server_with_a_certificate_of_another_host(tmp_path: Path) -> None:
    """Every site would try for ever: the names are said, those it has and the one it lacks."""
    ours = Authority()
    kit = ours.kit(tmp_path / "kit", "client")
    with tls_server(ours.kit(tmp_path / "server", "server"), connections=3) as address:
        port = address.rpartition(":")[2]
        found = by_check(Site(connect=(f"127.0.0.1:{port}",), certificates=kit))
    tls = found[f"TLS 127.0.0.1:{port}"]
    assert tls.state == "FAILED"
    assert tls.found == "its certificate is for localhost, not for 127.0.0.1"


def test_a_folder_without_a_kit_cannot_shake_hands(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"localhost:{listening.getsockname()[1]}"
        found = by_check(Site(connect=(address,), certificates=tmp_path))[f"TLS {address}"]
    assert (found.state, found.todo) == ("FAILED", "give the folder of the start-up kit")


@pytest.mark.parametrize(
    ("start", "end", "state", "told"),
    [
        (-10, 300, "ok", "2026-11-15 to 2027-09-21"),
        (-10, 61, "ok", "2026-11-15"),
        (-10, 59, "warning", "59 days left"),
        (-10, 20, "warning", "20 days left"),
        (-300, -1, "FAILED", "expired"),
        (1, 300, "FAILED", "not valid yet"),
    ],
)
def test_dates_of_a_certificate(
    tmp_path: Path, start: int, end: int, state: str, told: str
) -> None:
    (tmp_path / "startup").mkdir()
    write_certificate(tmp_path / "startup" / "client.crt", NOW + start * DAY, NOW + end * DAY)
    found = {one.check: one for one in certificates.certificates(tmp_path, NOW)}
    one = found["certificate startup/client.crt"]
    assert (one.state, told in one.found) == (state, True)
    assert found["key startup/client.key"].state == "ok"


def test_keys_that_others_may_read_damage_and_none_at_all(tmp_path: Path) -> None:
    (found,) = certificates.certificates(tmp_path, NOW)
    assert (found.state, found.found) == ("FAILED", "none")
    write_certificate(tmp_path / "a.crt", NOW - DAY, NOW + 300 * DAY)
    (tmp_path / "a.key").chmod(0o644)
    (tmp_path / "b.crt").write_text("nothing")
    states = {one.check: one.state for one in certificates.certificates(tmp_path, NOW)}
    assert states == {
        "certificate a.crt": "ok",
        "key a.key": "FAILED",
        "certificate b.crt": "FAILED",
    }


def test_a_key_of_another_certificate_is_told(tmp_path: Path) -> None:
    """What a renewal that was cut off leaves."""
    for name in ("a", "b"):
        write_certificate(tmp_path / f"{name}.crt", NOW - DAY, NOW + 300 * DAY)
    assert {one.state for one in certificates.certificates(tmp_path, NOW)} == {"ok"}
    (tmp_path / "b.key").replace(tmp_path / "a.key")
    (failed,) = [one for one in certificates.certificates(tmp_path, NOW) if one.state == "FAILED"]
    assert (failed.check, failed.found) == ("certificate a.crt", "one of another key")
    assert "site install or server renew again" in failed.todo


def test_what_ends_soon_is_listed_the_first_first(tmp_path: Path) -> None:
    for name, days in (("late", 61), ("soon", 59), ("sooner", 2), ("over", -3)):
        write_certificate(tmp_path / f"{name}.crt", NOW - 300 * DAY, NOW + days * DAY)
    (tmp_path / "odd.crt").write_text("nothing")
    ending = certificates.certificates_ending(tmp_path, NOW)
    assert [(one.path.stem, one.days_left) for one in ending] == [
        *(("over", -3), ("sooner", 2), ("soon", 59)),
    ]
    assert "ended on" in ending[0].in_words()
    assert "in 2 days; renew it: fedshield site renew" in ending[1].in_words()
    assert certificates.certificates_ending(tmp_path, NOW, days=1) == ending[:1]
    (unread,) = certificates.certificates_unread(tmp_path)
    assert "odd.crt: expected a certificate (PEM), got other bytes; renew it" in unread


# -- the machine ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("off", "state"), [(0, "ok"), (29, "ok"), (31, "warning"), (-299, "warning"), (301, "FAILED")]
)
def test_the_clock_against_a_given_time(tmp_path: Path, off: int, state: str) -> None:
    (found,) = machine.clock(NOW + datetime.timedelta(seconds=off), NOW.isoformat())
    assert found.state == state
    (tmp_path / "time").write_text(NOW.isoformat() + "\n")
    (found,) = machine.clock(NOW + datetime.timedelta(seconds=off), str(tmp_path / "time"))
    assert found.state == state


def test_the_clock_against_what_cannot_be() -> None:
    early = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)
    (found,) = machine.clock(early, None)
    assert found.state == "FAILED"
    with pytest.raises(UserError, match="--time: expected a time such as"):
        list(machine.clock(NOW, "yesterday"))


def test_disk_and_memory(tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.disk(tmp_path / "not" / "yet", plan).state == "ok"
    monkeypatch.setattr(machine, "DISK_MARGIN_BYTES", 10**18)
    assert machine.disk(tmp_path, plan).state == "FAILED"
    need = machine.estimate(plan).peak_memory_bytes
    for available, state in (
        (cost_machine.Memory(need, need, "x"), "ok"),
        (cost_machine.Memory(need, need - 1, "x"), "warning"),
        (cost_machine.Memory(need, need // 2, "x"), "FAILED"),
        (None, "warning"),
    ):
        monkeypatch.setattr(cost_machine, "memory", lambda got=available: got)
        assert machine.memory(plan).state == state


def test_rows_longer_than_the_model_reads_are_told_before_a_run(plan: Plan) -> None:
    (fits,) = machine.context(plan)
    assert fits.state == "ok"
    training = plan.training.model_copy(update={"max_length": 1025})
    (too_long,) = machine.context(plan.model_copy(update={"training": training}))
    assert (too_long.state, too_long.found) == ("FAILED", "1025 tokens")
    assert "1024" in too_long.expected


def test_packages_out_of_range_or_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [one.state for one in machine.packages()] == ["ok", "ok"]
    wanted = ["numpy>=999", "no-such-package>=1", "pyyaml", "nvflare==0.1; extra == 'flare'"]
    wanted += ["no-such-extra==1; extra == 'x'", "pyyaml>=999; python_version < '3'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: wanted)
    found = {one.check: (one.state, one.todo) for one in machine.packages()}
    del found["python"]
    found.pop("package nvflare", None)  # only where it is installed
    assert found == {
        "package numpy": ("FAILED", "pip install 'numpy>=999'"),
        "package no-such-package": ("FAILED", "pip install 'no-such-package>=1'"),
    }


# -- the command ----------------------------------------------------------------------------------


def test_the_command(
    tmp_path: Path,
    plan: Plan,
    kit: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(plan.to_yaml())
    args = ["--plan", str(path), "--site", "bank", "--policy", str(kit / "bank.policy.yaml")]
    args += ["--roster", str(kit / "roster.json"), "--out", str(kit)]

    def run(*more: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedshield", "doctor", *args, *more])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code, *capfd.readouterr()

    code, out, err = run("--key", str(kit / "bank.key"))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 15
    assert all(re.match(r"(ok|warning|not checked) {2,}\S", line) for line in lines)
    code, out, err = run("--key", str(kit / "clinic.key"), "--json")
    found = json.loads(out)
    assert (code, found["ready"]) == (2, False)
    assert [one["check"] for one in found["findings"] if one["state"] == "FAILED"] == ["key file"]
    (line,) = err.splitlines()
    failed = f"1 of {len(found['findings'])} checks failed, the first: key file: one of clinic"
    assert f"{failed}; give the other file" in line
