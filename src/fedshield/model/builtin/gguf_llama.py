"""From a GGUF file of a Llama-architecture model to Hugging Face's files.

GGUF keeps rotary pairs side by side, Hugging Face keeps halves: q and k are un-permuted. The
tokenizer splits digits one by one before byte-level BPE, as SmolLM2's does.
"""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


def config(meta: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    """`config.json` of transformers' LlamaForCausalLM from GGUF metadata. KeyError or ValueError
    if something is missing or it is another architecture."""
    if meta["general.architecture"] != "llama":
        raise ValueError(f"architecture {meta['general.architecture']}")
    eps, theta = (  # float32 in the file: 9.999999747378752e-06 is 1e-05
        float(str(np.float32(meta[f"llama.{k}"])))
        for k in ("attention.layer_norm_rms_epsilon", "rope.freq_base")
    )
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
        "rms_norm_eps": eps,
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
    }


def write_tokenizer(meta: dict[str, Any], out: Path) -> None:
    """`tokenizer.json` (each digit alone, then byte-level BPE) and `tokenizer_config.json`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kind = (meta["tokenizer.ggml.model"], meta["tokenizer.ggml.pre"])
    if kind != ("gpt2", "smollm"):
        raise ValueError(f"tokenizer {kind}")
    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    merges = [(a, b) for a, b in (m.split(" ") for m in meta["tokenizer.ggml.merges"])]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    types = zip(tokens, meta["tokenizer.ggml.token_type"], strict=True)
    control = [AddedToken(t, normalized=False, special=True) for t, type_ in types if type_ == 3]
    tokenizer.add_special_tokens(control)
    tokenizer.save(str(out / "tokenizer.json"))
    fields = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": meta["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": meta["tokenizer.chat_template"],
    }
    for ours, theirs in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items():
        fields[f"{ours}_token"] = tokens[meta[f"tokenizer.ggml.{theirs}_token_id"]]
    write_json(out / "tokenizer_config.json", fields)


def unpermute(weight: Array, num_heads: int) -> Array:
    """Rows of a query or key projection from llama.cpp's order to Hugging Face's.

    `weight` is (num_heads * head_dim, d_in). Within each head, GGUF row 2j + h is Hugging Face row
    h * head_dim / 2 + j, for h in {0, 1}: rotary pairs side by side become two halves.
    """
    rows, d_in = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, d_in)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, d_in))


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


def write_weights(tensors: list[Any], fields: dict[str, Any], path: Path) -> None:
    """All tensors dequantised, renamed, rounded to bfloat16 (to nearest, ties to even), saved.
    ValueError if a tensor is unknown or missing."""
    import torch
    from gguf.quants import dequantize
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    if not fields["tie_word_embeddings"]:
        names["output"] = "lm_head"
    for i in range(fields["num_hidden_layers"]):
        names |= {f"blk.{i}.{k}": f"model.layers.{i}.{v}" for k, v in _LAYER.items()}
    if odd := {f"{k}.weight" for k in names} ^ {t.name for t in tensors}:
        raise ValueError(f"tensors unknown or missing: {sorted(odd)[:3]}")
    heads = {"attn_q": fields["num_attention_heads"], "attn_k": fields["num_key_value_heads"]}
    weights: dict[str, torch.Tensor] = {}
    for tensor in tensors:
        name = tensor.name.removesuffix(".weight")
        value = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if num_heads := heads.get(name.split(".")[-1]):
            value = unpermute(value, num_heads)
        weights[f"{names[name]}.weight"] = torch.from_numpy(value).to(torch.bfloat16)
    try:
        save_file(weights, path, metadata={"format": "pt"})
    except SafetensorError as e:  # it keeps the system's error number in its text only
        code = re.search(r"os error (\d+)", str(e))
        raise OSError(int(code[1]) if code else errno.EIO, " ".join(str(e).split())) from e


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
