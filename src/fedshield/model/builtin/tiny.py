"""`tiny-llama`: a Llama of 0.1 million random weights and a byte tokenizer, for tests and demos.

It is built in memory from a fixed seed: no download, and no file but where other programs are to
load it (`ensure`). It has learnt nothing; it shows that a run works, not that a model is good.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from fedshield.errors import ModelError
from fedshield.notes import one_line
from fedshield.plan.sections import TINY_LLAMA
from fedshield.seeds import derive

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


#: 2 layers, width 64, 4 heads (2 for keys and values), 259 tokens.
CONFIG = {
    "vocab_size": 256 + len(SPECIAL_TOKENS),
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": 256,
    "eos_token_id": 258,
    "pad_token_id": 256,
    "tie_word_embeddings": False,
}


def config() -> Any:
    """Its `LlamaConfig`."""
    from transformers import LlamaConfig

    build: Any = LlamaConfig
    return build(**CONFIG)


def build() -> Any:
    """The model, float32, the same weights every time."""
    import torch
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() != 2:
                continue
            # Philox, not torch's generator: the same weights on every version and platform.
            generator = np.random.Generator(np.random.Philox(derive(0, TINY_LLAMA, name)))
            # Wide embeddings, so that adapters find something to steer.
            spread = 1.0 if "embed" in name else parameter.shape[1] ** -0.5
            values = generator.standard_normal(tuple(parameter.shape)) * spread
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))
    return model


def tokenizer() -> Any:
    """A byte-level tokenizer: one token a byte, and the ChatML marks."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    build: Any = PreTrainedTokenizerFast
    return build(
        tokenizer_object=core,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
    )


def sha256(model: Any) -> str:
    """Digest of the weights, in the order of their names."""
    digest = hashlib.sha256(TINY_LLAMA.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def ensure(cache_dir: Path | None = None) -> Path:
    """The model and its tokenizer as a Hugging Face folder in the cache (`smollm2.models_cache`),
    written at first use, for programs that load a base by its folder. Raises `ModelError` where
    the cache cannot be written."""
    from fedshield.model.builtin import smollm2

    final = smollm2.models_cache(cache_dir) / f"{TINY_LLAMA}-v1"
    if final.is_dir():
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=final.parent, prefix=f".{final.name}.") as folder:
            part = Path(folder) / final.name
            build().save_pretrained(part)
            tokenizer().save_pretrained(part)
            with contextlib.suppress(FileExistsError):  # another process was faster
                part.rename(final)
    except (OSError, SafetensorError) as error:
        if final.is_dir():
            return final
        raise ModelError(
            f"base model {TINY_LLAMA}: expected to write {final}, but {one_line(str(error))}; set "
            f"{smollm2.CACHE_ENV} to another folder"
        ) from None
    return final
