"""Which kinds of models can be a base: those that write text from left to right."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig, Gemma3Config, LlamaConfig, LlavaConfig

from fedshield.errors import ModelError
from fedshield.model.kinds import check_kind


def refused(config: Any, device: str | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        check_kind(config, "model.name m", device)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("model.name m: expected")
    return message


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "mamba", "gemma3_text", "opt"])
def test_decoders_pass_without_a_word(kind: str) -> None:
    assert check_kind(AutoConfig.for_model(kind), "model.name m", "cpu") == ()


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "electra"])
def test_encoders_are_refused_unless_they_are_decoders(kind: str) -> None:
    message = refused(AutoConfig.for_model(kind))
    assert f"got {kind}, an encoder, which reads the whole text at once" in message
    assert check_kind(AutoConfig.for_model(kind, is_decoder=True), "model.name m") == ()


@pytest.mark.parametrize("kind", ["modernbert", "distilbert", "deberta-v2"])
def test_encoders_without_a_causal_class_are_called_so(kind: str) -> None:
    assert f"got {kind}, an encoder, which reads" in refused(AutoConfig.for_model(kind))


@pytest.mark.parametrize("kind", ["bart", "t5", "whisper", "pegasus"])
def test_sequence_to_sequence_is_refused(kind: str) -> None:
    assert f"got {kind}, an encoder with a decoder" in refused(AutoConfig.for_model(kind))


def test_models_that_see_are_refused() -> None:
    assert "which also takes pixel_values" in refused(Gemma3Config())
    assert "which also takes images; use a model of text alone" in refused(LlavaConfig())


def test_of_a_model_whose_class_is_its_language_part_that_is_named() -> None:
    (note,) = check_kind(AutoConfig.for_model("llama4"), "model.name m")
    assert "takes images, the language part alone is used (Llama4ForCausalLM)" in note


def test_a_head_for_another_task_is_named() -> None:
    config = LlamaConfig(architectures=["LlamaForSequenceClassification"])
    assert "got weights of LlamaForSequenceClassification, which puts texts into" in refused(config)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8"])
def test_quantised_weights_need_cuda(method: str) -> None:
    config = LlamaConfig()
    config.quantization_config = {"quant_method": method, "bits": 4}
    message = refused(config, "cpu")
    assert f"got weights quantised by {method}" in message
    assert "use the model that they were made from" in message
    assert check_kind(config, "model.name m", "cuda:0") == ()
    assert check_kind(config, "model.name m") == ()  # its cost needs no weights


def test_code_of_the_folder_is_named_where_it_is_not_needed() -> None:
    config = LlamaConfig(auto_map={"AutoModelForCausalLM": "own.Own"})
    (note,) = check_kind(config, "model.name m")
    assert "auto_map" in note
    assert "transformers' own llama" in note
