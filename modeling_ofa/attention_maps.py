"""Where in its picture a model reads while it writes an answer."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from .data.collator import DataCollatorForOFA
from .modeling_ofa import OFAForConditionalGeneration
from .processing_ofa import OFAProcessor
from .vision_ofa import PATCH_SIZE


@dataclass(frozen=True)
class AttentionMaps:
    """
    Cross-attention of a decoder, as far as it goes to the picture. It shows where an answer was read from, among
    states of the encoder that have seen each other; it does not prove why the answer is what it is.

    Args:
        weights (`torch.FloatTensor` of shape `(layers, heads, tokens, height, width)`):
            For each token of the answer, the weights with which the step that writes it reads the patches of the
            picture, float32 on the CPU. They sum to less than 1: the rest goes to the instruction.
        tokens (`list[str]`): The tokens of the answer, without its end.
    """

    weights: torch.Tensor
    tokens: list[str]

    def mean(self, layer: int | None = None, head: int | None = None, token: int | None = None) -> torch.Tensor:
        """
        Gives one map.

        Args:
            layer, head, token (`int`, *optional*): Which ones, from 0; without them the mean of all.

        Returns:
            `torch.FloatTensor` of shape `(height, width)`.
        """
        maps = self.weights
        for chosen in (layer, head, token):
            maps = maps.mean(dim=0) if chosen is None else maps[chosen]
        return maps


@torch.inference_mode()
def attention_maps(
    model: OFAForConditionalGeneration, processor: OFAProcessor, row: Mapping[str, Any]
) -> AttentionMaps:
    """
    Runs the decoder over an answer that is known, and gives its attention to the picture.

    Args:
        model ([`OFAForConditionalGeneration`]):
            The model, in evaluation mode. It computes with eager attention meanwhile, so no other thread may use it.
        processor ([`OFAProcessor`]): Its processor.
        row (`Mapping[str, Any]`):
            A row of data as [`DataCollatorForOFA`] takes it, with a picture and its answer: `target`, or `boxes` with
            `labels`. The task's picture is a plain one, so that the patches lie on it as on a grid.

    Raises:
        `ValueError`: if the row has no answer or the processor refuses it.
    """
    batch = DataCollatorForOFA(processor)([row])
    if "labels" not in batch or "pixel_values" not in batch:
        raise ValueError("Attention over a picture needs a row with a picture and with an answer to it.")
    labels = batch.pop("labels")[0]
    batch.pop("decoder_prompt_lengths", None)
    places = ((labels >= 0) & (labels != processor.tokenizer.eos_token_id)).nonzero().flatten()
    height, width = (side // PATCH_SIZE for side in batch["pixel_values"].shape[-2:])
    start = -batch["input_ids"].shape[1] - height * width  # a tuned prefix comes first, then patches, then the text
    with _eager_attention(model):
        output = model(**batch.to(model.device, model.dtype), output_attentions=True)
    layers = [layer[0, :, places, start : start + height * width] for layer in output.cross_attentions]
    weights = torch.stack(layers).float().cpu().unflatten(-1, (height, width))
    tokens = processor.tokenizer.convert_ids_to_tokens(labels[places].tolist())
    return AttentionMaps(weights, [processor.tokenizer.convert_tokens_to_string([one]).strip() for one in tokens])


@contextmanager
def _eager_attention(model: OFAForConditionalGeneration) -> Iterator[None]:
    """Lets a model compute attention in the one way that gives its weights."""
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


__all__ = ["AttentionMaps", "attention_maps"]
