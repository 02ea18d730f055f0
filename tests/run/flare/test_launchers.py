"""The command line of a job's process, in any folder."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobLauncherSpec, JobProcessArgs

from fedshield.run.flare import launchers, provision
from fedshield.run.flare.paths import check_kit_path, check_simulator_path
from fedshield.run.flare.provision import ProvisionError

ODD = "/srv/a b'c\"d$e;f#g%h~i\\jü/flare"


def words(launcher: Any, executable: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What FLARE makes of the command line, by its own rule."""
    monkeypatch.setattr(sys, "executable", executable)
    context = FLContext()
    arguments = {
        JobProcessArgs.EXE_MODULE: ("-m", "module"),
        JobProcessArgs.JOB_ID: ("-n", "job"),
        JobProcessArgs.WORKSPACE: ("-m", ODD),
        JobProcessArgs.STARTUP_DIR: ("-w", f"{ODD}/startup"),
        JobProcessArgs.APP_ROOT: ("-r", f"{ODD}/job/app_server"),
        JobProcessArgs.OPTIONS: ("--set", " secure_train=true uid=north print_conf=True"),
    }
    context.set_prop(FLContextKey.JOB_PROCESS_ARGS, arguments, private=True, sticky=False)
    return shlex.split(launcher().get_command({}, context), True)


@pytest.mark.parametrize("name", ["ClientLauncher", "ServerLauncher"])
def test_a_path_of_any_characters_is_one_word(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    python = "/opt/my tools/#1/python"
    found = words(getattr(launchers, name), python, monkeypatch)
    assert found[:4] == [python, "-P", "-m", "module"]
    assert ODD in found
    assert (f"{ODD}/startup" in found) == (name == "ClientLauncher")
    assert (f"{ODD}/job/app_server" in found) == (name == "ServerLauncher")
    assert found[-4:] == ["--set", "secure_train=true", "uid=north", "print_conf=True"]


@pytest.mark.parametrize("role", ["client", "server"])
def test_a_kit_gets_a_launcher_that_there_is(tmp_path: Path, role: Any) -> None:
    path = tmp_path / "local" / "resources.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"components": [{"id": "process_launcher", "path": "x"}]}))
    provision.use_launcher(tmp_path, role)
    (component,) = json.loads(path.read_text())["components"]
    module, _, name = component["path"].rpartition(".")
    assert module == launchers.__name__
    assert issubclass(getattr(launchers, name), JobLauncherSpec)
    path.write_text("{}")
    with pytest.raises(ProvisionError, match="found none; install the kit again"):
        provision.use_launcher(tmp_path, role)


@pytest.mark.parametrize("name", ["north\nsouth", "a\tb", "bell\a"])
def test_a_control_character_in_a_path_is_named(name: str) -> None:
    with pytest.raises(
        ProvisionError, match="expected a path without control characters"
    ) as caught:
        check_kit_path(Path("/srv") / name)
    assert str(caught.value).isprintable()
    check_kit_path(Path(ODD))


@pytest.mark.parametrize("odd", [" ", "'", '"', "\\", "#"])
def test_the_simulator_names_what_its_command_line_takes_apart(odd: str) -> None:
    with pytest.raises(ProvisionError, match="set TMPDIR") as caught:
        check_simulator_path(f"/tmp/a {odd}b" if odd == "#" else f"/tmp/a{odd}b", "set TMPDIR")
    assert "expected a path without spaces" in str(caught.value)
    check_simulator_path("/tmp/a$b;c%d~ü", "set TMPDIR")
