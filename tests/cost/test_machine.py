"""Which of the machine's bounds on memory is the tightest."""

from __future__ import annotations

import resource
from pathlib import Path

from fedshield.cost import machine

KB = 1024
UNLIMITED = resource.RLIM_INFINITY


def files(folder: Path) -> dict[str, Path]:
    """A machine of 2000 kB, half of it available, with a process of 300 kB."""
    (folder / "meminfo").write_text(
        "MemTotal: 2000 kB\nMemFree: 1 kB\nMemAvailable: 1000 kB\nHugePages_Total: 0\n"
    )
    (folder / "status").write_text("Name:\tpython\nVmPeak:\t 900 kB\nVmSize:\t 300 kB\n")
    (folder / "cgroup").mkdir(exist_ok=True)
    return {
        "meminfo": folder / "meminfo",
        "status": folder / "status",
        "cgroup": folder / "cgroup",
    }


def test_without_any_limit_it_is_the_machines_own(tmp_path: Path) -> None:
    given = machine.memory(**files(tmp_path), address_space=UNLIMITED)
    assert given == machine.Memory(2000 * KB, 1000 * KB, "the machine's memory")


def test_a_containers_limit_counts_less_what_it_uses_and_cannot_give_up(tmp_path: Path) -> None:
    paths = files(tmp_path)
    (paths["cgroup"] / "memory.max").write_text("500000\n")
    (paths["cgroup"] / "memory.current").write_text("450000\n")
    (paths["cgroup"] / "memory.stat").write_text(
        "anon 100000\nfile 340000\ninactive_file 300000\nactive_file 40000\n"
    )
    given = machine.memory(**paths, address_space=UNLIMITED)
    assert given == machine.Memory(500_000, 500_000 - 110_000, "the container's limit")
    (paths["cgroup"] / "memory.max").write_text("max\n")
    given = machine.memory(**paths, address_space=UNLIMITED)
    assert given is not None
    assert given.limit == "the machine's memory"


def test_a_limit_of_addresses_counts_what_the_process_has_mapped(tmp_path: Path) -> None:
    given = machine.memory(**files(tmp_path), address_space=700 * KB)
    assert given == machine.Memory(700 * KB, 400 * KB, "the limit of ulimit -v", True)


def test_a_system_that_does_not_say_is_not_guessed(tmp_path: Path) -> None:
    paths = files(tmp_path) | {"meminfo": tmp_path / "none"}
    assert machine.memory(**paths, address_space=UNLIMITED) is None


def test_a_speed_is_measured() -> None:
    assert machine.matrix_speed("cpu", "float32") > 1e8


def test_a_speed_that_is_not_measured_is_said_to_be_assumed() -> None:
    """numpy has no bfloat16."""
    assumed = " in float32, assumed to be 2 times that in bfloat16"
    assert machine.speed_assumed("cpu", "bfloat16") == assumed
    assert machine.BFLOAT16_GAIN == 2
    for device, precision in (("cpu", "float32"), ("cuda:0", "bfloat16")):
        assert machine.speed_assumed(device, precision) == ""
