"""What 'of the paper's' compares with, wherever FedShield says it.

The reference does not depend on what a plan trains, prunes or encrypts: only on its base model and
on how many updates its sites send. It is counted, not run.
"""

from __future__ import annotations

from typing import Any

from fedshield.crypto.scheme import CKKS

#: The adapter of the paper's own run (FedShield-LLM, arXiv 2506.05640; examples/paper.yaml).
RANK = 32
TARGETS = ("q_proj", "v_proj")
DEFINITION = (
    f"The paper's: what the same sites would upload in as many rounds for the paper's own adapter "
    f"on this base model (LoRA, rank {RANK}, A and B of {' and '.join(TARGETS)}, nothing left "
    "out), as ciphertexts of its CKKS set (N=8192, moduli of 60+40+40+60 bits). It is counted, "
    f"not run: {CKKS['paper'].ciphertext_bytes:,} bytes, a measured mean, for "
    f"{CKKS['paper'].values_per_ciphertext:,} values, without messages around them."
)


def paper_values(model: Any) -> int | None:
    """Trained values of the paper's adapter on `model`: a causal language model, its weights loaded
    or on the meta device, with an adapter on it or without. None where it has not both targets."""
    layers = [
        (name.rpartition(".")[2], int(module.in_features) + int(module.out_features))
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in TARGETS
    ]
    if {name for name, _ in layers} != set(TARGETS):
        return None
    return RANK * sum(size for _, size in layers)


def paper_bytes(num_values: int | None) -> int | None:
    """Bytes of ciphertext of one site in one round, for so many values; None for None."""
    if num_values is None:
        return None
    paper = CKKS["paper"]
    return paper.ciphertext_bytes * -(-num_values // paper.values_per_ciphertext)
