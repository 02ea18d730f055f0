"""Who may import whom, read from the sources: rooms, circles, keys, sockets, printing, loading.

Imports within functions and under TYPE_CHECKING count like any other: what a module can reach,
it will one day use.
"""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "fedshield"

#: The rooms, from the ground up. A module imports from its own room and from those before it; a
#: new room must be placed here.
ROOMS = (
    "ground",  # modules right below `fedshield`: types, errors, disk, ...
    "plan",
    "crypto",
    "update",
    "ledger",
    "model",
    "data",
    "privacy",
    "site",
    "protocol",
    "enrolment",
    "recovery",
    "cost",
    "report",
    "run",
    "doctor",
    "audit",
    "cli",
)
HEAVY = {"torch", "transformers", "tenseal", "matplotlib", "peft", "datasets", "bitsandbytes"}
NETWORK = {
    *("socket", "socketserver", "ssl", "http", "urllib", "ftplib", "smtplib", "xmlrpc", "asyncio"),
    *("requests", "httpx", "urllib3", "aiohttp", "websockets", "grpc", "nvflare", "zmq"),
}
HOLDS_A_KEY = {
    *("fedshield.crypto.ckks", "fedshield.crypto.keys"),
    *("fedshield.crypto.seal", "fedshield.crypto.plain", "fedshield.crypto.shamir"),
    *(f"fedshield.crypto.rlwe.{part}" for part in ("scheme", "sampling", "tag", "products")),
    *("fedshield.site.schemes", "fedshield.site.ciphers", "fedshield.protocol.participant_sum"),
    "fedshield.protocol.channels",
    *("fedshield.protocol.run_keys", "fedshield.protocol.participant"),
    "fedshield.protocol.catch_up",
}
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_name(path): ast.parse(path.read_text()) for path in SOURCE.rglob("*.py")}
MODULES = sorted(TREES)


@functools.cache
def imports_of(module: str) -> frozenset[str]:
    """Every module that `module` names in an import, and the packages that come with each."""
    found: set[str] = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import; write it out"
            assert node.module is not None
            found.add(node.module)
            found |= {
                f"{node.module}.{alias.name}"
                for alias in node.names
                if f"{node.module}.{alias.name}" in TREES
            }
    packages = {
        name.rsplit(".", depth)[0] for name in found for depth in range(name.count(".") + 1)
    }
    return frozenset(packages)


def reached_from(module: str) -> dict[str, str]:
    """Module -> the one that imports it, for everything that `module` leads to."""
    via: dict[str, str] = {}
    todo = [module]
    while todo:
        importer = todo.pop()
        parents = [importer.rsplit(".", depth)[0] for depth in range(1, importer.count(".") + 1)]
        for name in (*parents, *(imports_of(importer) if importer in TREES else ())):
            if name not in via and name != module:
                via[name] = importer
                todo.append(name)
    return via


def chain(via: dict[str, str], name: str) -> str:
    links = [name]
    while links[-1] in via:
        links.append(via[links[-1]])
    return " <- ".join(links)


def floor(module: str) -> int:
    room = module.removeprefix("fedshield").removeprefix(".").split(".")[0]
    if not (SOURCE / room).is_dir() or not room:
        return 0
    assert room in ROOMS, f"{module} has no room; place it in ROOMS"
    return ROOMS.index(room)


def own_imports(module: str) -> set[str]:
    """Modules of ours that this one names in an import itself; a package that is only on the way to
    one of its modules does not count, nor do a module's own packages."""
    found: set[str] = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in TREES}
        elif isinstance(node, ast.ImportFrom) and node.module in TREES:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & TREES.keys()) or {node.module}
    return found - {module}


def within(*packages: str) -> list[str]:
    return [
        module
        for module in MODULES
        if any(module == name or module.startswith(name + ".") for name in packages)
    ]


def calls() -> Iterator[tuple[str, ast.Call]]:
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield module, node


def test_the_sources_are_found() -> None:
    assert {"fedshield", "fedshield.cli", "fedshield.protocol.coordinator"} <= set(MODULES)
    assert "fedshield.crypto.adders" in reached_from("fedshield.protocol.coordinator")


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_from_a_later_room(module: str) -> None:
    own = [name for name in imports_of(module) if name.split(".")[0] == "fedshield"]
    assert [name for name in own if floor(name) > floor(module)] == []


def test_no_imports_run_in_a_circle() -> None:
    """Within a room neither, nor by imports that a function makes."""
    left = {module: own_imports(module) for module in MODULES}
    while free := {
        module
        for module in left
        if not left[module] & left.keys() or not any(module in own for own in left.values())
    }:
        left = {module: left[module] - free for module in left.keys() - free}
    assert {module: sorted(own & left.keys()) for module, own in left.items()} == {}


def test_every_imported_module_of_ours_exists() -> None:
    for module in MODULES:
        own = {name for name in imports_of(module) if name.split(".")[0] == "fedshield"}
        assert own <= set(MODULES), module


@pytest.mark.parametrize("module", within("fedshield.crypto", "fedshield.protocol"))
def test_crypto_and_protocol_know_no_model_and_no_engine(module: str) -> None:
    via = reached_from(module)
    forbidden = [
        chain(via, name)
        for name in via
        if name.split(".")[0] in ("torch", "transformers", "peft", "datasets")
        or name.startswith(("fedshield.run", "fedshield.model", "fedshield.data"))
    ]
    assert forbidden == []


@pytest.mark.parametrize(
    "module",
    within("fedshield.update", "fedshield.model", "fedshield.data", "fedshield.privacy"),
)
def test_rooms_below_the_site_take_what_they_use_and_no_plan(module: str) -> None:
    """Sections and single values: what a function depends on is in its parameters."""
    names = {node.id for node in ast.walk(TREES[module]) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(TREES[module]) if isinstance(node, ast.Attribute)}
    assert "Plan" not in names


def test_crypto_does_no_io() -> None:
    for module in within("fedshield.crypto"):
        assert not imports_of(module) & {"pathlib", "io", "tempfile", "shutil", "subprocess"}
    opens = [module for module, call in calls() if name_of(call.func) == "open"]
    assert not set(opens) & set(within("fedshield.crypto"))


def test_only_the_journal_of_the_protocol_touches_a_disk() -> None:
    disk = {"pathlib", "io", "tempfile", "shutil", "subprocess", "fcntl"}
    found = {name for name in within("fedshield.protocol") if imports_of(name) & disk}
    assert found == {"fedshield.protocol.journal"}
    opens = {module for module, call in calls() if name_of(call.func) in ("open", "os.open")}
    assert opens & set(within("fedshield.protocol")) <= found


def test_neither_coordinator_nor_sites_read_key_files() -> None:
    """Keys are given to them: files are the command line's and `run`'s part."""
    for module in within("fedshield.protocol"):
        via = reached_from(module)
        assert [chain(via, name) for name in via if name.startswith("fedshield.enrolment")] == []


def test_the_coordinator_knows_no_site_and_no_journal() -> None:
    via = reached_from("fedshield.protocol.coordinator")
    of_sites = [f"fedshield.protocol.{part}" for part in ("journal", "participant", "run_keys")]
    of_sites += ["fedshield.protocol.participant_sum", *within("fedshield.site")]
    of_sites += within("fedshield.update")
    assert set(MODULES) >= set(of_sites)
    assert [chain(via, name) for name in of_sites if name in via] == []


def test_the_coordinator_cannot_reach_a_key() -> None:
    """Nothing on any path of imports from the coordinator can hold a secret key."""
    via = reached_from("fedshield.protocol.coordinator")
    assert set(MODULES) >= HOLDS_A_KEY
    assert [chain(via, name) for name in HOLDS_A_KEY & set(via)] == []


def test_the_search_for_keys_would_find_one() -> None:
    """Control: the participant does hold keys, and is seen to."""
    assert set(reached_from("fedshield.protocol.participant")) >= HOLDS_A_KEY - {
        "fedshield.protocol.participant"
    }


@pytest.mark.parametrize(
    "module", [name for name in MODULES if not name.startswith("fedshield.run")]
)
def test_only_run_opens_sockets(module: str) -> None:
    assert {name for name in imports_of(module) if name.split(".")[0] in NETWORK} <= set()


def name_of(node: ast.expr) -> str:
    """A call's function as dotted text, `''` if it is not a plain name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = name_of(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def test_only_the_command_line_prints() -> None:
    prints = {"print", "sys.stdout.write", "sys.stderr.write", "pprint.pprint", "rich.print"}
    found = {module for module, call in calls() if name_of(call.func) in prints}
    printing = set(within("fedshield.cli"))
    assert found <= printing
    consoles = {module for module in MODULES if "rich.console" in imports_of(module)}
    assert consoles <= printing


def test_nothing_is_unpickled_or_evaluated() -> None:
    for module in MODULES:
        names = {name.split(".")[0] for name in imports_of(module)}
        assert not names & PICKLES, module
    evaluating = {"eval", "exec", "compile", "__import__", "importlib.import_module"}
    loading = {"torch.load", "torch.jit.load", "numpy.load", "np.load", "pandas.read_pickle"}
    found = {
        f"{module}:{call.lineno} {name_of(call.func)}"
        for module, call in calls()
        if name_of(call.func) in evaluating | loading
        or any(keyword.arg == "allow_pickle" for keyword in call.keywords)
    }
    assert found == set()
    from_imports = {
        f"{module}: from {node.module} import {alias.name}"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if f"{node.module}.{alias.name}" in evaluating | loading
    }
    assert from_imports == set()


@pytest.mark.parametrize(
    "code",
    [
        "import fedshield",
        "import fedshield.cli",
        "from fedshield.cli.commands import app; app(['--help'], standalone_mode=False)",
        "import fedshield.plan.schema, fedshield.plan.load, fedshield.types",
        "import fedshield.protocol.coordinator, fedshield.protocol.participant",
        "import fedshield.run.flare.objects",  # all that the coordinator's process needs
    ],
    ids=["fedshield", "cli", "--help", "plan", "protocol", "coordinator's process"],
)
def test_importing_loads_nothing_heavy(code: str) -> None:
    """So that `fedshield --help` answers at once. The schemes load TenSEAL when they are used."""
    asked = f"{code}\nimport sys\nprint('loaded:', *sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.splitlines()[-1] == "loaded:"
