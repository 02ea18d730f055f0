"""What this machine has for a run: memory that may be used, and the speed of its arithmetic."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from pathlib import Path

#: Square matrices of this size are multiplied to find the speed; a GPU needs larger ones.
_SIZE, _CUDA_SIZE, _TRIES = 768, 2048, 5
#: bfloat16 on processors that compute in it, against float32: assumed, numpy has no bfloat16.
BFLOAT16_GAIN = 2.0


@dataclass(frozen=True)
class Memory:
    """Bytes: `total` that this process could ever have, `free` that it can have now, and the
    `limit` that bounds it, in words; `of_addresses`: it bounds addresses and not use."""

    total: int
    free: int
    limit: str
    of_addresses: bool = False


def memory(
    *,
    meminfo: Path = Path("/proc/meminfo"),
    status: Path = Path("/proc/self/status"),
    cgroup: Path = Path("/sys/fs/cgroup"),
    address_space: int | None = None,
) -> Memory | None:
    """The tightest of the machine's memory, the container's limit and the address-space limit
    (`ulimit -v`); None where the system does not say. `address_space`: bytes, by default the
    limit in force."""
    try:
        machine = _sizes(meminfo)
        bounds = [Memory(machine["MemTotal"], machine["MemAvailable"], "the machine's memory")]
    except (OSError, KeyError):
        return None
    for folder, limit_name, used_name in (
        (cgroup, "memory.max", "memory.current"),
        (cgroup / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            limit = int((folder / limit_name).read_text(encoding="ascii"))
            used = int((folder / used_name).read_text(encoding="ascii"))
            # Pages of files are given up when memory is short.
            used -= _file_pages(folder / "memory.stat")
        except (OSError, ValueError):  # 'max', or no such group
            continue
        bounds.append(Memory(limit, max(0, limit - used), "the container's limit"))
    limit = resource.getrlimit(resource.RLIMIT_AS)[0] if address_space is None else address_space
    if limit != resource.RLIM_INFINITY:
        try:
            used = _sizes(status)["VmSize"]
        except (OSError, KeyError):
            used = 0
        bounds.append(Memory(limit, max(0, limit - used), "the limit of ulimit -v", True))
    return min(bounds, key=lambda bound: bound.free)


def device_memory(device: str) -> Memory | None:
    """Of a CUDA device; None for the CPU."""
    if not device.startswith("cuda"):
        return None
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return Memory(total, free, f"the memory of {device}")


def _sizes(path: Path) -> dict[str, int]:
    """Name -> bytes, of a file of the kernel's that counts in kB."""
    sizes = {}
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdecimal():
            sizes[name] = int(words[0]) * 1024
    return sizes


def _file_pages(stat: Path) -> int:
    lines = (line.split() for line in stat.read_text(encoding="ascii").splitlines())
    return sum(int(words[1]) for words in lines if words[0] in ("active_file", "inactive_file"))


def matrix_speed(device: str, precision: str) -> float:
    """Operations a second of a square matrix product here: the best of a few short tries. On the
    CPU numpy's product stands for torch's, which takes seconds to import."""
    if device.startswith("cuda"):
        return _cuda_speed(device, precision)
    import numpy as np

    matrix = np.ones((_SIZE, _SIZE), dtype=np.float32)
    best = float("inf")
    for _ in range(_TRIES):
        start = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - start)
    return 2 * _SIZE**3 / best * (BFLOAT16_GAIN if precision == "bfloat16" else 1.0)


def speed_assumed(device: str, precision: str) -> str:
    """What of `matrix_speed` was not measured, to follow where it is named; '' for nothing."""
    if device.startswith("cuda") or precision != "bfloat16":
        return ""
    return f" in float32, assumed to be {BFLOAT16_GAIN:.0f} times that in bfloat16"


def _cuda_speed(device: str, precision: str) -> float:
    import torch

    matrix = torch.ones(_CUDA_SIZE, _CUDA_SIZE, dtype=getattr(torch, precision), device=device)
    best = float("inf")
    for _ in range(_TRIES):
        start = time.perf_counter()
        float((matrix @ matrix)[0, 0])
        best = min(best, time.perf_counter() - start)
    return 2 * _CUDA_SIZE**3 / best
