"""A base model of 0.35 million weights that has learnt something: for runs of many rounds.

    python benchmarks/tiny_base.py FOLDER

A byte-level Llama (3 layers, width 96), trained from nothing for a few minutes on the built-in
samples, so that a federation has something to adapt. Written as a Hugging Face folder. The same
seed on the same machine gives the same weights; figures of one study come from one folder.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedshield.data import samples
from fedshield.model.builtin import tiny
from fedshield.model.chat import render

SEED, STEPS, BATCH, LENGTH = 1, 1600, 16, 256
RATE, WARM_UP, DECAY = 4e-3, 100, 0.05


def text(tokenizer: Any) -> np.ndarray[Any, Any]:
    """All rows of all samples, shuffled, as one stream of tokens."""
    rows: list[dict[str, str]] = []
    for name in samples.SAMPLES:
        with gzip.open(samples.path(name), "rt", encoding="utf-8") as lines:
            rows += map(json.loads, lines)
    found: list[int] = []
    for at in np.random.default_rng(SEED).permutation(len(rows)):
        row = rows[int(at)]
        messages = [
            {"role": "user", "content": row["instruction"]},
            {"role": "assistant", "content": row["response"]},
        ]
        found += tokenizer(render(tokenizer, messages))["input_ids"]
    return np.array(found, dtype=np.int64)


def build(folder: Path) -> float:
    """Train and write. Returns the mean loss of the last hundred steps, per byte."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(SEED)
    config = tiny.config()
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 96, 256, 3
    config.head_dim = config.hidden_size // config.num_attention_heads
    model, tokenizer = LlamaForCausalLM(config), tiny.tokenizer()
    stream, rng = text(tokenizer), np.random.default_rng(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    losses: list[float] = []
    for step in range(STEPS):
        progress = max(0, step - WARM_UP) / (STEPS - WARM_UP)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * progress))
            group["lr"] /= 2
        starts = rng.integers(0, stream.size - LENGTH, BATCH)
        batch = torch.from_numpy(np.stack([stream[at : at + LENGTH] for at in starts]))
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if step % 200 == 0:
            print(f"step {step}: {losses[-1]:.3f}", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return float(np.mean(losses[-100:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    started, folder = time.perf_counter(), parser.parse_args().folder
    loss = build(folder)
    print(f"{folder}: loss {loss:.4f} per byte, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
