"""What the schemes say of the sizes of sums, against sums that were made."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from fedshield.crypto import plain
from fedshield.crypto import scheme as scheme_module
from fedshield.crypto.adders import adder
from fedshield.crypto.scheme import CKKS
from fedshield.plan.load import parse_plan
from fedshield.protocol import run_keys
from fedshield.site.ciphers import EncryptedUpdate
from fedshield.site.schemes import SessionKeys, scheme_of


@pytest.mark.parametrize("name", ["plain", "lean", "paper"])
def test_a_block_of_a_sum_is_bounded_by_its_own_size(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Two whole blocks and a shorter one, and the weights' few slots: a site never keeps more than
    what a sum can be, whatever was announced."""
    block_bytes = 8000 if name == "plain" else 2 * CKKS[name].ciphertext_bytes + 2000
    monkeypatch.setattr(scheme_module, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(plain, "VALUES_PER_BLOCK", block_bytes // 4)
    scheme = {"name": "plain"} if name == "plain" else {"name": "ckks", "parameters": name}
    sites = {site: {"source": "sample:finance"} for site in ("bank", "clinic")}
    plan = parse_plan({"data": {"sites": sites}, "scheme": scheme}, base_dir=tmp_path)
    cipher = scheme_of(plan).cipher(
        SessionKeys(run_keys.make(scheme_of(plan)).scheme, bytes(32), bytes(32))
    )
    per_block = cipher.scheme.parameters.values_per_block
    adding = adder(
        plan.scheme.name, plan.scheme.parameter_set, getattr(cipher.scheme, "public", b"")
    )
    for layout, count in (
        (cipher.update_layout("", 2 * per_block + per_block // 3), 3),
        (cipher.weights_layout(), 1),
    ):
        assert cipher.num_blocks(layout) == count
        rng = np.random.default_rng(1)
        slots = rng.integers(-(2**20), 2**20, layout.num_slots) * 2.0**-19
        for index, block in enumerate(cipher.scheme.encrypt(slots)):
            summed = adding.result(adding.add(adding.add(None, block), block))
            most = cipher.sum_block_bytes(layout, index)
            if name == "plain":
                assert most == len(summed)
            else:
                assert len(summed) <= most < 1.3 * len(summed) + 200


def test_what_is_encrypted_stays_out_of_repr_and_cannot_be_changed() -> None:
    update = EncryptedUpdate((b"secret",), np.arange(3), (77,), b"seed")
    for told in ("secret'", "array", "77", "seed'"):
        assert told not in repr(update)
    with pytest.raises(dataclasses.FrozenInstanceError):
        update.blocks = ()  # type: ignore[misc]
