"""Memory, disk and access, in the words of the libraries that run out of them."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from safetensors import SafetensorError

from fedshield import causes
from fedshield.errors import (
    CryptoError,
    ModelError,
    ProtocolError,
    ResourceError,
    RoundFailed,
    UserError,
)

CPU_ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 23040000000 bytes. Error code 12 (Cannot allocate memory)"
)
CUDA = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 78 GiB"


def raised(action: Any) -> Exception:
    with pytest.raises(Exception) as caught:
        action()
    return caught.value


def http_error(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    error = kind.__new__(kind)
    Exception.__init__(error, f"{status} Client Error for url: https://example.org/model")
    error.response = SimpleNamespace(status_code=status)  # type: ignore[assignment]
    return error


MEMORY = {
    "python": MemoryError(),
    "torch on the CPU": RuntimeError(CPU_ALLOCATOR),
    "torch on CUDA": torch.OutOfMemoryError(CUDA),
    "C++": RuntimeError("std::bad_alloc"),
    "the kernel": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "a library that cannot be mapped": ImportError("libx.so: cannot allocate memory in static TLS"),
}
DISK = {
    "full": OSError(errno.ENOSPC, "No space left on device", "adapter.part"),
    "quota": OSError(errno.EDQUOT, "Disk quota exceeded"),
    "file size": OSError(errno.EFBIG, "File too large"),
    "safetensors": SafetensorError("I/O error: No space left on device (os error 28)"),
}


@pytest.mark.parametrize("case", MEMORY)
def test_memory(case: str) -> None:
    cause = causes.cause_of(MEMORY[case])
    assert cause is not None
    assert (cause.code, cause.resumable) == ("memory", False)
    for knob in ("batch_size", "gradient_accumulation", "max_length", "gradient_checkpointing"):
        assert f"training.{knob}" in cause.sentence
    assert "speed.eval_batch_size" in cause.sentence
    assert causes.failure_code(MEMORY[case]) == "memory"


def test_what_was_asked_for_is_said() -> None:
    told = [causes.cause_of(RuntimeError(text)) for text in (CPU_ALLOCATOR, CUDA)]
    assert [cause is not None and cause.sentence.partition(";")[0] for cause in told] == [
        "out of memory (tried to allocate 23040000000 bytes)",
        "out of memory (tried to allocate 2.50 GiB)",
    ]


def test_what_the_libraries_really_raise() -> None:
    """More than an address space holds: refused by the allocators at once."""
    for error in (
        raised(lambda: torch.empty(1 << 55)),
        raised(lambda: np.empty(1 << 55)),
        raised(lambda: bytearray(1 << 60)),
    ):
        assert causes.failure_code(error) == "memory", error


@pytest.mark.parametrize("case", DISK)
def test_a_full_disk(case: str) -> None:
    cause = causes.cause_of(DISK[case])
    assert cause is not None
    assert (cause.code, cause.resumable) == ("disk", True)
    assert "free some space" in cause.sentence


def test_the_full_device_of_the_kernel_itself() -> None:
    def write() -> None:
        with Path("/dev/full").open("wb", buffering=0) as file:
            file.write(b"x")

    assert causes.failure_code(raised(write)) == "disk"


def test_a_file_that_this_user_may_not_use_is_named() -> None:
    error = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "runs/a")
    cause = causes.cause_of(error)
    assert cause is not None
    assert cause.sentence == (
        "runs/a: expected a file that this user may use, got permission denied; change its owner "
        "or mode"
    )


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (http_error(GatedRepoError, 403), "it is gated"),
        (http_error(RepositoryNotFoundError, 401), "private, gated or misspelt; check the name"),
        (http_error(HfHubHTTPError, 403), "HTTP status 403"),
        (RuntimeError("Dataset 'a/b' is a gated dataset on the Hub"), "private or gated"),
    ],
    ids=str,
)
def test_a_missing_token_has_its_cure(error: Exception, words: str) -> None:
    sentence = causes.missing_token(error)
    assert sentence is not None
    assert words in sentence
    assert "HF_TOKEN" in sentence
    assert causes.missing_token(http_error(HfHubHTTPError, 404)) is None
    assert causes.missing_token(OSError("no route to host")) is None


def test_what_led_to_an_error_counts() -> None:
    def wrapped() -> None:
        try:
            raise torch.OutOfMemoryError(CUDA)
        except RuntimeError as error:
            raise ValueError("the batch failed") from error

    def hidden() -> None:
        try:
            raise MemoryError
        except MemoryError:
            raise ValueError("something else") from None

    assert causes.failure_code(raised(wrapped)) == "memory"
    assert causes.failure_code(raised(hidden)) == "internal"


def test_what_is_not_known_is_not_guessed() -> None:
    for error in (ValueError("out of range"), RuntimeError("shapes differ"), KeyError("memory")):
        assert causes.cause_of(error) is None
        assert causes.explained(error) is error
        assert causes.failure_code(error) == "internal"
        assert not causes.can_go_on(error)


def test_codes_of_our_own_errors_stay() -> None:
    assert causes.failure_code(ProtocolError("vote", "x")) == "vote"
    assert causes.failure_code(CryptoError("x", "tag")) == "tag"
    assert causes.failure_code(RoundFailed("the loss became nan")) == "training"


def test_a_run_goes_on_only_where_that_can_help() -> None:
    assert causes.can_go_on(KeyboardInterrupt())
    assert causes.can_go_on(RoundFailed("a site was lost"))
    assert not causes.can_go_on(RoundFailed("the loss became nan", resumable=False))
    assert not causes.can_go_on(ModelError("no such folder"))
    full, large = causes.explained(DISK["full"]), causes.explained(MEMORY["python"])
    assert isinstance(full, ResourceError)
    assert isinstance(large, UserError)
    assert causes.can_go_on(full)
    assert not causes.can_go_on(large)
