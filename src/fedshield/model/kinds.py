"""Which kinds of models can be a base, read from a config alone: those that write text from left to
right. Everything else is refused in a line that says what the model is."""

from __future__ import annotations

import inspect
from typing import Any

from fedshield.errors import ModelError

#: Inputs of a forward pass that are not text.
_NOT_TEXT = ("pixel_values", "input_features", "input_audio_embeds", "audio_values", "input_values")
#: Endings of class names in a config's `architectures` that say what the weights are for.
_OTHER_HEADS = {
    "ForMaskedLM": "fills gaps in a text that it reads at once",
    "ForSequenceClassification": "puts texts into classes",
    "ForTokenClassification": "puts words into classes",
    "ForQuestionAnswering": "marks answers in a text",
    "ForMultipleChoice": "chooses between texts",
}


def check_kind(config: Any, what: str, device: str | None = None) -> tuple[str, ...]:
    """Notes on a config that can be a base: what of the model is not used. `what` begins the error;
    `device` is None where nothing will be loaded. Raises `ModelError`."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    kind = str(config.model_type)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{what}: expected a model that writes text from left to right, got {kind}, an encoder "
            "with a decoder (sequence to sequence); choose a causal language model"
        )
    # Their classes for causal language modelling exist, and read the whole text at once all the
    # same unless the config says that the model is a decoder.
    encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    decoder = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if encoder and (not decoder or getattr(config, "is_decoder", None) is False):
        raise ModelError(
            f"{what}: expected a model that writes text from left to right, got {kind}, an "
            "encoder, which reads the whole text at once and writes none; choose a causal language "
            "model"
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        shown = type(config).__name__
        sees = _senses(config)
        raise ModelError(
            f"{what}: expected a causal language model, got {shown}"
            + (
                f", which also takes {sees}; use a model of text alone"
                if sees
                else "; choose another model"
            )
        )
    for name in getattr(config, "architectures", None) or ():
        for ending, does in _OTHER_HEADS.items():
            if str(name).endswith(ending):
                raise ModelError(
                    f"{what}: expected a model that writes text, got weights of {name}, which "
                    f"{does}; choose a causal language model"
                )
    if device is not None:
        _check_quantised(config, what, device)
    return (*_language_part(config, what, MODEL_FOR_CAUSAL_LM_MAPPING), *_own_code(config, kind))


def _check_quantised(config: Any, what: str, device: str) -> None:
    quantised = getattr(config, "quantization_config", None)
    if not quantised:
        return
    fields = quantised if isinstance(quantised, dict) else quantised.to_dict()
    method = fields.get("quant_method") or "an unnamed method"
    if not device.startswith("cuda"):
        raise ModelError(
            f"{what}: expected unquantised weights on {device}, got weights quantised by {method} "
            "(quantization_config in config.json); use the model that they were made from, or run "
            "where CUDA is present"
        )


def _senses(config: Any) -> str:
    """What else than text a config speaks of, in words; '' for nothing."""
    parts = [name for name in ("vision", "audio") if getattr(config, f"{name}_config", None)]
    words = {"vision": "images", "audio": "sound"}
    return " and ".join(words[name] for name in parts)


def _language_part(config: Any, what: str, classes: Any) -> tuple[str, ...]:
    """Nothing for a model of text; a note where transformers' class is the language part of one
    that also sees or hears. Raises `ModelError` where it is the whole."""
    model_class = classes[type(config)]
    model_class = model_class[0] if isinstance(model_class, tuple) else model_class
    taken = [
        name for name in _NOT_TEXT if name in inspect.signature(model_class.forward).parameters
    ]
    if taken:
        raise ModelError(
            f"{what}: expected a model of text alone, got {model_class.__name__}, which also takes "
            f"{', '.join(taken)}; give a folder with its language part alone"
        )
    sees = _senses(config)
    if not sees:
        return ()
    return (
        f"of {config.model_type}, which also takes {sees}, the language part alone is used "
        f"({model_class.__name__})",
    )


def _own_code(config: Any, kind: str) -> tuple[str, ...]:
    if not getattr(config, "auto_map", None):
        return ()
    return (
        f"config.json names code of its own (auto_map): it is not run, the model is transformers' "
        f"own {kind}",
    )
