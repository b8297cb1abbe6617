"""Freezing: which weights of a model a training leaves as they are, and methods that train few of them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel


# Parts of a model, and the names of their parameters. What is tied belongs to every part that it is in.
PARTS = {
    "embeddings": r"(^|\.)embed_tokens\.",
    "resnet": r"(^|\.)embed_images\.",
    "batch_norm": r"(^|\.)embed_images\.(.+\.)?(bn\d|downsample\.1)\.",
    "encoder": r"(^|\.)encoder\.",
    "decoder": r"(^|\.)decoder\.",
    "classifier": r"(^|\.)classification_head\.",
    "prefix": r"(^|\.)(en|de)coder_prompt_encoder\.",
    "adapters": r"(^|\.)adapter\.",
    "bias": r"\.bias$",
    # The official `--bitfit` means these alone: no attention, none of NormFormer's norms.
    "official_bias": r"(^|\.)((self_attn_|cross_attn_|final_)?layer_norm|fc1|fc2|c_fc)\.bias$",
}

# What a report tells apart, finest first.
_COUNTED = ("embeddings", "resnet", "prefix", "adapters", "classifier", "encoder", "decoder")

_BUILT_WITH = {
    "adapters": "`adapter_dim=…`",
    "prefix": "`encoder_prompt_length=…` and `decoder_prompt_length=…`",
    "classifier": "`OFAForSequenceClassification`",
}


@dataclass(frozen=True)
class TrainedParameters:
    """
    How much of a model is trained. As text, it says so in one line.

    Args:
        trained (`int`): Numbers that are trained; those of tied weights count once.
        total (`int`): All numbers in the model's parameters.
        parts (`dict[str, int]`):
            Those that are trained, by the part that they are in: `"embeddings"`, `"resnet"`, `"prefix"`, `"adapters"`,
            `"classifier"`, the rest of `"encoder"` and `"decoder"`, and `"other"`. Parts without any are left out.
    """

    trained: int
    total: int
    parts: dict[str, int]

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {count:,}" for part, count in self.parts.items())
        share = 100 * self.trained / max(self.total, 1)
        return f"{self.trained:,} of {self.total:,} parameters are trained ({share:.3g} %): {parts or 'none'}"


def _names_of_parameters(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Each parameter of a model with all its names."""
    named: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        named.setdefault(parameter, []).append(name)
    return named


def _is_in(names: list[str], patterns: list[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns for name in names)


def trained_parameters(model: nn.Module) -> TrainedParameters:
    """Counts what of a model is trained; see [`TrainedParameters`]."""
    named = _names_of_parameters(model)
    parts = dict.fromkeys([*_COUNTED, "other"], 0)
    for parameter, names in named.items():
        if parameter.requires_grad:
            part = next((part for part in _COUNTED if _is_in(names, [PARTS[part]])), "other")
            parts[part] += parameter.numel()
    return TrainedParameters(
        trained=sum(parts.values()),
        total=sum(parameter.numel() for parameter in named),
        parts={part: count for part, count in parts.items() if count},
    )


def freeze(
    model: PreTrainedModel,
    parts: str | Iterable[str] = (),
    *,
    train_only: str | Iterable[str] = (),
    encoder_layers: int = 0,
    decoder_layers: int = 0,
) -> TrainedParameters:
    """
    Freezes parts of a model, before a `Trainer` gets it. Nothing that is frozen is ever thawed.

    Parts, for both arguments:

    - `"embeddings"`: token embeddings of encoder and decoder, and the head, which are one tied weight;
    - `"resnet"`: the image backbone, with the statistics of its batch norms;
    - `"batch_norm"`: the batch norms of the ResNet alone, weights and statistics, as the official `--freeze-resnet`;
    - `"encoder"`, `"decoder"`: the whole stack, with image backbone or not, and with the tied embeddings;
    - `"classifier"`: the head of [`OFAForSequenceClassification`];
    - `"prefix"`: trained prefixes (`config.encoder_prompt_length`, `config.decoder_prompt_length`);
    - `"adapters"`: bottleneck adapters (`config.adapter_dim`);
    - `"bias"`: every bias ([BitFit](https://huggingface.co/papers/2106.10199));
    - `"official_bias"`: those that the official `--bitfit` trains, of the feed-forward networks and of the norms in
      front of each sublayer and at the end of a stack.

    Args:
        model ([`OFAPreTrainedModel`]):
            The model.
        parts (`str` or `Iterable[str]`, *optional*):
            What to freeze. A part that the model lacks is no mistake.
        train_only (`str` or `Iterable[str]`, *optional*):
            What alone to train: all other parts are frozen.
        encoder_layers, decoder_layers (`int`, *optional*, defaults to 0):
            Freeze so many first layers of a stack, each with its tables of relative positions.

    Returns:
        [`TrainedParameters`]: What is trained now.

    Raises:
        `ValueError`: if there is no such part, the model lacks one that alone is to be trained or has fewer layers, or
            nothing is left to train. The model is then as before.

    Example:

    ```python
    >>> print(freeze(model, ["embeddings", "batch_norm"], encoder_layers=2))
    >>> print(freeze(model, train_only="prefix"))  # of a model with prefixes
    ```
    """
    parts = [parts] if isinstance(parts, str) else list(parts)
    kept = [train_only] if isinstance(train_only, str) else list(train_only)
    for part in [*parts, *kept]:
        if part not in PARTS:
            raise ValueError(f"A model has no part {part!r}; the parts are {', '.join(PARTS)}.")
    named = _names_of_parameters(model)
    for part in kept:
        if not any(_is_in(names, [PARTS[part]]) for names in named.values()):
            built = f": build or load it with {_BUILT_WITH[part]}" if part in _BUILT_WITH else ""
            raise ValueError(f"Only {part!r} shall be trained, but the model has no weights there{built}.")
    frozen = [PARTS[part] for part in parts]
    for stack, count in (("encoder", encoder_layers), ("decoder", decoder_layers)):
        depth = getattr(model.config, f"{stack}_layers")
        if not 0 <= count <= depth:
            raise ValueError(f"`{stack}_layers` is {count}, but the {stack} has {depth} layers to freeze.")
        frozen += [rf"(^|\.){stack}\.(layers|\w+_rel_pos_table_list)\.{i}\." for i in range(count)]
    stopped = [
        parameter
        for parameter, names in named.items()
        if _is_in(names, frozen) or (kept and not _is_in(names, [PARTS[part] for part in kept]))
    ]
    if not any(parameter.requires_grad for parameter in named.keys() - set(stopped)):
        asked = [f"freezing {', '.join(parts)}"] * bool(parts) + [f"training {', '.join(kept)} only"] * bool(kept)
        raise ValueError(f"Nothing is left to train after {' and '.join(asked) or 'what was frozen before'}.")
    for parameter in stopped:
        parameter.requires_grad_(False)
    return trained_parameters(model)


__all__ = ["PARTS", "TrainedParameters", "freeze", "trained_parameters"]
